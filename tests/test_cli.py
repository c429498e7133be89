"""The command line: what it composes, what it calls, and what it says when something is wrong."""

import errno
import json
import os
import subprocess
import sys
import types

import pytest

import uwm
from uwm import cli, composing
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
    monkeypatch.setattr(composing, "configs_dir", lambda: folder)
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
    assert build.calls == [("explain", ({"size": {"width": 128, "depth": 4}, "steps": 2}, None), {})]


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
        (["convert", "a.zarr"], "DST"),
        (["convert", "a.zarr", "b.zarr", "--skp-bad"], "did you mean '--skip-bad'?"),
        (["convert", "a.zarr", "b.zarr", "--workers", "-1"], "'-1' is not a whole number"),
        (["convert", "a.zarr", "b.zarr", "c.zarr"], "c.zarr"),
        (["data", "show"], "DATASET"),
        (["data", "show", "x", "--shet", "y"], "did you mean '--sheet'?"),
        (["data", "view", "x", "--episode", "first"], "'first' is not a whole number"),
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
    assert build.calls == [("bench", ("modes",), {"quick": True, "out": tmp_path / "x.json", "only": []})]
    cli.main(["bench", "streaming", "--only", "Lift,PushT"])
    assert build.calls[1][2]["only"] == ["Lift", "PushT"]


def test_data_check_names_what_is_wrong_with_a_folder_that_is_no_store(tmp_path, capsys):
    assert cli.main(["data", "check", str(tmp_path)]) != 0
    said = "".join(capsys.readouterr())
    assert str(tmp_path) in said and "Traceback" not in said


def converted_store(tmp_path):
    from data_episodes import make_store

    make_store(tmp_path / "a.zarr", (3, 4))
    return str(tmp_path / "a.zarr")


def test_convert_guesses_the_format_says_what_it_did_and_goes_on(tmp_path, capsys):
    source, target = converted_store(tmp_path), str(tmp_path / "b.zarr")
    words = ["convert", source, target, "--workers", "0", "--verify", "--set", "shard_bytes=4000"]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert f"{source} (store) -> {target} (store): 2 episodes, added 2 (7 ticks" in said.out and "action exact" in said.out
    assert "2/2" in said.err
    assert cli.main(words) == 0
    assert "2 episodes, already complete" in capsys.readouterr().out


def test_convert_exits_with_1_when_it_skipped_something(tmp_path, capsys, monkeypatch):
    import fake_formats
    from uwm import convert

    monkeypatch.setattr(convert, "FORMATS", fake_formats.FORMATS)
    source = fake_formats.script(tmp_path / "s.json", "fine", "refused", "fine")
    words = ["convert", str(source), str(tmp_path / "t.zarr"), "--workers", "0", "--option", "pause_s=0.001"]
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert "uwm: error: " in error and "episode 1: 'arm' is cut off" in error and "--skip-bad leaves it out" in error
    assert cli.main([*words, "--skip-bad"]) == 1
    assert "skipped episode 1: 'arm' is cut off" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "code", "expected"),
    [
        (lambda w: [*w[:2], "target"], 2, "does not tell its format: add --to FORMAT, or end it with one of .zarr (store)"),
        (lambda w: [*w, "--to", "zarr"], 1, "unknown format 'zarr'; there are"),
        (lambda w: [*w, "--option", "x"], 2, "--option expects KEY=VALUE, got 'x'"),
        (lambda w: [*w, "--option", "x=1"], 1, "reading store has no option 'x'"),
        (lambda w: [*w, "--set", "shard=1"], 1, "no option 'shard', did you mean 'shard_bytes'?"),
        (lambda w: [w[0], w[1] + "x", w[2]], 1, "a.zarrx does not exist"),
        (lambda w: [w[0], w[1], w[1]], 1, "are the same place"),
    ],
)
def test_a_wrong_conversion_is_one_line(tmp_path, capsys, change, code, expected):
    words = change(["convert", converted_store(tmp_path), str(tmp_path / "b.zarr")])
    assert cli.main(words) == code
    error = capsys.readouterr().err
    assert error.startswith("uwm: error: ") and error.count("\n") == 1 and expected in error
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize(
    ("target", "expected"),
    [("a.zarr", "store"), ("a.zarr/", "store"), ("a.hdf5", "robomimic"), ("a.h5", "robomimic")],
)
def test_the_ending_of_a_target_tells_its_format(target, expected):
    from uwm import convert

    assert convert.format_of(target) == expected


def test_values_of_options_are_json_where_they_can_be():
    from uwm import convert

    words = ["a=1", "b=true", "c=text", "d=[1, 2]", "e=x=y", "f="]
    assert convert.values(words, "--set") == {"a": 1, "b": True, "c": "text", "d": [1, 2], "e": "x=y", "f": ""}


def test_data_show_and_view_go_through_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = converted_store(tmp_path)
    assert cli.main(["data", "show", source, "--sheet", "x.png", "--all"]) == 0
    assert f"contact sheet: {tmp_path / 'x.png'}" in capsys.readouterr().out
    assert cli.main(["data", "show", source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 2
    assert cli.main(["data", "view", source, "--episode", "1", "--save", "x.rrd"]) == 0
    assert (tmp_path / "x.rrd").stat().st_size > 1000
    assert cli.main(["data", "view", source, "--episode", "7", "--save", "y.rrd"]) == 1
    assert "there is no episode 7" in capsys.readouterr().err


def test_the_help_lists_exactly_the_formats_that_there_are_and_which_can_be_written():
    from uwm import convert
    from uwm_data.formats import module_of

    assert list(cli.FORMATS) == list(convert.FORMATS)
    for name, (_, is_written) in cli.FORMATS.items():
        module = module_of(name, convert.FORMATS)
        if is_written:
            assert callable(module.write), name
        elif hasattr(module, "write"):  # only to say what to write instead
            with pytest.raises(ValueError, match="read"):
                module.write("nowhere", {}, {})


@pytest.mark.parametrize("command", [*cli.COMMANDS, "data show", "data view", "data check", "data copy"])
def test_every_command_has_help_with_examples(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "examples:" in said and f"uwm {command} " in said
    if command in ("convert", "data show", "data view"):
        assert all(f"\n  {name} " in said for name in cli.FORMATS)


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
    assert composing.configs_dir().is_dir() and composing.configs_dir().name == "configs"


def test_a_store_is_copied_and_brought_up_to_date_by_one_command(tmp_path, capsys):
    source = composing.configs_dir().parent / "datasets" / "pusht_state"
    assert cli.main(["data", "copy", str(source), str(tmp_path / "copy")]) == 0
    assert cli.main(["data", "copy", str(source), str(tmp_path / "copy")]) == 0
    assert cli.main(["data", "check", f"file://{tmp_path}/copy"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("copy: 0.0 MB sent")
