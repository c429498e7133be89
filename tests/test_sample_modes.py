"""Any mode of a stream model: exact roles, guidance with two branches, and what is refused."""

import itertools

import pytest
import torch

import tiny
from uwm.core import plans, roles
from uwm.core.streams import Layout, Stream
from uwm.noise.gaussian import path
from uwm.sample.denoise import Denoiser
from uwm.sample.modes import Assignment, Guided, generate
from uwm.sample.randomness import Randomness

FRONT, ACTION, STATE = Stream("front", "video", (0, 1), 4, (1, 2)), Stream("action", "action", (0, 1), 2), Stream("state", "state", (0,), 3)


@pytest.fixture(scope="module")
def model():
    return tiny.stream_model(FRONT, ACTION, STATE, registers=1)


def test_every_assignment_of_roles_gives_its_targets(model):
    for told in itertools.product(("target", "given", "marginal", "absent"), repeat=3):
        chosen = {role: [s for s, r in zip((FRONT, ACTION, STATE), told, strict=True) if r == role] for role in set(told)}
        if "target" not in chosen:
            continue
        given = {s.name: torch.zeros(1, s.tokens, s.size) for s in chosen.get("given", ())}
        names, marginal = [s.name for s in chosen["target"]], [s.name for s in chosen.get("marginal", ())]
        found = generate(model, names, given, marginal, rows=2, seeds=(1, 2))
        assert {name: tuple(value.shape) for name, value in found.items()} == {s.name: (2, s.tokens, s.size) for s in chosen["target"]}


def test_the_modes_of_the_world_model_are_these_roles_for_two_kinds():
    layout = Layout((ACTION, FRONT))
    roles_of = {
        "policy": Assignment(("action",)), "policy_marginal": Assignment(("action",), marginal=("front",)),
        "video": Assignment(("front",)), "video_marginal": Assignment(("front",), marginal=("action",)),
        "forward": Assignment(("front",), ("action",)), "inverse": Assignment(("action",), ("front",)),
        "joint": Assignment(("action", "front")),
    }  # fmt: skip
    assert set(roles_of) == set(plans.MODES)
    for name, assignment in roles_of.items():
        ours, theirs = assignment.plan(layout, 5), plans.mode(layout, name, 5)
        assert torch.equal(ours.level, theirs.level) and torch.equal(ours.role, theirs.role)


def test_a_sample_does_not_depend_on_the_batch_that_it_travels_in(model):
    options = {"given": {"state": torch.ones(1, 1, 3)}, "rows": 4, "guidance": 1.5}
    together = generate(model, ["front", "action"], seeds=(3, 4, 5), **options)
    alone = generate(model, ["front", "action"], seeds=(4,), **options)
    for name, value in alone.items():
        assert torch.allclose(together[name][1:2], value, atol=1e-5)


def test_a_given_stream_counts_and_a_marginal_one_is_noise_not_its_own_content(model):
    one, other = (generate(model, ["front"], {"action": torch.full((1, 2, 2), value)}, seeds=(1,))["front"] for value in (0.0, 1.0))
    assert not torch.allclose(one, other)
    absent, noise = generate(model, ["front"], seeds=(1,))["front"], generate(model, ["front"], marginal=["action"], seeds=(1,))["front"]
    assert not torch.allclose(absent, noise)


class Recorder:
    """In the place of a network: remembers what it was asked, and answers with the sum over the row."""

    def __init__(self):
        self.asked = []

    def __call__(self, x, level, role, layout, context):
        self.asked.append((x.clone(), level.clone()))
        return x.sum(dim=1, keepdim=True).expand_as(x).clone()


def guided(assignment, calls=1):
    layout = Layout((FRONT, ACTION, STATE)).select(assignment.names)
    network = Recorder()
    denoise = Denoiser(network, path("cosine"), "clean", layout, roles.full(1, layout.tokens))
    guide = Guided(denoise, assignment, 0.5, Randomness.seeded([7]))
    x, level = torch.ones(1, layout.tokens, layout.size), torch.full((1, layout.tokens), 0.5)
    level[:, layout.mask(*assignment.given)] = 0.0
    outs = [guide(x, level) for _ in range(calls)]
    return layout, network.asked, outs


def test_conditional_guidance_hides_the_condition_behind_fresh_noise_in_every_row():
    layout, asked, outs = guided(Assignment(("front",), ("state",)), calls=2)
    assert len(asked) == 4
    hidden, shown = layout.mask("state"), layout.mask("front")
    for x, level in asked[1::2]:
        assert (level[:, hidden] == 1).all() and (level[:, shown] == 0.5).all() and (x[:, shown] == 1).all()
    assert not torch.equal(asked[1][0][:, hidden], asked[3][0][:, hidden])
    clean, null = asked[0][0].sum(dim=1), asked[1][0].sum(dim=1)
    assert torch.allclose(outs[0][:, 0], 1.5 * clean - 0.5 * null)


def test_joint_guidance_has_a_null_branch_per_target_with_noise_of_its_own():
    layout, asked, _ = guided(Assignment(("front", "action")))
    assert len(asked) == 3
    front, action = layout.mask("front"), layout.mask("action")
    (blind_front, level_front), (blind_action, level_action) = asked[1:]
    assert (level_front[:, action] == 1).all() and (blind_front[:, front] == 1).all()
    assert (level_action[:, front] == 1).all() and (blind_action[:, action] == 1).all()
    assert not torch.equal(blind_front[:, action], asked[0][0][:, action])


def test_without_weight_guidance_changes_nothing(model):
    given = {"state": torch.ones(1, 1, 3)}
    plain = generate(model, ["front"], given, rows=3)["front"]
    weak = generate(model, ["front"], given, rows=3, guidance=1e-9)["front"]
    assert torch.allclose(plain, weak, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"targets": ["front"], "given": {"front": torch.zeros(1, 4, 4)}}, "one role"),
        ({"targets": ["front"], "given": {"action": torch.zeros(1, 2, 2)}, "marginal": ["action"]}, "one role"),
        ({"targets": []}, "nothing to generate"),
        ({"targets": ["front"], "given": {"action": torch.zeros(1, 3, 2)}}, r"must be \(1 or 1, 2, 2\)"),
        ({"targets": ["front"], "given": {"action": torch.full((1, 2, 2), torch.nan)}}, "not finite"),
        ({"targets": ["front"], "guidance": 1.0}, "needs a condition"),
        ({"targets": ["front"], "rows": 0}, "at least one row"),
        ({"targets": ["front"], "seeds": (-1,)}, "seeds must be >= 0"),
    ],
)
def test_what_cannot_be_is_refused_in_words(model, asked, words):
    with pytest.raises(ValueError, match=words):
        generate(model, **asked)


def test_an_unknown_stream_is_named_with_those_that_exist(model):
    with pytest.raises(KeyError, match=r"no stream 'sound'.*front"):
        generate(model, ["sound"])


def test_roles_of_a_plan_are_those_of_its_assignment():
    layout = Layout((FRONT, ACTION, STATE))
    plan = Assignment(("front",), ("action",)).plan(layout, 3)
    assert set(plan.role[layout.mask("state")].tolist()) == {roles.ABSENT}
    assert (plan.level[:, layout.mask("action")] == 0).all()
