"""Finetuning: what is fixed stays bit for bit, checkpoints act like any other, adapters travel in peft's files, data may be others."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import test_training as base
from uwm import training
from uwm.core.config import ConfigError
from uwm.finetuning import NORMALISERS
from uwm.learn import checkpoint as checkpoints
from uwm.learn import finetune
from uwm.learn.checkpoint import CheckpointError
from uwm.learn.finetune import AdaptConfig
from uwm.nn import adapters
from uwm.nn.robot_model import Observation
from uwm.robot.policy import Policy

KINDS = {"full": {}, "frozen": {}, "lora": {"rank": 4, "alpha": 8.0, "modules": ["qkv", "out"]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pretraining data, new data of the first one's robot, and a model of four steps on the former."""
    folder = tmp_path_factory.mktemp("finetune")
    base.store_of(folder / "arm.zarr", cameras=("agentview", "wrist"))
    gripping = {**base.ACTION, "names": ["x", "y", "gripper"], "units": ["m"] * 3, "gripper": "-1 opens, +1 closes"}
    hand = {"rate": 20.0, "action": 3, "state": 4, "cameras": ("agentview",), "card": {"action": gripping}}
    base.store_of(folder / "hand.zarr", ticks=15, seed=1, **hand)
    base.store_of(folder / "new.zarr", cameras=("agentview", "wrist"), seed=2)
    both = [{"name": name, "data": str(folder / f"{name}.zarr")} for name in ("arm", "hand")]
    training.train(base.run_of(folder / "begun", mixture={"members": both, "rate_hz": "own"}))
    return folder


def tuned(folder, out, kind, **changes):
    """The run of finetuning to the new data."""
    told = {"data": str(folder / "new.zarr"), "init": str(folder / "begun" / "model"), "adapt": {"kind": kind, **KINDS[kind]}}
    return base.run_of(out, **{**told, **changes})


@pytest.fixture(scope="module")
def made(folder):
    return {kind: training.train(tuned(folder, folder / kind, kind)) for kind in KINDS}


def changed(state, before):
    """Names of the weights that are not as they were; normalisers are none."""
    known = [name for name in state if name in before and not name.startswith(NORMALISERS)]
    return {name for name in known if not torch.equal(state[name], before[name])}


# --------------------------------------------------------------------------------------------------------- what learns


@pytest.mark.parametrize("kind", ["frozen", "lora"])
def test_what_is_fixed_stays_bit_for_bit_and_the_optimiser_knows_only_what_learns(folder, made, kind):
    before = checkpoints.load(folder / "begun" / "model").average
    saved = checkpoints.load(made[kind], for_training=True)
    parts = {name.partition(".")[0] for name in changed(saved.weights, before)}
    assert parts == {"see", "feel", "read", "write"}
    merged = {name for name in changed(saved.average, before) if name.startswith("backbone")}
    assert merged == ({f"backbone.blocks.0.{layer}.weight" for layer in ("qkv", "out")} if kind == "lora" else set())
    model, _ = training.load_model(folder / "begun" / "model")
    finetune.begin(model, training.from_mapping(AdaptConfig, {"kind": kind, **KINDS[kind]}))
    learning = sum(parameter.requires_grad for parameter in model.parameters())
    assert len([name for name in saved.optimiser if name.endswith("exp_avg")]) == learning < len(list(model.parameters()))
    assert not any(name.startswith("muon") for name in saved.optimiser), "its matrices are the trunk's"


def test_full_moves_the_trunk_and_muon_its_matrices(folder, made):
    before, saved = checkpoints.load(folder / "begun" / "model").average, checkpoints.load(made["full"], for_training=True)
    assert "backbone.blocks.0.qkv.weight" in changed(saved.weights, before)
    assert any(name.startswith("muon") for name in saved.optimiser)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_finetuning_goes_on_exactly(folder, made, kind, tmp_path, monkeypatch):
    run = tuned(folder, tmp_path, kind)
    base.train_until(3, run, monkeypatch)
    training.train(run)
    resumed, straight = (checkpoints.load(path, for_training=True) for path in (tmp_path / "model", made[kind]))
    for part in ("weights", "average", "optimiser"):
        torch.testing.assert_close(getattr(resumed, part), getattr(straight, part), rtol=0, atol=0)
    with pytest.raises(ConfigError, match=r"was trained with other settings \(adapt\)"):
        training.train(replace(run, adapt=AdaptConfig("lora" if kind != "lora" else "frozen")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_finetuned_checkpoint_acts_like_any_other(made, kind):
    model, card = training.load_model(made[kind])
    assert not hasattr(model, adapters.PLACE) and model.config.acting == "data" and card["rate_hz"] == 10
    policy = Policy(model, base.POLICY)
    seen = Observation({name: torch.zeros(1, 3, 32, 32) for name in model.config.cameras}, torch.zeros(1, 2))
    _, actions = policy.act(policy.start([0]), seen)
    assert actions.shape == (1, 2, 2) and bool(torch.isfinite(actions).all())
    assert len(training.held_out(made[kind])[1]) > 0


# ------------------------------------------------------------------------------------------------------------- peft's files


def test_the_files_beside_a_checkpoint_are_peft_s_and_bring_its_base_to_the_same_weights(folder, made):
    told = json.loads((made["lora"] / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"], told["bias"]) == (4, 8.0, "none") and "write.action" in told["modules_to_save"]
    assert told["target_modules"] == ["backbone.blocks.0.out", "backbone.blocks.0.qkv"]
    tensors, average = load_file(made["lora"] / "adapter_model.safetensors"), checkpoints.load(made["lora"]).average
    low = [tensors[f"base_model.model.backbone.blocks.0.qkv.lora_{letter}.weight"] for letter in "AB"]
    assert [list(each.shape) for each in low] == [[4, 16], [48, 4]] and bool(low[1].any())
    first = checkpoints.load(folder / "begun" / "model").average["backbone.blocks.0.qkv.weight"]
    torch.testing.assert_close(average["backbone.blocks.0.qkv.weight"], first + 8 / 4 * low[1] @ low[0], rtol=0, atol=1e-7)
    assert torch.equal(tensors["base_model.model.write.action.weight"], average["write.action.weight"])
    merged, _ = training.load_model(folder / "begun" / "model", "hand", made["lora"])  # whose robot has other numbers
    whole, _ = training.load_model(made["lora"])
    its = {name: value for name, value in merged.state_dict().items() if not name.startswith("members")}
    torch.testing.assert_close(its, {name: whole.state_dict()[name] for name in its}, rtol=0, atol=1e-6)


def test_an_adapter_of_another_base_is_refused(folder, made, tmp_path):
    with pytest.raises(CheckpointError, match=r"lora is an adapter of .*begun/model with weights .*; those of .*full"):
        training.load_model(made["full"], adapter=made["lora"].rename(tmp_path / "lora"))
    (tmp_path / "lora").rename(made["lora"])
    model, _ = training.load_model(made["full"])
    config = made["lora"] / "adapter_config.json"
    told = json.loads(config.read_text())
    (tmp_path / "adapter_model.safetensors").write_bytes((made["lora"] / "adapter_model.safetensors").read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**told, "use_dora": True}))
    with pytest.raises(ValueError, match=r"is a LORA with \['use_dora'\]; plain LORA is read"):
        adapters.load(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**told, "modules_to_save": ["see.left"]}))
    with pytest.raises(ValueError, match=r"of another model: it differs in see\.left"):
        adapters.load(model, tmp_path)


# ------------------------------------------------------------------------------------------------------------- other data


def test_a_new_member_gets_its_own_normaliser_and_a_known_one_keeps_that_of_the_checkpoint(folder, tmp_path):
    known, new = ({"name": name, "data": str(folder / "new.zarr")} for name in ("arm", "fresh"))
    path = training.train(tuned(folder, tmp_path, "full", mixture={"members": [known, new]}))
    model, card = training.load_model(path)
    first = training.load_model(folder / "begun" / "model", "arm")[0]
    assert torch.equal(model.members[0].action.mean, first.normalise_action.mean)
    np.testing.assert_allclose(model.members[1].action.mean.numpy(), card["members"]["fresh"]["statistics"]["action"]["mean"], rtol=1e-5)
    assert not torch.equal(model.members[0].action.mean, model.members[1].action.mean)
    assert model.config.action_size == 3 and model.normalise_action.size == 2


def test_a_model_of_one_dataset_keeps_its_normalisers_and_may_go_on_as_a_mixture(folder, tmp_path):
    one = training.train(base.run_of(tmp_path / "one", data=str(folder / "arm.zarr")))
    again = training.train(tuned(folder, tmp_path / "again", "lora", init=str(one)))
    models = [training.load_model(each)[0] for each in (one, again)]
    assert torch.equal(*(model.normalise_action.mean for model in models)) and not models[1].config.members
    member = {"name": "fresh", "data": str(folder / "new.zarr")}
    mixed, _ = training.load_model(training.train(tuned(folder, tmp_path / "mixed", "full", init=str(one), mixture={"members": [member]})))
    assert not torch.equal(mixed.normalise_action.mean, models[0].normalise_action.mean)


def test_members_may_tick_at_their_own_rates(folder):
    card = checkpoints.describe(folder / "begun" / "model")["card"]
    assert {name: each["rate_hz"] for name, each in card["members"].items()} == {"arm": 10, "hand": 20}
    windows = training.held_out(folder / "begun" / "model", member="hand")[1]
    assert windows.rates is None and len(windows) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init": ""}, "adapt.kind=lora fixes what was learned before: set init"),
        ({"adapt": {"kind": "lora", "modules": ["qvk"]}}, "unknown adapt.module 'qvk', did you mean 'qkv'?"),
        ({"adapt": {"kind": "lora", "rank": 17}}, "the rank lies between 1 and the width of the narrowest layer, 16"),
        ({"adapt": {"kind": "lora", "rank": 0}}, "adapt.rank must be at least 1"),
        ({"adapt": {"kind": "prefix"}}, "unknown adapt.kind 'prefix'"),
        ({"model": {"past": 0}}, "is another model: past is 1 there and 0 here"),
        ({"streams": {"cameras": {"top": "wrist"}}}, "has no cameras ['top'], it has ['agentview', 'wrist']"),
        ({"mixture": {"members": [{"name": "hand", "data": "new.zarr"}]}}, "give the member another name"),
        ({"data": "wide.zarr"}, "the data has 5 numbers of action, "),
    ],
)
def test_what_cannot_begin_there_is_told_in_words(folder, tmp_path, changes, words):
    base.store_of(tmp_path / "wide.zarr", cameras=("agentview",), action=5)
    for member in changes.get("mixture", {}).get("members", ()):
        member["data"] = str(folder / "new.zarr")
    if "data" in changes:
        changes = {"data": str(tmp_path / changes["data"])}
    with pytest.raises(ValueError) as refused:
        training.train(tuned(folder, tmp_path / "run", "lora", **changes))
    assert words in str(refused.value)


def test_only_a_transformer_s_trunk_can_be_fixed(tmp_path, folder):
    unet = {**base.SMALL["model"], "trunk": "unet", "video_frames": [], "unet": {"widths": [8, 16], "feature": 8}}
    acting = {**base.SMALL["train"], "objective": {"draws": 1, "patterns": [{"action": "constant", "video": "absent"}]}}
    one = training.train(base.run_of(tmp_path / "one", data=str(folder / "arm.zarr"), model=unet, train=acting))
    with pytest.raises(ValueError, match=r"adapt\.kind=frozen is for the trunk 'transformer', the model's is 'unet'"):
        training.train(tuned(folder, tmp_path / "two", "frozen", init=str(one), model=unet, train=acting))
