"""From a config to objects and runs: the only file that knows every room, each choice visible.

| command | config | what it does |
|---|---|---|
| collect | `CollectRun` | worlds and experts in processes -> episode store |
| train | `TrainRun` | data -> autoencoder, latents, model -> checkpoint folder (`uwm.training`) |
| evaluate | `EvalRun` | checkpoint and world -> closed-loop figures |
| demo | `DemoRun` | the three above and a report; finished stages are reused |
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uwm.core.config import ConfigError, from_mapping
from uwm.data import TrainingData, members_of
from uwm.learn import checkpoint as checkpoints
from uwm.nn.robot_model import ModelConfig, Observation
from uwm.robot import evaluate as evaluation
from uwm.robot.collect import Episode
from uwm.robot.collect import collect as run_collection
from uwm.robot.policy import Policy, PolicyConfig
from uwm.robot.processes import deaf_to_interrupts, end_with_parent
from uwm.runs import CollectRun, EvalRun, SizeConfig, TrainRun, WorldConfig
from uwm.training import held_out, load_model
from uwm.training import train as run_training

__all__ = ["CollectRun", "EvalRun", "Policy", "SizeConfig", "TrainRun", "WorldConfig", "held_out", "load_model"]

# ---------------------------------------------------------------------------------------------------------------- collect


def make_world(world: WorldConfig, **options):
    """The gymnasium env of a world config."""
    import uwm_envs

    if world.proprio and world.name not in uwm_envs.FELT:
        raise ConfigError(f"only {', '.join(uwm_envs.FELT)} can be felt as a whole (proprio: {world.proprio}), not {world.name}")
    told = {"max_steps": world.max_steps, "proprio": world.proprio}
    options |= {name: value for name, value in told.items() if value is not None}
    return uwm_envs.make(world.name, cameras=world.cameras, image_size=world.image_size, render=world.render, **options)


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
    wrong = [name for name in ("env", "robot", "cameras", "image_size", "render_profile", "proprio_size") if have.get(name) != card[name]]
    if wrong:
        told = "; ".join(f"{name} is {have.get(name)!r} there and {card[name]!r} here" for name in wrong)
        raise ConfigError(f"{path} is a store of another world: {told}. Choose another `out`")


def _arrays(episode: Episode) -> dict[str, np.ndarray]:
    return {**episode.observations, "action": episode.action, "action_intended": episode.action_intended}


def _meta(episode: Episode, run: CollectRun, card: dict) -> dict:
    return {
        "task": run.world.name,
        "instruction": episode.instruction or card.get("instruction", run.world.name),
        "seed": episode.seed,
        "success": episode.success,
        "source": f"scripted expert, noise {run.noise}",
    }


# ------------------------------------------------------------------------------------------------------ train and evaluate


def train(config: dict) -> int:
    """Trains on data; a stopped run is resumed from its last checkpoint."""
    run_training(from_mapping(TrainRun, config, "train"))
    return 0


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
    model, _ = load_model(run.checkpoint, run.member)
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
    model, card = load_model(run.checkpoint, run.member)
    model.words.check([run.instruction or ""])
    policy, env = Policy(model, run.policy), make_world(run.world)
    checkpoints.refuse_mismatch(card, env.unwrapped.card, run.policy.cameras)
    return env, policy


def _enter_worker(run: EvalRun) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    env, policy = _make_ready(run)
    _worker.update(env=env, policy=policy, camera=_camera(run), instruction=run.instruction)


def _roll_one(seed: int, keep: bool) -> evaluation.Rollout:
    return evaluation.rollout(_worker["env"], _worker["policy"], seed, _worker["camera"] if keep else None, keep, _worker["instruction"])


def policy_latency(policy: Policy, repeats: int = 60, threads: int = 1) -> dict[str, float]:
    """Milliseconds per executed action at batch 1, warm, in one thread, observation encoding included."""
    config, before = policy.model.config, torch.get_num_threads()
    side = config.autoencoder.image_size
    images = {name: torch.rand(1, 3, side, side) for name in policy.cameras}
    seen = Observation(images, policy.model.normalise_proprio.mean[None].clone())
    observation = replace(seen, earlier=(seen,) * len(config.history))
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


def explain(config: dict, rollout: Path | None = None) -> int:
    """Prints what a train, eval or demo config means; `rollout`: of an eval config, an episode goes there as a film of the buffer."""
    from uwm.demo import DemoRun
    from uwm.explain import explain as explained

    if "checkpoint" in config:
        return _explain_checkpoint(from_mapping(EvalRun, config, "config"), rollout)
    if rollout is not None:
        raise ConfigError("--rollout films a trained policy: uwm explain eval --rollout FILE.mp4 checkpoint=FOLDER")
    if "collect" in config:
        whole = from_mapping(DemoRun, config, "config")
        run, policy = whole.train, whole.policy
    else:
        run = from_mapping(TrainRun, config, "config")
        policy = _policy_over_the_horizon(run.model)
    data = _data_that_is_there(run)
    print(explained(data.model_config() if data else _model_without_data(run), run.train.objective, policy, data))
    return 0


def _explain_checkpoint(run: EvalRun, rollout: Path | None) -> int:
    from uwm.explain import explain as explained

    if rollout is not None and rollout.suffix != ".mp4":
        raise ConfigError(f"a film is an .mp4 file, got {rollout}")
    model, card = load_model(run.checkpoint, run.member)
    print(explained(model.config, from_mapping(TrainRun, card["config"], run.checkpoint).train.objective, run.policy))
    if rollout is not None:
        _film(run, rollout)
    return 0


def _film(run: EvalRun, out: Path) -> None:
    """One episode of the run's first seed as a film of the buffer."""
    from uwm.bench import buffer_film

    env, policy = _make_ready(run)
    watched = evaluation.rollout(env, policy, run.seed, _camera(run), True, run.instruction)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(buffer_film.mp4(watched, env.unwrapped.card))
    env.close()
    print(f"\n{out}: seed {run.seed}, {watched.ticks} ticks, {'success' if watched.success else 'no success'}")


def _camera(run: EvalRun) -> str | None:
    """The camera whose frames are kept."""
    return run.world.cameras[0] if run.world.cameras else None


def _policy_over_the_horizon(size: SizeConfig) -> PolicyConfig:
    """A policy for a config that names none: the largest chunk of at most three actions that divides the horizon."""
    chunk = next(chunk for chunk in (3, 2, 1) if size.horizon % chunk == 0)
    kind, rows = ("chunked", 1) if size.prediction == "regression" else ("streaming", PolicyConfig.rows)
    return PolicyConfig(kind, rows, chunk, size.horizon // chunk, size.past)


def _data_that_is_there(run: TrainRun) -> TrainingData | None:
    places = [member.data for member in members_of(run)]
    missing = [place for place in places if "://" not in place and not Path(place).exists()]
    if not missing:
        return TrainingData(run)
    print(f"note: {', '.join(missing)} does not exist yet; showing the sizes of the Panda worlds with two cameras\n", file=sys.stderr)
    return None


def _model_without_data(run: TrainRun) -> ModelConfig:
    """The model of a run with the sizes of the Panda worlds."""
    side = 64 if 64 % run.model.grid == 0 else 32 * run.model.grid
    return run.model.model(("agentview", "wrist"), proprio_size=11, action_size=7, image_size=side)


def bench(name: str, quick: bool = False, out: Path | None = None, only: Sequence[str] = ()) -> int:
    """Runs one named benchmark, or `only` some of its parts; 0 only when every gate holds."""
    from uwm.bench import runner

    return runner.main(name, quick, out, only)
