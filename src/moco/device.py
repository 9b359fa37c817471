"""The device that computes: which it is, and how not to wait for it."""

import torch
from torch import Tensor

from moco import cluster
from moco.world import World


def choose_device(name: str, world: World | None = None) -> torch.device:
    """A device by name; "auto" takes the fastest there is, and each of several processes its own GPU.

    Raises:
        ValueError: if it is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in there.items() if available)
    if not there.get(name.partition(":")[0], False):
        have = ", ".join(kind for kind, available in there.items() if available)
        raise ValueError(f"there is no device {name!r} here; there is {have}")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"there is no device {name!r} here; there are {torch.cuda.device_count()} GPUs, from 0"
        )
    if device.type == "cuda" and world is not None and world.size > 1:
        own = cluster.local_rank()
        if torch.cuda.device_count() == 1 and cluster.bound_to_a_gpu():
            own = 0
        if own >= torch.cuda.device_count():
            raise ValueError(
                f"each process must have a GPU of its own, got process {own} of this machine (from 0) and "
                f"{torch.cuda.device_count()} GPUs; start fewer, or use --device cpu"
            )
        device = torch.device("cuda", own)
        torch.cuda.set_device(device)
    return device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device, without waiting for what the device still has to do.

    CUDA copies what is not pinned to memory of its own before it returns, so the tensor may be changed
    or freed right away; pinned memory may not before the device has read it. Metal reads either later.
    """
    return tensor.to(device, non_blocking=device.type != "mps")


def wait(device: torch.device) -> None:
    """Until the device has done all that it was asked for; to measure time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
