"""Only one controller may hold a robot: within a process by a flag, across processes by a lock file that dies with its holder."""

from __future__ import annotations

import tempfile
from pathlib import Path

from uwm.robot.interface import RobotError


class Hold:
    """The hold on one robot. `name`: robots of the same name are the same robot to all processes of this machine; "" to none.

    `folder`: where the lock files are, by default one in the machine's folder for temporary files. The system frees a lock
    when its process ends, however it ends, so a killed controller leaves nothing to clean up.
    """

    def __init__(self, name: str = "", folder: str | Path | None = None):
        self.name = name
        self._folder = Path(folder) if folder else Path(tempfile.gettempdir()) / "uwm-robots"
        self._taken, self._file = False, None

    @property
    def taken(self) -> bool:
        """True between `take` and `release` of this object."""
        return self._taken

    def take(self) -> None:
        """Take hold; RobotError when this object or another process has it."""
        if self._taken:
            raise RobotError("this robot is already connected; two controllers on one robot would fight: close the first")
        if self.name:
            self._file = self._locked()
        self._taken = True

    def release(self) -> None:
        """Let go; harmless when nothing is held."""
        self._taken = False
        if self._file is not None:
            self._file.close()
            self._file = None

    def demand(self) -> None:
        """RobotError unless held."""
        if not self._taken:
            raise RobotError("the robot is not connected: call connect() first")

    def _locked(self):
        import fcntl

        if set(self.name) & set("/\\\0"):
            raise RobotError(f"a robot's name becomes a file's name and may not hold a slash, got {self.name!r}")
        self._folder.mkdir(parents=True, exist_ok=True)
        file = (self._folder / f"{self.name}.lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise RobotError(f"another process holds the robot {self.name!r} (lock {file.name}): end that controller first") from None
        return file
