"""What the processor at hand is good at."""

import functools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Precision = Literal["float32", "bfloat16"]


@functools.cache
def cpu_info() -> str:
    """What Linux says of the processor; nothing elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(flag in cpu_info() for flag in ("avx512_bf16", "amx_bf16"))


def settled(precision: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """A recipe's precision on a device: "auto" is bfloat16 where that is fast."""
    if precision != "auto":
        return precision
    return "bfloat16" if has_fast_bfloat16(device) else "float32"


def measuring_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """What an encoder that was trained in a precision is measured in: bfloat16 only where it is fast."""
    return torch.bfloat16 if precision == "bfloat16" and has_fast_bfloat16(device) else None


def product_with(rows: Float[Tensor, "M D"]) -> Callable[[Tensor, Tensor | None], Tensor]:
    """`lambda x, out: torch.mm(x, rows.T, out=out)` for many x (Q, D), without gradient.

    torch multiplies matrices of float32 by MKL, which leaves AMD's 512-bit units idle; oneDNN, which
    comes with torch as well, takes half of the time there, in memory of its own.
    """
    rows = rows.detach()
    fast = rows.dtype == torch.float32 and rows.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if fast and "AuthenticAMD" in cpu_info() and "avx512f" in cpu_info():
        kept = rows.to_mkldnn()
        return lambda x, _: F.linear(x.to_mkldnn(), kept).to_dense()
    return lambda x, out: torch.mm(x, rows.T, out=out)
