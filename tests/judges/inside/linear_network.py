"""A network of named linear layers, one after the other, that both sides make: dots in a name are modules within modules."""

from torch import nn


def network(sizes):
    """`sizes` {name: (in, out)}; what one layer says goes through a tanh into the next."""
    top = Named()
    for name, (before, after) in sizes.items():
        *path, last = name.split(".")
        place = top
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, Named())
            place = place.get_submodule(part)
        place.add_module(last, nn.Linear(before, after))
    top.order = list(sizes)
    return top


class Named(nn.Module):
    def forward(self, x):
        for name in self.order:
            x = self.get_submodule(name)(x).tanh()
        return x
