"""Where a figure comes from: versions of what computed it, and the machine."""

import os
import platform
from importlib import metadata

import uwm

PACKAGES = ("torch", "numpy", "robosuite", "mujoco", "gymnasium", "zarr")


def versions() -> dict[str, str]:
    """Versions of Python, this package and the packages that figures depend on; those not installed are left out."""
    found = {"uwm": uwm.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Cores and architecture, which latencies depend on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {platform.machine()}, {platform.system()}"
