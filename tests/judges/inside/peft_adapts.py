"""peft puts an adapter of somebody else's files beside a network, and writes files of its own.

Asked: {"sizes" of the network, "weights", "theirs": a folder with an adapter, "own": where peft's goes, "wanted": its settings, "out"}.
Arrays in `out`: `said` by the network with their adapter, `merged.<name>` its merged weights, `own` what it says with peft's.
"""

import answering
import peft
import torch
from linear_network import network

request = answering.asked()
arrays = answering.load(request["weights"])
x = torch.from_numpy(arrays.pop("x"))


def fresh():
    made = network(request["sizes"])
    made.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    return made


with torch.no_grad():
    adapted = peft.PeftModel.from_pretrained(fresh(), request["theirs"])
    found = {"said": adapted(x)}
    found.update({"merged." + name: value for name, value in adapted.merge_and_unload().state_dict().items()})
    own = peft.get_peft_model(fresh(), peft.LoraConfig(**request["wanted"]))
    torch.manual_seed(0)
    for parameter in own.parameters():
        if parameter.requires_grad:
            parameter.add_(0.3 * torch.randn(parameter.shape))
    own.eval().save_pretrained(request["own"])
    found["own"] = own(x)
answering.save(request["out"], {name: value.numpy() for name, value in found.items()})
answering.answer(version=peft.__version__)
