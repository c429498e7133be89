"""The environments of other people's loaders: run.py makes them with uv, in .judges/<name>/, one requirement file each.

A judge is a requirement file <name>.txt here (every package that is needed, names and exact versions, installed without looking
at dependencies) and the comparisons in judge_<name>.py, with every character that is no letter or digit an underscore.
`.judges/<name>/bin/judge` is the judge's Python: offline, deaf to the caller's Python settings, with its own cache.

Only the standard library is used here, and no syntax newer than Python 3.6: run.py imports this file.
"""

import hashlib
import json
import os
import re
import shlex
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
NEED_TORCH = ("lerobot-0.4.4", "lerobot-0.3.3", "robomimic-0.3.0", "video", "peft")
FREE_GB = 2.0  # the largest is 1.4 GB; torch is one copy for all of them where uv can link

LAUNCHER = """#!/bin/sh
# The Python of this judge, made by run.py: offline, with a cache of its own, and the FFmpeg libraries where torchcodec looks.
unset PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV
[ -n "$HF_HOME" ] || HF_HOME={home}
export HF_HOME PYTHONPATH={inside} LD_LIBRARY_PATH={libraries} PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 NO_GCE_CHECK=true TF_CPP_MIN_LOG_LEVEL=2
exec {python} "$@"
"""


def names():
    """The judges there are, by name."""
    return sorted(path.stem for path in HERE.glob("*.txt"))


def comparisons(name):
    """The file of a judge's tests, which pytest collects only when it is named."""
    return HERE / "judge_{}.py".format(re.sub(r"\W", "_", name))


def chosen(run, arguments):
    """(judges, options for pytest): the names up to the first option, or all; run.SetupError for a name that is no judge."""
    first = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    strangers = [name for name in arguments[:first] if name not in names()]
    if strangers:
        raise run.SetupError("no judge is called {}; there are {}".format(", ".join(strangers), ", ".join(names())))
    return arguments[:first] or names(), arguments[first:]


def fingerprint(run, folder, name):
    """What the environment depends on; a moved clone counts as changed, because the environment holds absolute paths."""
    digest = hashlib.sha256()
    torch = run.TORCH if name in NEED_TORCH else ""
    for part in ((HERE / (name + ".txt")).read_bytes(), str(folder).encode(), run.UV.encode(), torch.encode(), LAUNCHER.encode()):
        digest.update(hashlib.sha256(part).digest())
    return {"inputs": digest.hexdigest(), "python": "{}.{}".format(*sys.version_info[:2])}


def is_ready(run, folder, name):
    """True when the environment was finished with exactly these inputs."""
    try:
        return json.loads((folder / "stamp.json").read_text()) == fingerprint(run, folder, name) and (folder / "bin" / "judge").exists()
    except (OSError, ValueError):
        return False


def make(run, chosen):
    """Make the chosen environments ready, with the functions of run.py (a module); those that are ready cost nothing.

    The caller holds the lock. Raises run.SetupError with one line and the log's place.
    """
    folders = {name: run.ROOT / ".judges" / name for name in chosen}
    missing = [name for name in chosen if not is_ready(run, folders[name], name)]
    if not missing:
        return
    run.check_disk(FREE_GB * len(missing))
    log = run.TOOLS / "judges.log"
    log.write_text("")
    settings = run.read_pip_settings()
    uv, env = run.get_uv(log), run.uv_environment(settings)
    for number, name in enumerate(missing, 1):
        begin = time.monotonic()
        print(f"[{number}/{len(missing)}] the judge {name} into .judges/", flush=True)
        make_one(run, folders[name], name, [uv, settings, env, log])
        print(f"      ready after {time.monotonic() - begin:.0f} s", flush=True)


def make_one(run, folder, name, tools):
    """One environment, from nothing: the named packages, torch where it is needed, the launcher, and the stamp last."""
    uv, settings, env, log = tools
    run.call([uv, "venv", "--clear", "--python", sys.executable, folder], env=env, log=log)
    pip = [uv, "pip", "install", "--python", folder / "bin" / "python"]
    run.call([*pip, "--no-deps", "-r", HERE / (name + ".txt")], env=env, log=log)
    if name in NEED_TORCH:  # never a GPU build: judges read files
        torch = ["--torch-backend=cpu" if word == "--torch-backend=auto" else word for word in run.torch_arguments(settings)]
        run.call([*pip, *torch], env=env, log=log)
    write_launcher(folder)
    (folder / "stamp.json").write_text(json.dumps(fingerprint(run, folder, name)))


def write_launcher(folder):
    """`bin/judge`, and links by which torchcodec finds the FFmpeg libraries that PyAV's wheel carries under longer names."""
    links, libraries = folder / "ffmpeg", [folder / "ffmpeg"]
    links.mkdir()
    for library in folder.glob("lib/python*/site-packages/av.libs/lib*.so.*"):
        plain = re.match(r"(lib(?:av|sw)[a-z]+)-[0-9a-f]+(\.so\.\d+)", library.name)
        if plain:
            (links / (plain.group(1) + plain.group(2))).symlink_to(library)
            libraries.append(library.parent)
    launcher = folder / "bin" / "judge"
    places = {"inside": HERE / "inside", "home": folder / "home", "python": folder / "bin" / "python"}
    places["libraries"] = os.pathsep.join(str(path) for path in dict.fromkeys(libraries))
    launcher.write_text(LAUNCHER.format(**{name: shlex.quote(str(place)) for name, place in places.items()}))
    launcher.chmod(0o755)
