"""Workers: virtual delays to the tick, threads and real processes that crash and hang while the control loop goes on."""

import os
import signal
import time

import numpy as np
import pytest

from uwm.robot.clock import MonotonicClock, VirtualClock
from uwm.robot.inference import Answer, Job, ProcessWorker, ThreadWorker, VirtualWorker, WorkerDied

PATIENCE_S = 60.0  # a busy machine may need long to start a process


def job(index, number=0.0, **more):
    none = np.zeros((0, 1), np.float32)
    return Job(index, index, {"proprio": np.array([number], np.float32)}, none, none, **more)


def double(given):
    return Answer(2 * given.observation["proprio"][None], {"key": np.array([given.index])}, 3)


def obedient():
    """The computation of a process that does what the number in its observation says: crash, hang, fail, or double it."""

    def compute(given):
        match float(given.observation["proprio"][0]):
            case -1.0:
                os._exit(7)
            case -2.0:
                time.sleep(1000)
            case -3.0:
                raise ValueError("cannot")
        return double(given)

    return compute


def unloadable():
    raise FileNotFoundError("no checkpoint here")


def wait_for(found, what="a result"):
    """Polls like a control loop does; every call must return at once."""
    deadline, longest = time.monotonic() + PATIENCE_S, 0.0
    while time.monotonic() < deadline:
        began = time.monotonic()
        value = found()
        longest = max(longest, time.monotonic() - began)
        if value:
            assert longest < 5.0, "a call of the worker made the loop wait"
            return value
        time.sleep(0.01)
    raise AssertionError(f"no {what} within {PATIENCE_S:g} s")


def test_a_virtual_worker_delivers_after_its_delay_and_not_before():
    clock = VirtualClock()
    worker = VirtualWorker(double, clock, lambda index, generator: 0.1 * index)
    worker.submit(job(0, 4.0))
    assert worker.poll().answer.actions.tolist() == [[8.0]] and worker.idle
    worker.submit(job(3))
    with pytest.raises(RuntimeError, match="busy"):
        worker.submit(job(4))
    for moment, there in ((0.1, False), (0.2, False), (0.1 * 3, True)):
        clock.sleep_until(moment)
        result = worker.poll()
        assert (result is not None) == there
    assert (result.index, result.finished_s) == (3, pytest.approx(0.3)) and worker.poll() is None


def test_delays_of_a_virtual_worker_follow_its_seed():
    def finished(seed):
        worker = VirtualWorker(double, VirtualClock(), lambda index, generator: generator.uniform(), seed)
        worker.submit(job(0))
        worker.clock.sleep_until(1.0)
        return worker.poll().finished_s

    assert finished(1) == finished(1) != finished(2)


def test_an_error_of_the_computation_is_a_result_and_the_worker_goes_on():
    worker = VirtualWorker(obedient(), VirtualClock(), lambda *_: 0.0)
    worker.submit(job(0, -3.0))
    result = worker.poll()
    assert result.answer is None and str(result.error) == "cannot" and worker.idle


def test_a_thread_computes_beside_the_loop_and_one_that_hangs_is_given_up():
    release = []

    def compute(given):
        while given.index == 1 and not release:
            time.sleep(0.005)
        return double(given)

    worker = ThreadWorker(compute, MonotonicClock(), hung_after_s=0.3)
    worker.submit(job(0, 1.5))
    assert wait_for(worker.poll).answer.actions.tolist() == [[3.0]]
    worker.submit(job(1))
    result = wait_for(worker.poll)
    assert result.index == 1 and isinstance(result.error, WorkerDied)
    worker.submit(job(2, 1.0))
    assert wait_for(worker.poll).index == 2, "the result of the one that was given up is not mistaken for this one"
    release.append(True)
    worker.close()


def test_closing_a_thread_waits_for_what_it_computes():
    """The end of an interpreter is an abort where a thread is still inside torch."""
    done = []
    worker = ThreadWorker(lambda given: time.sleep(0.2) or done.append(given) or double(given), MonotonicClock())
    worker.submit(job(0))
    worker.close()
    assert done


def test_a_process_survives_errors_crashes_hangs_and_kills():
    worker = ProcessWorker(obedient, MonotonicClock(), hung_after_s=30.0)
    try:
        wait_for(lambda: worker.idle, "process")
        worker.submit(job(0, 2.0))
        result = wait_for(worker.poll)
        assert result.answer.actions.tolist() == [[4.0]] and result.answer.memory["key"].tolist() == [0] and result.answer.calls == 3
        worker.submit(job(1, -3.0))
        assert str(wait_for(worker.poll).error) == "ValueError: cannot"
        first = worker.process_id
        worker.submit(job(2, -1.0))
        died = wait_for(worker.poll).error
        assert isinstance(died, WorkerDied) and "exit code 7" in str(died) and not worker.idle
        wait_for(lambda: worker.idle, "new process")
        worker.hung_after_s = 0.3
        worker.submit(job(3, -2.0))
        assert "no answer within 0.3 s" in str(wait_for(worker.poll).error)
        worker.hung_after_s = 30.0
        wait_for(lambda: worker.idle, "new process")
        assert worker.process_id != first
        os.kill(worker.process_id, signal.SIGKILL)
        worker.submit(job(4, 1.0))
        assert isinstance(wait_for(worker.poll).error, WorkerDied)
        wait_for(lambda: worker.idle, "new process")
        worker.submit(job(5, 5.0))
        assert wait_for(worker.poll).answer.actions.tolist() == [[10.0]] and worker.failures == 0
    finally:
        last = worker.process_id
        worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def test_a_process_that_cannot_be_made_is_tried_again_and_then_told():
    worker = ProcessWorker(unloadable, MonotonicClock(), patience=2)
    try:
        wait_for(lambda: worker.idle or worker.failure, "end of patience")
        assert not worker.idle and "failed 2 times in a row" in worker.failure and "no checkpoint here" in worker.failure
    finally:
        worker.close()
