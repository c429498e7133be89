"""Training figures: a progress bar for people, one JSON line per step that was logged, and wandb where it is wanted.

wandb runs offline by default, online with `logger=online`; without the package, or with `logger=off`, the JSON lines are
the whole log.
"""

import importlib.util
import json
import math
import time
from pathlib import Path
from typing import Any

MODES = ("offline", "online", "off")
QUIET = ("rate", "gradient_norm", "share ")  # figures that are written and not shown


class Log:
    """A context manager over one training folder; `begin(stage, total, start)`, then `step(step, figures)`."""

    def __init__(self, folder: Path, mode: str, config: dict, every: int = 10, resume: bool = False):
        if mode not in MODES:
            raise ValueError(f"logger must be one of {MODES}, got {mode!r}")
        self.folder, self.every = Path(folder), every
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = (self.folder / "log.jsonl").open("a" if resume else "w")
        self.bar: Any = None
        self.stage, self.mean, self.began = "", {}, time.perf_counter()
        self.run = _wandb(self.folder, mode, config)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        if self.bar:
            self.bar.close()
        self.file.close()
        if self.run:
            self.run.finish()

    def begin(self, stage: str, total: int, start: int) -> None:
        """A new stage with its own bar."""
        from tqdm import tqdm

        if self.bar:
            self.bar.close()
        self.stage, self.mean = stage, {}
        self.bar = tqdm(total=total, initial=start, desc=stage, unit="step")

    def step(self, step: int, figures: dict[str, float]) -> None:
        """Figures after `step` steps; means over about twenty steps are shown and written."""
        for name, value in figures.items():
            self.mean[name] = value if name not in self.mean else 0.95 * self.mean[name] + 0.05 * value
        self.bar.update()
        if step % self.every and step != self.bar.total:
            return
        shown = {name: f"{value:.3f}" for name, value in self.mean.items() if not name.startswith(QUIET)}
        self.bar.set_postfix(shown)
        finite = {name: value for name, value in self.mean.items() if math.isfinite(value)}
        line = {"stage": self.stage, "step": step, "seconds": round(time.perf_counter() - self.began, 2), **finite}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        if self.run:
            self.run.log({f"{self.stage}/{name}": value for name, value in finite.items()})


def _wandb(folder: Path, mode: str, config: dict) -> Any:
    if mode == "off" or importlib.util.find_spec("wandb") is None:
        return None
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    return wandb.init(project="uwm", dir=str(folder), mode=mode, config=config, settings=settings)


def read(folder: Path) -> list[dict]:
    """The JSON lines of a folder, for curves."""
    file = Path(folder) / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
