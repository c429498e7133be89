"""How often an expert succeeds: python -m uwm_envs.experts Lift --episodes 60 --noise 0.3 (no images, so seconds a world)."""

import argparse

import numpy as np

import uwm_envs


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a success rate (Wilson 1927): unlike the plain one, sensible when every trial succeeds."""
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    spread = z * np.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials**2))
    scale = 1 + z * z / trials
    return float((centre - spread) / scale), float((centre + spread) / scale)


def run_episode(env, expert, seed: int) -> tuple[bool, int]:
    """One episode of an expert: whether it succeeded, and its length in ticks."""
    env.reset(seed=seed)
    expert.start(env, np.random.default_rng(seed))
    ticks, over = 0, False
    while not over:
        action, _ = expert.act(env)
        _, _, terminated, truncated, info = env.step(action)
        ticks += 1
        over = terminated or truncated
    return bool(info["success"]), ticks


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m uwm_envs.experts", description=__doc__)
    parser.add_argument("worlds", nargs="*", default=["Lift"], metavar="WORLD", help=f"any of {', '.join(uwm_envs.NAMES)}")
    parser.add_argument("--episodes", type=int, default=60, help="seeds 0, 1, ... (default 60)")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--strategy", default="random")
    options = parser.parse_args()
    for name in options.worlds:
        env = uwm_envs.make(name, cameras=())
        expert = uwm_envs.make_expert(name, noise=options.noise, strategy=options.strategy)
        results = [run_episode(env, expert, seed) for seed in range(options.episodes)]
        env.close()
        successes = sum(success for success, _ in results)
        low, high = wilson(successes, len(results))
        ticks = np.median([ticks for _, ticks in results])
        failed = [seed for seed, (success, _) in enumerate(results) if not success]
        print(f"{name}: {successes}/{len(results)} [{low:.3f}, {high:.3f}], median {ticks:.0f} ticks, failed seeds {failed}", flush=True)


if __name__ == "__main__":
    main()
