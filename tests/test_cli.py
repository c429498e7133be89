"""The command line: what it composes, what it calls, and what it says when something is wrong."""

import errno
import os
import subprocess
import sys
import types

import pytest

import uwm
from uwm import cli
from uwm.core.config import ConfigError


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A small configs folder with one group, in place of the project's own."""
    folder = tmp_path / "configs"
    (folder / "size").mkdir(parents=True)
    (folder / "size" / "s.yaml").write_text("width: 64\ndepth: 2\n")
    (folder / "size" / "m.yaml").write_text("width: 128\ndepth: 4\n")
    (folder / "train.yaml").write_text(
        "defaults: [_self_, {size: s}]\nsteps: 100\nrate: 1e-3\nout: runs/${name}\nname: lift\nlevels: [0, 1]\n"
    )
    (folder / "eval.yaml").write_text("checkpoint: ???\nrollouts: 50\n")
    monkeypatch.setattr(cli, "configs_dir", lambda: folder)
    return folder


@pytest.fixture
def build(monkeypatch):
    """Stands in for uwm.build: remembers what each command got, and raises or returns what the test says."""
    calls, fake = [], types.ModuleType("uwm.build")
    fake.calls, fake.result = calls, None

    def command(name):
        def run(*values, **named):
            calls.append((name, values, named))
            if isinstance(fake.result, BaseException):
                raise fake.result
            return fake.result

        return run

    for name in ("collect", "train", "evaluate", "demo", "explain", "bench"):
        setattr(fake, name, command(name))
    monkeypatch.setitem(sys.modules, "uwm.build", fake)
    monkeypatch.setattr(uwm, "build", fake, raising=False)
    return fake


def test_a_command_gets_its_config_as_a_plain_dict_with_everything_resolved(configs, build):
    assert cli.main(["train", "steps=7", "size=m", "size.depth=5"]) == 0
    (name, (config,), _), = build.calls
    assert name == "train"
    assert config == {"size": {"width": 128, "depth": 5}, "steps": 7, "rate": 1e-3, "out": "runs/lift", "name": "lift", "levels": [0, 1]}
    assert type(config["size"]) is dict and type(config["levels"]) is list


@pytest.mark.parametrize(
    "words",
    [["--config", "train", "steps=3", "name=x"], ["steps=3", "--config", "train", "name=x"], ["steps=3", "name=x", "--config=train"]],
)
def test_overrides_may_stand_before_between_and_after_options(configs, build, words):
    assert cli.main(["train", *words]) == 0
    config = build.calls[0][1][0]
    assert (config["steps"], config["out"]) == (3, "runs/x")


def test_a_config_may_be_a_file_anywhere_and_still_use_the_packages_groups(configs, build, tmp_path):
    mine = tmp_path / "elsewhere" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text("defaults: [{size: m}, _self_]\nsteps: 1\n")
    assert cli.main(["explain", str(mine), "steps=2"]) == 0
    assert build.calls == [("explain", ({"size": {"width": 128, "depth": 4}, "steps": 2},), {})]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "stepz=3"], ["unknown key 'stepz', did you mean 'steps'?", "valid keys: levels, name, out, rate, size, steps"]),
        (["train", "size.widht=3"], ["unknown key 'widht', did you mean 'width'?", "in size"]),
        (["train", "steps.deep=3"], ["steps is a single value (100) and has no key 'deep'"]),
        (["train", "size=xxl"], ["size/xxl"]),
        (["train", "name={a"], ["cannot read the override 'name={a'"]),
        (["train", "lift"], ["expected KEY=VALUE, got 'lift'"]),
        (["eval"], ["checkpoint has no default: add checkpoint=..."]),
        (["train", "out=${nowhere}"], ["nowhere"]),
        (["train", "--config", "trian"], ["unknown config 'trian', did you mean 'train'?"]),
        (["explain", "trian"], ["unknown config 'trian', did you mean 'train'?"]),
    ],
)
def test_a_wrong_config_is_one_line_with_a_suggestion(configs, build, capsys, words, expected):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("uwm: error: ") and error.count("\n") == 1
    for part in expected:
        assert part in error
    assert not build.calls


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "unknown command 'trian', did you mean 'train'?"),
        (["train", "--confg", "x"], "unknown argument '--confg', did you mean '--config'?"),
        (["bench", "modes", "--quik"], "did you mean '--quick'?"),
        (["bench"], "NAME"),
        (["data", "chek", "x"], "chek"),
    ],
)
def test_a_wrong_argument_is_one_line_with_exit_code_2(capsys, words, expected):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and expected in error


@pytest.mark.parametrize(
    ("raised", "code", "expected"),
    [
        (ConfigError("config.size: too small"), 2, "uwm: error: config.size: too small"),
        (ValueError("action 3 is 1.7,\n  limits are -1 to 1"), 1, "uwm: error: action 3 is 1.7, limits are -1 to 1"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, "the disk is full (runs/x): free some space"),
        (FileNotFoundError(2, "No such file or directory", "runs/y"), 1, "No such file or directory (runs/y)"),
        (ModuleNotFoundError("No module named 'robosuite.x'", name="robosuite.x"), 1, "pip install 'uwm[sim]'"),
        (ImportError("Lift needs robosuite: pip install 'uwm[sim]'"), 1, "Lift needs robosuite: pip install 'uwm[sim]'"),
        (KeyboardInterrupt(), 130, "stopped; nothing lost, run the same command again to resume"),
    ],
)
def test_an_expected_error_is_one_line_without_a_traceback(configs, build, capsys, raised, code, expected):
    build.result = raised
    assert cli.main(["train"]) == code
    error = capsys.readouterr().err
    assert expected in error and error.strip().count("\n") == 0 and "Traceback" not in error


def test_a_store_error_is_an_expected_error(configs, build, capsys):
    from uwm_data import StoreError

    build.result = StoreError("runs/x is not an episode store: no uwm card")
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == "uwm: error: runs/x is not an episode store: no uwm card\n"


def test_debug_adds_the_traceback(configs, build, capsys):
    build.result = ValueError("no such thing")
    assert cli.main(["train", "--debug"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and error.endswith("uwm: error: no such thing\n")


@pytest.mark.parametrize(
    "bug",
    [
        RuntimeError("shapes"),
        ModuleNotFoundError("No module named 'uwm.nowhere'", name="uwm.nowhere"),
        ImportError("cannot import name 'x'"),
    ],
)
def test_a_bug_keeps_its_traceback(configs, build, bug):
    build.result = bug
    with pytest.raises(type(bug)):
        cli.main(["train"])


def test_bench_passes_its_arguments_and_its_exit_code_on(build, tmp_path):
    build.result = 1
    assert cli.main(["bench", "modes", "--quick", "--out", str(tmp_path / "x.json")]) == 1
    assert build.calls == [("bench", ("modes",), {"quick": True, "out": tmp_path / "x.json"})]


def test_data_check_names_what_is_wrong_with_a_folder_that_is_no_store(tmp_path, capsys):
    assert cli.main(["data", "check", str(tmp_path)]) != 0
    said = "".join(capsys.readouterr())
    assert str(tmp_path) in said and "Traceback" not in said


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_examples(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "examples:" in said and f"uwm {command} " in said


def test_help_answers_without_importing_torch_or_any_extra():
    code = "import sys; from uwm.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = done.stdout.splitlines()[-1]
    for heavy in ("torch", "numpy", "hydra", "omegaconf", "robosuite", "mujoco", "gymnasium", "zarr", "wandb", "uwm.build"):
        assert f"'{heavy}'" not in loaded, f"uwm --help imports {heavy}"


def test_version_and_no_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"uwm {uwm.__version__}\n"
    assert cli.main([]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_rendering_without_a_screen_is_set_before_a_command_runs(configs, build, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    cli.main(["train"])
    assert os.environ.get("MUJOCO_GL") == ("egl" if sys.platform.startswith("linux") else None)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    cli.main(["train"])
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_configs_are_found_beside_the_package():
    assert cli.configs_dir().is_dir() and cli.configs_dir().name == "configs"
