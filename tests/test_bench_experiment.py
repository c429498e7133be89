"""Experiments: arms see the same seeds, a stopped one goes on, and three seeds give an interval."""

import os
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from uwm.bench import experiment
from uwm.bench.gates import FAILS, HOLDS, NOT_JUDGED, NOT_REPRODUCED, Gate, overall


def test_every_arm_is_run_for_every_seed_and_read_back_from_its_file(tmp_path, monkeypatch):
    calls = []

    def arm(name):
        return lambda seed: calls.append((name, seed)) or {"error": seed + 0.5}

    arms = {"ours": arm("ours"), "a baseline": arm("a baseline")}
    found = experiment.run_arms("x", arms, (0, 1, 2), {"steps": 3}, tmp_path)
    assert [each["error"] for each in found["ours"]] == [0.5, 1.5, 2.5] and len(calls) == 6
    again = experiment.run_arms("x", arms, (0, 1, 2), {"steps": 3}, tmp_path)
    assert again == found and len(calls) == 6
    experiment.run_arms("x", arms, (0,), {"steps": 4}, tmp_path)
    assert len(calls) == 8, "other settings are measured anew"
    monkeypatch.setattr(experiment.inspect, "getsource", lambda module: "another text")
    experiment.run_arms("x", arms, (0,), {"steps": 4}, tmp_path)
    assert len(calls) == 10, "and so is what a changed bench would measure"


def measured_elsewhere(offset, seed):
    return {"error": seed + offset, "process": os.getpid(), "threads": torch.get_num_threads()}


def test_workers_find_the_same_in_processes_of_one_thread(tmp_path):
    arms = {"ours": partial(measured_elsewhere, 0.5), "a baseline": partial(measured_elsewhere, 1.5)}
    found = experiment.run_arms("x", arms, (0, 1, 2), {}, tmp_path, workers=2)
    errors = {arm: [each["error"] for each in runs] for arm, runs in found.items()}
    assert errors == {"ours": [0.5, 1.5, 2.5], "a baseline": [1.5, 2.5, 3.5]}
    everyone = [each for runs in found.values() for each in runs]
    assert {each["threads"] for each in everyone} == {1} and os.getpid() not in {each["process"] for each in everyone}
    assert experiment.run_arms("x", arms, (0, 1, 2), {}, tmp_path) == found, "what the workers kept is read back"


def test_a_run_that_fails_leaves_nothing_behind_and_the_rest_is_kept(tmp_path):
    def fails(seed):
        if seed == 1:
            raise RuntimeError("power cut")
        return {"error": 1.0}

    with pytest.raises(RuntimeError, match="power cut"):
        experiment.run_arms("x", {"ours": fails}, (0, 1), {}, tmp_path)
    assert len(list((tmp_path / "x").iterdir())) == 1


WORKERS = """
import sys, time
from uwm.bench import experiment
from uwm.robot import collect

def work():
    print("at work", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    ways = {"bench": lambda: experiment.side_by_side({0: work, 1: work}, 2), "collection": lambda: collect.collect(work, [0, 1], 2)}
    list(ways[sys.argv[1]]())
"""


@pytest.mark.parametrize("way", ["bench", "collection"])
def test_workers_of_a_process_that_is_killed_end_too(tmp_path, way):
    script = tmp_path / "killed.py"
    script.write_text(WORKERS)
    parent = subprocess.Popen([sys.executable, script, way], stdout=subprocess.PIPE, text=True)
    assert [parent.stdout.readline() for _ in range(2)] == ["at work\n"] * 2
    parent.kill()
    assert parent.communicate(timeout=30)[0] == "", "the pipe is at its end when the last worker is gone"


def test_what_waits_is_not_begun_after_an_error(tmp_path):
    begun = partial(noted_and_failing, tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        list(experiment.side_by_side({place: partial(begun, place) for place in range(40)}, 2))
    assert len(list(tmp_path.iterdir())) < 20, "a pool takes some jobs ahead of time, and no more"


def noted_and_failing(folder, place):
    (folder / str(place)).touch()
    if place == 0:
        raise RuntimeError("power cut")
    time.sleep(0.2)


def test_three_seeds_give_a_mean_with_students_interval_and_two_are_too_few():
    gate = experiment.gate("error", [1.0, 2.0, 3.0], "<=", 2.5, True)
    assert gate.value == 2.0 and gate.verdict == HOLDS
    assert gate.interval == pytest.approx((2 - 4.30 / 3**0.5, 2 + 4.30 / 3**0.5))
    assert experiment.gate("error", [1.0, 2.0], "<=", 2.5, True).verdict == NOT_JUDGED


def test_a_papers_claim_that_does_not_show_is_told_apart_from_a_promise_that_is_broken():
    assert Gate("x", 2.0, "<=", 1.0, paper=True).verdict == NOT_REPRODUCED and Gate("x", 2.0, "<=", 1.0).verdict == FAILS
    assert overall([HOLDS, NOT_REPRODUCED]) == NOT_REPRODUCED and overall([FAILS, NOT_REPRODUCED]) == FAILS
    assert overall([NOT_REPRODUCED, NOT_JUDGED]) == NOT_REPRODUCED


def test_a_summary_has_means_of_numbers_and_keeps_the_rest():
    told = experiment.summary({"ours": [{"error": 1.0, "text": "a"}, {"error": 3.0, "text": "b"}]})
    assert told[experiment.MEANS]["ours"] == {"error": (2.0, pytest.approx(1.0))}
    assert told["by seed"]["ours"][1]["text"] == "b"
