"""Which numbers a training computes with: bfloat16 where the processor has instructions for it, float32 elsewhere.

Without them (AVX-512 BF16, AMX, Arm's BF16) a product in bfloat16 takes some twenty times as long as in float32.
"""

import torch

PRECISIONS = ("auto", "float32", "bfloat16")
INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # names of torch.cpu.get_capabilities, on x86 and on Arm


def resolved(precision: str) -> str:
    """"float32" or "bfloat16": what "auto" means on this processor."""
    if precision != "auto":
        return precision
    has = torch.cpu.get_capabilities()
    return "bfloat16" if any(has.get(name, False) for name in INSTRUCTIONS) else "float32"


def autocast(precision: str) -> torch.autocast:
    """A context in which matrices are multiplied in this precision."""
    return torch.autocast("cpu", torch.bfloat16, enabled=resolved(precision) == "bfloat16")


def note(precision: str, instead: str) -> str:
    """What to tell somebody who asks this processor for bfloat16 although it has no instructions for it; "" for all others."""
    if not precision == "bfloat16" != resolved("auto"):
        return ""
    return f"note: this processor has no instructions for bfloat16; {instead} is some twenty times faster here"
