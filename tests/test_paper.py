"""The paper preset against the described arithmetic, written out a second time, and the reading of published files."""

import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from uwm import cli
from uwm.core.levels import from_index
from uwm.learn import published
from uwm.learn.checkpoint import CheckpointError
from uwm.nn.paper import PRESETS, PaperModel, from_patches, to_patches
from uwm.noise.table import SquaredCosineTable
from uwm.sample import paper
from uwm.sample.randomness import Randomness

CONFIG = PRESETS["uwm-tiny"]
OBS = "obs_encoder.img_encoder.model."


@pytest.fixture(scope="module")
def state():
    """Random weights under the published names; nothing is zero, so that every term shows."""
    torch.manual_seed(0)
    model = PaperModel(CONFIG)
    ours = {name: value + 0.1 * torch.randn_like(value) for name, value in model.state_dict().items()}
    names = {name: name.replace("denoiser.", "noise_pred_net.", 1).replace("see.model.", OBS, 1) for name in ours}
    return {names[name]: value for name, value in ours.items()}


@pytest.fixture(scope="module")
def model(state, tmp_path_factory):
    file = tmp_path_factory.mktemp("published") / "weights.pt"
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "step": 7}, file)
    read = published.read_file(file)
    assert (read.preset, read.step, read.left_out) == ("uwm-tiny", 7, ())
    return read.model()


# --------------------------------------------------------------------------- the description, read a second time

W = "noise_pred_net."


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def mish(x):
    return x * torch.tanh(torch.log1p(torch.exp(x)))


def norm(x):
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-6)


def sinusoid(step, size):
    frequency = torch.tensor([math.exp(-math.log(10000) * i / (size // 2 - 1)) for i in range(size // 2)])
    return torch.cat([torch.sin(step * frequency), torch.cos(step * frequency)])


def described(state, actions, latents, action_step, video_step, features):
    """One sample. actions (T, A), latents (V, C, T, H, W), integer steps, features (F,) -> noise of both."""
    size = CONFIG.level_size
    embedded = torch.cat([sinusoid(action_step, size), sinusoid(video_step, size)])
    embedded = linear(state, W + "timestep_embedding.proj.2", mish(linear(state, W + "timestep_embedding.proj.0", embedded)))
    condition = F.silu(torch.cat([features, embedded]))
    x = linear(state, W + "action_encoder.2", mish(linear(state, W + "action_encoder.0", actions)))
    kernel, bias = state[W + "obs_patchifier.patch_encoder.weight"], state[W + "obs_patchifier.patch_encoder.bias"]
    patches = F.conv3d(latents, kernel, bias, stride=kernel.shape[2:])  # views are the batch
    patches = torch.cat([view.flatten(1).T for view in patches])
    x = torch.cat([x, patches, state[W + "registers"][0]]) + state[W + "pos_embed"][0]
    for i in range(CONFIG.depth):
        block = f"{W}blocks.{i}."
        shift, scale, gate, shift2, scale2, gate2 = linear(state, block + "adaLN_modulation.1", condition).chunk(6)
        hidden = linear(state, block + "attn.qkv", norm(x) * (1 + scale) + shift)
        out = []
        for head in range(CONFIG.heads):
            width = CONFIG.width // CONFIG.heads
            query, key, value = (hidden[:, part * CONFIG.width + head * width :][:, :width] for part in range(3))
            out.append(torch.softmax(query @ key.T / math.sqrt(width), dim=-1) @ value)
        x = x + gate * linear(state, block + "attn.proj", torch.cat(out, dim=1))
        hidden = linear(state, block + "mlp.fc1", norm(x) * (1 + scale2) + shift2)
        x = x + gate2 * linear(state, block + "mlp.fc2", hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))
    shift, scale = linear(state, W + "head.adaLN_modulation.1", condition).chunk(2)
    x = linear(state, W + "head.linear", norm(x) * (1 + scale) + shift)
    count = len(actions)
    noise_a = linear(state, W + "action_decoder.2", mish(linear(state, W + "action_decoder.0", x[:count])))
    patches = linear(state, W + "obs_patchifier.patch_decoder", x[count : len(x) - CONFIG.registers])
    views, side, (pt, ph, pw) = len(latents), CONFIG.grid, kernel.shape[2:]
    patches = patches.reshape(views, -1, side, side, CONFIG.latent, pt, ph, pw)  # view, time, row, column, then a patch
    return noise_a, patches.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(latents.shape)


def alphas():
    """Cumulated signal power of the 100 training steps."""
    power = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    beta = torch.tensor([min(1 - power((i + 1) / 100) / power(i / 100), 0.999) for i in range(100)], dtype=torch.float64)
    return torch.cumprod(1 - beta, 0)


def described_sample(state, mode, actions, latents, features, marginal=90):
    """Ten steps of DDIM on labels 90 to 0; what falls starts as the noise that is handed in."""
    falls = {"policy": "a", "inverse": "a", "video": "v", "forward": "v", "joint": "av"}[mode]
    kept = {"inverse": 0, "forward": 0, "policy": marginal, "video": marginal}.get(mode)
    power = alphas()
    for k in range(90, -1, -10):
        steps = [k if part in falls else kept for part in "av"]
        noise = described(state, actions, latents, *steps, features)
        here, after = power[k].item(), power[k - 10].item() if k else 1.0

        def move(x, e, here=here, after=after):
            clean = ((x - math.sqrt(1 - here) * e) / math.sqrt(here)).clamp(-1, 1)
            return math.sqrt(after) * clean + math.sqrt(1 - after) * e

        actions = move(actions, noise[0]) if "a" in falls else actions
        latents = move(latents, noise[1]) if "v" in falls else latents
    return actions, latents


def as_latents(tokens):
    """{view: (B, N, S)} to (B, V, C, T, H, W)."""
    return torch.stack([from_patches(tokens[view], CONFIG).transpose(1, 2) for view in CONFIG.views], dim=1)


# --------------------------------------------------------------------------------------------------------------- parity


def inputs(seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    layout = CONFIG.layout
    features = torch.randn(batch, CONFIG.condition - CONFIG.level_size, generator=generator)
    return layout, torch.randn(batch, layout.tokens, layout.size, generator=generator), features


@pytest.mark.parametrize("steps", [(0, 0), (90, 90), (99, 40), (3, 99)])
def test_one_evaluation_is_the_described_arithmetic(model, state, steps):
    layout, x, features = inputs()
    level = torch.zeros(2, layout.tokens)
    for kind, step in zip(("action", "video"), steps, strict=True):
        level[:, layout.mask(*layout.of_kind(kind))] = float(from_index(torch.tensor(step), 100))
    with torch.no_grad():
        got = layout.unpack(model(x, level, None, layout, features))
    given = layout.unpack(x)
    for i in range(2):
        noise_a, noise_v = described(state, given["action"][i], as_latents(given)[i], *steps, features[i])
        torch.testing.assert_close(got["action"][i], noise_a, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(as_latents(got)[i], noise_v, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", paper.MODES)
@pytest.mark.parametrize("marginal", [None, 99])
def test_ten_released_steps_of_every_mode_are_the_described_ones(model, state, mode, marginal):
    layout, clean, features = inputs(1)
    clean = clean.clamp(-1, 1)
    parts = layout.unpack(clean)
    known = {"forward": ["action"], "inverse": list(CONFIG.views)}.get(mode, [])
    got = paper.sample_published(model, features, mode, [3, 4], {name: parts[name] for name in known}, marginal=marginal)
    noise, _ = Randomness.seeded([3, 4]).normal(layout.tokens, layout.size)
    start = layout.unpack(noise) | {name: parts[name] for name in known}
    for i in range(2):
        actions, latents = described_sample(state, mode, start["action"][i], as_latents(start)[i], features[i], marginal or 90)
        torch.testing.assert_close(got["action"][i], actions, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(as_latents(got)[i], latents, atol=1e-5, rtol=1e-4)


def test_the_encoder_puts_views_before_times_and_normalises_like_imagenet(model, state):
    images = {view: torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i, view in enumerate(CONFIG.views)}
    with torch.no_grad():
        features = model.encode(images)
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        own = model.see.model((images["wrist"][:, 1] - mean) / std)
    torch.testing.assert_close(features[:, 3 * CONFIG.feature :], own, atol=1e-5, rtol=1e-5)
    assert state[f"{OBS}layer2.0.downsample.0.weight"].shape == (32, 16, 1, 1) and f"{OBS}layer4.1.bn2.bias" in state


@pytest.mark.parametrize(("preset", "tokens", "millions", "condition"), [("uwm-droid", 171, 384.9, 5120), ("uwm-libero", 138, 297.6, 3584)])
def test_the_presets_have_the_papers_sizes(preset, tokens, millions, condition):
    config = PRESETS[preset]
    with torch.device("meta"):
        denoiser = PaperModel(config).denoiser
    assert (config.tokens, config.condition) == (tokens, condition)
    assert sum(p.numel() for p in denoiser.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


def test_the_table_has_the_papers_entries_and_a_clean_end():
    table = SquaredCosineTable()
    level = from_index(torch.arange(-1, 100), 100)
    share = torch.cat([torch.ones(1), alphas().float()])
    torch.testing.assert_close(table.alpha(level) ** 2, share, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(table.alpha(level) ** 2 + table.sigma(level) ** 2, torch.ones(101), atol=1e-6, rtol=0)
    assert float(table.alpha(level)[0]) == 1 and float(table.sigma(level)[0]) == 0
    with pytest.raises(NotImplementedError, match="no slope"):
        table.alpha_slope(level)


def test_patches_come_back(model):
    latents = torch.randn(2, CONFIG.video_frames, CONFIG.latent, 8, 8)
    assert torch.equal(from_patches(to_patches(latents, CONFIG), CONFIG), latents)


def test_levels_that_differ_within_a_modality_and_missing_streams_are_refused(model):
    layout, x, features = inputs()
    level = torch.full((2, layout.tokens), 0.5)
    level[0, 1] = 0.4
    with pytest.raises(ValueError, match="one level per modality, but action tokens"):
        model(x, level, None, layout, features)
    with pytest.raises(ValueError, match="always reads all of its streams"):
        model(x[:, :4], level[:, :4], None, layout.select(("action",)), features)
    with pytest.raises(ValueError, match="is given nothing, got"):
        paper.sample_published(model, features, "policy", [0, 1], {"action": x[:, :4, :7]})
    with pytest.raises(ValueError, match="modes"):
        paper.plan(layout, "streaming")


# --------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def normaliser(monkeypatch):
    """A class of a package that is not there when the file is read."""
    module = types.ModuleType("their_code")
    made = type("LinearNormalizer", (), {"__module__": "their_code", "__qualname__": "LinearNormalizer"})
    module.LinearNormalizer = made
    monkeypatch.setitem(sys.modules, "their_code", module)
    value = made()
    value.scale, value.offset = torch.tensor([2.0, 3.0]).numpy(), torch.tensor([0.5, 0.0]).numpy()
    return value


def test_an_imported_folder_holds_weights_autoencoder_and_normaliser(state, normaliser, tmp_path, monkeypatch):
    extra = {"obs_encoder.vae.vae.encoder.conv_in.weight": torch.ones(2, 2), "obs_encoder.text_encoder.head.weight": torch.ones(1)}
    content = {"model": {**state, **extra}, "action_normalizer": normaliser, "step": 3, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "theirs.pt")
    monkeypatch.delitem(sys.modules, "their_code")
    published.save(tmp_path / "ours", published.read_file(tmp_path / "theirs.pt"))
    loaded = published.load(tmp_path / "ours")
    assert loaded.normaliser["action.scale"].tolist() == [2.0, 3.0] and loaded.normaliser["action.offset"].tolist() == [0.5, 0.0]
    assert set(loaded.vae) == {"encoder.conv_in.weight"} and loaded.left_out == ("obs_encoder.text_encoder.head.weight",)
    torch.testing.assert_close(loaded.weights["denoiser.registers"], state["noise_pred_net.registers"], atol=0, rtol=0)
    with pytest.raises(CheckpointError, match="already holds"):
        published.save(tmp_path / "ours", loaded)


class Bomb:
    def __reduce__(self):
        return (print, ("boom",))


def test_what_is_not_on_the_allow_list_is_named_and_never_run(state, tmp_path, capfd):
    torch.save({"model": state, "extra": Bomb()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"print, which is not on the allow-list"):
        published.read_file(tmp_path / "bad.pt")
    assert "boom" not in capfd.readouterr().out


def test_files_that_are_something_else_are_named(state, tmp_path):
    with pytest.raises(CheckpointError, match="there is no file"):
        published.read_file(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"no torch\.save file"):
        published.read_file(tmp_path / "text.pt")
    torch.save({"weights": state}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="state dict under 'model'"):
        published.read_file(tmp_path / "other.pt")
    torch.save({"model": {k: v for k, v in state.items() if "registers" not in k}}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match=r"nearest is uwm-tiny with 1 differences: denoiser\.registers is missing"):
        published.read_file(tmp_path / "part.pt")
    torch.save({"model": state}, tmp_path / "tiny.pt")
    with pytest.raises(CheckpointError, match="nearest is uwm-droid"):
        published.read_file(tmp_path / "tiny.pt", "uwm-droid")


def test_the_command_says_what_it_found(state, tmp_path, capfd):
    torch.save({"model": state, "step": 5}, tmp_path / "theirs.pt")
    assert cli.main(["import-checkpoint", str(tmp_path / "theirs.pt"), "--out", str(tmp_path / "ours")]) == 0
    told = capfd.readouterr().out
    assert "uwm-tiny" in told and "5 steps" in told and "normaliser: none in the file" in told
    assert cli.main(["import-checkpoint", str(tmp_path / "theirs.pt"), "--out", str(tmp_path / "ours")]) == 1
    assert "already holds" in capfd.readouterr().err
