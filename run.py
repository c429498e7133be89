#!/usr/bin/env python3
"""Two commands on a fresh machine.

    python3 run.py demo [key=value ...]     set up, then collect, train, run and report (uwm demo)
    python3 run.py test [pytest arguments]  set up, then the tests
    python3 run.py judges [NAME ...]        other projects' loaders, each in its own environment in .judges/, open what
                                            we write, and we what they write; then options of pytest
    python3 run.py setup                    only set up
    python3 run.py lock                     compile requirements.lock again from pyproject.toml

Needs Python 3.11 or 3.12 with pip, and nothing else: uv comes as a wheel into .tools/, the environment is .venv/, every
package but torch is held by a hash in requirements.lock. A second run sees the stamp in .venv/ and starts at once.

torch is asked for apart from the lock, because its hash differs between CPU and GPU builds:

    pip is configured with a wheel folder (find-links) that holds it  ->  that wheel
    otherwise                                                         ->  uv looks at the driver and picks the build

Only the standard library is used here, and no syntax newer than Python 3.6, so that an old Python can say that it is old.
"""

import ast
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TOOLS = ROOT / ".tools"
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / "uwm-setup.json"

UV = "0.13.9"
TORCH = "2.13.0"
OLDEST, NEWEST = (3, 11), (3, 12)  # numpy < 2 has no wheels for Python 3.13
FREE_GB = 4.0  # the environment is 2.4 GB, the download cache beside it about 1

# cv2, which robosuite imports, needs libGL and glib besides what rendering without a screen needs.
SYSTEM_PACKAGES = ("libegl1", "libgl1", "libgl1-mesa-dri", "libglib2.0-0")
ONE_FRAME = """
import cv2, mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().max() > 0, "the frame is black"
"""

# evdev (keyboards for robosuite's teleoperation) has no wheel: it would need a compiler and kernel headers.
# sentence-transformers comes with the packaged MiniLM, whose files transformers reads as well.
NEVER_LOCKED = ("evdev", "sentence-transformers")


class SetupError(Exception):
    """What went wrong and what to do, in one line."""


# ---------------------------------------------------------------------------------------------------------------- running


def call(command, env=None, log=None, show=("Downloading ", "Building ", "Resolved ", "Installed ")):
    """Run a command, pass on the lines that show progress, and turn a failure into a SetupError with its cause."""
    try:
        process = subprocess.Popen(
            [str(part) for part in command], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, universal_newlines=True, errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise SetupError(f"cannot start {command[0]}: {error.strerror}") from error
    lines = []
    with process:
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.strip().startswith(show):
                print("      " + line.strip(), flush=True)
    if log is not None:
        with open(str(log), "a", encoding="utf-8") as file:
            file.write("$ {}\n{}\n".format(" ".join(map(str, command)), "\n".join(lines)))
    if process.returncode != 0:
        raise SetupError(cause_of("\n".join(lines)) + (f" (everything it said: {log})" if log else ""))
    return lines


def cause_of(output):
    """One line for what pip, uv or apt said: what is wrong, and what to do."""
    known = (
        (("No space left on device", "os error 28"),
         f"the disk is full: free at least {FREE_GB:g} GB for .venv and the download cache, then run the same command again"),
        (("Hash mismatch", "hash mismatch", "DO NOT MATCH THE HASHES"),
         "a package arrived with another hash than requirements.lock holds: a broken download or a changed mirror"),
        (("No module named pip", "No module named 'pip'"),
         "this Python has no pip: install it (Debian: apt-get install python3-pip) and run the same command again"),
        (("dns error", "Name or service not known", "name resolution", "Network is unreachable", "Connection refused",
          "timed out", "error sending request", "Failed to establish", "Max retries", "tcp connect error",
          "No matching distribution found for uv"),
         "no network: the package index does not answer. Check the connection or the proxy, or set PIP_FIND_LINKS to a "
         "folder of wheels, then run the same command again"),
        (("Permission denied", "os error 13"), f"no permission to write in {ROOT}"),
    )  # fmt: skip
    for signs, meaning in known:
        if any(sign in output for sign in signs):
            return meaning
    tail = [line for line in output.splitlines() if line.strip()][-1:] or ["it said nothing"]
    return tail[0].strip()


# ------------------------------------------------------------------------------------------------------ what pip is told


def pip_settings(listing):
    """The settings of `pip config list` that uv must hear too, as {name: [values]}; uv reads no pip settings itself.

    Lines look like `global.find-links='/wheels'`, `install.find-links=...`, or `:env:.find-links=...` for PIP_FIND_LINKS;
    several values are separated by white space, also when written on several lines of pip.conf.
    """
    found = {}
    for line in listing.splitlines():
        key, separator, value = line.partition("=")
        section, _, name = key.strip().rpartition(".")
        if not separator or section not in (":env:", "global", "user", "site", "install"):
            continue
        if name not in ("find-links", "index-url", "cert"):
            continue
        try:
            text = ast.literal_eval(value.strip())
        except (SyntaxError, ValueError):
            text = value.strip()
        for part in str(text).split():
            if part not in found.setdefault(name, []):
                found[name].append(part)
    return found


def read_pip_settings():
    return pip_settings("\n".join(call([sys.executable, "-m", "pip", "config", "list"], show=())))


def torch_arguments(settings):
    """What to ask uv for, so that one version fits CPU and GPU: a configured wheel if there is one, else by the driver."""
    folders = settings.get("find-links", [])
    arguments = ["torch==" + TORCH]
    for folder in folders:
        arguments += ["--find-links", folder]
    here = [Path(folder.replace("file://", "", 1)) for folder in folders if "://" not in folder or folder.startswith("file://")]
    held = len(here) < len(folders) or any(list(folder.glob(f"torch-{TORCH}*.whl")) for folder in here)
    return arguments if held else [*arguments, "--torch-backend=auto"]


def uv_environment(settings):
    """The environment for uv: pip's index and certificates, the system's certificates, and nobody else's virtual environment."""
    env = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH")}
    env.setdefault("UV_SYSTEM_CERTS", "1")
    env.setdefault("UV_PYTHON_DOWNLOADS", "never")
    env.setdefault("UV_HTTP_TIMEOUT", "180")
    if settings.get("cert"):
        env.setdefault("SSL_CERT_FILE", settings["cert"][-1])
    if settings.get("index-url"):
        env.setdefault("UV_DEFAULT_INDEX", settings["index-url"][-1])
    if not os.access(os.path.expanduser("~"), os.W_OK):
        env.setdefault("UV_CACHE_DIR", str(TOOLS / "cache"))
    return env


# ------------------------------------------------------------------------------------------------------------- the steps


def check_python(version=None, which=shutil.which):
    """Refuse a Python that the locked packages have no wheels for, and name one that would do."""
    version = tuple(version or sys.version_info[:2])
    if OLDEST <= version <= NEWEST:
        return
    other = next((name for name in ("python3.11", "python3.12") if which(name)), None)
    advice = f"run it with {other}" if other else "install one (Debian: apt-get install python3)"
    raise SetupError(f"Python 3.11 or 3.12 is needed, this is {version[0]}.{version[1]}: {advice}")


def check_disk(needed=FREE_GB, path=ROOT):
    free = shutil.disk_usage(str(path)).free / 1e9
    if free < needed:
        raise SetupError(f"the disk is too full: {free:.1f} GB free in {path}, {needed:g} GB are needed")


def fingerprint():
    """What the environment depends on; a copied or moved clone counts as changed, because .venv/ holds absolute paths."""
    digest = hashlib.sha256()
    for part in (LOCK.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), str(ROOT).encode(), UV.encode(), TORCH.encode()):
        digest.update(hashlib.sha256(part).digest())
    return {"inputs": digest.hexdigest(), "python": "{}.{}".format(*sys.version_info[:2])}


def is_ready():
    """True when .venv/ was finished with exactly these inputs."""
    try:
        return json.loads(STAMP.read_text()) == fingerprint() and (VENV / "bin/python").exists()
    except (OSError, ValueError):
        return False


def get_uv(log):
    """uv, pinned, as a wheel in .tools/: Debian's Python refuses a plain `pip install`, but allows `--target`."""
    uv = TOOLS / "bin" / "uv"
    with contextlib.suppress(SetupError):
        if uv.exists() and UV in " ".join(call([uv, "--version"], show=())):
            return uv
    env = dict(os.environ, PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
    # pip prints "ERROR: Could not find a version" for an unreachable index as well as for a missing one.
    call([sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", TOOLS, "uv==" + UV], env=env, log=log)
    return uv


def make_environment(uv, env, log):
    """An empty .venv/ of this very Python; one of the same Python is kept, so that a changed lock costs seconds."""
    python = VENV / "bin" / "python"
    with contextlib.suppress(SetupError):
        version = "import sys; print('%d.%d' % sys.version_info[:2])"
        if python.exists() and call([python, "-c", version], show=())[-1:] == [fingerprint()["python"]]:
            return
    call([uv, "venv", "--clear", "--python", sys.executable, VENV], env=env, log=log)


def install(uv, settings, env, log):
    """The locked packages, then torch, then this project; wheels only but for what the lock holds as source."""
    pip = [uv, "pip", "install", "--python", VENV / "bin" / "python"]
    find_links = [part for folder in settings.get("find-links", []) for part in ("--find-links", folder)]
    locked = ["--require-hashes", "--no-deps", "-r", LOCK]
    # antlr4 (Hydra's parser) comes as source: what builds it is held by the same hashes.
    call([*pip, *locked, "--build-constraints", LOCK, "--require-build-hashes", *find_links], env=env, log=log)
    print(f"[3/5] torch {TORCH}", flush=True)
    call([*pip, *torch_arguments(settings)], env=env, log=log)
    print("[4/5] uwm itself, editable", flush=True)
    call([*pip, "--no-deps", "--no-build-isolation", "--offline", "--editable", ROOT], env=env, log=log)


def runtime_environment(base=None):
    """The environment for what is run: render without a screen, and never more threads than cores."""
    env = dict(os.environ if base is None else base)
    for key in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"):
        env.pop(key, None)
    if sys.platform.startswith("linux") and not (env.get("DISPLAY") or env.get("WAYLAND_DISPLAY")):
        env.setdefault("MUJOCO_GL", "egl")
    env.setdefault("OMP_NUM_THREADS", str(cores()))
    env.setdefault("WANDB_SILENT", "true")
    env["PATH"] = os.pathsep.join([str(VENV / "bin"), env.get("PATH", os.defpath)])
    return env


def cores():
    """The cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_rendering(log):
    """Render one frame; where that fails, install the system's libraries as root, or say the exact line."""
    probe = [VENV / "bin" / "python", "-c", ONE_FRAME]
    with contextlib.suppress(SetupError):
        call(probe, env=runtime_environment(), log=log)
        return
    apt = ["apt-get", "install", "-y", "--no-install-recommends", *SYSTEM_PACKAGES]
    line = "apt-get update && " + " ".join(apt)
    if not shutil.which("apt-get"):
        raise SetupError("no frame can be rendered: install EGL (Debian's names: {}) and run again".format(" ".join(SYSTEM_PACKAGES)))
    if os.geteuid() != 0:
        raise SetupError(f"no frame can be rendered: run  sudo sh -c '{line}'  and then the same command again")
    print("      " + line, flush=True)
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    call(["apt-get", "update"], env=env, log=log, show=())
    call(apt, env=env, log=log, show=("Unpacking ",))
    try:
        call(probe, env=runtime_environment(), log=log)
    except SetupError as error:
        raise SetupError(f"still no frame can be rendered: {error}") from error


def setup():
    """Make .venv/ ready, or return at once when it is."""
    check_python()
    if is_ready():
        return
    check_disk()
    with one_at_a_time():
        if not is_ready():
            install_everything(TOOLS / "setup.log")


@contextlib.contextmanager
def one_at_a_time():
    """Two terminals, one environment: the second waits, then finds it ready."""
    TOOLS.mkdir(exist_ok=True)
    with open(str(TOOLS / "setup.lock"), "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def install_everything(log):
    begin = time.monotonic()
    log.write_text("")
    with contextlib.suppress(FileNotFoundError):
        STAMP.unlink()
    print(f"[1/5] uv {UV} into .tools/", flush=True)
    settings = read_pip_settings()
    uv, env = get_uv(log), uv_environment(settings)
    print("[2/5] the locked packages into .venv/", flush=True)
    make_environment(uv, env, log)
    install(uv, settings, env, log)
    print("[5/5] one rendered frame", flush=True)
    check_rendering(log)
    STAMP.write_text(json.dumps(fingerprint()))
    print(f"ready after {time.monotonic() - begin:.0f} s", flush=True)


# ---------------------------------------------------------------------------------------------------------- the commands


def demo(arguments):
    setup()
    replace_process([VENV / "bin" / "uwm", "demo", *arguments], runtime_environment())


def test(arguments):
    setup()
    become_pytest([], arguments)


def judges(arguments):
    """Make the environments of other people's loaders (tests/judges/environments.py), then become pytest on their comparisons."""
    sys.path.insert(0, str(ROOT / "tests" / "judges"))
    import environments

    run = sys.modules[__name__]
    chosen, options = environments.chosen(run, arguments)
    setup()
    with one_at_a_time():
        environments.make(run, chosen)
    become_pytest([environments.comparisons(name) for name in chosen], options)


def become_pytest(files, options):
    """Whole suites run with one process a core (at most four); with options, all runs in this process, where one can watch it."""
    env = runtime_environment()
    if not options:
        env["OMP_NUM_THREADS"] = "1"
        options = ["-n", str(min(cores(), 4)), "--dist", "loadfile"]
    replace_process([VENV / "bin" / "pytest", *files, *options], env)


def replace_process(command, env):
    """Become the command, so that signals and the exit status are its own."""
    os.chdir(str(ROOT))
    sys.stdout.flush()
    os.execve(str(command[0]), [str(part) for part in command], env)


def lock(_arguments):
    """Compile requirements.lock: every extra, no address, no torch, and nothing that only a GPU build of torch brings."""
    check_python()
    TOOLS.mkdir(exist_ok=True)
    settings = read_pip_settings()
    uv = get_uv(None)
    excludes, constraints = TOOLS / "excludes.txt", TOOLS / "constraints.txt"
    excludes.write_text("\n".join(NEVER_LOCKED) + "\n")
    constraints.write_text(f"torch=={TORCH}\n")
    torch = [argument for argument in torch_arguments(settings)[1:] if argument != "--torch-backend=auto"] or ["--torch-backend=cpu"]
    command = [uv, "pip", "compile", ROOT / "pyproject.toml", "--all-extras", "--upgrade", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--no-emit-package", "torch"]
    command += ["--excludes", excludes, "--constraints", constraints, "--custom-compile-command", "python3 run.py lock"]
    call([*command, *torch, "--output-file", LOCK], env=uv_environment(settings))
    text = LOCK.read_text()
    strangers = [word for word in ("://", "\nnvidia-", "\ntriton") if word in text]
    if strangers:
        raise SetupError(f"requirements.lock holds {strangers}: compile it where torch's CPU build can be found")
    print(f"requirements.lock: {sum(line[:1].isalnum() for line in text.splitlines())} packages")


def main(arguments):
    commands = {"demo": demo, "test": test, "judges": judges, "lock": lock, "setup": lambda _: setup()}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0 if arguments else 2
    if arguments[0] not in commands:
        print("run.py: error: unknown command {!r}; there are {}".format(arguments[0], ", ".join(commands)), file=sys.stderr)
        return 2
    try:
        commands[arguments[0]](arguments[1:])
    except SetupError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"run.py: error: {cause_of(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrun.py: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
