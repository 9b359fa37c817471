"""The gradient of the global batch: the mean over the processes, formed while the backward pass runs."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from moco.world import World

BUCKET = 25 * 2**20  # bytes that travel together


@contextlib.contextmanager
def averaged_gradients(module: nn.Module, world: World) -> Iterator[None]:
    """Run one backward pass inside; afterwards each `.grad` is its mean over the processes.

    Parameters are grouped into buckets from the last to the first, always the same ones. A bucket
    travels as soon as its gradients are there and those before it have left, beside the rest of the
    backward pass. As every process's loss is the mean over an equal share of the batch, the mean of
    the gradients is that of the mean over the global batch.
    """
    if world.size == 1:
        yield
        return
    buckets = _buckets([p for p in module.parameters() if p.requires_grad])
    place = {p: i for i, bucket in enumerate(buckets) for p in bucket}
    missing = [len(bucket) for bucket in buckets]
    sent: list[tuple[list[nn.Parameter], Tensor, Callable[[], None]]] = []

    def send() -> None:
        ready = [p for p in buckets[len(sent)] if p.grad is not None]
        flat = torch.cat([p.grad.flatten() for p in ready]) if ready else torch.zeros(1)  # type: ignore[union-attr]
        sent.append((ready, flat, world.average(flat, "gradients") if ready else _no_wait))

    def arrived(parameter: Tensor) -> None:
        missing[place[parameter]] -= 1  # type: ignore[index]
        while len(sent) < len(buckets) and missing[len(sent)] == 0:
            send()

    hooks = [p.register_post_accumulate_grad_hook(arrived) for p in place]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    while len(sent) < len(buckets):  # some parameters got no gradient
        send()
    for ready, flat, wait in sent:
        wait()
        means = flat.split([p.numel() for p in ready]) if ready else ()
        for p, mean in zip(ready, means, strict=True):
            assert p.grad is not None
            p.grad.copy_(mean.view_as(p))


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters from the last to the first, in runs of about `BUCKET` bytes of one type."""
    buckets: list[list[nn.Parameter]] = []
    size = BUCKET
    for p in reversed(parameters):
        if size >= BUCKET or p.dtype != buckets[-1][-1].dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(p)
        size += p.numel() * p.element_size()
    return buckets


def _no_wait() -> None:
    """Nothing was sent."""
