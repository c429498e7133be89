"""The demo: collect, train, run in closed loop, probe the other modes, show. Finished stages are reused.

Each stage leaves its figures in `stages/NAME.json` with a fingerprint of what it depended on; a second run reads them and
says so.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from uwm import build
from uwm.core import plans
from uwm.core.config import from_mapping, to_mapping
from uwm.learn import logs
from uwm.learn.checkpoint import describe
from uwm.robot import evaluate as evaluation
from uwm.robot.policy import PolicyConfig
from uwm.training import train
from uwm_data.durable import replace_file


@dataclass(frozen=True)
class DemoRun:
    """One folder for everything; `rollouts` closed-loop episodes per policy on seeds that training never saw."""

    out: str = "runs/demo"
    rollouts: int = 50
    seed: int = 100_000
    workers: int = 2
    windows: int = 256
    rows: int = 12
    collect: build.CollectRun = field(default_factory=build.CollectRun)
    train: build.TrainRun = field(default_factory=build.TrainRun)
    policy: PolicyConfig = field(default_factory=PolicyConfig)

    @property
    def folder(self) -> Path:
        return Path(self.out)


def run_demo(config: dict) -> int:
    """Runs or resumes the demo and writes report.html and report.json; 0 when every gate holds, else 1."""
    run = from_mapping(DemoRun, config, "demo")
    folder = run.folder
    store, model = str(folder / f"{run.collect.world.name.lower()}.zarr"), str(folder)
    run = replace(run, collect=replace(run.collect, out=store), train=replace(run.train, data=store, out=model))
    with _clock(folder / "stages" / "seconds.json"):
        path, figures = _run_stages(run)
    print("demo 4/4: report")
    return _report(run, path, figures)


@contextmanager
def _clock(file: Path) -> Iterator[None]:
    """Adds the seconds of this run to those of earlier ones in the folder, also when it is stopped."""
    began = time.perf_counter()
    try:
        yield
    finally:
        file.parent.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(file.read_text()) if file.is_file() else 0.0
        _write(file, earlier + time.perf_counter() - began)


def _run_stages(run: DemoRun) -> tuple[Path, dict]:
    """Collects, trains, rolls out and probes, or reuses what was done: the checkpoint and all figures."""
    folder = run.folder
    print(f"demo 1/4: {run.collect.episodes} demonstrations of {run.collect.world.name}")
    build._collect(run.collect)
    print("demo 2/4: one model")
    path = train(run.train)
    print("demo 3/4: closed loop and the other modes")
    stages = Stages(folder / "stages", fingerprint(run, path))
    figures = {kind: stages.get(kind, lambda kind=kind: _closed_loop(run, path, kind)) for kind in ("streaming", "chunked")}
    figures |= {"latency": stages.get("latency", lambda: _latency(run, path))}
    figures |= {"modes": stages.get("modes", lambda: _modes(run, path))}
    return path, figures


def fingerprint(run: DemoRun, path: Path) -> str:
    """What rollouts and probes depend on: the weights, the policy, the seeds."""
    digest = hashlib.blake2b((path / "average.safetensors").read_bytes(), digest_size=16)
    digest.update(json.dumps(to_mapping(replace(run, train=build.TrainRun(), collect=build.CollectRun())), default=str).encode())
    return digest.hexdigest()


class Stages:
    """Figures of finished stages in a folder; those of another fingerprint are run again."""

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, make: Callable[[], dict]) -> dict:
        file = self.folder / f"{name}.json"
        if file.is_file():
            kept = json.loads(file.read_text())
            if kept["key"] == self.key:
                print(f"  {name}: finished before, reused")
                return kept["figures"]
        figures = make()
        _write(file, {"key": self.key, "figures": figures})
        return figures


def _write(file: Path, content: object) -> None:
    replace_file(file, json.dumps(content).encode())


def _eval_run(run: DemoRun, path: Path, kind: str) -> build.EvalRun:
    return build.EvalRun(
        str(path), run.collect.world, replace(run.policy, kind=kind), run.rollouts, run.seed, run.workers
    )


def _closed_loop(run: DemoRun, path: Path, kind: str) -> dict:
    from uwm.bench import buffer_film

    results, card = build.roll_out(_eval_run(run, path, kind)), describe(path)["card"]
    for result in results:
        if result.frames:
            name = f"{kind}_{'success' if result.success else 'failure'}_{result.seed}"
            np.save(run.folder / "stages" / f"{name}.npy", np.stack(result.frames))
    filmed = next((result for result in results if result.moments), None)
    if filmed is not None:
        (run.folder / "stages" / f"{kind}_buffer_{filmed.seed}.mp4").write_bytes(buffer_film.mp4(filmed, card))
    return evaluation.summary(results)


def _latency(run: DemoRun, path: Path) -> dict:
    """Both policies in turn in one process, so that a slow moment of the machine meets both."""
    model, _ = build.load_model(path)
    policies = {kind: build.Policy(model, replace(run.policy, kind=kind)) for kind in ("streaming", "chunked")}
    return {kind: build.policy_latency(policy) for kind, policy in policies.items()}


def _modes(run: DemoRun, path: Path) -> dict:
    from uwm.bench import modes, modes_bench

    model, windows = build.held_out(path)
    chosen = modes_bench.spread(windows.windows, max(model.config.video_frames), run.windows)
    batch, frames = windows.batch(chosen), windows.future_frames(chosen)
    episodes = torch.from_numpy(windows.windows.locate(chosen)[0])
    seeds = [int(index) for index in chosen]
    figures = modes.measure(model, batch, frames, batch.observation.images, run.rows, seeds, groups=episodes)
    examples = figures.pop("examples")
    np.savez_compressed(run.folder / "stages" / "examples.npz", **examples)
    return figures


def _report(run: DemoRun, path: Path, figures: dict) -> int:
    from uwm.bench import gates, report
    from uwm.explain import policy_layout, streaming_picture

    model, about = build.load_model(path)
    content = {kind: {**figures[kind], "latency_ms": figures["latency"][kind]} for kind in ("streaming", "chunked")}
    seconds = json.loads((run.folder / "stages" / "seconds.json").read_text())
    content |= {**figures["modes"], "rollouts": run.rollouts, "seconds": seconds, "card": about, "settings": to_mapping(run)}
    content["gates"] = gates.of_demo(content)
    stages = run.folder / "stages"
    videos = {file.stem: list(np.load(file)) for file in sorted(stages.glob("*_*.npy"))}
    examples = dict(np.load(stages / "examples.npz"))
    pictures = {name: plans.picture(plans.mode(model.layout, name, 4), model.layout) for name in plans.MODES}
    pictures["streaming"] = streaming_picture(policy_layout(model, run.policy), run.policy)
    films = {file.stem: file.read_bytes() for file in sorted(stages.glob("*_buffer_*.mp4"), reverse=True)}
    report.write(run.folder, content, examples, videos, pictures, logs.read(run.folder), films)
    for gate in content["gates"]:
        print(f"  {gate.name}: {gate.value:.3g} (gate {gate.text}): {gate.verdict}")
    print(f"report: {run.folder / 'report.html'} and {run.folder / 'report.json'}")
    return 0 if gates.overall(gate.verdict for gate in content["gates"]) == gates.HOLDS else 1
