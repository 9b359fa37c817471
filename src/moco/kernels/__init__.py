"""Fused forms of the parts that a GPU is slow at one operation at a time, in Triton.

Each says in its own file which plain torch form it equals; that form is the specification, serves
every other device, and is what the tests compare with. Triton is imported by those files only, and
they are imported only where a run asks for them, so nothing here needs a GPU or Triton.
"""

import importlib.util

import torch


def why_not(device: torch.device) -> str | None:
    """What keeps these kernels from a device, in words; None if nothing does."""
    if device.type != "cuda":
        return f"they need a CUDA device, and this is {device}"
    if importlib.util.find_spec("triton") is None:
        return "they need the package triton, which comes with torch for CUDA"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"they need compute capability 8.0 (Ampere) or newer, and this device has {major}.{minor}"
    return None


OPTIONS = {"enable_fp_fusion": False}
"""How every kernel is compiled: products and sums round apart, as in torch's own operations."""
