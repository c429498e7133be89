"""Make datasets/pusht_state: Push-T episodes of the planner, states, and what the camera sees where that is asked for.

    python datasets/make_pusht_state.py                 # 150 episodes, about two minutes on one core
    python datasets/make_pusht_state.py --episodes 20 --out runs/pusht_small
    python datasets/make_pusht_state.py --episodes 2000 --pushed-m 0.02 --workers 2 --out runs/pusht_pushed

    python datasets/make_pusht_state.py --episodes 2000 --pushed-m 0.02 --played 1000 --out runs/pusht_pushed     # and play
    python datasets/make_pusht_state.py --episodes 2000 --pushed-m 0.02 --image-size 96 --out runs/pusht_seen     # and images

Interrupted, it continues where it stopped. Episode i has seed FIRST_SEED + i; every second one carries action noise. With
`--pushed-m` that noise is half as strong and every episode is pushed aside about once in thirty ticks.
Episodes of play lie behind the planner's: the pusher goes where nobody wished it to, mostly into the block. They count as failed, and
teach what follows from actions (`uwm train failures_teach=true`).
Seeds from FIRST_SEED on are for training; evaluate on smaller ones.
"""

import argparse
import multiprocessing
from functools import cache, partial
from pathlib import Path

import numpy as np

import uwm_envs
from uwm_data import EpisodeStore, StreamSpec
from uwm_envs.experts.pusht import PushTExpert
from uwm_envs.pusht import CAMERAS, HALF_WIDTH_M

FIRST_SEED = 100_000
NOISES = (0.0, 0.2)
PLAY_TICKS, PLAY_M = 60, 0.12  # of an episode of play; how far from the block's middle most of its ways end
LEAD_M = (0.02, 0.085)  # how far ahead of the pusher play may aim: as far as the planner does
SHARD_BYTES = 1 << 16  # small: every append leaves a table behind whose size grows with the shard


def streams(card: dict) -> dict[str, StreamSpec]:
    """The four streams of the store, and one a camera, described from the world's card."""

    def spec(kind, entry):
        return StreamSpec((len(entry["names"]),), "float32", card["rate_hz"], kind, entry["units"], entry["names"])

    frame = (card["image_size"], card["image_size"], 3)
    return {
        **{camera: StreamSpec(frame, "uint8", card["rate_hz"], "video") for camera in card["cameras"]},
        "proprio": spec("state", card["proprio"]),
        "state": spec("state", card["state"]),
        "action": spec("action", card["action"]),
        "action_intended": spec("action", card["action"]),
    }


@cache
def world(image_size: int):
    """The world of this process, with its camera if images have a size."""
    seen = {"cameras": CAMERAS, "image_size": image_size} if image_size else {}
    return uwm_envs.make("PushT", observation="state", **seen)


def record(index: int, pushed_m: float, image_size: int) -> tuple[dict, dict]:
    """Episode `index` of the planner as (arrays, metadata); a failed one is recorded like any other."""
    env, seed = world(image_size), FIRST_SEED + index
    noise = NOISES[index % len(NOISES)] / (2 if pushed_m else 1)
    expert, (observation, _) = PushTExpert(noise=noise, pushed_m=pushed_m), env.reset(seed=seed)
    expert.start(env, np.random.default_rng(seed))
    rows, actions, coverages, done = [observation], [], [], False
    while not done:
        actions.append(expert.act(env))
        observation, reward, terminated, truncated, info = env.step(actions[-1][0])
        rows.append(observation)
        coverages.append(reward)
        done = terminated or truncated
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    arrays["action"], arrays["action_intended"] = (np.stack(side) for side in zip(*actions, strict=True))
    meta = {"task": "PushT", "instruction": "push the T onto its outline", "seed": seed, "success": bool(info["success"])}
    return arrays, {
        **meta,
        "source": "planner",
        "strategy": expert.chosen,
        "noise": noise,
        **({"pushed_m": pushed_m} if pushed_m else {}),
        "final_coverage": float(coverages[-1]),
        "max_coverage": float(max(coverages)),
    }


def play(index: int, image_size: int) -> tuple[dict, dict]:
    """Episode `index` of play as (arrays, metadata): another way to go every two to seven ticks, no faster than the planner."""
    env, seed = world(image_size), FIRST_SEED + index
    (observation, info), rng = env.reset(seed=seed), np.random.default_rng(seed)
    rows, actions, until = [observation], [], 0
    while len(actions) < PLAY_TICKS:
        scene = env.unwrapped.privileged()
        if len(actions) >= until:
            near, until, lead_m = rng.random() < 0.8, len(actions) + rng.integers(2, 8), rng.uniform(*LEAD_M)
            there = scene["block"][:2] + rng.uniform(-PLAY_M, PLAY_M, 2) if near else rng.uniform(-HALF_WIDTH_M, HALF_WIDTH_M, 2)
        way = there - scene["pusher"]
        target = scene["pusher"] + way * min(1.0, lead_m / max(np.linalg.norm(way), 1e-6))
        actions.append(np.clip(target / HALF_WIDTH_M, -1, 1).astype(np.float32))
        observation, _, _, _, info = env.step(actions[-1])
        rows.append(observation)
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    arrays["action"] = arrays["action_intended"] = np.stack(actions)
    told = {"task": "PushT", "instruction": "play", "seed": seed, "success": False, "source": "play"}
    return arrays, {**told, "final_coverage": float(info["coverage"])}


def record_or_play(index: int, episodes: int, pushed_m: float, image_size: int) -> tuple[dict, dict]:
    """The planner's `episodes`, and play behind them."""
    return record(index, pushed_m, image_size) if index < episodes else play(index, image_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--episodes", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pusht_state")
    parser.add_argument("--pushed-m", type=float, default=0.0, help="how far off (m) the executed action is now and then")
    parser.add_argument("--played", type=int, default=0, help="episodes of play behind those of the planner")
    parser.add_argument("--image-size", type=int, default=0, help="pixels a side of what the camera sees; 0: no images")
    parser.add_argument("--workers", type=int, default=1, help="processes; the episodes and their order do not depend on it")
    chosen = parser.parse_args()
    card = world(chosen.image_size).unwrapped.card
    command = f"python datasets/make_pusht_state.py --episodes {chosen.episodes}"
    command += f" --pushed-m {chosen.pushed_m}" if chosen.pushed_m else ""
    command += f" --played {chosen.played}" if chosen.played else ""
    command += f" --image-size {chosen.image_size}" if chosen.image_size else ""
    described = {**card, "source": "planner", "command": command, "first_seed": FIRST_SEED}
    if (chosen.out / "zarr.json").exists():
        open_store = EpisodeStore.open(chosen.out, write=True)
    else:
        small = {} if chosen.image_size else {"shard_bytes": SHARD_BYTES}
        open_store = EpisodeStore.create(chosen.out, streams(card), described, **small)
    count = chosen.episodes + chosen.played
    if len(open_store) >= count:
        print(f"{chosen.out} is complete ({len(open_store)} episodes)")
        return
    with open_store as store, multiprocessing.get_context("spawn").Pool(chosen.workers) as pool:
        made = partial(record_or_play, episodes=chosen.episodes, pushed_m=chosen.pushed_m, image_size=chosen.image_size)
        for index, (arrays, meta) in enumerate(pool.imap(made, range(len(store), count)), len(store)):
            store.append(arrays, meta)
            print(f"{index + 1}/{count} ticks {len(arrays['action'])} coverage {meta['final_coverage']:.3f}", flush=True)


if __name__ == "__main__":
    main()
