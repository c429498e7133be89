"""Training figures: lines of JSON always, wandb where it is wanted and there."""

import importlib.util

import pytest

from uwm.learn import logs
from uwm.learn.logs import Log


def write(folder, mode, **options):
    with Log(folder, mode, {"seed": 0}, every=2, **options) as log:
        log.begin("train", 4, 0)
        for step in range(1, 5):
            log.step(step, {"loss": 1.0 / step, "wrist": float("nan")})


def test_lines_are_running_means_of_what_is_finite(tmp_path):
    write(tmp_path, "off")
    write(tmp_path, "off", resume=True)
    lines = logs.read(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 2, 4]
    assert lines[0]["loss"] == pytest.approx(0.95 * 1.0 + 0.05 * 0.5) and "wrist" not in lines[0]
    assert not list(tmp_path.glob("wandb*"))
    write(tmp_path, "off")
    assert len(logs.read(tmp_path)) == 2, "a fresh run starts a fresh log"


def test_wandb_writes_an_offline_run_that_ends_well(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    write(tmp_path, "offline")
    (run,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert run.stat().st_size > 0


def test_without_the_package_the_lines_are_the_whole_log(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    write(tmp_path, "offline")
    assert len(logs.read(tmp_path)) == 2 and not list(tmp_path.glob("wandb*"))


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="logger must be one of"):
        Log(tmp_path, "sometimes", {})
