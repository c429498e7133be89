"""What is shipped: the wheel's contents, a clean install, the extras, the lock, and nothing of anybody's machine in the text."""

import io
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from uwm import cli

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {"torch", "numpy", "einops", "safetensors"}


def committed():
    """The tracked files, or the whole tree where the source came without git."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        skipped = {".venv", ".tools", "runs", "outputs", "__pycache__", ".git"}
        return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)]
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def name_of(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def build(kind, into):
    """Build the project without an index and without isolation, as run.py installs it."""
    code = f"import hatchling.build, sys; print(hatchling.build.build_{kind}({str(into)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return into / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_exactly_our_three_packages_and_the_configs(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.partition("/")[0] for name in names} == {"uwm", "uwm_envs", "uwm_data"}
    folders = {"uwm": "uwm", "uwm_envs": "envs/uwm_envs", "uwm_data": "datasets/uwm_data", "uwm/configs": "configs"}
    wanted = {
        f"{target}/{path.relative_to(ROOT / source)}"
        for target, source in folders.items()
        for path in committed()
        if path.is_relative_to(ROOT / source)
    }
    assert wanted <= set(names), f"committed, but not in the wheel: {sorted(wanted - set(names))}"
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_the_wheel_says_what_it_needs_and_starts(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("METADATA"))
        scripts = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt"))
    needs = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert {name_of(need) for need in needs if "extra ==" not in need} == CORE
    assert "uwm = uwm.cli:main" in scripts


def test_the_wheel_installs_in_a_clean_environment_and_the_command_works_from_another_folder(wheel, tmp_path):
    """Nothing but the wheel: `uwm --help` needs no torch, and the configs come along inside the package."""
    venv = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    pip = [sys._base_executable, "-m", "pip", "--python", venv / "bin" / "python"]  # the pip that run.py was started with
    command = [*pip, "install", "-q", "--no-deps", "--no-index", wheel]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    python = venv / "bin" / "python"
    where = [python, "-I", "-c", "from uwm.composing import configs_dir; print(configs_dir())"]
    for command, expected in (([venv / "bin" / "uwm", "--help"], "usage: uwm"), (where, f"{venv}/lib/")):
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, check=False)
        assert expected in done.stdout, done.stderr


def test_the_source_archive_builds_the_same_wheel(wheel, tmp_path):
    archive = build("sdist", tmp_path)
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as tar:
        tar.extractall(tmp_path)
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    code = f"import hatchling.build; print(hatchling.build.build_wheel({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=unpacked, capture_output=True, text=True, timeout=120, check=True)
    again = tmp_path / done.stdout.split()[-1]
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_the_editable_install_is_followed_by_static_tools():
    """Three folders in a .pth, and no import hook that only a running Python understands."""
    code = "import uwm, uwm_envs, uwm_data, json; print(json.dumps([m.__spec__.origin for m in (uwm, uwm_envs, uwm_data)]))"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=60, check=True)
    folders = ("uwm", "envs/uwm_envs", "datasets/uwm_data")
    assert json.loads(done.stdout) == [str(ROOT / folder / "__init__.py") for folder in folders]


def test_core_dependencies_and_extras_are_the_documented_ones():
    assert {name_of(need) for need in PROJECT["dependencies"]} == CORE
    assert set(PROJECT["optional-dependencies"]) == {
        "sim", "metaworld", "data", "s3", "train", "serve", "record", "franka", "dds", "viz", "bench", "eyes", "language", "latents",
        "view", "dev",
    }  # fmt: skip


def test_the_pins_that_keep_robosuite_and_pyarrow_alive():
    every = [need for group in PROJECT["optional-dependencies"].values() for need in group] + PROJECT["dependencies"]
    for pin in ("robosuite==1.5.2", "mujoco>=3.3,<3.10", "numpy>=1.26,<2", "pyarrow>=21,<26"):
        assert pin in every
    assert "torchvision" not in {name_of(need) for need in every}


def test_a_missing_package_is_blamed_on_an_extra_that_holds_it():
    distribution = {
        "hydra": "hydra-core",
        "cv2": "opencv-python",
        "sklearn": "scikit-learn",
        "PIL": "pillow",
        "google_crc32c": "google-crc32c",
        "rerun": "rerun-sdk",
    }
    for module, extra in cli.EXTRA_OF.items():
        names = {name_of(need) for need in PROJECT["optional-dependencies"][extra]}
        assert distribution.get(module, module) in names, f"{module} is said to be in {extra}"


def test_the_lock_holds_every_dependency_by_hash_and_no_torch_and_no_address():
    text = (ROOT / "requirements.lock").read_text()
    entries = re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    locked = {name: version for name, version, _ in entries}
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]
    assert len(lines) == len(entries) > 50
    assert not [name for name in locked if name in ("torch", "triton") or name.startswith("nvidia")]
    assert "://" not in text
    every = [need for group in PROJECT["optional-dependencies"].values() for need in group] + PROJECT["dependencies"]
    assert {name_of(need) for need in every} - {"torch"} <= set(locked)
    assert locked["robosuite"] == "1.5.2"
    assert (3, 3) <= tuple(map(int, locked["mujoco"].split(".")[:2])) < (3, 10)
    assert locked["numpy"].startswith("1.26")
    assert int(locked["pyarrow"].split(".")[0]) < 26


# Spelt in pieces, so that this file does not find itself.
PLACES = re.compile(r"(?<![\w.~$}])/(?:" + "|".join(("work", "tmp", "root", "home", "opt", "mnt", "Users")) + r")/[\w.-]")
HOSTS = re.compile(
    "|".join((r"pypi\." + "org", "files.python" + "hosted", r"download\.py" + r"torch\.org", r"(?:index-url|find-links)[= ]+\S*://"))
)


def test_no_committed_text_holds_a_machines_path_or_a_registrys_address():
    found = []
    for path in committed():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) < 2000 and (PLACES.search(line) or HOSTS.search(line)):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_the_search_for_machine_paths_can_find_one():
    assert PLACES.search("see " + "/wo" + "rk/x") and PLACES.search("'/ho" + "me/me'")
    assert not PLACES.search("runs/tmp/x and a/home/b") and not PLACES.search("an SDP/home/x")
    assert HOSTS.search("https://pypi." + "org/simple")


@pytest.mark.parametrize("config", sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")))
def test_every_config_composes(config):
    assert cli.compose(config, []) is not None


def test_no_committed_file_is_large():
    large = {str(path.relative_to(ROOT)): size for path in committed() if (size := path.stat().st_size) > 5_000_000}
    assert not large, f"more than 5 MB does not belong into the history: {large}"
