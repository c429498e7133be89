"""How the environments of other projects' loaders are made, with uv played by the test. Judging itself: python3 run.py judges."""

import ast
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from judges import environments

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "tests" / "judges"
PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run.py as a module in an empty repository, whose `call` makes what uv would make and notes what it was told."""
    spec = importlib.util.spec_from_file_location("run_for_judges", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run_for_judges", module)
    spec.loader.exec_module(module)
    for name, path in {"ROOT": "", "TOOLS": ".tools", "VENV": ".venv", "LOCK": "requirements.lock"}.items():
        monkeypatch.setattr(module, name, tmp_path / path)
    module.TOOLS.mkdir()
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text(name)
    module.said = []

    def call(command, **_):
        words = [str(word) for word in command]
        module.said.append(" ".join(words))
        if "venv" in words:
            shutil.rmtree(words[-1], ignore_errors=True)
            libraries = Path(words[-1]) / "lib" / "python3.11" / "site-packages" / "av.libs"
            libraries.mkdir(parents=True)
            (libraries / "libavcodec-7ee0753d.so.61.19.101").write_text("")
            (libraries / "libx264-b1bb65f5.so.165").write_text("")
            (Path(words[-1]) / "bin").mkdir()
            (Path(words[-1]) / "bin" / "python").symlink_to(sys.executable)
        return []

    monkeypatch.setattr(module, "call", call)
    monkeypatch.setattr(module, "read_pip_settings", dict)
    monkeypatch.setattr(module, "get_uv", lambda log: Path("uv"))
    return module


# --------------------------------------------------------------------------------------------------- what is written down


def test_every_judge_has_exact_pins():
    assert {"lerobot-0.4.4", "lerobot-0.3.3", "robomimic-0.3.0", "zarr-2.18", "tfds", "video"} <= set(environments.names())
    for name in environments.names():
        lines = [line for line in (HERE / f"{name}.txt").read_text().splitlines() if not line.startswith("#")]
        assert lines and all(PIN.fullmatch(line) for line in lines), name
        assert not any(line.startswith("torch==") for line in lines), "torch comes as run.py gets it, a CPU build"
        assert any(line.startswith("torchvision==") for line in lines) <= (name in environments.NEED_TORCH)
    assert set(environments.NEED_TORCH) <= set(environments.names())


def test_every_judge_has_comparisons():
    files = [environments.comparisons(name) for name in environments.names()]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    for file in files:
        assert f"tests/judges/{file.name}::" in done.stdout, f"no test in {file.name}"


def test_what_runs_inside_an_environment_knows_nothing_of_us():
    """It must run where only the judge is installed, so no import may lead to this project or its tests."""
    scripts = sorted((HERE / "inside").glob("*.py"))
    neighbours = {script.stem for script in scripts}
    assert len(neighbours) >= 10
    for script in scripts:
        tree = ast.parse(script.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name.partition(".")[0] for name in names} & {"uwm", "uwm_data", "uwm_envs", "foreign", "judges"}, script
        assert "allow_pickle=True" not in script.read_text() and "import pickle" not in script.read_text()


def test_a_plain_test_run_judges_nothing():
    """pytest collects test_*.py: the comparisons have another name, so nobody's `run.py test` builds environments."""
    assert not list(HERE.glob("**/test_*.py")) and not list(HERE.glob("**/*_test.py"))


def test_the_environments_file_needs_only_the_standard_library_and_an_old_python_can_read_it():
    tree = ast.parse((HERE / "environments.py").read_text(), feature_version=(3, 6))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


# -------------------------------------------------------------------------------------------------------- making them


def test_an_environment_is_made_once_and_again_when_its_pins_or_its_place_change(run, monkeypatch, tmp_path, capsys):
    environments.make(run, ["lerobot-0.4.4", "zarr-2.18"])
    venv, pins, torch, *more = run.said
    assert " venv " in venv and venv.endswith(str(tmp_path / ".judges" / "lerobot-0.4.4"))
    assert pins.endswith(f"--no-deps -r {HERE / 'lerobot-0.4.4.txt'}")
    assert torch.endswith(f"torch=={run.TORCH} --torch-backend=cpu")  # never a GPU build for reading files
    assert len(more) == 2 and not any("torch" in line for line in more)
    assert "[2/2] the judge zarr-2.18" in capsys.readouterr().out

    run.said.clear()
    environments.make(run, ["lerobot-0.4.4", "zarr-2.18"])
    assert not run.said and capsys.readouterr().out == ""
    (tmp_path / ".judges" / "zarr-2.18" / "stamp.json").write_text("half a fi")
    environments.make(run, ["lerobot-0.4.4", "zarr-2.18"])
    assert len(run.said) == 2 and "lerobot" not in " ".join(run.said)
    monkeypatch.setattr(run, "TORCH", "9.9.9")
    assert not environments.is_ready(run, tmp_path / ".judges" / "lerobot-0.4.4", "lerobot-0.4.4")
    assert environments.is_ready(run, tmp_path / ".judges" / "zarr-2.18", "zarr-2.18")
    (tmp_path / ".judges" / "zarr-2.18").rename(tmp_path / "moved")
    assert not environments.is_ready(run, tmp_path / "moved", "zarr-2.18")


def test_an_environment_that_failed_has_no_stamp(run, monkeypatch, tmp_path):
    def fails(command, **_):
        if "-r" in command:
            raise run.SetupError("no network")
        return made(command)

    made = run.call
    monkeypatch.setattr(run, "call", fails)
    with pytest.raises(run.SetupError, match="no network"):
        environments.make(run, ["zarr-2.18"])
    assert not environments.is_ready(run, tmp_path / ".judges" / "zarr-2.18", "zarr-2.18")


def test_a_full_disk_is_noticed_first(run, monkeypatch):
    monkeypatch.setattr(run.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1e9}))
    with pytest.raises(run.SetupError, match="the disk is too full"):
        environments.make(run, ["zarr-2.18"])
    assert not run.said


def test_the_launcher_runs_the_judge_offline_with_ffmpeg_where_torchcodec_looks(run, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "ROOT", tmp_path / "a place with 'quotes'")
    environments.make(run, ["video"])
    folder = run.ROOT / ".judges" / "video"
    launcher = folder / "bin" / "judge"
    assert launcher.stat().st_mode & stat.S_IXUSR
    assert [link.name for link in (folder / "ffmpeg").iterdir()] == ["libavcodec.so.61"]  # x264 is found by its own name
    code = "import answering, os, sys; print(sys.argv[1:], *map(os.environ.get, ('HF_HUB_OFFLINE', 'LD_LIBRARY_PATH', 'HF_HOME')))"
    env = {**os.environ, "PYTHONPATH": "elsewhere", "PYTHONHOME": "nowhere"}
    env.pop("HF_HOME", None)
    done = subprocess.run([launcher, "-c", code, "a b"], env=env, capture_output=True, text=True, timeout=60, check=True)
    libraries = folder / "lib" / "python3.11" / "site-packages" / "av.libs"
    assert done.stdout.strip() == f"['a b'] 1 {folder / 'ffmpeg'}:{libraries} {folder / 'home'}"


# -------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "files", "options"),
    [
        (["zarr-2.18"], ["judge_zarr_2_18.py"], ["-n", None, "--dist", "loadfile"]),
        (["video", "tfds", "-rP", "-k", "films"], ["judge_video.py", "judge_tfds.py"], ["-rP", "-k", "films"]),
        ([], [environments.comparisons(name).name for name in environments.names()], ["-n", None, "--dist", "loadfile"]),
    ],
)
def test_the_command_makes_what_is_named_and_becomes_pytest_on_it(run, monkeypatch, words, files, options):
    became, made = [], []
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(run, "setup", lambda: None)
    monkeypatch.setattr(run, "replace_process", lambda command, env: became.extend(map(str, command)))
    plain = importlib.import_module("environments")  # as run.py imports it
    monkeypatch.setattr(plain, "make", lambda _, chosen: made.extend(chosen))
    assert run.main(["judges", *words]) == 0
    paths = [str(HERE / file) for file in files]
    wanted = [str(min(run.cores(), 4)) if word is None else word for word in options]
    assert became == [str(run.VENV / "bin" / "pytest"), *paths, *wanted]
    assert [plain.comparisons(name).name for name in made] == files


def test_a_stranger_is_refused_before_anything_is_built(run, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(run, "setup", lambda: pytest.fail("set up for nobody"))
    assert run.main(["judges", "lerobot"]) == 1
    assert "no judge is called lerobot; there are franka-sim, lerobot-0.3.3, lerobot-0.4.4" in capsys.readouterr().err
