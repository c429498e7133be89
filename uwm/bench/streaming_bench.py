"""Claim: the rolling buffer acts as well as sampling every plan from noise, with a fraction of the network calls.

| arm | plan | calls a chunk |
|---|---|---|
| DP, DDPM 100 / DDIM 16 / DDIM 10 | the whole horizon from noise (Diffusion Policy, Chi et al. 2023) | 100 / 16 / 10 |
| DP, few calls | the same, with the calls that streaming needs | 12 / h |
| DP, warm | from the plan before, noised to where as many calls begin | 12 / h |
| SDP, as published | 100 ancestral rows, zero primer (Høeg et al. 2024) | 100 / h |
| SDP | 12 rows, h chunks in the buffer | 12 / h |
| SDP, zero primer | the same, begun without the calls that fill the buffer | 12 / h |
| SDP, one call | h rows | 1 |
| DP, distilled | a student of whole plans (Consistency Policy, Prasad et al. 2024) | 1 / 3 |
| SDP, distilled | a student of the buffer, whose call is worth its teacher's 12 / h (progressive distillation, Salimans & Ho 2022) | 1 |
| streaming UWM, on Lift | frames stand in the buffer too, and surprises take it back (weights of `uwm bench revision`) | 12 / h or more |

One checkpoint a world serves every arm but the distilled ones, so that only the sampling differs; it was trained here on scripted
demonstrations (those of Push-T are a planner's, not the papers' human ones), and its students begin with its weights. Push-T and
NutAssemblySquare are acted in from states, 200 seeds, of which the arms of 100 rows run the first 50; Push-T from a camera besides, 100
seeds; the others from two cameras, 50 seeds, by models of every mode that other benches measure too. In PickPlaceCan a policy that draws a
new plan every chunk gets nowhere (docs/log.md), so that there, and in NutAssemblySquare, chunked arms send three chunks of every plan, and
cheap ones have three times the calls for it: as many an action.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from uwm.bench import base, delay_bench, experiment, revision_bench
from uwm.bench.delay_bench import FIRST_SEED, Case
from uwm.bench.gates import Gate
from uwm.bench.runner import Result, beside
from uwm.bench.seams import seams, smoothness
from uwm.build import load_model, policy_latency
from uwm.core.config import from_mapping
from uwm.core.patterns import Pattern
from uwm.learn.augment import AugmentConfig
from uwm.learn.distillation import DistilConfig
from uwm.learn.loop import TrainConfig
from uwm.learn.objective import ObjectiveConfig
from uwm.robot import evaluate as evaluation
from uwm.robot.policy import Policy, PolicyConfig
from uwm.runs import StreamsConfig, TrainRun
from uwm.training import train
from uwm_envs.pusht import SUCCESS_COVERAGE

CLAIM = "The rolling buffer acts as well as a chunked policy of 16 rows, in h times fewer calls, and better than cheap chunked ones."
ROWS, REFERENCE, ONE_STEP = 12, "DP, DDIM 16", "DP, distilled, 1 call"
EAGER = "DP, DDIM 16, one chunk sent"
PUSHT, PUSHT_SEEN = Path("runs/bench/streaming_pusht"), Path("runs/bench/streaming_pusht_seen")
PUSHT_SEEN_DATA = Path("runs/bench/pusht_seen.zarr")
SQUARE, SQUARE_DATA = Path("runs/bench/streaming_square"), Path("runs/bench/square_state.zarr")
LONG = 50  # rollouts at most of arms with 100 rows
STUDENTS = CONSISTENCY, PROGRESSIVE = "consistency", "progressive"
RATE = 5e-4  # of the students: they begin with what their teacher knows
NEAR, ONE_CALL = 0.03, 0.05  # of successes (or scores) that may be lost to the reference
SEVERAL = 3  # worlds of which a mean is judged
ABLE = 0.5  # of the reference's outcomes, without which a world tells nothing: all arms are alike where the policy cannot do the task


@dataclass(frozen=True)
class World:
    """What differs between worlds.

    `held`: chunks of the buffer, the ladder that the policy was trained on. `sent`: chunks of every plan that chunked arms send. `shown`:
    executed actions that policies are shown (fewer is less inertia, docs/log.md). `primer_rows`: calls that fill a fresh buffer of 12 rows
    (four do as well as twelve, docs/log.md). `distilled`: steps of each student.
    """

    held: int = 6
    sent: int = 1
    shown: int = 2
    primer_rows: int = 4
    seeds: int = 50
    distilled: int = 400


WORLDS = {
    "PushT": World(held=3, shown=0, primer_rows=ROWS, seeds=200, distilled=3000),
    "PushT-images": World(held=3, shown=0, primer_rows=ROWS, seeds=100), "Lift": World(), "PickPlaceCan": World(sent=3),
    "NutAssemblySquare": World(sent=3, shown=0, seeds=100, distilled=600), "Toy": World(held=4, seeds=2),
}  # fmt: skip


def run(quick: bool, out: Path | None, only: Sequence[str] = ()) -> Result:
    """All arms in all worlds on the same seeds; a quick run drives the toy world with random weights and judges calls only."""
    figures = {}
    for name in ("Toy",) if quick else only or PARTS:
        case, world = Case("Toy", "", 2, 2, 4, max_steps=24) if quick else PARTS[name](), WORLDS[name]
        chosen = arms(world, case, *(student_of(world, case, kind) for kind in STUDENTS)) | with_frames(case)
        measuring = {arm: partial(measured, own, asdict(config), seeds_of(world, config)) for arm, (own, config) in chosen.items()}
        found = experiment.run_arms(f"streaming-{name}", measuring, (0,), _told(world, case, chosen), *experiment.where(quick))
        latency = {arm: policy_latency(_policy(own, config), repeats=30) for arm, (own, config) in chosen.items()}
        figures[name] = {arm: {**runs[0], "latency_ms": latency[arm]} for arm, runs in found.items()}
    figures = beside(figures, only, out, PARTS)
    gates = [each for name, found in figures.items() for each in judged(name, found, not quick)]
    gates += judged_together(figures, not quick)
    return Result(CLAIM, gates, range(FIRST_SEED, FIRST_SEED + max(each.seeds for each in WORLDS.values())), figures)


def pusht() -> Case:
    """Push-T from states: 2000 episodes of the planner, and a policy of them; made the first time."""
    base.made("datasets/make_pusht_state.py", *delay_bench.PUSHT_MADE, "--out", str(delay_bench.PUSHT_DATA))
    learned = TrainConfig(steps=11000, batch=96, precision="float32", objective=_half_of_each("PushT"))
    data, streams, size = str(delay_bench.PUSHT_DATA), delay_bench.PUSHT_STREAMS, delay_bench.pusht_size(())
    return _pusht(TrainRun(data, str(PUSHT), streams=streams, logger="off", model=size, train=learned))


def pusht_seen() -> Case:
    """Push-T from a camera and the pusher's place: the same episodes, recorded with images, and a policy of them; made the first time."""
    base.made("datasets/make_pusht_state.py", *delay_bench.PUSHT_MADE, "--image-size", "96", "--out", str(PUSHT_SEEN_DATA))
    learned = TrainConfig(steps=5000, batch=64, save_every=500, objective=_half_of_each("PushT-images", draws=2))
    streams = StreamsConfig(cameras={"agentview": "agentview"}, proprio=("proprio",), action="action")
    size, unchanged = replace(delay_bench.pusht_size(()), grid=6), AugmentConfig(0, 0.0, 0.0)  # where a pixel is tells where the block is
    return _pusht(
        TrainRun(
            str(PUSHT_SEEN_DATA), str(PUSHT_SEEN), streams=streams, logger="off", threads=1, cache_gb=6.0, augment=unchanged, model=size,
            train=learned,
        )
    )  # fmt: skip


def _half_of_each(part: str, draws: int = 1, chunk: int = 4) -> ObjectiveConfig:
    """As many plans from noise as buffers."""
    patterns = (Pattern(0.5, "constant", "absent"), Pattern(0.5, "ladder", "absent", chunk=chunk, rungs=WORLDS[part].held))
    return ObjectiveConfig(draws, patterns=patterns)


def _pusht(run: TrainRun) -> Case:
    return Case("PushT", str(train(run)), chunk=4, buffer=3, whole=4, full=SUCCESS_COVERAGE)


def square() -> Case:
    """NutAssemblySquare from states: 1000 demonstrations and a policy of them, made the first time. Of 64 pixels it is not learnt."""
    base.made("-m", "uwm.cli", "collect", "world=square-state", f"out={SQUARE_DATA}", "episodes=1000")
    learned = TrainConfig(steps=10000, batch=96, precision="float32", objective=_half_of_each("NutAssemblySquare", chunk=3))
    size, wished = replace(delay_bench.pusht_size(()), horizon=18), StreamsConfig(action="action_intended")
    trained = train(TrainRun(str(SQUARE_DATA), str(SQUARE), streams=wished, logger="off", threads=1, model=size, train=learned))
    return Case("NutAssemblySquare", str(trained), chunk=3, buffer=WORLDS["NutAssemblySquare"].held, whole=6, max_steps=250)


def seen(world: str, name: str, max_steps: int | None = None) -> Case:
    """A world of robosuite from two cameras, with its model of every mode (`base.UNIFIED`), made the first time."""
    return Case(world, str(base.unified(name)), chunk=3, buffer=WORLDS[world].held, whole=6, max_steps=max_steps)


PARTS = {
    "PushT": pusht,
    "PushT-images": pusht_seen,
    "Lift": partial(seen, "Lift", "lift"),
    "PickPlaceCan": partial(seen, "PickPlaceCan", "can", 250),  # ticks: twice what its expert needs
    "NutAssemblySquare": square,
}


def student_of(world: World, case: Case, kind: str) -> Case:
    """The case with a student of its checkpoint, trained the first time: of whole plans, or of the buffer and its primer."""
    if not case.checkpoint:
        return case
    taught = from_mapping(TrainRun, load_model(case.checkpoint)[1]["config"], case.checkpoint)
    whole = Pattern(0.25, "constant", "absent", state="absent")
    if kind == CONSISTENCY:
        patterns, distil = (whole,), DistilConfig(case.checkpoint, kind, rows=16, calls=4)
    else:
        buffer = Pattern(0.75, "steady", "absent", chunk=case.chunk, rungs=world.held, state="absent")
        patterns, distil = (buffer, whole), DistilConfig(case.checkpoint, kind, ROWS, world.held)
    learned = replace(
        taught.train, steps=world.distilled, objective=replace(taught.train.objective, patterns=patterns),
        optim=replace(taught.train.optim, rate=RATE),
    )  # fmt: skip
    run = replace(taught, out=f"{taught.out}_{kind}", train=learned, distil=distil, init="", failures_teach=False)
    return replace(case, checkpoint=str(train(run)))


def arms(world: World, case: Case, consistent: Case, progressive: Case) -> dict[str, tuple[Case, PolicyConfig]]:
    """{arm: whose weights, its policy}: the chunked ones over the whole trained horizon, the streaming ones over its ladder."""
    held, sent, past = world.held, world.sent, world.shown
    few = -(-ROWS * sent // held)
    chunked = lambda rows, **more: PolicyConfig("chunked", rows, case.chunk * sent, case.whole // sent, past, **more)  # noqa: E731
    streaming = lambda rows, **more: PolicyConfig("streaming", rows, case.chunk, held, past, **more)  # noqa: E731
    own = {
        "DP, DDPM 100": chunked(100, step="ancestral"), REFERENCE: chunked(16), "DP, DDIM 10": chunked(10),
        "DP, few calls": chunked(few), "DP, warm": chunked(ROWS, warm=few / ROWS),
        "SDP, as published": streaming(100, step="ancestral", primer="zero"), "SDP": streaming(ROWS, primer_rows=world.primer_rows),
        "SDP, zero primer": streaming(ROWS, primer="zero"), "SDP, one call": streaming(held),
    }  # fmt: skip
    distilled = {
        ONE_STEP: (consistent, chunked(1, step="consistency")), "DP, distilled, 3 calls": (consistent, chunked(3, step="consistency")),
        "SDP, distilled, one call": (progressive, streaming(held)),
    }  # fmt: skip
    own |= {EAGER: PolicyConfig("chunked", 16, case.chunk, case.whole, past)} if sent > 1 else {}
    return {arm: (case, policy) for arm, policy in own.items()} | distilled


def with_frames(case: Case) -> dict[str, tuple[Case, PolicyConfig]]:
    """{arm: whose weights, its policy} of a buffer of actions and frames, in the world where there is such a model."""
    if case.world != revision_bench.LIFT.world.name:
        return {}
    own = revision_bench.trained(revision_bench.LIFT)
    usual = tuple(revision_bench.calm(own, revision_bench.CALM)["usual"])
    return {"streaming UWM": (replace(case, checkpoint=own.checkpoint), own.policy(frames=True, revise=1.0, usual=usual))}


def seeds_of(world: World, config: PolicyConfig) -> list[int]:
    """Seeds of an arm: all, or the first of them for one with many rows."""
    return list(range(FIRST_SEED, FIRST_SEED + (world.seeds if config.rows < 100 else min(world.seeds, LONG))))


def _told(world: World, case: Case, chosen: dict[str, tuple[Case, PolicyConfig]]) -> list:
    """What figures depend on beside the arm: weights, world, policies."""
    weights = sorted({base.weights_of(own.checkpoint) for own, _ in chosen.values() if own.checkpoint})
    return [weights, asdict(case), {name: asdict(config) for name, (_, config) in chosen.items()}, world.seeds]


def measured(case: Case, policy: dict, seeds: list[int], _: int) -> dict:
    """Rollouts of one arm: success (and score) per seed, calls per action, how smooth the motion is at borders of chunks."""
    acting = _policy(case, PolicyConfig(**policy))
    make = partial(delay_bench.world, case, acting.model)
    # Side by side all buffers go the longest way of any that is revised.
    results = base.rolled_out(make, acting, seeds, watched=True, at_once=1 if acting.config.revise else base.AT_ONCE)
    with contextlib.closing(make()) as env:
        switches = [place for place, name in enumerate(env.unwrapped.card["action"]["names"]) if "gripper" in name]
    motion = []
    for moments in (result.moments for result in results):
        plans = np.repeat(np.arange(len(moments)), [len(moment.executed) for moment in moments])
        motion.append(seams(np.concatenate([moment.executed for moment in moments]), plans, switches))
    outcomes = [case.score(each.best) if case.full else float(each.success) for each in results]
    return {**evaluation.summary(results), "outcomes": outcomes, **smoothness(motion, np.random.default_rng(0))}


def _policy(case: Case, config: PolicyConfig) -> Policy:
    return Policy(load_model(case.checkpoint)[0] if case.checkpoint else delay_bench.random_model(), config)


def judged(name: str, found: dict, enough: bool) -> list[Gate]:
    """Streaming against the reference in one world, seed by seed. What counts is the score where there is one, else success."""
    held, what, gates = WORLDS[name].held // WORLDS[name].sent, "score" if name.startswith("PushT") else "success", []
    enough = enough and able(found)
    for arm in ("SDP", "SDP, zero primer", "SDP, one call", "SDP, distilled, one call"):
        is_one_call = arm.endswith("one call")
        limit = ONE_CALL if is_one_call else NEAR
        if not is_one_call:
            fewer = found[REFERENCE]["calls_per_action"] / found[arm]["calls_per_action"]
            gates.append(Gate(f"{name}: calls, {REFERENCE} / {arm}", fewer, ">=", held, enough, f"its buffer holds {held} such sendings"))
        lost, interval = experiment.paired(_outcomes(found, REFERENCE) - _outcomes(found, arm))
        baseline = f"{REFERENCE}, {_outcomes(found, REFERENCE).mean():.3f}"
        gates.append(Gate(f"{name}: {what} lost by {arm}", lost, "<=", limit, enough, baseline, interval))
    return gates


def judged_together(worlds: dict, enough: bool) -> list[Gate]:
    """Streaming against chunked policies of as many calls, on the mean over the worlds in which the reference can act."""
    judgeable, gates = {world: found for world, found in worlds.items() if able(found)}, []
    enough, worlds = enough and len(judgeable) >= SEVERAL, judgeable or worlds
    for arm in ("DP, few calls", "DP, warm", ONE_STEP):
        mean: Callable[[str], float] = lambda name: float(np.mean([_outcomes(found, name).mean() for found in worlds.values()]))  # noqa: E731
        told = f"{arm}, {mean(arm):.3f}"
        gates.append(Gate(f"mean of {len(worlds)} worlds: SDP ahead of {arm}", mean("SDP") - mean(arm), ">", 0.0, enough, told))
    return gates


def able(found: dict) -> bool:
    """Whether the policy of a world can do its task, as the reference samples it."""
    return bool(_outcomes(found, REFERENCE).mean() >= ABLE)


def _outcomes(found: dict, arm: str) -> np.ndarray:
    return np.array(found[arm]["outcomes"], float)
