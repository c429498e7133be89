"""Clients of a policy: three ways with the same answers, and a network that loses neither an action nor the episode."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

import policies
import tiny
from uwm.core.config import ConfigError, to_mapping
from uwm.learn import checkpoint as checkpoints
from uwm.robot import wire
from uwm.robot.client import LocalSession, PolicyClient, PolicyError, PolicyTimeout, SharedMemorySession
from uwm.robot.clock import VirtualClock
from uwm.robot.inference import Job
from uwm.robot.policy import PolicyConfig
from uwm.robot.session import RequestError, Session
from uwm.serve import ServeRun, load, serve, warm_up

POLICY = {"rows": 8, "chunk": 2, "chunks": 3, "past": 2}


def save_checkpoint(folder, seed=0):
    net = tiny.model(seed, history=(1, 2))
    card = {
        "model": to_mapping(net.config), "cameras": list(tiny.CAMERAS), "rate_hz": 10.0, "robot": "point", "data_checksum": "ab" * 16,
        "action": {"names": ["x", "y"], "units": ["m", "m"], "mode": "delta", "low": [-1.0, -1.0], "high": [1.0, 1.0]},
        "data": "/nobody/may/know",
    }  # fmt: skip
    weights = net.state_dict()
    checkpoints.save(folder, checkpoints.Checkpoint(7, {}, card, weights, weights, {}))
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("served") / "model")


def served_by(checkpoint):
    return load(ServeRun(checkpoint, PolicyConfig(**POLICY)))


# ------------------------------------------------------------------------------------------------ one interface, three ways


def test_in_process_shared_memory_and_network_give_the_same_actions_bit_for_bit():
    served = policies.streaming()
    with policies.serving(served) as server, SharedMemorySession(policies.streaming, timeout_s=100) as shared:
        ways = [LocalSession(served), shared, PolicyClient(server.url, timeout_s=100)]
        for step in range(5):
            executed = None if step != 3 else np.full((2, 2), 0.1, np.float32)
            given = [way.act(policies.observation(step, 32), executed, stamp_s=float(step)) for way in ways]
            assert given[0].shape == (2, 2) and all(np.array_equal(given[0], other) for other in given[1:])
            assert [way.answer["calls"] for way in ways] == [ways[0].answer["calls"]] * 3
        for way in ways:
            way.reset(seed=5)
        given = [way.act(policies.observation(9, 32)) for way in ways]
        assert all(np.array_equal(given[0], other) for other in given[1:])
        with pytest.raises(PolicyError, match="no robot state"):
            shared.act({"observation/image": np.zeros((8, 8, 3), np.uint8)})
        ways[2].close()


def test_a_reset_begins_the_episode_anew_and_another_seed_another_one():
    session = LocalSession(policies.streaming())
    first = [session.act(policies.observation(step, 32)) for step in range(3)]
    session.reset()
    again = [session.act(policies.observation(step, 32)) for step in range(3)]
    session.reset(seed=1)
    other = session.act(policies.observation(0, 32))
    assert all(map(np.array_equal, first, again)) and not np.array_equal(other, first[0])


def test_what_was_executed_returns_to_the_buffer_and_without_a_word_the_answer_itself_does():
    told, silent, differently = (LocalSession(policies.streaming()) for _ in range(3))
    sent = told.act(policies.observation(0, 32))
    for other in (silent, differently):
        other.act(policies.observation(0, 32))
    second = told.act(policies.observation(1, 32), executed=sent)
    assert np.array_equal(second, silent.act(policies.observation(1, 32)))
    assert not np.array_equal(second, differently.act(policies.observation(1, 32), executed=sent + 0.5))


def test_a_session_answers_a_number_once_and_a_failure_leaves_it_as_it_was():
    session = Session(policies.counting())
    first = session.answer({**policies.observation(), "sequence": 4})
    again = session.answer({**policies.observation(99), "sequence": 4})
    assert again["repeated"] and not first["repeated"] and again["actions"] is first["actions"]
    assert session.served.policy.calls == 2
    with pytest.raises(RequestError, match="answered before 4"):
        session.answer({**policies.observation(), "sequence": 3})
    with pytest.raises(RequestError):
        session.answer({**policies.observation(), "sequence": 5, "stamp_s": "late"})
    assert session.answer({**policies.observation(), "sequence": 5})["actions"][0, 0] == 1


def test_a_reset_alone_gives_no_actions_and_counts_as_a_request():
    session = Session(policies.counting())
    session.answer(policies.observation())
    assert session.answer({"reset": True, "sequence": 1}) == {"reset": True, "calls": 0, "sequence": 1, "repeated": False}
    assert session.answer(policies.observation())["actions"][0].tolist() == [0, 0, 0]


# --------------------------------------------------------------------------------------------------------- shared memory


def hanging():
    return policies.counting(delay_s=1.0)


def dying():
    served = policies.counting()
    served.policy.act = lambda memory, observation: os._exit(9)
    return served


def test_a_policy_process_that_hangs_is_a_timeout_and_its_late_answer_is_thrown_away():
    with SharedMemorySession(hanging, timeout_s=0.2) as session:
        with pytest.raises(PolicyTimeout, match=r"did not answer within 0\.2 s"):
            session.act(policies.observation(0))
        with pytest.raises(PolicyTimeout, match="still busy"):
            session.act(policies.observation(0))
        session.timeout_s = 60
        assert session.act(policies.observation(7))[0].tolist()[0::2] == [1, 7], "the answer is the one to this observation"


def test_a_policy_process_that_dies_is_told_at_once():
    with SharedMemorySession(dying, timeout_s=100) as session:
        began = time.monotonic()
        with pytest.raises(PolicyError, match="exit code 9"):
            session.act(policies.observation())
        assert time.monotonic() - began < 20
        with pytest.raises(PolicyError, match="died"):
            session.act(policies.observation())
    session.close()


# ---------------------------------------------------------------------------------------------------------- a bad network


def test_a_line_that_stalls_is_a_timeout_in_time_and_the_next_act_goes_on():
    with policies.serving(policies.counting()) as server:
        line = policies.Line(server.port)
        with PolicyClient(f"ws://127.0.0.1:{line.port}", timeout_s=60) as client:
            assert client.act(policies.observation(0))[0, 0] == 0
            line.stall_s, client.timeout_s = 6.0, 0.3
            began = time.monotonic()
            with pytest.raises(PolicyTimeout, match=r"within 0\.3 s"):
                client.act(policies.observation(1))
            assert time.monotonic() - began < 5
            client.timeout_s = 60
            acted = client.act(policies.observation(2), np.zeros((2, 3), np.float32))[0]
            assert acted[0] in (1, 2) and acted[2] == 2, "the answer belongs to this observation, not to the late one"
        line.close()


class Scripted:
    """Connections that fail as told: 'refused', 'lost' after sending, 'silent', 'late' (an answer to another request), or 'fine'."""

    def __init__(self, *script, clock):
        self.script, self.clock, self.attempts, self.session = list(script), clock, [], Session(policies.counting())
        self.about = {"session": "s", "checkpoint": "counting"}

    def __call__(self, url, timeout_s):
        self.attempts.append(round(self.clock.now_s(), 3))
        self.state = self.script.pop(0) if self.script else "fine"
        if self.state == "refused":
            raise ConnectionRefusedError("refused")
        self.replies = [wire.pack(self.about)]
        return self

    def send(self, data):
        self.replies.append(wire.pack({**self.session.answer(wire.unpack(data)), "session": "s", "resumed": True}))
        if self.state == "lost":
            self.replies.clear()
        if self.state == "late":
            self.replies.insert(-1, wire.pack({"actions": np.ones((2, 3), np.float32), "calls": 2, "sequence": 99, "session": "s"}))

    def recv(self, timeout):
        if self.state == "silent" and len(self.replies) == 1 and self.replies[0] != wire.pack(self.about):
            self.clock.sleep_until(self.clock.now_s() + timeout)
            raise TimeoutError
        if not self.replies:
            raise ConnectionResetError("reset")
        return self.replies.pop(0)

    def close(self):
        self.state = "closed"


def test_pauses_between_attempts_double_up_to_a_second_on_a_virtual_clock():
    clock = VirtualClock()
    line = Scripted("lost", *["refused"] * 7, clock=clock)
    client = PolicyClient("ws://robot", clock, timeout_s=10, connect=line)
    assert client.act(policies.observation())[0, 0] == 0
    assert line.attempts == [0, 0.05, 0.15, 0.35, 0.75, 1.55, 2.55, 3.55, 4.55]
    assert client.answer["repeated"] and line.session.served.policy.calls == 2


def test_a_server_that_stays_away_is_a_timeout_and_no_attempt_comes_after_it():
    clock = VirtualClock()
    line = Scripted("fine", *["refused"] * 50, clock=clock)
    client = PolicyClient("ws://robot", clock, timeout_s=3, connect=line)
    client.close()
    with pytest.raises(PolicyTimeout, match="is `uwm serve` running"):
        client.act(policies.observation())
    assert clock.now_s() <= 3 and line.attempts[-1] <= 3


def test_a_server_that_is_silent_is_given_up_after_the_time_allowed():
    clock = VirtualClock()
    client = PolicyClient("ws://robot", clock, timeout_s=2, connect=Scripted("silent", clock=clock))
    with pytest.raises(PolicyTimeout):
        client.act(policies.observation())
    assert clock.now_s() == pytest.approx(2, abs=0.01)


def test_an_answer_to_another_request_is_never_acted_on_and_the_line_is_begun_anew():
    clock = VirtualClock()
    line = Scripted("late", clock=clock)
    client = PolicyClient("ws://robot", clock, connect=line)
    with pytest.raises(PolicyError, match="an answer 99 came to request 0"):
        client.act(policies.observation())
    assert client.act(policies.observation(7))[0].tolist()[0::2] == [1, 7] and client.reconnects == 1


def test_another_policy_after_a_reconnect_is_refused():
    clock = VirtualClock()
    line = Scripted("lost", clock=clock)
    client = PolicyClient("ws://robot", clock, connect=line)
    line.about = {**line.about, "checkpoint": "another"}
    with pytest.raises(PolicyError, match="another policy answers"):
        client.act(policies.observation())


def test_what_is_no_policy_server_is_told():
    class Rubbish(Scripted):
        def recv(self, timeout):
            return b"\xc1"

    with pytest.raises(PolicyError, match="no policy server"):
        PolicyClient("ws://robot", clock := VirtualClock(), connect=Rubbish(clock=clock))


# ----------------------------------------------------------------------------------------------------- a served checkpoint


def seen(step):
    told = policies.observation(step, 32)
    pictures = {"agentview": told["observation/image"], "wrist": told["observation/wrist_image"]}
    return {**pictures, "proprio": np.float32(told["observation/state"])}


def job(step, memory=None, executed=0):
    earlier, executed = (seen(step + 10), {"proprio": np.ones(2, np.float32)} if step else {}), np.zeros((executed, 2), np.float32)
    return Job(step, step, seen(step), np.zeros((2, 2), np.float32), executed, delay=2, memory=memory, seed=3, earlier=earlier)


def test_a_controllers_job_gets_the_planners_own_answer_from_any_server(checkpoint):
    served = served_by(checkpoint)
    here, there, memory = [], [], (None, None)
    for step in range(4):
        # Every job is answered by another server: the memory travels with the job.
        with policies.serving(served_by(checkpoint)) as server, PolicyClient(server.url, timeout_s=100) as client:
            answers = (served.planner(job(step, memory[0], 2 * bool(step))), client.plan(job(step, memory[1], 2 * bool(step))))
            assert client.card == served.policy.card and client.card.history == (1, 2)
        memory = tuple(answer.memory for answer in answers)
        here.append(answers[0].actions)
        there.append(answers[1].actions)
        assert answers[0].calls == answers[1].calls > 0
    assert all(map(np.array_equal, here, there))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"memory": {"future": np.zeros((1, 6, 2), np.float32)}}, "none of this policy's"),
        ({"queue": np.zeros((2, 3), np.float32)}, "'queue' must be"),
        ({"executed": np.full((2, 2), np.nan)}, "'executed' must be"),
        ({"count": 0}, "'count'"),
        ({"observation": {}}, "no robot state"),
        ({"earlier": ({},)}, r"lists what was seen \[1, 2\] ticks ago"),
        ({"earlier": ({}, {"proprio": np.ones(3, np.float32)})}, "'proprio' must be 2 numbers"),
    ],
)
def test_a_job_that_does_not_fit_is_refused_in_words(checkpoint, changes, told):
    with pytest.raises(PolicyError, match=told):
        LocalSession(served_by(checkpoint)).plan(replace(job(0), **changes))


def test_a_served_checkpoint_tells_its_conventions_and_no_paths(checkpoint):
    served = served_by(checkpoint)
    told = json.dumps(served.about)
    assert served.about["action"]["units"] == ["m", "m"] and served.about["rate_hz"] == 10 and "nobody" not in told
    assert served.schema.low == (-1, -1) and warm_up(served)[1] > 0
    session = Session(served)
    session.answer(policies.observation(0, 32))
    assert session.levels() == pytest.approx([0, 3 / 8, 6 / 8]), "8 rows over 3 chunks: 2 calls, then 3 and 3"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"server": {"host": "0.0.0.0"}}, "token_file=token"),
        ({"server": {"prot": 1}}, "did you mean"),
        ({"names": {"observation/top": "top"}}, "leads nowhere"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(checkpoint, config, told):
    with pytest.raises(ConfigError, match=told):
        serve({"checkpoint": checkpoint, "policy": POLICY, **config})


class ServingProcess:
    """`serve` in a process of its own, on a port that the next one gets again."""

    def __init__(self, checkpoint, port):
        config = {"checkpoint": checkpoint, "policy": POLICY, "server": {"port": port}}
        code = f"import sys; from uwm.serve import serve; sys.exit(serve({config!r}))"
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    def wait_until_ready(self):
        assert "first answer" in self.process.stdout.readline()
        told = self.process.stdout.readline()
        assert "ws://127.0.0.1" in told and "this machine only" in told, told


def test_a_server_killed_and_started_again_in_mid_episode_costs_a_pause_and_sigterm_ends_it_with_0(checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    first = ServingProcess(checkpoint, port)
    processes = [first.process]
    try:
        first.wait_until_ready()
        client, local = PolicyClient(f"ws://127.0.0.1:{port}", timeout_s=250), LocalSession(served_by(checkpoint))
        for step in range(3):
            sent = client.act(policies.observation(step, 32))
            assert np.array_equal(sent, local.act(policies.observation(step, 32)))
        memory = client.plan(job(0)).memory
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(10)
        second = ServingProcess(checkpoint, port)
        processes.append(second.process)
        went_on = client.act(policies.observation(3, 32), executed=sent)
        assert client.reconnects == 1 and client.answer["resumed"] is False and client.answer["sequence"] == 4
        fresh = LocalSession(served_by(checkpoint))
        assert np.array_equal(went_on, fresh.act(policies.observation(3, 32), executed=sent)), "it begins from what the robot did"
        assert not np.array_equal(went_on, LocalSession(served_by(checkpoint)).act(policies.observation(3, 32)))
        # A controller's episode was never in the server: the new one continues it as if nothing had been.
        assert np.array_equal(client.plan(job(1, memory, 2)).actions, served_by(checkpoint).planner(job(1, memory, 2)).actions)
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(20) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
