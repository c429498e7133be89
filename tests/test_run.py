"""run.py, the script for a fresh machine: each decision as a function, with pip, uv and apt played by the test.

What it makes for other projects' loaders is in test_judges.py.
"""

import ast
import importlib.util
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MIRROR = "https://mirror/simple"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run.py as a module that believes that an empty folder is the repository."""
    spec = importlib.util.spec_from_file_location("run_under_test", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "TOOLS", tmp_path / ".tools")
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "LOCK", tmp_path / "requirements.lock")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "uwm-setup.json")
    return module


def finished(run):
    """Leave the environment as a finished set-up does."""
    (run.VENV / "bin").mkdir(parents=True)
    (run.VENV / "bin" / "python").write_text("")
    run.STAMP.write_text(json.dumps(run.fingerprint()))


# ------------------------------------------------------------------------------------------------------ what pip is told


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        ("", {}),
        ("global.find-links='wheels'", {"find-links": ["wheels"]}),
        ("install.find-links='a b'", {"find-links": ["a", "b"]}),
        ("global.find-links='\\na\\nb'", {"find-links": ["a", "b"]}),
        (":env:.find-links='a'\nglobal.find-links='a'\nuser.find-links='c'", {"find-links": ["a", "c"]}),
        (f"global.cert='x.crt'\nglobal.timeout='5'\nglobal.index-url='{MIRROR}'", {"cert": ["x.crt"], "index-url": [MIRROR]}),
        ("download.find-links='a'\nfreeze.find-links='b'\nnonsense", {}),
    ],
)
def test_settings_are_read_from_every_section_that_an_install_hears(run, listing, expected):
    assert run.pip_settings(listing) == expected


def test_the_pip_of_this_machine_is_asked_for_its_folders(run, tmp_path, monkeypatch):
    """The real pip, with the environment variable that most people use."""
    monkeypatch.setattr(run.sys, "executable", sys._base_executable)
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path}/one {tmp_path}/two")
    assert run.read_pip_settings()["find-links"][:2] == [f"{tmp_path}/one", f"{tmp_path}/two"]


def test_torch_comes_from_the_configured_folder_when_it_holds_it(run, tmp_path):
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").write_text("")
    assert run.torch_arguments({"find-links": [str(tmp_path)]}) == ["torch==2.13.0", "--find-links", str(tmp_path)]
    assert run.torch_arguments({"find-links": [f"file://{tmp_path}"]}) == ["torch==2.13.0", "--find-links", f"file://{tmp_path}"]


def test_torch_is_chosen_by_the_driver_otherwise(run, tmp_path):
    assert run.torch_arguments({}) == ["torch==2.13.0", "--torch-backend=auto"]
    (tmp_path / "numpy-1.26.4-cp311.whl").write_text("")
    assert run.torch_arguments({"find-links": [str(tmp_path)]})[-1] == "--torch-backend=auto"


def test_a_folder_behind_an_address_is_believed(run):
    assert run.torch_arguments({"find-links": ["https://mirror/wheels"]}) == ["torch==2.13.0", "--find-links", "https://mirror/wheels"]


def test_uv_hears_pips_index_and_certificates_but_the_users_own_uv_settings_win(run, monkeypatch):
    for name in ("UV_DEFAULT_INDEX", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VIRTUAL_ENV", "somewhere")
    settings = {"index-url": [MIRROR], "cert": ["x.crt"]}
    env = run.uv_environment(settings)
    assert (env["UV_DEFAULT_INDEX"], env["SSL_CERT_FILE"]) == (MIRROR, "x.crt") and "VIRTUAL_ENV" not in env
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine/simple")
    assert run.uv_environment(settings)["UV_DEFAULT_INDEX"] == "https://mine/simple"


# ------------------------------------------------------------------------------------------------------------- the stamp


def test_a_finished_environment_is_ready_until_one_of_its_inputs_changes(run):
    assert not run.is_ready()
    finished(run)
    assert run.is_ready()
    for change in (run.LOCK, run.ROOT / "pyproject.toml"):
        before = change.read_text()
        change.write_text(before + "\nmore")
        assert not run.is_ready()
        change.write_text(before)
        assert run.is_ready()


def test_an_environment_that_was_moved_or_belongs_to_another_python_is_not_ready(run, monkeypatch, tmp_path):
    finished(run)
    stamp = json.loads(run.STAMP.read_text())
    run.STAMP.write_text(json.dumps({**stamp, "python": "3.99"}))
    assert not run.is_ready()
    run.STAMP.write_text("half a fi")
    assert not run.is_ready()
    run.STAMP.write_text(json.dumps(stamp))
    assert run.is_ready()
    (tmp_path / "moved").mkdir()
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / "moved" / name).write_text(name)
    monkeypatch.setattr(run, "ROOT", tmp_path / "moved")
    assert not run.is_ready()


def test_a_second_run_starts_nothing(run, monkeypatch, capsys):
    finished(run)
    monkeypatch.setattr(run.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    run.setup()
    assert capsys.readouterr().out == ""


def test_setup_runs_its_steps_in_order_and_stamps_only_at_the_end(run, monkeypatch):
    said = []

    def call(command, **_):
        words = [str(word) for word in command]
        said.append(" ".join(words))
        assert not run.STAMP.exists()
        if "venv" in words:
            (run.VENV / "bin").mkdir(parents=True)
            (run.VENV / "bin" / "python").write_text("")
        return []

    monkeypatch.setattr(run, "call", call)
    run.setup()
    order = ["config list", "uv==" + run.UV, " venv ", "--require-hashes --no-deps -r", "torch==" + run.TORCH, "--editable", "import cv2"]
    places = [next(index for index, line in enumerate(said) if word in line) for word in order]
    assert places == sorted(places)
    assert "--require-build-hashes" in said[places[3]]
    assert run.is_ready()


def test_a_set_up_that_failed_leaves_no_stamp(run, monkeypatch):
    finished(run)
    run.LOCK.write_text("changed")

    def call(command, **_):
        if "--require-hashes" in map(str, command):
            raise run.SetupError("no network")
        return []

    monkeypatch.setattr(run, "call", call)
    with pytest.raises(run.SetupError):
        run.setup()
    assert not run.STAMP.exists()


# ------------------------------------------------------------------------------------------------------------ bad luck


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("error: failed to write\n  Caused by: No space left on device (os error 28)", "the disk is full"),
        ("error: Request failed\n  Caused by: dns error: failed to lookup address", "no network"),
        ("WARNING: Retrying: Failed to establish a new connection", "no network"),
        ("ERROR: No matching distribution found for uv==0.13.9", "no network"),
        ("/usr/bin/python3: No module named pip", "apt-get install python3-pip"),
        ("error: Hash mismatch for `numpy==1.26.4`", "another hash than requirements.lock holds"),
        ("error: Permission denied (os error 13)", "no permission to write"),
        ("first\nsomething else went wrong\n\n", "something else went wrong"),
        ("", "it said nothing"),
    ],
)
def test_what_pip_and_uv_say_becomes_one_line_with_a_remedy(run, output, expected):
    assert expected in run.cause_of(output) and "\n" not in run.cause_of(output)


@pytest.mark.parametrize(("version", "which", "advice"), [
    ((3, 9), {"python3.11"}, "this is 3.9: run it with python3.11"),
    ((3, 13), {"python3.12"}, "this is 3.13: run it with python3.12"),
    ((2, 7), set(), "apt-get install python3"),
])  # fmt: skip
def test_a_python_without_wheels_is_refused_and_a_better_one_named(run, version, which, advice):
    with pytest.raises(run.SetupError, match=advice):
        run.check_python(version, which=lambda name: name if name in which else None)
    run.check_python((3, 11)), run.check_python((3, 12))


def test_a_full_disk_is_noticed_before_anything_is_loaded(run, monkeypatch):
    monkeypatch.setattr(run.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1e9}))
    monkeypatch.setattr(run.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(run.SetupError, match=r"1\.0 GB free in .*, 4 GB are needed"):
        run.setup()


def test_a_failure_is_one_line_and_exit_code_1_and_ctrl_c_is_130(run, monkeypatch, capsys):
    def fails(error):
        def step():
            raise error

        return step

    monkeypatch.setattr(run, "setup", fails(run.SetupError("no network")))
    assert run.main(["demo"]) == 1
    assert capsys.readouterr().err == "run.py: error: no network\n"
    monkeypatch.setattr(run, "setup", fails(OSError(28, "No space left on device")))
    assert run.main(["test"]) == 1
    assert "the disk is full" in capsys.readouterr().err
    monkeypatch.setattr(run, "setup", fails(KeyboardInterrupt()))
    assert run.main(["test"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_command_that_fails_leaves_its_whole_output_in_the_log(run, tmp_path):
    log = tmp_path / "log"
    with pytest.raises(run.SetupError, match="the disk is full"):
        run.call([sys.executable, "-c", "print('loading'); print('os error 28'); raise SystemExit(3)"], log=log)
    assert "loading" in log.read_text()
    with pytest.raises(run.SetupError, match="cannot start"):
        run.call([tmp_path / "nothing"])


# -------------------------------------------------------------------------------------------------------------- rendering


class Machine:
    """Plays the system: whether a frame can be rendered, before and after apt."""

    def __init__(self, run, monkeypatch, renders, root, apt=True, apt_helps=True):
        self.run, self.renders, self.apt_helps, self.said = run, renders, apt_helps, []
        monkeypatch.setattr(run, "call", self.call)
        monkeypatch.setattr(run.os, "geteuid", lambda: 0 if root else 1000)
        monkeypatch.setattr(run.shutil, "which", lambda name: name if apt else None)

    def call(self, command, **_):
        words = [str(word) for word in command]
        self.said.append(words[:2])
        if words[0] == "apt-get":
            self.renders = self.renders or (self.apt_helps and "install" in words)
        elif not self.renders:
            raise self.run.SetupError("libEGL.so.1: cannot open")
        return []


def test_rendering_that_works_needs_no_apt(run, monkeypatch):
    machine = Machine(run, monkeypatch, renders=True, root=True)
    run.check_rendering(None)
    assert len(machine.said) == 1


def test_root_gets_the_libraries_installed(run, monkeypatch):
    machine = Machine(run, monkeypatch, renders=False, root=True)
    run.check_rendering(None)
    assert [words for words in machine.said if words[0] == "apt-get"] == [["apt-get", "update"], ["apt-get", "install"]]
    assert machine.renders


def test_others_get_the_exact_line(run, monkeypatch):
    machine = Machine(run, monkeypatch, renders=False, root=False)
    line = r"sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends libegl1 libgl1 libgl1-mesa-dri libglib2\.0-0'"
    with pytest.raises(run.SetupError, match=line):
        run.check_rendering(None)
    assert ["apt-get", "install"] not in machine.said


def test_a_machine_that_still_cannot_render_or_has_no_apt_says_so(run, monkeypatch):
    Machine(run, monkeypatch, renders=False, root=True, apt_helps=False)
    with pytest.raises(run.SetupError, match=r"still no frame can be rendered: libEGL\.so\.1"):
        run.check_rendering(None)
    Machine(run, monkeypatch, renders=False, root=True, apt=False)
    with pytest.raises(run.SetupError, match="install EGL"):
        run.check_rendering(None)


def test_what_runs_renders_without_a_screen_and_keeps_to_its_cores(run):
    env = run.runtime_environment({"PATH": "x", "PYTHONPATH": "y", "VIRTUAL_ENV": "z"})
    assert env["MUJOCO_GL"] == "egl" and env["PATH"] == f"{run.VENV}/bin:x"
    assert env["OMP_NUM_THREADS"] == str(run.cores()) and not {"PYTHONPATH", "VIRTUAL_ENV"} & set(env)
    assert "MUJOCO_GL" not in run.runtime_environment({"DISPLAY": ":0"})
    chosen = {"MUJOCO_GL": "osmesa", "OMP_NUM_THREADS": "3"}
    assert run.runtime_environment(chosen).items() >= chosen.items()


# ----------------------------------------------------------------------------------------------------------- the commands


@pytest.mark.parametrize(
    ("words", "command", "threads"),
    [
        (["demo", "steps=3"], ["bin/uwm", "demo", "steps=3"], None),
        (["test", "-k", "x"], ["bin/pytest", "-k", "x"], None),
        (["test"], ["bin/pytest", "-n", None, "--dist", "loadfile"], "1"),
    ],
)
def test_a_command_becomes_the_right_process_in_the_repository(run, monkeypatch, words, command, threads):
    became = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(run, "setup", lambda: None)
    monkeypatch.setattr(run.os, "chdir", lambda folder: became.append(folder))
    monkeypatch.setattr(run.os, "execve", lambda *all_of_it: became.append(all_of_it))
    assert run.main(words) == 0
    folder, (path, arguments, env) = became
    wanted = [str(run.VENV / command[0]), *(str(min(run.cores(), 4)) if word is None else word for word in command[1:])]
    assert folder == str(run.ROOT) and arguments == wanted and path == wanted[0]
    assert env["OMP_NUM_THREADS"] == (threads or str(run.cores()))


def test_help_and_unknown_commands(run, capsys):
    assert run.main(["--help"]) == 0
    assert "python3 run.py demo" in capsys.readouterr().out
    assert run.main([]) == 2
    assert run.main(["dmo"]) == 2
    assert "unknown command 'dmo'; there are demo, test, judges, lock, setup" in capsys.readouterr().err


def test_the_script_needs_only_the_standard_library_and_an_old_python_can_read_it():
    source = (ROOT / "run.py").read_text()
    tree = ast.parse(source, feature_version=(3, 6))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "environments"}  # tests/judges, as strict


def test_the_script_answers_from_any_folder():
    command = [sys.executable, "-I", ROOT / "run.py", "--help"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, check=True)
    assert "requirements.lock" in done.stdout


def test_the_ci_script_and_the_makefile_call_run_py():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR and os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True, timeout=60)
    assert 'run.py test "$@" </dev/null' in script.read_text()
    assert "run.py judges lerobot-0.4.4 robomimic-0.3.0 peft </dev/null" in script.read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert "python3 run.py demo" in makefile and "python3 run.py test" in makefile
