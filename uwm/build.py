"""From a config to objects and runs: the only file that knows every room, each choice visible.

| command | config | what it does |
|---|---|---|
| collect | `CollectRun` | worlds and experts in processes -> episode store |
| train | `TrainRun` | store -> autoencoder, latents, model -> checkpoint folder |
| evaluate | `EvalRun` | checkpoint and world -> closed-loop figures |
| demo | `DemoRun` | the three above and a report; finished stages are reused |
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uwm.core.config import ConfigError, from_mapping, to_mapping
from uwm.learn import checkpoint as checkpoints
from uwm.learn.augment import AugmentConfig, augment
from uwm.learn.autoencode import AutoencodeConfig, LatentTable, train_autoencoder
from uwm.learn.logs import Log
from uwm.learn.loop import PRECISIONS, TrainConfig, TrainState, generator_at
from uwm.learn.loop import train as run_training
from uwm.learn.objective import Batch
from uwm.nn.autoencoder import AutoencoderConfig
from uwm.nn.backbone import BackboneConfig
from uwm.nn.codecs import frames_to_unit
from uwm.nn.model import ModelConfig, Observation, UnifiedModel
from uwm.robot import evaluate as evaluation
from uwm.robot.collect import Episode
from uwm.robot.collect import collect as run_collection
from uwm.robot.policy import Policy, PolicyConfig
from uwm.robot.processes import deaf_to_interrupts

# ---------------------------------------------------------------------------------------------------------- what a run is


@dataclass(frozen=True)
class WorldConfig:
    """Which world, which cameras, how it is drawn."""

    name: str = "Lift"
    cameras: tuple[str, ...] = ("agentview", "wrist")
    image_size: int = 64
    render: str = "fast"
    max_steps: int | None = None


@dataclass(frozen=True)
class CollectRun:
    """`episodes` demonstrations with seeds from `seed` on, by `workers` processes; `noise` of the expert."""

    world: WorldConfig = field(default_factory=WorldConfig)
    out: str = "runs/lift.zarr"
    episodes: int = 100
    seed: int = 0
    noise: float = 0.08
    strategy: str = "random"
    workers: int = 2


@dataclass(frozen=True)
class SizeConfig:
    """The model's own choices; sizes of actions, proprioception and images come from the store."""

    past: int = 2
    horizon: int = 18
    video_frames: tuple[int, ...] = (8, 16)
    grid: int = 4
    patch: int = 2
    merge: int = 1
    prediction: str = "velocity"
    path: str = "cosine"
    noise_shift: float = 2.0
    latent: int = 8
    latent_channels: int = 24
    backbone: BackboneConfig = field(default_factory=BackboneConfig)

    def model(self, cameras: tuple[str, ...], proprio_size: int, action_size: int, image_size: int) -> ModelConfig:
        """The whole config of a model in a world of these sizes."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        autoencoder = AutoencoderConfig(image_size, own.pop("latent_channels"), own.pop("latent"))
        return ModelConfig(cameras, proprio_size, action_size, autoencoder=autoencoder, **own)


@dataclass(frozen=True)
class TrainRun:
    """A store in, a checkpoint folder out."""

    data: str = "runs/lift.zarr"
    out: str = "runs/lift"
    validation: float = 0.08
    only_success: bool = True
    camera_dropout: float = 0.05
    logger: str = "offline"
    threads: int = 0
    model: SizeConfig = field(default_factory=SizeConfig)
    autoencoder: AutoencodeConfig = field(default_factory=AutoencodeConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class EvalRun:
    """`rollouts` closed-loop episodes of a checkpoint, seeds from `seed` on, in `workers` processes."""

    checkpoint: str = "runs/lift/model"
    world: WorldConfig = field(default_factory=WorldConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    rollouts: int = 50
    seed: int = 100_000
    workers: int = 2
    keep_videos: int = 2
    out: str | None = None


# ---------------------------------------------------------------------------------------------------------------- collect


def make_world(world: WorldConfig, **options):
    """The gymnasium env of a world config."""
    import uwm_envs

    limits = {} if world.max_steps is None else {"max_steps": world.max_steps}
    return uwm_envs.make(
        world.name, cameras=world.cameras, image_size=world.image_size, render=world.render, **limits, **options
    )


def _world_and_expert(run: CollectRun):
    import uwm_envs

    return make_world(run.world), uwm_envs.make_expert(run.world.name, noise=run.noise, strategy=run.strategy)


def collect(config: dict) -> int:
    """Records demonstrations; a store that already has some is continued."""
    _collect(from_mapping(CollectRun, config, "collect"))
    return 0


def _collect(run: CollectRun) -> Path:
    from tqdm import tqdm

    import uwm_data

    path = Path(run.out)
    card = _world_card(run)
    store = uwm_data.EpisodeStore.open(path, write=True) if (path / "zarr.json").exists() else None
    with store or uwm_data.EpisodeStore.create(path, _streams(card), card) as store:
        _refuse_other_world(store.card, card, path)
        have = len(store)
        seeds = range(run.seed + have, run.seed + run.episodes)
        if not seeds:
            print(f"collect: {path} already holds {have} episodes")
            return path
        bar = tqdm(total=run.episodes, initial=have, desc="collect", unit="episode")
        kept = [store.meta(index)["success"] for index in store.episodes]
        episodes = run_collection(partial(_world_and_expert, run), seeds, run.workers)
        try:
            for episode in episodes:
                store.append(_arrays(episode), _meta(episode, run, card))
                kept.append(episode.success)
                bar.update()
                bar.set_postfix(success=f"{np.mean(kept):.2f}")
        finally:
            episodes.close()
            bar.close()
    return path


def _world_card(run: CollectRun) -> dict:
    env = make_world(run.world)
    card = {**env.unwrapped.card, "expert": {"noise": run.noise, "strategy": run.strategy}}
    card["proprio_size"] = int(env.observation_space["proprio"].shape[0])
    env.close()
    return card


def _streams(card: dict) -> dict:
    from uwm_data import StreamSpec

    rate, action, proprio = card["rate_hz"], card["action"], card["proprio"]
    side = card["image_size"]
    acts = StreamSpec((len(action["names"]),), "float32", rate, "action", action["units"], action["names"])
    state = StreamSpec((card["proprio_size"],), "float32", rate, "state", proprio["units"], proprio["names"])
    video = {camera: StreamSpec((side, side, 3), "uint8", rate, "video") for camera in card["cameras"]}
    return {**video, "proprio": state, "action": acts, "action_intended": acts}


def _refuse_other_world(have: dict, card: dict, path: Path) -> None:
    wrong = [name for name in ("env", "robot", "cameras", "image_size", "render_profile") if have.get(name) != card[name]]
    if wrong:
        told = "; ".join(f"{name} is {have.get(name)!r} there and {card[name]!r} here" for name in wrong)
        raise ConfigError(f"{path} is a store of another world: {told}. Choose another `out`")


def _arrays(episode: Episode) -> dict[str, np.ndarray]:
    return {**episode.observations, "action": episode.action, "action_intended": episode.action_intended}


def _meta(episode: Episode, run: CollectRun, card: dict) -> dict:
    return {
        "task": run.world.name,
        "instruction": card.get("instruction", run.world.name),
        "seed": episode.seed,
        "success": episode.success,
        "source": f"scripted expert, noise {run.noise}",
    }


# ------------------------------------------------------------------------------------------------------------------ train


class Data:
    """A store as the model wants it: splits, statistics, windows, and batches of tensors."""

    def __init__(self, run: TrainRun):
        import uwm_data

        self.run = run
        self.store = uwm_data.EpisodeStore.open(run.data)
        self.card = self.store.card
        self.cameras = tuple(self.card["cameras"])
        training, held_out = uwm_data.split_episodes(self.store, run.validation, run.train.seed)
        if run.only_success:
            training = [index for index in training if self.store.meta(index)["success"]]
            held_out = [index for index in held_out if self.store.meta(index)["success"]]
        if not training:
            raise uwm_data.StoreError(f"{run.data} has no successful episode to train on; set only_success=false or collect more")
        self.training, self.held_out = training, held_out

    def statistics(self) -> dict[str, dict]:
        """Statistics of training episodes only."""
        import uwm_data

        return uwm_data.statistics(self.store, ["action", "proprio"], self.training)

    def model_config(self) -> ModelConfig:
        size = self.run.model
        if size.video_frames and not self.cameras:
            raise ConfigError(f"{self.run.data} has no cameras, so there is no video to learn: set model.video_frames=[]")
        streams = self.store.streams
        return size.model(self.cameras, streams["proprio"].shape[0], streams["action"].shape[0], self.card["image_size"])

    def frames(self, episodes: list[int]) -> Iterator[dict[str, torch.Tensor]]:
        """All frames of each episode, per camera."""
        for index in episodes:
            yield {camera: torch.from_numpy(self.store.read(index, camera)) for camera in self.cameras}

    def windows(self, model: UnifiedModel, episodes: list[int]) -> "ModelWindows":
        return ModelWindows(self, model, episodes)


class ModelWindows:
    """Windows of some episodes as objective batches; video tokens come from a table of latents."""

    def __init__(self, data: Data, model: UnifiedModel, episodes: list[int]):
        import uwm_data

        config = model.config
        offsets = {camera: [0] for camera in data.cameras} | {"proprio": [0]}
        ticks = range(-config.past, config.horizon)
        # A store of somebody else's episodes knows only what was executed.
        self.intended = "action_intended" if "action_intended" in data.store.streams else "action"
        self.windows = uwm_data.Windows(data.store, {**offsets, "action": ticks, self.intended: ticks}, episodes)
        self.latents = LatentTable(model.video, data.frames(episodes), data.cameras) if config.video_frames else None
        self.model, self.data = model, data

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, indices: np.ndarray, generator: torch.Generator | None = None) -> Batch:
        """Windows by number; with a generator the frames are augmented and cameras dropped (training)."""
        read, model, cameras = self.windows.batch(indices), self.model, self.data.cameras
        values = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in read.values.items()}
        images = {camera: frames_to_unit(values[camera][:, 0]) for camera in cameras}
        present = {}
        if generator is not None:
            images = {camera: augment(image, self.data.run.augment, generator) for camera, image in images.items()}
            keep = 1 - self.data.run.camera_dropout
            present = {camera: torch.rand(len(indices), generator=generator) < keep for camera in cameras}
        action = model.normalise_action.normalise(values["action"])
        future = torch.arange(values["action"].shape[1]) >= model.config.past
        intended = model.normalise_action.normalise(values[self.intended])
        tokens, valid = {"action": action}, [torch.from_numpy(read.valid["action"])]
        for camera in cameras if self.latents else ():
            tokens[camera], there = self._video(camera, indices, read.tick)
            valid.append(there)
        return Batch(
            Observation(images, values["proprio"][:, 0], present),
            model.layout.pack(tokens),
            torch.cat(valid, dim=1),
            torch.where(future[None, :, None], intended, action),
        )

    def future_frames(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """The true future frames (B, T, 3, H, W) in [0, 1] of windows by number, clamped at the end of the episode."""
        import uwm_data

        offsets = dict.fromkeys(self.data.cameras, self.model.config.video_frames)
        read = uwm_data.Windows(self.data.store, offsets, self.windows.episodes, cache_bytes=0).batch(indices)
        return {camera: frames_to_unit(torch.from_numpy(value)) for camera, value in read.values.items()}

    def _video(self, camera: str, indices: np.ndarray, tick: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        place = torch.from_numpy(self.windows.locate(np.asarray(indices))[0])
        frames = torch.from_numpy(tick)[:, None] + torch.tensor(self.model.config.video_frames)
        return self.latents.at(camera, place, frames)


def train(config: dict) -> int:
    """Trains on a store; a stopped run is resumed from its last checkpoint."""
    _train(from_mapping(TrainRun, config, "train"))
    return 0


def _train(run: TrainRun) -> Path:
    out = Path(run.out) / "model"
    data = Data(run)
    about = _unfinished(out, run, data)
    if about is not None and about["step"] >= run.train.steps:
        print(f"train: {out} is trained ({about['step']} steps)")
        return out
    if run.threads:
        torch.set_num_threads(run.threads)
    torch.manual_seed(run.train.seed)
    model = UnifiedModel(data.model_config())
    state = TrainState.fresh(model, run.train)
    with Log(Path(run.out), run.logger, to_mapping(run), resume=about is not None) as log:
        if about is None:
            _prepare(model, data, log)
            state = TrainState.fresh(model, run.train)
        else:
            print(f"train: resuming {out} at step {about['step']}")
            _restore(model, state, checkpoints.load(out, for_training=True))
        windows = data.windows(model, data.training)
        save = partial(_save, out, run, data, model)
        log.begin("train", run.train.steps, state.step)
        run_training(model, state, _batches(windows, run, state.step), run.train, log.step, save)
    return out


def _prepare(model: UnifiedModel, data: Data, log: Log) -> None:
    """Normalisers from statistics, then the autoencoder's own training."""
    statistics = data.statistics()
    model.normalise_action.fit(statistics["action"])
    model.normalise_proprio.fit(statistics["proprio"])
    if not model.config.video_frames:
        return
    run = data.run
    frames = torch.cat([part for episode in data.frames(data.training) for part in episode.values()])
    log.begin("autoencoder", run.autoencoder.steps, 0)
    train_autoencoder(
        model.autoencoder, frames, run.autoencoder, run.train.seed, PRECISIONS[run.train.precision],
        lambda step, error: log.step(step + 1, {"autoencoder": error}),
    )  # fmt: skip


def _batches(windows: ModelWindows, run: TrainRun, start: int) -> Iterator[Batch]:
    import uwm_data

    order = uwm_data.shuffled(len(windows), run.train.batch, run.train.seed, start)
    for step, indices in enumerate(order, start=start):
        # Another stream than the objective's: the two must not draw the same numbers.
        yield windows.batch(indices, generator_at(run.train.seed + 7919, step))


def _unfinished(out: Path, run: TrainRun, data: Data) -> dict | None:
    """What is said about an earlier run in this folder, or None; another config or other data is an error."""
    if not (out / "checkpoint.json").is_file():
        return None
    about = checkpoints.describe(out)
    if about["card"]["data_checksum"] != data.store.checksum_of(data.training):
        raise ConfigError(f"{out} was trained on other data than {run.data}: choose another `out`, or remove that folder")
    before, now = about["config"], json.loads(json.dumps(to_mapping(run)))
    changed = [key for key in ("model", "augment", "autoencoder", "train") if before.get(key) != now[key]]
    if changed:
        raise ConfigError(f"{out} was trained with other settings ({', '.join(changed)}): choose another `out`, or remove that folder")
    return about


def _save(out: Path, run: TrainRun, data: Data, model: UnifiedModel, state: TrainState) -> None:
    card = {**data.card, "data": str(run.data), "data_checksum": data.store.checksum_of(data.training)}
    card |= {"episodes_held_out": data.held_out, "model": to_mapping(model.config)}
    checkpoints.save(
        out,
        checkpoints.Checkpoint(
            state.step, to_mapping(run), card, model.state_dict(), state.average.weights,
            state.optimiser.tensors(),
        ),
    )  # fmt: skip


def _restore(model: UnifiedModel, state: TrainState, saved: checkpoints.Checkpoint) -> None:
    model.load_state_dict(saved.weights)
    state.optimiser.restore(saved.optimiser)
    state.average.weights = {name: saved.average[name] for name in state.average.weights}
    state.step = saved.step


def load_model(path: str | Path) -> tuple[UnifiedModel, dict]:
    """A checkpoint's averaged weights, ready to act, and its card. Needs the core packages only."""
    saved = checkpoints.load(Path(path))
    model = UnifiedModel(from_mapping(ModelConfig, saved.card["model"], f"{path}: model"))
    model.load_state_dict(saved.average)
    return model.eval(), {**saved.card, "step": saved.step, "config": saved.config}


def held_out(path: str | Path, data: str | Path | None = None) -> tuple[UnifiedModel, ModelWindows]:
    """A checkpoint's model and the windows of the episodes that it was not trained on."""
    model, about = load_model(path)
    run = from_mapping(TrainRun, {**about["config"], "data": str(data or about["config"]["data"])}, str(path))
    return model, Data(run).windows(model, about["episodes_held_out"])


# --------------------------------------------------------------------------------------------------------------- evaluate


def evaluate(config: dict) -> int:
    """Closed-loop rollouts of one policy; prints and writes the figures."""
    run = from_mapping(EvalRun, config, "eval")
    figures = summary_of(run)
    print(json.dumps(figures, indent=1))
    if run.out:
        Path(run.out).parent.mkdir(parents=True, exist_ok=True)
        Path(run.out).write_text(json.dumps(figures, indent=1))
    return 0


def summary_of(run: EvalRun) -> dict:
    """Success with its interval, calls and latency per action."""
    results = roll_out(run)
    model, _ = load_model(run.checkpoint)
    return {**evaluation.summary(results), "latency_ms": policy_latency(Policy(model, run.policy))}


def roll_out(run: EvalRun) -> list[evaluation.Rollout]:
    """Rollouts in processes (a rendering context belongs to one), in the order of their seeds."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    from tqdm import tqdm

    _make_ready(run)[0].close()  # what does not fit is told here, in one line, and not by every worker
    seeds = list(range(run.seed, run.seed + run.rollouts))
    keep = set(seeds[: run.keep_videos])
    found: dict[int, evaluation.Rollout] = {}
    workers = max(1, min(run.workers, len(seeds)))
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_enter_worker, initargs=(run,))
    try:
        with deaf_to_interrupts():
            jobs = [pool.submit(_roll_one, seed, seed in keep) for seed in seeds]
        bar = tqdm(as_completed(jobs), total=len(jobs), desc=f"{run.policy.kind} rollouts", unit="rollout")
        for job in bar:
            result = job.result()
            found[result.seed] = result
            bar.set_postfix(success=f"{np.mean([r.success for r in found.values()]):.2f}")
    except BrokenProcessPool as error:
        raise ChildProcessError("a rollout process died (out of memory, or a crash of the simulator); nothing was written") from error
    finally:
        pool.shutdown(cancel_futures=True)
    return [found[seed] for seed in seeds]


_worker: dict = {}  # what a rollout process keeps between episodes: its env and its policy


def _make_ready(run: EvalRun) -> tuple[Any, Policy]:
    """The env and the policy of a run; an error when they do not fit each other."""
    model, card = load_model(run.checkpoint)
    policy, env = Policy(model, run.policy), make_world(run.world)
    checkpoints.refuse_mismatch(card, env.unwrapped.card)
    return env, policy


def _enter_worker(run: EvalRun) -> None:
    torch.set_num_threads(1)
    env, policy = _make_ready(run)
    _worker.update(env=env, policy=policy, camera=run.world.cameras[0] if run.world.cameras else None)


def _roll_one(seed: int, keep: bool) -> evaluation.Rollout:
    return evaluation.rollout(_worker["env"], _worker["policy"], seed, _worker["camera"] if keep else None)


def policy_latency(policy: Policy, repeats: int = 60, threads: int = 1) -> dict[str, float]:
    """Milliseconds per executed action at batch 1, warm, in one thread, observation encoding included."""
    config, before = policy.model.config, torch.get_num_threads()
    side = config.autoencoder.image_size
    images = {name: torch.rand(1, 3, side, side) for name in config.cameras}
    observation = Observation(images, policy.model.normalise_proprio.mean[None].clone())
    memory = policy.start([0])

    def act() -> int:
        nonlocal memory
        memory, actions = policy.act(memory, observation)
        memory = policy.done(memory, actions)
        return actions.shape[1]

    torch.set_num_threads(threads)
    try:
        return evaluation.latency(act, repeats)
    finally:
        torch.set_num_threads(before)


# --------------------------------------------------------------------------------------------------- demo, explain, bench


def demo(config: dict) -> int:
    """Collect, train, run and report; finished stages are reused."""
    from uwm.demo import run_demo

    return run_demo(config)


def explain(config: dict) -> int:
    """Prints what a train (or demo) config means."""
    from uwm.demo import DemoRun
    from uwm.explain import explain as explained

    if "collect" in config:
        whole = from_mapping(DemoRun, config, "config")
        run, policy = whole.train, whole.policy
    else:
        run = from_mapping(TrainRun, config, "config")
        policy = _policy_over_the_horizon(run.model)
    print(explained(_model_config_without_store(run), run.train.objective, policy))
    return 0


def _policy_over_the_horizon(size: SizeConfig) -> PolicyConfig:
    """A policy for a config that names none: the largest chunk of at most three actions that divides the horizon."""
    chunk = next(chunk for chunk in (3, 2, 1) if size.horizon % chunk == 0)
    return PolicyConfig(chunk=chunk, chunks=size.horizon // chunk, past=size.past)


def _model_config_without_store(run: TrainRun) -> ModelConfig:
    """The model of a run: sizes from its store if that is there, else those of the Panda worlds."""
    if Path(run.data).exists():
        return Data(run).model_config()
    print(f"note: {run.data} does not exist yet; showing the sizes of the Panda worlds with two cameras\n", file=sys.stderr)
    side = 64 if 64 % run.model.grid == 0 else 32 * run.model.grid
    return run.model.model(("agentview", "wrist"), proprio_size=11, action_size=7, image_size=side)


def bench(name: str, quick: bool = False, out: Path | None = None) -> int:
    """Runs one named benchmark; 0 only when every gate holds."""
    from uwm.bench import runner

    return runner.main(name, quick, out)
