"""peft judges adapter files: it says and merges with ours what we do, and we do with its own what it says."""

import numpy as np
import pytest
import torch

from judges import judging
from judges.inside.linear_network import network
from uwm.nn import adapters

JUDGE = "peft"
SIZES = {"read.action": (5, 12), "backbone.blocks.0.qkv": (12, 36), "backbone.blocks.1.out": (36, 12), "write.action": (12, 5)}
ADAPTED = ("backbone.blocks.0.qkv", "backbone.blocks.1.out")


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """(a network, x, its own words with an adapter, its merged weights, peft's arrays, peft's folder)."""
    folder = tmp_path_factory.mktemp("peft")
    torch.manual_seed(1)
    made, x = network(SIZES), torch.randn(7, 5)
    arrays = {name: value.numpy().copy() for name, value in made.state_dict().items()}
    judging.save(folder / "weights", {**arrays, "x": x.numpy()})
    adapter = adapters.Adapter(made, 3, 6.0, ADAPTED, ("read.action", "write.action"))
    with torch.no_grad():
        for parameter in (*adapter.parameters(), *(each for each in made.parameters() if each.requires_grad)):
            parameter.add_(0.3 * torch.randn(parameter.shape))
        said, merged = made(x), adapter.merged(adapter.state())
    adapter.save(folder / "ours")
    wanted = {"r": 4, "lora_alpha": 6, "target_modules": ["qkv"], "modules_to_save": ["write.action"]}
    request = {"sizes": SIZES, "weights": str(folder / "weights"), "theirs": str(folder / "ours"), "own": str(folder / "theirs")}
    answer = judging.ask(JUDGE, "peft_adapts", {**request, "wanted": wanted, "out": str(folder / "out")}, folder / "home")
    assert answer["version"].startswith("0.21")
    return arrays, x, said, merged, judging.load(folder / "out"), folder / "theirs"


def test_peft_says_and_merges_with_our_files_what_we_do(judged):
    _, _, said, merged, found, _ = judged
    np.testing.assert_allclose(found["said"], said.numpy(), atol=1e-6)
    assert {name.removeprefix("merged.") for name in found if name.startswith("merged.")} == set(merged)
    for name, value in merged.items():
        np.testing.assert_allclose(found[f"merged.{name}"], value.numpy(), atol=1e-6, err_msg=name)


def test_we_do_with_peft_s_files_what_it_says(judged):
    arrays, x, said, _, found, theirs = judged
    made = network(SIZES)
    made.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    adapters.load(made, theirs)
    with torch.no_grad():
        np.testing.assert_allclose(made(x).numpy(), found["own"], atol=1e-6)
    assert np.abs(found["own"] - said.numpy()).max() > 0.01
