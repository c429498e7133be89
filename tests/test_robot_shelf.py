"""Large arrays pass between processes in memory that both have: equal, without a copy, and gone with its users."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from uwm.robot.clock import MonotonicClock
from uwm.robot.inference import Answer, Job, ProcessWorker
from uwm.robot.shelf import SIZE, SMALL, Place, Shelf


def frames(seed=0, side=64):
    generator = np.random.default_rng(seed)
    pictures = {name: generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for name in ("front", "wrist")}
    return {**pictures, "proprio": generator.normal(size=7).astype(np.float32)}


def test_large_arrays_lie_on_the_shelf_and_small_ones_travel():
    ours = Shelf()
    theirs = Shelf(os.dup(ours.fd))
    put = ours.put(frames())
    assert isinstance(put["front"], Place) and isinstance(put["wrist"], Place) and isinstance(put["proprio"], np.ndarray)
    taken = theirs.taken(put)
    for name, value in frames().items():
        np.testing.assert_array_equal(taken[name], value)
        assert taken[name].dtype == value.dtype
    ours.put(frames(seed=1))
    np.testing.assert_array_equal(taken["front"], frames(seed=1)["front"])  # a view: what is put next takes its place
    ours.close()
    ours.close()
    theirs.close()


def test_what_does_not_fit_travels_as_it_is():
    shelf = Shelf()
    large = {"a": np.zeros(SIZE - SMALL, np.uint8), "b": np.zeros(2 * SMALL, np.uint8), "strided": np.zeros((SMALL, 2))[:, ::2]}
    put = shelf.put(large)
    assert isinstance(put["a"], Place) and put["b"] is large["b"] and put["strided"] is large["strided"]
    shelf.close()


def sums(job):
    """What a policy would do with a job: looks at the frames."""
    assert not job.observation["front"].flags.owndata
    seen = [value for each in (job.observation, *job.earlier) for value in each.values()]
    return Answer(np.array([[float(value.astype(np.float64).sum()) for value in seen]], np.float32))


def make_sums():
    return sums


def answered(worker, observation, index=0, earlier=()):
    give_up = time.monotonic() + 60
    while not worker.idle:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    none = np.zeros((0, 2), np.float32)
    worker.submit(Job(index, index, observation, none, none, earlier=earlier))
    while (result := worker.poll()) is None:
        assert time.monotonic() < give_up
        time.sleep(0.001)
    return result


def test_a_worker_sees_the_frames_of_every_job_and_earlier_ones_also_after_its_process_was_killed():
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    worker = ProcessWorker(make_sums, MonotonicClock())
    try:
        for index in range(3):
            told = frames(seed=index)
            earlier = [frames(seed=10 + index), {}, frames(seed=20 + index)][:index]
            result = answered(worker, told, index, tuple(earlier))
            assert result.error is None, result.error
            found = result.answer.actions[0]
            wanted = [value.astype(np.float64).sum() for each in (told, *earlier) for value in each.values()]
            np.testing.assert_allclose(found, wanted, rtol=1e-6)
        os.kill(worker.process_id, signal.SIGKILL)
        assert answered(worker, frames(), 3).error is not None
        np.testing.assert_allclose(answered(worker, frames(7), 4).answer.actions[0][0], frames(7)["front"].sum(), rtol=1e-6)
    finally:
        worker.close()
    if before:
        assert not [name for name in set(os.listdir("/dev/shm")) - before if "uwm" in name], "no name is left behind"


OWNERS = {
    "worker": "worker = ProcessWorker(test_robot_shelf.make_sums, MonotonicClock())\nwhile not worker.idle: time.sleep(0.01)\n"
              "print(worker.process_id, '', flush=True)",
    "session": "session = SharedMemorySession(policies.counting, timeout_s=100)\n"
               "print(session._process.pid, session._block.name, flush=True)",
}  # fmt: skip


@pytest.mark.parametrize("kind", OWNERS)
def test_a_controller_that_is_killed_leaves_neither_its_policys_process_nor_memory_behind(kind):
    code = "import time, policies, test_robot_shelf\nfrom uwm.robot.client import SharedMemorySession\n"
    code += f"from test_robot_shelf import MonotonicClock, ProcessWorker\n{OWNERS[kind]}\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=os.path.dirname(__file__)) as owner:
        child, *blocks = owner.stdout.readline().split()
        assert alive(child) and set(blocks) <= set(os.listdir("/dev/shm")) and len(blocks) == (kind == "session")
        owner.kill()
    give_up = time.monotonic() + 60
    while alive(child) or set(blocks) & set(os.listdir("/dev/shm")):
        assert time.monotonic() < give_up, "the policy's process outlives its controller"
        time.sleep(0.05)


def alive(pid):
    """Whether a process runs; one that nobody waits for is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
