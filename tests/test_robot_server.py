"""The policy server: openpi's own client drives it, sessions stay apart, and nothing that arrives brings it down."""

import json
import math
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from openpi_client import msgpack_numpy
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import policies
from uwm.dataset import resized as resized_in_training
from uwm.robot import wire
from uwm.robot.client import LocalSession, PolicyClient, PolicyError
from uwm.robot.clock import VirtualClock
from uwm.robot.server import ServerConfig
from uwm.robot.session import resized

# ------------------------------------------------------------------------------------------------------------------ wire

NUMBERS = st.one_of(
    arrays.integer_dtypes(), arrays.unsigned_integer_dtypes(), arrays.floating_dtypes(sizes=(16, 32, 64)), st.just(np.dtype(bool))
)
ARRAYS = arrays.arrays(NUMBERS, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=40) | st.binary(max_size=300)
VALUES = st.recursive(
    PLAIN | ARRAYS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=8
)


def same(ours, theirs):
    if isinstance(theirs, np.ndarray | np.generic):
        return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return type(ours) is type(theirs) and (ours == theirs or (ours != ours and theirs != theirs))


@settings(max_examples=30)
@given(VALUES)
def test_messages_are_bytes_for_bytes_those_of_openpi_and_come_back(value):
    packed = wire.pack(value)
    assert packed == msgpack_numpy.packb(value)
    limits = wire.Limits(depth=30)
    assert same(wire.unpack(packed, limits), value) and same(wire.unpack(packed, limits), msgpack_numpy.unpackb(packed))


@pytest.mark.parametrize("length", [0, 15, 16, 31, 32, 255, 256, 65535, 65536])
def test_every_length_has_its_own_head_and_all_are_msgpacks(length):
    values = ["a" * length, b"a" * length]
    if length < 100:  # each value is checked one by one here, which takes its time
        values += [[1] * length, {str(i): i for i in range(length)}]
    for value in values:
        assert wire.pack(value) == msgpack.packb(value) and wire.unpack(wire.pack(value)) == value


def test_heads_that_are_longer_than_needed_are_read():
    assert wire.unpack(b"\xdd\x00\x00\x00\x02\x01\x02") == [1, 2]
    assert wire.unpack(b"\xdf\x00\x00\x00\x01\xd9\x01a\xc5\x00\x01b") == {"a": b"b"}


def test_numpy_scalars_and_text_pass_as_with_openpi():
    for value in (np.float32(1.5), np.int8(-3), np.bool_(True), np.float16(0.1), np.uint64(2**64 - 1)):
        ours = wire.unpack(msgpack_numpy.packb({"x": value}))["x"]
        assert wire.pack({"x": value}) == msgpack_numpy.packb({"x": value}) and ours == value and ours.dtype == value.dtype


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_a_message_or_a_wire_error_and_nothing_else(data):
    _read_or_refuse(data)


@settings(max_examples=30)
@given(VALUES, st.data())
def test_messages_with_some_bytes_changed_give_a_message_or_a_wire_error(value, data):
    packed = bytearray(wire.pack({"observation": value, "image": np.arange(6).reshape(2, 3), "scalar": np.float32(1)}))
    for place in data.draw(st.lists(st.integers(0, len(packed) - 1), min_size=1, max_size=4)):
        packed[place] = data.draw(st.integers(0, 255))
    _read_or_refuse(bytes(packed[: data.draw(st.integers(0, len(packed)))]))
    _read_or_refuse(bytes(packed))


def _read_or_refuse(data):
    try:
        wire.unpack(data)
    except wire.WireError as error:
        assert str(error)


def array_map(**changed):
    good = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2]}
    return msgpack.packb({key.encode(): value for key, value in {**good, **changed}.items()})


@pytest.mark.parametrize(
    "data",
    [
        *(array_map(dtype=name) for name in ("|O", "O", "V8", "<c8", "<M8[s]", "f4,f4", "<f16", "U1", "i4", "<f3", "", "os.system", 4)),
        *(array_map(shape=shape) for shape in ([3], [1], [-2], [2, -1], [2.0], [True, 2], "2", None, [1] * 9 + [2], [2**62, 2**62])),
        array_map(shape=[0, 2**62, 2**62], data=b""),
        array_map(data="text"), array_map(data=[0] * 8), array_map(__ndarray__=1), array_map(more=1),
        msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
        msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}),
        msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "|O"}),
        msgpack.packb(msgpack.ExtType(1, b"x")), msgpack.packb(msgpack.Timestamp(1)),
        b"", b"\xc1", b"\x81", b"\xc4", b"\xa5abc", b"\xa1\xff", b"\x01\x02", b"\x82\xa1a\x01\xa1a\x02", b"\x81\x01\x02", b"\x81\x90\x02",
        b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
        b"\x91" * 5000, b"\x81\xa1a" * 5000,
    ],
)  # fmt: skip
def test_what_no_message_may_hold_is_refused(data):
    with pytest.raises(wire.WireError):
        wire.unpack(data)


def test_a_message_is_refused_before_it_takes_more_than_is_allowed():
    for data, limits in ((b"\xdc\x00\xc8" + b"\x80" * 200, wire.Limits(count=100)), (wire.pack(bytes(200)), wire.Limits(size=100))):
        with pytest.raises(wire.WireError, match="at most 100"):
            wire.unpack(data, limits)


def test_arrays_of_objects_and_a_list_that_holds_itself_cannot_be_sent():
    endless = []
    endless.append(endless)
    for value in (np.array([None]), np.zeros(2, "c8"), np.zeros(2, "f4,f4"), {1, 2}, object(), 2**64, endless, print):
        with pytest.raises(wire.WireError):
            wire.pack({"x": value})


def test_arrays_are_read_only_views_of_what_arrived():
    found = wire.unpack(wire.pack({"x": np.arange(4)}))["x"]
    assert not found.flags.writeable and not found.flags.owndata


# ------------------------------------------------------------------------------------------------------- openpi's client


@pytest.fixture(scope="module")
def drives():
    script = Path(__file__).with_name("long_drives.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_openpis_own_client_takes_a_thousand_steps_through_random_disconnects(drives):
    drive = drives["openpis_client"]
    assert len(drive["given"]) == 1000 and drive["given"] == drive["wanted"]
    assert drive["losses"] > 10 and drive["sessions"] <= drive["most"]


def test_our_client_loses_and_repeats_nothing_in_a_thousand_steps_while_its_line_is_cut_again_and_again(drives):
    drive = drives["our_client"]
    assert len(drive["given"]) == 1000 and drive["given"] == drive["wanted"]
    assert drive["reconnects"] > 20 and drive["lost"] > 10
    assert drive["repeats"] == drive["lost"], "each swallowed answer was asked for again, and none was made twice"
    assert drive["calls"] == 2000


def test_a_hundred_clients_at_once_are_all_answered_in_their_own_order(drives):
    drive = drives["hundred_clients"]
    assert drive["given"] == drive["wanted"] and drive["requests"] == 500 and drive["calls"] == 1000


def test_openpis_chunk_broker_and_metadata_and_prompt_work():
    with policies.serving(policies.counting()) as server:
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        assert client.get_server_metadata()["action_size"] == 3
        broker = ActionChunkBroker(client, action_horizon=2)
        given = [broker.infer({**policies.observation(), "prompt": "lift the cube"})["actions"][0] for _ in range(6)]
        assert given == [0, 0, 1, 1, 2, 2]


def test_openpis_client_gets_an_error_as_text_and_the_connection_closes_with_1011():
    with policies.serving(policies.counting()) as server:
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        with pytest.raises(RuntimeError, match="no robot state"):
            client.infer({"observation/image": np.zeros((8, 8, 3), np.uint8)})
        with pytest.raises(ConnectionClosed) as closed:
            client.infer(policies.observation())
        assert closed.value.rcvd.code == 1011


# -------------------------------------------------------------------------------------------------------------- sessions


def test_two_clients_in_turn_get_exactly_what_each_gets_alone():
    served, alone = policies.streaming(), {}
    for first in (0, 100):
        session = LocalSession(policies.streaming())
        alone[first] = [session.act(policies.observation(first + step, 32)) for step in range(8)]
    with policies.serving(served) as server:
        clients = {first: WebsocketClientPolicy("127.0.0.1", server.port) for first in (0, 100)}
        for step in range(8):
            for first, client in clients.items():
                got = client.infer(policies.observation(first + step, 32))["actions"]
                assert np.array_equal(got, alone[first][step])
    assert not np.array_equal(alone[0], alone[100])


def test_no_more_sessions_than_allowed_and_the_longest_unused_makes_room():
    with policies.serving(policies.counting(), sessions=2) as server:
        first, second = (PolicyClient(server.url, timeout_s=60) for _ in range(2))
        first.act(policies.observation())
        with pytest.raises(InvalidStatus, match="503"):
            WebsocketClientPolicy("127.0.0.1", server.port)
        first.close()
        _until(lambda: server.gauges()["connections"] == 1)
        assert len(server.seats) == 2, "a session waits for its client to come back"
        third = WebsocketClientPolicy("127.0.0.1", server.port)
        assert third.infer(policies.observation())["actions"][0, 0] == 0
        assert len(server.seats) == 2
        second.close()


def test_a_session_that_nobody_asks_is_dropped_and_told():
    clock = VirtualClock()
    with policies.serving(policies.counting(), clock, idle_s=0.2) as server:
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        client.infer(policies.observation())
        clock.sleep_until(0.1)
        client.infer(policies.observation())
        clock.sleep_until(0.31)
        _until(lambda: not server.seats)
        with pytest.raises(ConnectionClosed, match=r"no request for 0\.2 s"):
            client.infer(policies.observation())
        assert server.metrics.counts["sessions_expired"] == 1


def test_a_client_that_asks_too_fast_is_slowed_down_and_loses_nothing():
    # On a clock that stands still every request comes at once: two may at 10 per second, the third and later ones wait.
    with (
        policies.serving(policies.counting(), VirtualClock(100.0), requests_hz=10) as server,
        PolicyClient(server.url, timeout_s=60) as client,
    ):
        began = time.monotonic()
        assert [client.act(policies.observation())[0, 0] for _ in range(5)] == [0, 1, 2, 3, 4]
        assert time.monotonic() - began >= 0.05 + 0.15 + 0.25 - 0.02 and server.metrics.counts["throttled"] == 3


def _until(condition, limit_s=60.0):
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "it does not come to pass"
        time.sleep(0.01)


# ------------------------------------------------------------------------------------------------ bad input, bad policies


def good():
    return policies.observation()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"observation/state": None}, "no robot state"),
        ({"observation/state": np.zeros(3)}, r"must be 2 numbers, got float64 \(3,\)"),
        ({"observation/state": "00"}, "must be 2 numbers"),
        ({"observation/state": np.array([0, np.nan])}, r"nan at \[1\]"),
        ({"observation/image": np.zeros((8, 8, 3), np.float32)}, "0 to 255"),
        ({"observation/image": np.zeros((3, 8, 8), np.uint8)}, "transpose"),
        ({"observation/image": np.zeros((1, 8, 8, 3), np.uint8)}, "no batch axis"),
        ({"observation/image": np.zeros((0, 8, 3), np.uint8)}, "4096"),
        ({"observation/image": [1, 2]}, "numpy array"),
        ({"observation/image": None, "observation/wrist_image": None}, "no picture"),
        ({"agentview": np.zeros((8, 8, 3), np.uint8)}, "twice"),
        ({"observation/imag": np.zeros((8, 8, 3), np.uint8)}, "did you mean 'observation/image'"),
        ({"executed": np.zeros((3, 3))}, "array of 2 actions of 3"),
        ({"executed": np.full((2, 3), np.inf)}, "finite"),
        ({"sequence": -1}, "whole number"),
        ({"sequence": "1"}, "whole number"),
        ({"session": 3}, "'session'"),
        ({"reset": 7}, "true or false"),
        ({"stamp_s": "now"}, "seconds"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused_before_the_model_in_words(shared_server, changes, told):
    request = {key: value for key, value in {**good(), **changes}.items() if value is not None}
    before = shared_server.served.policy.calls
    client = WebsocketClientPolicy("127.0.0.1", shared_server.port)
    with pytest.raises(RuntimeError, match=told):
        client.infer(request)
    assert shared_server.served.policy.calls == before


@pytest.fixture(scope="module")
def shared_server():
    with policies.serving(policies.counting(), message_bytes=100_000) as server:
        yield server


@settings(max_examples=20)
@given(
    st.binary(max_size=300) | st.text(max_size=50) | VALUES.map(wire.pack) | st.dictionaries(st.text(max_size=20), VALUES).map(wire.pack)
)
def test_frames_of_rubbish_are_told_and_the_server_lives_on(shared_server, frame):
    with connect(f"ws://127.0.0.1:{shared_server.port}", compression=None) as connection:
        connection.recv()
        connection.send(frame)
        assert isinstance(connection.recv(60), str)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(60)
    assert closed.value.rcvd.code == 1011
    _lives(shared_server)


def test_a_frame_that_is_too_large_closes_its_connection_only(shared_server):
    client = WebsocketClientPolicy("127.0.0.1", shared_server.port)
    with pytest.raises(ConnectionClosed) as closed:
        client.infer({"observation/image": np.zeros((400, 400, 3), np.uint8)})
    assert closed.value.rcvd.code == 1009
    _lives(shared_server)


@pytest.mark.parametrize(
    "data",
    [b"\0" * 1000, b"GET / HTTP/1.1\r\n\r\n", b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b"G" * 70_000, b"",
     b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"],
)  # fmt: skip
def test_bytes_that_are_no_http_leave_the_server_alive(shared_server, data):
    with socket.create_connection(("127.0.0.1", shared_server.port)) as raw:
        raw.sendall(data)
    _lives(shared_server)


def test_a_handshake_that_ends_in_rubbish_frames_leaves_the_server_alive(shared_server):
    chance = random.Random(0)
    for _ in range(20):
        connection = connect(f"ws://127.0.0.1:{shared_server.port}", compression=None)
        connection.recv()
        connection.socket.sendall(chance.randbytes(chance.randrange(1, 400)))
        connection.socket.close()
    _lives(shared_server)


def test_a_web_page_cannot_reach_the_policy_through_somebodys_browser(shared_server):
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{shared_server.port}", origin="http://evil.example")


def _lives(server):
    assert get(server, "/healthz")[:2] == (200, "OK\n")


def test_a_policy_that_fails_is_told_and_the_others_and_the_session_go_on():
    with policies.serving(policies.counting(fails_at=2)) as server, PolicyClient(server.url, timeout_s=60) as client:
        assert [client.act(policies.observation())[0, 0] for _ in range(2)] == [0, 1]
        server.served.policy.entered = 0
        with pytest.raises(PolicyError, match="KeyError: 'the network is broken'"):
            client.act(policies.observation())
        server.served.policy.fails_at = None
        assert client.act(policies.observation())[0, 0] == 2, "the session is as it was before the failure"
        assert server.metrics.errors == {"policy": 1}


def test_actions_stay_inside_the_limits_of_the_training_data():
    served = policies.counting()
    limited = policies.Served(served.policy, replace(served.schema, low=(-1.0,) * 3, high=(1.0, 1.0, 0.25)))
    session = LocalSession(limited)
    assert [session.act(policies.observation(3))[0].tolist() for _ in range(3)] == [[0, 0, 0.25], [1, 0, 0.25], [1, 1, 0.25]]


@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (30, 40), (5, 7), (224, 224)])
def test_pictures_are_made_smaller_as_in_training(shape):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    assert np.array_equal(resized(image, 8), resized_in_training(torch.from_numpy(image), 8).numpy())


def test_a_camera_that_is_missing_or_named_as_ours_is_taken():
    served = policies.streaming()
    theirs, ours = policies.observation(1, 32), policies.observation(1, 32)
    renamed = {"agentview": ours["observation/image"], "wrist": ours["observation/wrist_image"], "proprio": ours["observation/state"]}
    assert np.array_equal(LocalSession(served).act(theirs), LocalSession(served).act(renamed))
    del renamed["wrist"]
    assert np.isfinite(LocalSession(served).act(renamed)).all()


# ------------------------------------------------------------------------------------------------------- what is told


def get(server, path, **headers):
    scheme = "https" if server.config.certificate else "http"
    request = urllib.request.Request(f"{scheme}://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["Content-Type"]


def test_health_metrics_and_status_tell_the_same_numbers():
    with policies.serving(policies.counting()) as server, PolicyClient(server.url, timeout_s=60) as client:
        for step in range(3):
            client.act(policies.observation(step))
        with pytest.raises(RuntimeError):
            WebsocketClientPolicy("127.0.0.1", server.port).infer({"x": 1})
        _until(lambda: server.gauges()["connections"] == 1)
        assert get(server, "/healthz")[:2] == (200, "OK\n")
        status, text, kind = get(server, "/metrics")
        assert status == 200 and kind.startswith("text/plain; version=0.0.4")
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        wanted = {
            "uwm_requests_total": "3",
            "uwm_calls_total": "6",
            "uwm_actions_total": "6",
            "uwm_sessions": "1",
            "uwm_queue": "0",
            'uwm_errors_total{kind="request"}': "1",
            "uwm_request_seconds_count": "3",
            'uwm_request_seconds_bucket{le="+Inf"}': "3",
        }
        assert {name: samples[name] for name in wanted} == wanted
        buckets = [int(value) for name, value in samples.items() if "_bucket" in name]
        assert buckets == sorted(buckets) and 0 < float(samples["uwm_request_seconds_sum"]) < 10
        told = json.loads(get(server, "/status.json")[1])
        assert told["counts"]["requests"] == 3 and told["calls_per_action"] == 1 and told["errors"] == {"request": 1}
        (session,) = told["sessions"]
        assert session["levels"] == [0, 0.25, 1] and set(session["cameras"]) == {"agentview", "wrist"} and session["requests"] == 3
        assert next(iter(server.seats)) not in json.dumps(told), "a session's name is a secret"
        assert get(server, "/nothing")[0] == 404 and get(server, "/")[2].startswith("text/html")


def test_an_answer_echoes_number_and_stamp_and_a_late_one_is_marked():
    with policies.serving(policies.counting(delay_s=0.05), deadline_s=60) as server, PolicyClient(server.url, timeout_s=60) as client:
        client.act(policies.observation(), stamp_s=12.5)
        assert (client.answer["sequence"], client.answer["stamp_s"], client.answer["stale"]) == (0, 12.5, False)
        assert client.answer["calls"] == 2 and client.answer["server_timing"]["infer_ms"] >= 50
        late = WebsocketClientPolicy("127.0.0.1", server.port).infer({**policies.observation(), "deadline_s": 0.01})
        assert late["stale"] and server.metrics.counts["stale"] == 1


# ----------------------------------------------------------------------------------------------------- who may connect


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"host": "0.0.0.0"}, "a token and TLS"),
        ({"host": "::"}, "a token and TLS"),
        ({"host": "robot.example", "token": "x" * 16}, "needs TLS"),
        ({"host": "192.168.1.5", "certificate": "c", "key": "k"}, "needs a token"),
        ({"token": "short"}, "at least 16"),
        ({"certificate": "c"}, "both"),
        ({"sessions": 0}, "positive"),
        ({"requests_hz": math.nan}, "positive"),
    ],
)
def test_beyond_this_machine_a_token_and_tls_are_required(config, told):
    with pytest.raises(ValueError, match=told):
        ServerConfig(**config)


def test_a_token_never_shows_in_a_printed_config():
    assert "secret" not in repr(ServerConfig(token="secret-secret-secret"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
               "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
               "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem")}


def test_without_the_token_nothing_but_health_and_the_empty_page_is_told():
    token = "a-token-of-many-letters"
    with policies.serving(policies.counting(), token=token) as server:
        assert [get(server, path)[0] for path in ("/healthz", "/", "/metrics", "/status.json")] == [200, 200, 401, 401]
        for shown in (f"Api-Key {token}", f"Bearer {token}"):
            assert get(server, "/metrics", Authorization=shown)[0] == 200
        for shown in (f"Basic {token}", f"Api-Key {token}x", "Api-Key", "Api-Key \xff", token):
            assert get(server, "/metrics", Authorization=shown)[0] == 401
        with pytest.raises(InvalidStatus, match="401"):
            WebsocketClientPolicy("127.0.0.1", server.port)
        with pytest.raises(PolicyError, match=r"401.*token"):
            PolicyClient(server.url, token="wrong", timeout_s=60)
        assert WebsocketClientPolicy("127.0.0.1", server.port, api_key=token).infer(policies.observation())["actions"][0, 0] == 0


def test_over_tls_our_client_trusts_the_given_certificate_and_no_other(certificate):
    token = "a-token-of-many-letters"
    with policies.serving(policies.counting(), token=token, **certificate) as server:
        assert server.url.startswith("wss://")
        with PolicyClient(server.url, token=token, timeout_s=60, certificate=certificate["certificate"]) as client:
            assert client.act(policies.observation())[0, 0] == 0
        with pytest.raises(PolicyError, match="not trusted"):
            PolicyClient(server.url, token=token, timeout_s=60)
        with pytest.raises(PolicyError, match="within"):
            PolicyClient(server.url.replace("wss", "ws"), token=token, timeout_s=0.3)


# --------------------------------------------------------------------------------------------------------------- draining


def test_draining_answers_what_runs_takes_nobody_new_and_ends_with_0():
    with policies.serving(policies.counting(delay_s=0.5)) as server, ThreadPoolExecutor() as pool:
        busy, idle = (WebsocketClientPolicy("127.0.0.1", server.port) for _ in range(2))
        answer = pool.submit(busy.infer, policies.observation())
        _until(lambda: server.served.policy.entered)
        server.stop()
        with pytest.raises(ConnectionClosed, match="going away"):
            idle._ws.recv(30)
        with pytest.raises((InvalidStatus, OSError)):
            WebsocketClientPolicy("127.0.0.1", server.port)
        assert answer.result(30)["actions"][0, 0] == 0
    assert server.code == 0


def test_a_model_that_hangs_keeps_the_server_no_longer_than_the_time_to_drain():
    with policies.serving(policies.counting(delay_s=60), drain_s=0.2) as server, ThreadPoolExecutor() as pool:
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        answer = pool.submit(client.infer, policies.observation())
        _until(lambda: server.served.policy.entered)
        began = time.monotonic()
        server.stop()
        with pytest.raises(ConnectionClosed):
            answer.result(30)
        assert time.monotonic() - began < 30
    assert server.code == 1
