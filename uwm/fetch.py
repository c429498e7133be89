"""Demonstrations by people for everyone: taken out of old robosuite packages (MIT), checked byte by byte.

    pip download robosuite==1.0.1, 1.4.1  ->  seven hdf5 files (six tasks, nine demonstrations), SHA-256 compared, licences

`uwm.human` reads them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uwm
from uwm_data.errors import FormatError

_DEMONSTRATIONS = "robosuite/models/assets/demonstrations"
_MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Remote:
    """A demo.hdf5 in a `folder` of a robosuite package, where it goes, and what its bytes must hash to."""

    version: str
    folder: str
    name: str
    sha256: str


FILES = (
    Remote("1.0.1", "door/panda", "door-1.0.1.hdf5", "d53be75d5a906d6355be05a882197c9cfdc6ddedd15f577311d51d4efe07a4a2"),
    Remote("1.0.1", "lift/panda", "lift-1.0.1.hdf5", "694f2701136b57354e6b45c0b06a70f147416030239ce8fbc7a28984c5a2b989"),
    Remote("1.0.1", "nut-assembly/panda", "nut-assembly-1.0.1.hdf5", "876a5bc9fa6f05f9a3dcd9e0e4f05675f3c8fed76b61122a6ac17ddccd88ce86"),
    Remote("1.0.1", "pick-place/panda", "pick-place-1.0.1.hdf5", "01d72fbe67b917c93df411779fa7037170509f435c6dcf8d1aa705ccb9b7f93c"),
    Remote("1.0.1", "stack/panda", "stack-1.0.1.hdf5", "6d5dc16f2f32fd87a25f8e71efd6edb405d77ca500aed62733c6c036fd6b3899"),
    Remote("1.0.1", "wipe/panda", "wipe-1.0.1.hdf5", "06c164a9fc609d6374b5ecc30e14e3f331e7f18e2ea6d7cb5888b14f16630a5f"),
    Remote("1.4.1", "lift", "lift-1.4.1.hdf5", "08c060c1dcd30582a4f84cf1b9c2daa009c9c75262e78235eca1bb58d0f84e61"),
)


def fetch_human(out: str | Path) -> int:
    """Get the demonstrations into the folder `out`, from robosuite 1.0.1 and 1.4.1 (290 MB are downloaded, 2.6 MB kept).

    Files that are there and whole are left alone, so a stopped run goes on. Every file is compared with its SHA-256 before
    it appears; the packages' MIT licences are put beside them. Returns 0; FormatError says what went wrong.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    wanted = [file for file in FILES if not _is_whole(out / file.name, file.sha256)]
    for version in sorted({file.version for file in wanted}):
        print(f"fetch: robosuite {version} ...", flush=True)
        with _package(version) as package:
            _keep(_content(package / f"robosuite-{version}.dist-info/LICENSE", version), out / f"LICENSE-robosuite-{version}")
            for file in wanted:
                if file.version == version:
                    _keep(_checked(package, file), out / file.name)
    print(f"fetch: {len(FILES)} files of human demonstrations in {out}; next: uwm convert {out} runs/human.zarr")
    return 0


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _checked(package: Any, file: Remote) -> bytes:
    content = _content(package / f"{_DEMONSTRATIONS}/{file.folder}/demo.hdf5", file.version)
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise FormatError(
            f"{file.folder}/demo.hdf5 of robosuite {file.version} is not the file that is expected: its SHA-256 is {found}, "
            f"not {file.sha256}; nothing of it was kept. Was the package changed on its way?"
        )
    return content


def _content(member: Any, version: str) -> bytes:
    # The names are ours and never those of the archive, so nothing can land outside the folder; sizes are not believed.
    try:
        with member.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise FormatError(f"robosuite {version} does not hold {member.name} as expected: {error}") from error
    if len(content) > _MOST_BYTES:
        raise FormatError(f"{member.name} of robosuite {version} is larger than {_MOST_BYTES} bytes, which it should not be")
    return content


def _keep(content: bytes, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


@contextmanager
def _package(version: str) -> Iterator[Any]:
    """A robosuite package, as a path-like root of its files, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="uwm-fetch-") as folder:
        said = []
        for command in _downloads(version, folder):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                yield _root(Path(folder))
                return
            said += [f"{command[0]} said: {line}" for line in done.stderr.strip().splitlines()[-1:]]
        raise FormatError(
            f"robosuite {version} could not be downloaded ({'; '.join(said) or 'neither pip nor uv was found'}); where pip works, run "
            f"`pip download --no-deps robosuite=={version}` and unzip the hdf5 files below {_DEMONSTRATIONS}"
        )


def _root(folder: Path) -> Any:
    wheel = next(folder.glob("*.whl"), None)
    if wheel is None:
        return folder  # unpacked already
    try:
        return zipfile.Path(wheel)
    except zipfile.BadZipFile as error:
        raise FormatError(f"{wheel.name} arrived damaged ({error}); run the same command again") from error


def _downloads(version: str, folder: str) -> list[list[str]]:
    """Commands that bring a package into a folder, the likeliest first; pip's keep the wheel, uv's unpacks it.

    An environment made by uv has no pip: the Python it was made from often has, with the user's own settings.
    """
    wanted = ["--no-deps", "--only-binary=:all:", f"robosuite=={version}"]
    base = next((path for name in ("python3", "python") if (path := Path(sys.base_prefix) / "bin" / name).exists()), None)
    pythons = [sys.executable] if importlib.util.find_spec("pip") else []
    pythons += [str(base)] if base and sys.base_prefix != sys.prefix else []
    beside = Path(uwm.__file__).resolve().parents[1] / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(beside) if beside.exists() else None)
    commands = [[python, "-m", "pip", "download", "--quiet", "--dest", folder, *wanted] for python in pythons]
    return commands + ([[uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", folder, *wanted]] if uv else [])
