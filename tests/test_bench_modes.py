"""`measure`: its errors are those of an independent computation, its samples those of known denoisers."""

import pytest
import torch

import bench_figures as figures
from uwm.bench import modes
from uwm.core import plans
from uwm.learn.objective import Batch


@pytest.fixture(scope="module")
def model():
    return figures.tiny_model()


@pytest.fixture(scope="module")
def measured(model):
    batch, frames, present = figures.windows(model)
    return modes.measure(model, batch, frames, present, rows=3, seeds=range(6), samples=2, groups=torch.tensor([0, 0, 1, 1, 2, 2]))


def knowing(monkeypatch, model, batch):
    """Makes every prediction the true clean tokens, whatever the model says."""
    from uwm.sample import denoise

    def clean(path, prediction, predicted, x, level):
        layout_tokens = {batch.clean.shape[1]: slice(None), 10: model.layout.span("action"), 16: slice(10, 26)}
        return batch.clean[:, layout_tokens[x.shape[1]], : x.shape[2]]

    monkeypatch.setattr(denoise, "to_clean", clean)


def test_a_model_that_knows_the_truth_has_no_action_error_and_only_the_autoencoders_image_error(model, monkeypatch):
    batch, frames, present = figures.windows(model)
    batch = Batch(batch.observation, batch.clean.clamp(-6, 6), batch.valid)
    knowing(monkeypatch, model, batch)
    found = modes.measure(model, batch, frames, present, rows=3, seeds=range(6))
    assert found["inverse"]["relative_error"] < 1e-5
    assert found["policy"]["relative_error"] < 1e-5
    for part in (found["forward"], found["video"], found["joint"]["image"]):
        assert part["mse"] == pytest.approx(part["floor_mse"], rel=1e-4)


def test_the_baselines_are_the_training_mean_and_the_present_frame(model, measured):
    batch, frames, present = figures.windows(model)
    actions = batch.clean[:, 2:8, :3]  # after two past actions: ticks 0 to 5, before the last future frame at 6
    assert measured["inverse"]["mean_rmse"] == pytest.approx(float(actions.square().mean().sqrt()))
    assert measured["policy"]["mean_rmse"] == pytest.approx(float(batch.intended[:, 2:8].square().mean().sqrt()))
    copied = [(frames[camera] - present[camera][:, None]).square().mean() for camera in frames]
    assert measured["forward"]["copy_mse"] == pytest.approx(float(sum(copied)) / 2)
    camera = measured["forward"]["cameras"]["left"]
    assert camera["copy_mse"] == pytest.approx(float(copied[0]))
    assert camera["frames"]["6"]["copy_mse"] == pytest.approx(float((frames["left"][:, 1] - present["left"]).square().mean()))


def test_relative_errors_lie_in_their_intervals_and_per_dimension_errors_add_up(measured):
    for part in (measured["inverse"], measured["policy"], measured["forward"], measured["video"], measured["joint"]["image"]):
        low, high = part["interval"]
        assert low <= part["relative_error"] <= high
    inverse = measured["inverse"]
    assert sum(d["rmse"] ** 2 for d in inverse["dimensions"]) / 3 == pytest.approx(inverse["rmse"] ** 2)
    assert inverse["relative_error"] < inverse["relative_error_of_one_sample"]


def test_windows_without_true_future_frames_are_left_out_of_every_error(model):
    batch, frames, present = figures.windows(model)
    alone = modes.measure(model, *chosen(batch, frames, present, slice(0, 5)), rows=2, seeds=range(5))
    valid = batch.valid.clone()
    valid[5, model.layout.mask("left", "right")] = False
    spoilt = {camera: torch.cat([image[:5], torch.full_like(image[5:], 7.0)]) for camera, image in frames.items()}
    masked = Batch(batch.observation, batch.clean, valid, batch.intended)
    found = modes.measure(model, masked, spoilt, present, rows=2, seeds=range(6))
    for name in ("inverse", "policy"):
        assert found[name]["rmse"] == pytest.approx(alone[name]["rmse"], rel=1e-5)
    for name in ("forward", "video"):
        assert found[name]["mse"] == pytest.approx(alone[name]["mse"], rel=1e-5)


def chosen(batch, frames, present, where):
    seen = type(batch.observation)({c: image[where] for c, image in present.items()}, batch.observation.proprio[where])
    part = Batch(seen, batch.clean[where], batch.valid[where], batch.intended[where])
    return part, {c: image[where] for c, image in frames.items()}, {c: image[where] for c, image in present.items()}


@pytest.mark.parametrize("name", ["inverse", "forward", "video", "policy", "joint"])
def test_a_mode_never_looks_at_what_it_is_asked_for(model, name):
    batch, _, _ = figures.windows(model)
    asked = plans.mode(model.layout, name, 2).level[0] == 1
    changed = Batch(batch.observation, torch.where(asked[:, None], 5.0, batch.clean), batch.valid)
    with torch.no_grad():
        prefix = model.encode(batch.observation)
        one, two = (modes._sample(model, part, prefix, 2, range(6), name, 0) for part in (batch, changed))
    assert set(one) == set(two)
    for stream in one:
        torch.testing.assert_close(one[stream], two[stream], atol=0, rtol=0)


@torch.no_grad()
def test_deleting_absent_streams_gives_the_sample_of_the_whole_row(model, monkeypatch):
    batch, _, _ = figures.windows(model)
    prefix = model.encode(batch.observation)
    # From zeros instead of noise: the noise of a shorter row is another one.
    zeros = lambda path, known, level, randomness: (torch.where(level[None, :, None] > 0, 0.0, known), randomness)  # noqa: E731
    monkeypatch.setattr(modes.loop, "start", zeros)
    deleted = modes._sample(model, batch, prefix, 3, range(6), "policy", 0)["action"]
    monkeypatch.setattr(modes, "_present_streams", lambda layout, plan: layout)
    whole = modes._sample(model, batch, prefix, 3, range(6), "policy", 0)["action"]
    torch.testing.assert_close(deleted, whole, atol=1e-5, rtol=1e-5)
    assert plans.mode(model.layout, "policy", 3).role[10:].unique().tolist() == [2]


def test_examples_are_frames_of_different_episodes_as_they_were(model, measured):
    batch, frames, _ = figures.windows(model)
    examples = measured["examples"]
    assert len({index // 2 for index in examples["window"]}) == 3
    assert examples["forward/right"].shape == (3, 2, 32, 32, 3)
    first = (frames["left"][int(examples["window"][0])] * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert (examples["true/left"][0] == first.numpy()).all()
    done = batch.clean[examples["window"], 2:8, :3]  # normalised actions of an untrained normaliser are physical ones
    assert torch.equal(torch.from_numpy(examples["actions/true"]), done) and examples["actions/joint"].shape == done.shape


def test_too_few_seeds_wrong_frames_and_windows_at_the_end_are_refused(model):
    batch, frames, present = figures.windows(model)
    with pytest.raises(ValueError, match="one seed per window: got 2 seeds for 6"):
        modes.measure(model, batch, frames, present, 2, [0, 1])
    with pytest.raises(ValueError, match="camera 'right' must be"):
        modes.measure(model, batch, {"left": frames["left"]}, present, 2, range(6))
    nothing = Batch(batch.observation, batch.clean, batch.valid & ~model.layout.mask("left", "right"))
    with pytest.raises(ValueError, match="further from the end"):
        modes.measure(model, nothing, frames, present, 2, range(6))
