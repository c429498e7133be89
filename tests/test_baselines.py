"""Baselines: a config each, on the same trainer and policies; a regression says everything in one call, and what cannot be is refused."""

from dataclasses import replace

import pytest
import torch

import tiny
from oracle import unchecked_shapes
from uwm import cli
from uwm.bench.baselines import BASELINES
from uwm.composing import compose
from uwm.core import roles
from uwm.core.config import from_mapping
from uwm.core.patterns import Pattern
from uwm.learn import distillation, objective, style
from uwm.learn.distillation import DistilConfig
from uwm.learn.objective import ObjectiveConfig
from uwm.nn import trunks
from uwm.nn.backbone import BackboneConfig
from uwm.robot.chunking import ChunkingConfig, Planner
from uwm.robot.modes import sample
from uwm.robot.policy import Policy, PolicyConfig
from uwm.runs import EvalRun, TrainRun
from uwm.training import load_model

SMALL = {"dp-unet": ["model.unet.widths=[8,16]"], "bc-mlp": ["model.mlp.width=32"]}
TRAINING = ["model=tiny", "autoencoder.steps=2", "train.steps=2", "train.batch=4", "logger=off", "train.precision=float32"]
ONCE = (Pattern(1.0, "once", "absent"),)


def run_of(name):
    return from_mapping(TrainRun, compose("train", [f"baseline={name}", "model=tiny", *SMALL.get(name, [])]))


def made(name, **changes):
    torch.manual_seed(0)
    config = run_of(name).model.model(tiny.CAMERAS, 2, 2, 32)
    net = trunks.make(replace(config, **changes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return net.eval()


def policy_of(name, **changes):
    return Policy(made(name, **changes), from_mapping(EvalRun, compose("eval", [f"policy={BASELINES[name]}"])).policy)


def planned(policy, seed, observation):
    return policy.act(policy.start([seed] * len(observation.proprio)), observation)[1]


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_learns_by_its_config_and_acts_with_its_policy(name):
    objective_config, policy = run_of(name).train.objective, policy_of(name)
    net, batch, losses = policy.model.train(), tiny.batch(policy.model, 4), []
    ask = style.loss(replace(objective_config, style_weight=0.1)) if name == "act" else None
    ask = ask or (lambda model, batch, generator: objective.loss(model, batch, objective_config, generator))
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(30):
        total, _ = ask(net, batch, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        losses.append(float(total.detach()))
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    policy = Policy(net, policy.config)
    seen = tiny.observation(2, 0, net.config)
    memory, actions = policy.act(policy.start([1, 2]), seen)
    assert actions.shape == (2, 8, 2) and policy.calls == policy.config.rows
    alone = replace(seen, images={camera: image[1:] for camera, image in seen.images.items()}, proprio=seen.proprio[1:])
    torch.testing.assert_close(planned(policy, 2, alone)[0], actions[1], rtol=1e-4, atol=1e-4)
    assert policy.act(policy.done(memory, actions), seen)[1].shape == (2, 8, 2)


@pytest.mark.parametrize("name", ["gr1", "bc-mlp", "bc-transformer", "act"])
def test_a_regression_sees_no_noise_and_depends_on_what_is_observed(name):
    policy, seen = policy_of(name), tiny.observation(2)
    assert torch.equal(planned(policy, 1, seen), planned(policy, 2, seen))
    assert not torch.allclose(*planned(policy, 1, seen), atol=1e-5)


def test_a_plan_of_gr1_is_said_with_the_frames_that_it_leads_to():
    policy, seen = policy_of("gr1"), tiny.observation(1)
    together = sample(policy.model, seen, ["action", *tiny.CAMERAS], rows=1)["action"]
    torch.testing.assert_close(planned(policy, 0, seen), together[:, :8], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together, sample(policy.model, seen, ["action"], rows=1)["action"], atol=1e-4)


def test_pad_gives_actions_and_frames_one_level_in_training_and_in_acting():
    policy, levels = policy_of("pad"), []
    policy.model.register_forward_pre_hook(lambda module, args: levels.append((args[1], args[3])))
    planned(policy, 0, tiny.observation(1))
    assert all(layout.names == ("action", *tiny.CAMERAS) and len(level.unique()) == 1 for level, layout in levels)
    assert [float(level[0, 0]) for level, _ in levels] == pytest.approx([row / 16 for row in range(16, 0, -1)])
    levels.clear()
    objective.loss(policy.model, tiny.batch(policy.model, 4), run_of("pad").train.objective, torch.Generator().manual_seed(0))
    assert all(torch.equal(level, level[:, :1].expand_as(level)) for level, _ in levels)


def test_without_video_a_plan_has_beside_it_what_will_be_felt():
    net = trunks.make(replace(tiny.feeling().config, prediction="regression", past=0)).eval()
    policy, seen = Policy(net, PolicyConfig("chunked", 1, 2, 2, 0, frames=True)), tiny.observation(1, 0, net.config)
    assert policy.layout.names == ("action", "state") and policy.layout["state"].frames == (2, 4)
    memory, actions = policy.act(policy.start([0]), seen)
    assert actions.shape == (1, 2, 2) and policy.act(policy.done(memory, actions), seen)[1].shape == (1, 2, 2)


def test_a_marginal_policy_has_the_same_noise_beside_every_row():
    net = tiny.model()
    policy, seen, calls = Policy(net, PolicyConfig("chunked", 4, 4, 2, marginal=True)), tiny.observation(2), []
    net.register_forward_pre_hook(lambda module, args: calls.append(args[:4]))
    memory, actions = policy.act(policy.start([1, 2]), seen)
    video = net.layout.mask(*tiny.CAMERAS)
    for x, level, role, layout in calls:
        assert layout == net.layout and bool((level[:, video] == 1).all()) and bool((role[:, video] == roles.GIVEN).all())
        assert torch.equal(x[:, video], calls[0][0][:, video])
    noise = calls[0][0][:, video]
    assert float(noise.std()) == pytest.approx(1.0, abs=0.2) and not torch.equal(noise[0], noise[1])
    absent = planned(Policy(net, PolicyConfig("chunked", 4, 4, 2)), 1, seen)
    assert actions.shape == absent.shape and not torch.allclose(actions, absent, atol=1e-4)
    policy.act(policy.done(memory, actions), seen)
    assert not torch.equal(calls[-1][0][:, video], noise), "every plan has noise of its own"


def test_the_style_tells_a_plan_apart_is_zero_in_acting_and_learns_from_actions():
    net = made("act")
    seen, batch = tiny.observation(2), tiny.batch(net, 2)
    level, role = torch.ones(2, net.layout.tokens), roles.full(2, net.layout.tokens)
    told = lambda context: net(batch.clean, level, role, net.layout, context)  # noqa: E731
    none, other = (net.styled(net.observed(seen), torch.full((2, net.style_size), value)) for value in (0.0, 2.0))
    torch.testing.assert_close(told(net.encode(seen)), told(none), rtol=0, atol=0)
    assert not torch.allclose(told(none), told(other), atol=1e-4)
    window, there = torch.tensor([0, 1]), torch.ones(2, net.layout.tokens, dtype=torch.bool)
    there[:, -3:] = False
    spoilt = torch.where(there[..., None], batch.clean, torch.nan)
    torch.testing.assert_close(net.guess(seen, window, batch.clean, there), net.guess(seen, window, spoilt, there), rtol=0, atol=0)
    config = ObjectiveConfig(1, patterns=ONCE)
    heavy, light = (style.loss(replace(config, style_weight=w))(net, batch, torch.Generator().manual_seed(0))[0] for w in (10.0, 0.0))
    assert heavy > light
    heavy.backward()
    assert net.posterior.write.weight.grad.abs().sum() > 0


def test_what_a_regression_cannot_do_is_refused_by_name():
    net, seen = made("bc-transformer"), tiny.observation(1)
    for config in (PolicyConfig(rows=1, chunk=8, chunks=2, past=0), PolicyConfig("chunked", 16, 8, 2, 0)):
        with pytest.raises(ValueError, match=r"a regression .* act with policy=regression \(kind chunked, rows 1\), not with"):
            Policy(net, config)
    with pytest.raises(ValueError, match="nothing can guide"):
        Planner(Policy(net, PolicyConfig("chunked", 1, 8, 2, 0)), ChunkingConfig("guided"))
    with pytest.raises(ValueError, match=r"in one call, got levels below 1: .* sample with rows=1"):
        sample(net, seen, ["action"], rows=4)
    with pytest.raises(ValueError, match="no stream 'agentview'; it has"):
        sample(net, seen, ["agentview"])
    with pytest.raises(ValueError, match=r"patterns@train\.objective\.patterns=regression"):
        objective.loss(net, tiny.batch(net), ObjectiveConfig(patterns=(Pattern(1.0, "constant", "absent"),)), torch.Generator())
    with pytest.raises(ValueError, match="nothing to distil"):
        distillation.loss(net, DistilConfig(), ObjectiveConfig())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trunk": "mlp"}, "'mlp' is a regression: set prediction to regression, got 'velocity'"),
        ({"trunk": "act"}, "'act' is a regression"),
        ({"trunk": "mlp", "prediction": "regression"}, "set past to 0, got 2"),
        ({"trunk": "act", "video_frames": (4,)}, "'act' knows actions only"),
        ({"backbone": BackboneConfig(16, condition=8), "history": (1,)}, "one vector: it goes neither with trunk 'act' nor with history"),
    ],
)
def test_what_a_baseline_cannot_be_is_refused(changes, words):
    with unchecked_shapes(), pytest.raises(ValueError, match=words):
        replace(tiny.model().config, **{"video_frames": (), **changes})


def test_a_plan_with_frames_that_nobody_foresees_is_refused():
    with pytest.raises(ValueError, match="needs a model that was trained with video"):
        Policy(made("dp-dit"), PolicyConfig("chunked", 4, 8, 2, 0, frames=True))
    with pytest.raises(ValueError, match="this one foresees nothing"):
        Policy(made("dp-dit"), PolicyConfig("chunked", 4, 8, 2, 0, marginal=True))
    for wrong in ({"revise": 1.0, "frames": True}, {"frames": True, "warm": 0.5}, {"marginal": True, "frames": True}):
        with pytest.raises(ValueError, match=r"streaming policy|begins from noise|without frames"):
            PolicyConfig("chunked", **wrong)


# ------------------------------------------------------------------------------------- by the commands, and the paper's ablations


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "toy.zarr"
    assert cli.main(["collect", "world=toy", f"out={path}", "episodes=4", "workers=1"]) == 0
    return path


def test_a_baseline_trains_explains_itself_and_acts_by_the_same_commands(store, tmp_path, capfd):
    assert cli.main(["train", f"data={store}", f"out={tmp_path}", "baseline=act", *TRAINING]) == 0
    assert cli.main(["explain", "train", f"data={store}", "baseline=act", "model=tiny"]) == 0
    assert "Streaming" not in capfd.readouterr().out
    acts = ["eval", "world=toy", f"checkpoint={tmp_path / 'model'}", "rollouts=1", "workers=1", "world.max_steps=16"]
    assert cli.main([*acts, "policy=regression"]) == 0
    assert cli.main(acts) == 1 and "act with policy=regression" in capfd.readouterr().err
    assert cli.main(["train", f"data={store}", f"out={tmp_path}", "baseline=bc"]) == 2
    assert "Could not find 'baseline/bc'" in capfd.readouterr().err


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.backbone.registers=0"], ["model.backbone.registers=24"], ["model.video_frames=[0]"],
        ["model.video_frames=[]", "patterns@train.objective.patterns=actions"], ["model.backbone.condition=16"],
        ["patterns@train.objective.patterns=square"],
    ],
)  # fmt: skip
def test_every_ablation_of_the_paper_trains_and_acts(store, tmp_path, overrides):
    assert cli.main(["train", f"data={store}", f"out={tmp_path}", *TRAINING, *overrides]) == 0
    net = load_model(tmp_path / "model")[0]
    config = PolicyConfig("chunked", 2, 4, 2, marginal="square" in overrides[0])
    assert torch.isfinite(planned(Policy(net, config), 0, tiny.observation(1, 0, net.config))).all()


def test_the_global_vector_carries_what_is_seen_and_a_camera_that_is_missing_has_no_influence():
    torch.manual_seed(0)
    config = tiny.model().config
    net = trunks.make(replace(config, backbone=replace(config.backbone, condition=8))).eval()
    for part in (net.backbone.modulation, net.backbone.final, net.write["action"]):
        torch.nn.init.normal_(part.weight, std=0.3)
    policy, seen = Policy(net, PolicyConfig("chunked", 2, 4, 2)), tiny.observation(2)
    assert not torch.allclose(*planned(policy, 1, seen), atol=1e-5)
    missing = {"agentview": torch.tensor([True, False])}
    other = {**seen.images, "agentview": torch.where(missing["agentview"][:, None, None, None], seen.images["agentview"], torch.nan)}
    left_out = replace(seen, images={"wrist": seen.images["wrist"]})
    masked = planned(policy, 1, replace(seen, images=other, present=missing))
    torch.testing.assert_close(masked[0], planned(policy, 1, seen)[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(masked[1], planned(policy, 1, left_out)[1], rtol=1e-5, atol=1e-6)
