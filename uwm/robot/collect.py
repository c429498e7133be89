"""Collection: scripted experts drive worlds in parallel processes; episodes come back in the order of their seeds."""

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from uwm.robot.processes import deaf_to_interrupts, end_with_parent


@dataclass(frozen=True)
class Episode:
    """Observations (T + 1 of each), executed and intended actions (T of each), and what is known of the run.

    `instruction`: what this episode asked for, in worlds where they differ.
    """

    seed: int
    observations: dict[str, np.ndarray]
    action: np.ndarray
    action_intended: np.ndarray
    success: bool
    instruction: str = ""


def record(env: Any, expert: Any, seed: int) -> Episode:
    """One episode of an expert; a failed one is returned too, marked."""
    observation, told = env.reset(seed=seed)
    # The expert's own randomness must not be the scene's: the same number would tie noise to placement.
    expert.start(env, np.random.default_rng([seed, 1]))
    observations, actions, wishes, success, ended = [observation], [], [], False, False
    while not ended:
        action, wish = expert.act(env)
        observation, _, terminated, truncated, info = env.step(action)
        observations.append(observation)
        actions.append(action)
        wishes.append(wish)
        success, ended = bool(info["success"]), terminated or truncated
    stacked = {name: np.stack([o[name] for o in observations]) for name in observations[0]}
    acted, wished = (np.stack(each).astype(np.float32) for each in (actions, wishes))
    return Episode(seed, stacked, acted, wished, success, told.get("instruction", ""))


def collect(make: Callable[[], tuple[Any, Any]], seeds: Sequence[int], workers: int) -> Iterator[Episode]:
    """Yields one episode per seed, in the order of `seeds`, from `workers` processes.

    `make()` gives (env, expert) and must be picklable: it runs inside each process, because a rendering context belongs
    to the process that made it. A worker's error is raised here; workers end when the iterator is closed.
    """
    context = get_context("spawn")
    results = context.Queue(maxsize=2 * workers)
    jobs = [list(seeds[start::workers]) for start in range(workers)]
    processes = [context.Process(target=_work, args=(make, job, results), daemon=True) for job in jobs if job]
    with deaf_to_interrupts():
        for process in processes:
            process.start()
    waiting: dict[int, Episode] = {}
    try:
        for seed in seeds:
            while seed not in waiting:
                _take(results, processes, waiting)
            yield waiting.pop(seed)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _take(results: Any, processes: list, waiting: dict[int, Episode]) -> None:
    try:
        arrived = results.get(timeout=1.0)
    except queue.Empty:
        dead = [p.exitcode for p in processes if p.exitcode not in (None, 0)]
        if dead:
            raise ChildProcessError(f"a collecting process ended with exit code {dead[0]}; whole episodes are kept") from None
        return
    if isinstance(arrived, Exception):
        raise arrived
    waiting[arrived.seed] = arrived


def _work(make: Callable[[], tuple[Any, Any]], seeds: list[int], results: Any) -> None:
    end_with_parent()
    try:
        env, expert = make()
        for seed in seeds:
            results.put(record(env, expert, seed))
        env.close()
    except Exception as error:  # noqa: BLE001 - carried to the parent, which raises it
        results.put(error)
