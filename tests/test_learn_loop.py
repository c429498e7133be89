"""Training: resume equals straight-through, checkpoints, interruption."""

import json
from dataclasses import replace

import pytest
import torch

import tiny
from uwm.learn import checkpoint as checkpoints
from uwm.learn.loop import TrainConfig, TrainState, generator_at, train
from uwm.learn.objective import ObjectiveConfig

CONFIG = TrainConfig(steps=6, batch=4, precision="float32", save_every=3, objective=ObjectiveConfig(1, patterns=tiny.PATTERNS))


def _batches(net, start):
    step = start
    while True:
        yield tiny.batch(net, seed=step)
        step += 1


def _run(net, state, config, saved, stop_at=None):
    def on_step(step, figures):
        if step == stop_at:
            raise KeyboardInterrupt

    return train(net, state, _batches(net, state.step), config, on_step, lambda s: saved.append(_keep(net, s)))


def _keep(net, state):
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    average = {name: value.clone() for name, value in state.average.weights.items()}
    moments = {name: value.clone() for name, value in state.optimiser.tensors().items()}
    return checkpoints.Checkpoint(state.step, {}, {"cameras": ["agentview"]}, weights, average, moments)


def test_resuming_equals_training_straight_through(tmp_path):
    straight, saved = tiny.model(), []
    state = _run(straight, TrainState.fresh(straight, CONFIG), CONFIG, saved)
    first, parts = tiny.model(), []
    with pytest.raises(KeyboardInterrupt):
        _run(first, TrainState.fresh(first, CONFIG), CONFIG, parts, stop_at=4)
    checkpoints.save(tmp_path / "model", parts[-1])
    loaded = checkpoints.load(tmp_path / "model", for_training=True)
    assert loaded.step == 4
    resumed = tiny.model(seed=9)
    resumed.load_state_dict(loaded.weights)
    again = TrainState.fresh(resumed, CONFIG)
    again.optimiser.restore(loaded.optimiser)
    again.average.weights, again.step = dict(loaded.average), loaded.step
    again = _run(resumed, again, CONFIG, [])
    torch.testing.assert_close(dict(resumed.state_dict()), dict(straight.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(again.average.weights, state.average.weights, rtol=0, atol=0)


def test_training_lowers_the_loss_on_one_batch():
    net, losses = tiny.model(), []
    config = replace(CONFIG, steps=150, save_every=1000)
    same = tiny.batch(net)

    def forever():
        while True:
            yield same

    train(net, TrainState.fresh(net, config), forever(), config, lambda s, f: losses.append(f["loss"]), lambda s: None)
    assert sum(losses[-30:]) < 0.95 * sum(losses[:30])


def test_nan_in_the_data_stops_before_the_weights_are_spoilt():
    net = tiny.model()
    bad = tiny.batch(net)
    bad.observation.proprio[:] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        train(net, TrainState.fresh(net, CONFIG), iter([bad]), CONFIG, lambda s, f: None, lambda s: None)
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_steps_have_different_generators_and_one_step_always_the_same():
    draw = lambda step: torch.rand(3, generator=generator_at(1, step))  # noqa: E731
    assert torch.equal(draw(5), draw(5)) and not torch.equal(draw(5), draw(6))


def test_a_checkpoint_survives_a_crash_between_its_two_renames(tmp_path):
    net = tiny.model()
    checkpoints.save(tmp_path / "model", _keep(net, TrainState.fresh(net, CONFIG)))
    (tmp_path / "model").rename(tmp_path / "model.old")
    assert checkpoints.load(tmp_path / "model").step == 0


def test_foreign_and_damaged_checkpoints_are_named(tmp_path):
    with pytest.raises(checkpoints.CheckpointError, match="no checkpoint folder"):
        checkpoints.load(tmp_path)
    net = tiny.model()
    checkpoints.save(tmp_path / "model", _keep(net, TrainState.fresh(net, CONFIG)))
    (tmp_path / "model" / "average.safetensors").write_bytes(b"nonsense")
    with pytest.raises(checkpoints.CheckpointError, match="damaged"):
        checkpoints.load(tmp_path / "model")
    about = tmp_path / "model" / "checkpoint.json"
    about.write_text(json.dumps({"format": "other"}))
    with pytest.raises(checkpoints.CheckpointError, match="other"):
        checkpoints.describe(tmp_path / "model")


def test_a_checkpoint_refuses_a_world_that_differs_and_names_the_fields():
    card = {"cameras": ["agentview", "wrist"], "robot": "Panda", "rate_hz": 20, "action": {"convention": "delta"}}
    checkpoints.refuse_mismatch(card, dict(card))
    checkpoints.refuse_mismatch(card, {**card, "cameras": ["wrist"]}, used=("wrist",))
    with pytest.raises(checkpoints.CheckpointError, match=r"wrist.*policy.cameras=\[agentview\].*action"):
        checkpoints.refuse_mismatch(card, {**card, "cameras": ["agentview"], "action": {"convention": "absolute"}})


def test_no_checkpoint_file_is_a_pickle(tmp_path):
    net = tiny.model()
    checkpoints.save(tmp_path / "model", _keep(net, TrainState.fresh(net, CONFIG)))
    assert {file.suffix for file in (tmp_path / "model").iterdir()} == {".json", ".safetensors"}
