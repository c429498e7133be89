"""The U-Net as a robot's model: it trains and acts as the transformer does, and says what it cannot do."""

from dataclasses import replace

import pytest
import torch

import tiny
from oracle import unchecked_shapes
from uwm import cli
from uwm.composing import compose
from uwm.core import roles
from uwm.core.config import from_mapping
from uwm.core.patterns import Pattern
from uwm.learn import objective
from uwm.learn.objective import ObjectiveConfig
from uwm.nn import trunks
from uwm.nn.unet import UNetSizes
from uwm.nn.vector_model import VectorModel
from uwm.robot.policy import Policy, PolicyConfig
from uwm.runs import SizeConfig

SIZES = UNetSizes((16, 32), 16, 8)
CONFIG = replace(tiny.model().config, trunk="unet", unet=SIZES, video_frames=(), prediction="clean")
BEHIND = Pattern(1.0, "ladder", "absent", chunk=2, committed=4, rungs=2)
SMALL = ["model.unet={widths: [16, 32], level_size: 16, feature: 8}", "model.grid=2", "model.horizon=8"]
TRAINING = ["patterns@train.objective.patterns=actions", "train.steps=2", "train.batch=4", "logger=off", "train.precision=float32"]


def unet(**changes) -> VectorModel:
    torch.manual_seed(0)
    return trunks.make(replace(CONFIG, **changes)).eval()


def asked(net, observation, x=None, role=None, level=0.5, **more):
    count = len(observation.proprio)
    role = roles.full(count, net.layout.tokens) if role is None else role
    x = torch.randn(1, net.layout.tokens, 2, generator=torch.Generator().manual_seed(1)).expand(count, -1, -1) if x is None else x
    with torch.no_grad():
        return net(x, torch.full(x.shape[:2], level), role, net.layout, net.encode(observation), **more)


def test_what_is_observed_counts_and_a_camera_that_is_missing_does_not():
    net, seen = unet(), tiny.observation(2)
    out = asked(net, seen)
    assert not torch.allclose(out[0], out[1], atol=1e-4), "two observations, one sequence of actions"
    without = {"agentview": torch.tensor([True, False])}
    other = {**seen.images, "agentview": seen.images["agentview"].clone()}
    other["agentview"][1] = torch.nan
    masked = asked(net, replace(seen, images=other, present=without))
    torch.testing.assert_close(masked[0], out[0])
    left_out = asked(net, replace(seen, images={"wrist": seen.images["wrist"]}))
    torch.testing.assert_close(masked[1], left_out[1])
    assert not torch.allclose(masked[1], out[1], atol=1e-4)


def test_the_content_of_absent_actions_has_no_influence_and_given_ones_have():
    net, seen = unet(), tiny.observation(1)
    x = torch.randn(1, net.layout.tokens, 2)
    other = torch.cat([torch.full((1, 1, 2), torch.nan), x[:, 1:]], dim=1)
    role = roles.full(1, net.layout.tokens)
    role[:, 0] = roles.ABSENT
    torch.testing.assert_close(asked(net, seen, x, role), asked(net, seen, other, role))
    role[:, 0] = roles.GIVEN
    assert not torch.allclose(asked(net, seen, x, role), asked(net, seen, other.nan_to_num(3.0), role), atol=1e-4)


def test_numbers_that_a_robot_does_not_have_have_no_influence():
    net, seen = unet(), tiny.observation(1)
    x = torch.randn(1, net.layout.tokens, 2)
    first = torch.tensor([[True, False]])
    torch.testing.assert_close(asked(net, seen, x, dims=first), asked(net, seen, x * torch.tensor([1.0, 9.0]), dims=first))


@pytest.mark.parametrize("pattern", [BEHIND, Pattern(1.0, "constant", "absent"), Pattern(1.0, "independent", "absent")])
def test_it_learns_under_every_pattern_of_actions(pattern):
    net = unet().train()
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    batch, losses = tiny.batch(net, 4), []
    for step in range(60):
        total, _ = objective.loss(net, batch, ObjectiveConfig(4, patterns=(pattern,)), torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        losses.append(float(total.detach()))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10]), "four windows can be learnt by heart"


@pytest.mark.parametrize("kind", ["streaming", "chunked"])
def test_a_batch_of_policies_gives_what_single_ones_give_also_behind_committed_actions(kind):
    policy = Policy(unet(), PolicyConfig(kind, rows=6, chunk=2, chunks=2, past=2))
    observation = tiny.observation(2)
    memory, actions = policy.act(policy.start([1, 2]), observation)
    memory = policy.done(memory, actions)
    _, then = policy.act(memory, observation)
    alone = replace(observation, images={n: v[1:] for n, v in observation.images.items()}, proprio=observation.proprio[1:])
    single, first = policy.act(policy.start([2]), alone)
    torch.testing.assert_close(first[0], actions[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(policy.act(policy.done(single, first), alone)[1][0], then[1], rtol=1e-4, atol=1e-4)
    _, behind = policy.plan(memory, observation, torch.zeros(2, 3, 2), 1)
    assert behind.shape == (2, 2, 2) and not torch.equal(behind, then)


def test_what_a_trunk_cannot_be_is_refused():
    with unchecked_shapes():
        for wrong, words in (
            ({"trunk": "unett"}, "did you mean 'unet'"),
            ({"video_frames": (4,)}, "knows actions only"),
            ({"unet": replace(SIZES, film="sample")}, "cannot be given clean past actions"),
        ):
            with pytest.raises(ValueError, match=words):
                replace(CONFIG, **wrong)
    policy = Policy(unet(unet=replace(SIZES, film="flat")), PolicyConfig("chunked", chunk=1, chunks=2))
    with pytest.raises(ValueError, match="was built for 10 actions, got 4"):
        policy.act(policy.start([0]), tiny.observation(1))


def test_it_trains_explains_itself_and_acts_by_the_same_commands(tmp_path, capfd):
    data, out = tmp_path / "toy.zarr", tmp_path / "out"
    assert cli.main(["collect", "world=toy", f"out={data}", "episodes=4", "workers=1"]) == 0
    train = ["train", f"data={data}", f"out={out}", "model=unet", *SMALL, *TRAINING]
    assert cli.main(train) == 0
    assert cli.main(["explain", *train[0:2], "model=unet", *SMALL, *TRAINING[:1]]) == 0
    assert "% of the unet" in capfd.readouterr().out
    acts = ["eval", "world=toy", f"checkpoint={out / 'model'}", "policy.rows=4", "policy.chunk=2", "policy.chunks=4", "workers=1"]
    assert cli.main([*acts, "rollouts=1"]) == 0 == cli.main([*acts, "rollouts=1", "policy.kind=chunked"])


@pytest.mark.parametrize(
    ("name", "cameras", "million"),
    [("unet", ("agentview", "wrist"), 5.5), ("sdp-state", (), 65.8), ("dp-unet", (), 66.1), ("sdp-image", ("agentview",), 262.9)],
)
def test_the_networks_of_the_configs_have_the_sizes_that_they_say(name, cameras, million):
    config = from_mapping(SizeConfig, compose("train", [f"model={name}"])["model"])
    with torch.device("meta"):
        net = trunks.make(config.model(cameras, 11, 7, 64))
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(million, rel=0.01)


@pytest.mark.parametrize(("name", "cameras", "million"), [("sdp-state", (), 70.8), ("sdp-image", ("agentview",), 252.8)])
def test_with_flat_levels_and_twenty_actions_the_streaming_papers_networks_are_those_of_its_code(name, cameras, million):
    changes = ["model.unet.film=flat", "model.past=1", "model.horizon=19"]
    config = from_mapping(SizeConfig, compose("train", [f"model={name}", *changes])["model"]).model(cameras, 20, 2, 96)
    with torch.device("meta"):
        net = trunks.make(config)
    assert config.history == (1,) and sum(p.numel() for p in net.unet.parameters()) / 1e6 == pytest.approx(million, rel=0.001)
