"""Training: data and a config in, a checkpoint folder out; and checkpoints back as models.

    TrainRun --> TrainingData (datasets, splits, statistics) --> autoencoder --> ModelWindows --> loop --> checkpoint
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Generator

from uwm import finetuning
from uwm.core.config import ConfigError, from_mapping, to_mapping
from uwm.data import ONLY, TrainingData, members_of, window_config
from uwm.dataset import Dataset
from uwm.learn import checkpoint as checkpoints
from uwm.learn import distillation, finetune, precision, style
from uwm.learn.autoencode import measure_spread, train_autoencoder
from uwm.learn.logs import Log
from uwm.learn.loop import TrainState, generator_at, restore
from uwm.learn.loop import train as run_training
from uwm.learn.objective import Batch
from uwm.nn import eyes, trunks
from uwm.nn.adapters import Adapter
from uwm.nn.robot_model import RobotModel
from uwm.runs import TrainRun
from uwm.windows import MixtureWindows, ModelWindows

DATA_FIELDS = ("robot", "cameras", "image_size", "image_orientation", "rate_hz", "proprio", "action")  # of data and checkpoint


def train(run: TrainRun) -> Path:
    """Trains, or goes on with a stopped run; returns the checkpoint's folder."""
    out = Path(run.out) / "model"
    data = TrainingData(run)
    about = _unfinished(out, run, data)
    if about is not None and about["step"] >= run.train.steps:
        print(f"train: {out} is trained ({about['step']} steps)")
        return out
    if told := precision.note(run.train.precision, "train.precision=auto"):
        print(told)
    if run.threads:
        torch.set_num_threads(run.threads)
    torch.manual_seed(run.train.seed)
    model = trunks.make(data.model_config())
    teacher, known = (_alike(run.distil.teacher, "distil.teacher", model), _alike(run.init, "init", model, data.is_mixture))
    with Log(Path(run.out), run.logger, to_mapping(run), resume=about is not None) as log:
        if about is None:
            _prepare(model, data, log, teacher or known)
        adapter = finetune.begin(model, run.adapt)
        state = TrainState.fresh(model, run.train)
        if about is not None:
            print(f"train: resuming {out} at step {about['step']}")
            saved = checkpoints.load(out, for_training=True)
            restore(model, state, finetune.unmerged(adapter, saved, out) if adapter else saved)
        windows = data.windows(model)
        save = partial(_save, out, data, model, adapter, windows)
        log.begin("train", run.train.steps, state.step)
        run_training(model, state, _batches(windows, run, state.step), run.train, log.step, save, _loss(run, model, teacher))
    return out


def _loss(run: TrainRun, model: RobotModel, teacher: RobotModel | None) -> Callable | None:
    """What is minimised; None for the denoising loss."""
    if teacher:
        return distillation.loss(teacher, run.distil, run.train.objective)
    return style.loss(run.train.objective) if model.config.trunk == "act" else None


def _alike(checkpoint: str, setting: str, model: RobotModel, other_members: bool = False) -> RobotModel | None:
    """The model of a checkpoint that a setting names, which must be of the same config, perhaps of other members; None for ""."""
    return finetuning.alike(load_model(checkpoint)[0], model, f"{setting}={checkpoint}", other_members) if checkpoint else None


def _prepare(model: RobotModel, data: TrainingData, log: Log, known: RobotModel | None) -> None:
    """Normalisers from statistics, then the autoencoder's own training; or all that another model knows."""
    if known and not data.is_mixture:
        model.load_state_dict(known.state_dict())
        return
    _fit(model, data, finetuning.take_over(model, known) if known else None)
    if known:
        return
    eyes.begin(model.see, model.config.eyes)
    if not data.films:
        return
    run = data.run
    if model.config.autoencoder.path:
        measure_spread(model.autoencoder, data.frames(), Generator().manual_seed(run.train.seed))
        return
    log.begin("autoencoder", run.autoencoder.steps, 0)
    train_autoencoder(
        model.autoencoder, data.frames(), run.autoencoder, run.train.seed, run.train.precision,
        lambda step, error: log.step(step + 1, {"autoencoder": error}),
    )  # fmt: skip


def _fit(model: RobotModel, data: TrainingData, names: list[str] | None = None) -> None:
    """Normalisers of these datasets, by default of all."""
    members = {each.name: own for each, own in zip(model.config.members, model.members, strict=True)}
    for name in data.statistics if names is None else names:
        found = data.statistics[name]
        targets = (members[name].action, members[name].proprio) if members else (model.normalise_action, model.normalise_proprio)
        for kind, normaliser in zip(("action", "proprio"), targets, strict=True):
            if kind in found:
                normaliser.fit(found[kind])
                print(*_odd(f"{kind} of {name}", found[kind]), sep="", end="")
    model.act_as()


def _odd(what: str, statistics: dict) -> list[str]:
    """A line for each kind of dimensions that a normaliser treats with care."""
    told = {
        "constant": "never changes: only shifted", "tiny": "changes by little more than float32 resolves",
        "heavy_tailed": "has ends far beyond its quantiles (or quantiles that coincide)",
    }  # fmt: skip
    places = {flag: [place for place, marked in enumerate(statistics[flag]) if marked] for flag in told}
    return [f"note: {what}, dimension {', '.join(map(str, found))} {told[flag]}\n" for flag, found in places.items() if found]


def _batches(windows: ModelWindows | MixtureWindows, run: TrainRun, start: int) -> Iterator[Batch]:
    for step, chosen in enumerate(windows.batches(run.train.batch, run.train.seed, start), start=start):
        # Another stream than the objective's: the two must not draw the same numbers.
        yield windows.batch(chosen, generator_at(run.train.seed + 7919, step))


def _unfinished(out: Path, run: TrainRun, data: TrainingData) -> dict | None:
    """What is said about an earlier run in this folder, or None; another config or other data is an error."""
    if not (out / "checkpoint.json").is_file():
        return None
    about = checkpoints.describe(out)
    before = _member_cards(about["card"])
    for each in data.datasets:
        known = before.get(each.name, {})
        how = _differences(known, each.about(data.side, data.rate_of(each)), str(out), str(each.path))
        if how or known.get("data_checksum") != each.store.checksum_of(each.training):
            raise ConfigError(
                f"{out} was trained on other data than {each.path}{f' ({how})' if how else ''}: choose another `out`, or remove that folder"
            )
    # Settings that an older version did not know are at their defaults.
    then, now = (_without_places(to_mapping(each)) for each in (from_mapping(TrainRun, about["config"], str(out)), run))
    kept = ("model", "init", "adapt", "distil", "augment", "autoencoder", "train", "streams", "declare", "mixture", "image_size",
            "camera_dropout", "instruction_dropout")  # fmt: skip
    changed = [key for key in kept if then[key] != now[key]]
    if changed == ["train"] and about["step"] == then["train"]["steps"] and now["train"] == _longer(then["train"], run.train.steps):
        return about
    if changed:
        raise ConfigError(
            f"{out} was trained with other settings ({', '.join(changed)}): choose another `out`, or remove that folder "
            f"(a finished run goes on with more train.steps and train.optim.restarts=[the step it ended at])"
        )
    return about


def _longer(train: dict, steps: int) -> dict:
    """The settings of a run that goes on where one with these ended."""
    restarts = [*train["optim"]["restarts"], train["steps"]]
    return {**train, "steps": steps, "optim": {**train["optim"], "restarts": restarts}}


def _without_places(run: dict) -> dict:
    """A run's settings without where the data lie: what they hold is told by checksums."""
    members = [{**member, "data": ""} for member in run["mixture"]["members"]]
    return json.loads(json.dumps({**run, "mixture": {**run["mixture"], "members": members}}))


def _differences(card: dict, other: dict, here: str, there: str) -> str:
    from uwm_data import cards

    return cards.sentence(cards.differences(card, other, DATA_FIELDS), here, there)


def _member_cards(card: dict) -> dict[str, dict]:
    """{dataset: its card} of a checkpoint."""
    return card.get("members") or {ONLY: card}


def _save(
    out: Path, data: TrainingData, model: RobotModel, adapter: Adapter | None, windows: ModelWindows | MixtureWindows, state: TrainState
) -> None:
    run, members, average = data.run, data.cards(), state.average.weights
    card = {**members[data.first.name], "episodes_held_out": data.first.held_out, "model": to_mapping(model.config)}
    card |= {"split_seed": run.train.seed, "validation": run.validation, "normalise": to_mapping(run.model.normalise)}
    if isinstance(windows, MixtureWindows):
        drawn = windows.mixture.record(state.step, run.train.batch)
        acting = sum(pool["samples"] for pool in drawn if members[pool["dataset"]]["acts"]) / max(1, state.step * run.train.batch)
        card |= {"members": members, "drawn": {"steps": state.step, "by": run.mixture.by, "share_with_actions": acting, "pools": drawn}}
    acts = adapter.merged(average) if adapter else average
    saved = checkpoints.Checkpoint(state.step, to_mapping(run), card, model.state_dict(), acts, state.optimiser.tensors())
    beside = partial(finetuning.save_adapter, adapter=adapter, average=average, base=run.init) if adapter else None
    checkpoints.save(out, saved, beside)


# ---------------------------------------------------------------------------------------------------- checkpoints as models


def load_model(path: str | Path, member: str = "", adapter: str | Path = "") -> tuple[RobotModel, dict]:
    """A checkpoint's averaged weights, ready to act, and its card. Needs the core packages only.

    `member`: whose robot of a mixture it acts for, by default that of the first member with actions. `adapter`: a folder with peft's
    files of an adapter that was trained from this checkpoint, to merge in.
    """
    saved = checkpoints.load(Path(path))
    model = trunks.make(finetuning.config_of(path, saved.card))
    model.load_state_dict(saved.average)
    model.act_as(member)
    own = saved.card.get("members", {}).get(member or model.config.acting, {})
    card = {**saved.card, **own}
    if own:
        card["episodes_held_out"] = own["split"]["held_out"]
    if adapter:
        finetuning.add_adapter(model, path, adapter)
    return model.eval(), {**card, "step": saved.step, "config": saved.config}


def held_out(path: str | Path, data: str | Path | None = None, member: str = "") -> tuple[RobotModel, ModelWindows]:
    """A checkpoint's model and the windows of the episodes that it was not trained on, of its own data or of other data.

    Of other data all episodes are taken, none of which it has seen; ConfigError when they are not of its kind.
    """
    model, about = load_model(path, member)
    run = from_mapping(TrainRun, about["config"], str(path))
    given = next(each for each in members_of(run) if each.name == (member or model.config.acting or ONLY))
    chosen = Dataset(given if data is None else replace(given, data=str(data)), run)
    how = _differences(about, chosen.about(model.config.autoencoder.image_size, about["rate_hz"]), str(path), str(chosen.path))
    if how:
        raise ConfigError(f"{chosen.path} does not fit the checkpoint: {how}")
    is_known = _holds_training_of(about, chosen)
    if data is None and not is_known:
        raise ConfigError(f"{chosen.path} no longer holds the episodes that {path} was trained on, so none can be told to be held out")
    episodes = about["episodes_held_out"] if is_known else chosen.store.episodes
    return model, ModelWindows(chosen, model, episodes, window_config(run, about["rate_hz"]), given.name if model.config.members else "")


def _holds_training_of(about: dict, data: Dataset) -> bool:
    """Whether a store has the episodes that a checkpoint was trained on, perhaps with more behind them."""
    trained = about.get("split", {}).get("training", data.training)  # older checkpoints know their seed only
    return set(trained) <= set(data.store.episodes) and data.store.checksum_of(trained) == about["data_checksum"]
