"""Distillation: what is compared with what, who learns, and what a student is for."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import tiny
from oracle import PATHS
from uwm.core import roles
from uwm.core.config import ConfigError, from_mapping
from uwm.core.patterns import Draw, Pattern
from uwm.learn import distillation
from uwm.learn.distillation import DistilConfig
from uwm.learn.loop import TrainConfig, TrainState, generator_at, train
from uwm.learn.objective import ObjectiveConfig
from uwm.nn.robot_model import ModelConfig, Observation, RobotModel
from uwm.noise import gaussian
from uwm.runs import TrainRun
from uwm.sample import steps
from uwm.sample.denoise import Denoiser
from uwm.sample.loop import sample

LAYOUT = tiny.feeling().layout.select(["action"])
NOTHING = Observation({}, torch.zeros(5, 1))


class Saying(RobotModel):
    """A network whose clean estimate is known: `answer(x, level)`."""

    def __init__(self, answer):
        super().__init__(ModelConfig((), 1, 2, horizon=8, video_frames=(), prediction="clean"))
        self.answer, self.asked = answer, []

    def encode(self, observation):
        return SimpleNamespace(at=lambda window: window)

    def forward(self, x, level, role, layout, context, dims):
        self.asked.append(level)
        return self.answer(x, level)


def drawn(level=0.5):
    future = LAYOUT.frame >= 0
    role = torch.where(future, roles.ACTIVE, roles.GIVEN).to(torch.int8).expand(5, -1)
    return Draw(torch.where(future, level, 0.0).expand(5, -1), role)


def distance(teacher, student, draw, rows=4, calls=4, kind="consistency"):
    clean, noise = torch.randn(2, 5, LAYOUT.tokens, 2, generator=torch.Generator().manual_seed(0))
    return distillation.KINDS[kind](teacher, rows, calls, student, NOTHING)(LAYOUT, draw, clean, noise, torch.arange(5), None)


def test_a_student_that_always_says_the_same_agrees_and_is_asked_one_part_further_down():
    student, teacher = (Saying(lambda x, level: torch.full_like(x, 0.3)) for _ in range(2))
    future = LAYOUT.frame >= 0
    assert float(distance(teacher, student, drawn(0.75), rows=8)[:, future].abs().max()) < 1e-6
    assert [set(level[:, future].flatten().tolist()) for level in teacher.asked] == [{0.75}, {0.625}], "a part is two rows here"
    assert [set(level[:, future].flatten().tolist()) for level in student.asked] == [{0.75}, {0.5}]
    assert [set(level[:, ~future].flatten().tolist()) for level in student.asked] == [{0.0}, {0.0}], "what is given stays clean"


def test_at_the_end_of_the_path_the_tokens_themselves_are_the_answer():
    """A student that is right about every token but the last row's is told what the teacher's last row gives."""
    teacher = Saying(lambda x, level: torch.zeros_like(x))
    student = Saying(lambda x, level: torch.full_like(x, 5.0))
    near = distance(teacher, student, drawn(0.2))[:, LAYOUT.frame >= 0]
    torch.testing.assert_close(near, torch.full_like(near, (25 + distillation.WIDTH**2) ** 0.5 - distillation.WIDTH), rtol=1e-5, atol=1e-6)
    assert float(distance(teacher, student, drawn(0.7))[:, LAYOUT.frame >= 0].abs().max()) < 1e-6, "elsewhere it agrees with itself"


def test_the_consistency_function_of_a_gaussian_agrees_with_itself_along_a_fine_path():
    """Independent unit Gaussians: DDIM's path is x times a constant, so the end of the path is known in closed form."""
    teacher = Saying(lambda x, level: PATHS["cosine"].alpha(level)[..., None].to(x) * x)
    student = Saying(lambda x, level: x)  # alpha^2 + sigma^2 = 1: the path of a unit Gaussian stands still
    assert float(distance(teacher, student, drawn(0.6), 200, 200).max()) < 1e-3
    wrong = Saying(lambda x, level: x * (1 + level[..., None]))
    assert float(distance(teacher, wrong, drawn(0.6), 200, 200).max()) > 0.001


def test_a_progressive_student_is_to_land_where_its_teacher_is_after_all_its_rows_of_a_call():
    """Independent unit Gaussians, whose path stands still: the clean tokens by which one call stands still too are known."""
    path, future = PATHS["cosine"], LAYOUT.frame >= 0
    teacher = Saying(lambda x, level: path.alpha(level)[..., None].to(x) * x)

    def still(x, level):
        high, low = level[..., None].double(), (level[..., None].double() - 0.5).clamp(min=0)
        kept = path.sigma(low) / path.sigma(high)
        return torch.where(high > 0, (1 - kept) / (path.alpha(low) - kept * path.alpha(high)), 1.0).to(x) * x

    for level in (1.0, 0.7, 0.3):  # the last one is at its end within a part of a call
        teacher.asked.clear()
        error = distance(teacher, Saying(still), drawn(level), 400, 2, "progressive")
        assert float(error[:, future].max()) < 1e-4 and not error[:, ~future].any(), "what is given stays clean"
        assert len(teacher.asked) == 200 and float(teacher.asked[-1][:, future].min()) >= max(level - 0.5, 0.0)
        assert float(distance(teacher, teacher, drawn(level), 400, 2, "progressive").max()) > 1e-3, "one call of the teacher does not"
    assert float(distance(teacher, teacher, drawn(0.7), 4, 4, "progressive").max()) == 0.0, "with as many calls both are the same"


@pytest.mark.parametrize("kind", distillation.KINDS)
def test_the_target_and_the_teacher_get_no_gradient(kind):
    net, teacher = tiny.feeling(), tiny.feeling(seed=1)
    ladder = ObjectiveConfig(2, patterns=(Pattern(1.0, "ladder", state="absent", chunk=2),))
    asked = distillation.loss(teacher, DistilConfig(kind=kind, rows=4, calls=2), ladder)
    total, figures = asked(net, tiny.batch(net), generator_at(0, 0))
    total.backward()
    assert set(figures) == {"action"} and any(p.grad is not None and bool(p.grad.any()) for p in net.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    with pytest.raises(ValueError, match="predicts noise says nothing at level 1"):
        distillation.loss(tiny.feeling(prediction="noise"), DistilConfig(kind=kind), ladder)


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"rows": 0, "calls": 1}, "0 rows are no multiple of 1 calls"),
        ({"rows": 16, "calls": 3}, "16 rows are no multiple of 3 calls"),
        ({"rows": 16, "calls": 0}, "16 rows are no multiple of 0 calls"),
        ({"rows": 4, "calls": 8}, "4 rows are no multiple of 8 calls"),
        ({"kind": "quick"}, r"one of the kinds .* got 'quick'"),
    ],
)
def test_a_path_that_cannot_be_cut_so_is_refused_with_the_config(told, match):
    with pytest.raises(ConfigError, match=match):
        from_mapping(TrainRun, {"data": "d", "out": "o", "distil": told})


@pytest.mark.parametrize(("kind", "calls"), [("consistency", 8), ("consistency", 2), ("progressive", 1)])
def test_distilling_brings_one_call_nearer_to_the_end_of_the_teachers_path(kind, calls):
    teacher = tiny.feeling()
    student = tiny.feeling()
    student.load_state_dict(teacher.state_dict())
    batch = tiny.batch(student, 16)
    pattern = (Pattern(1.0, "constant", state="absent"),)
    config = TrainConfig(120, 16, precision="float32", objective=ObjectiveConfig(4, patterns=pattern))
    config = replace(config, optim=replace(config.optim, rate=3e-3, warmup=5))
    before = apart(student, teacher, batch)
    asked = distillation.loss(teacher, DistilConfig(kind=kind, rows=8, calls=calls), config.objective)
    same = iter(lambda: batch, None)
    train(student, TrainState.fresh(student, config), same, config, lambda step, figures: None, lambda state: None, asked)
    assert apart(student, teacher, batch) < 0.5 * before


@torch.no_grad()
def apart(student, teacher, batch):
    """How far one call from noise is from the teacher's path of 16 rows, root mean square."""
    layout = student.layout.select(["action"])
    future = layout.frame >= 0
    x = torch.randn(16, layout.tokens, 2, generator=torch.Generator().manual_seed(3))
    role = torch.where(future, roles.ACTIVE, roles.ABSENT).to(torch.int8).expand(16, -1)
    ends = []
    for model, rows in ((student, 1), (teacher, 16)):
        path = gaussian.path(model.config.path, model.config.noise_shift)
        denoise = Denoiser(model, path, model.config.prediction, layout, role, model.encode(batch.observation))
        level = torch.where(future, torch.linspace(1, 0, rows + 1)[:, None], 0.0)
        ends.append(sample(denoise, path, x, level, steps.ddim())[0])
    return float((ends[0] - ends[1])[:, future].square().mean().sqrt())
