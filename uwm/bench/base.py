"""Checkpoints that several benches measure: trained once, by the commands that a user would type."""

from pathlib import Path

from uwm.learn.checkpoint import CheckpointError

LIFT = (Path("runs/demo/model"), Path("runs/base/lift/model"))


def lift() -> Path:
    """A Lift policy from images: that of the demo, or of `uwm train out=runs/base/lift`. CheckpointError when there is none."""
    found = next((path for path in LIFT if (path / "checkpoint.json").is_file()), None)
    if found is None:
        raise CheckpointError(f"there is no checkpoint in {' or '.join(map(str, LIFT))}: `python3 run.py demo` or `uwm demo` makes one")
    return found
