"""What a token is in one call.

| role | level | is seen by others | is in the loss |
|---|---|---|---|
| GIVEN | held: 0 as a condition, 1 to marginalise with noise | yes | no |
| ACTIVE | any | yes | yes |
| ABSENT | ignored | no, not at all | no |
| COMMITTED | 0 | yes | no; like GIVEN, but part of what the model itself sent out |
"""

import torch
from torch import Tensor

from uwm.core.shapes import Bool, Int

GIVEN, ACTIVE, ABSENT, COMMITTED = range(4)
NAMES = ("given", "active", "absent", "committed")


def seen(role: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """True where a token may influence others."""
    return role != ABSENT


def full(batch: int, tokens: int, role: int = ACTIVE) -> Int[Tensor, "B N"]:
    """One role for every token."""
    return torch.full((batch, tokens), role, dtype=torch.int8)
