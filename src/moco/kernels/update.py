"""Stochastic gradient descent and the momentum encoder's update in one pass over flat storage.

A step reads parameters, gradients, momentum and the momentum encoder's parameters, and writes all but the
gradients: seven ways through memory, where torch's fused SGD and one `lerp` take eight.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moco.kernels import OPTIONS

_BLOCK = 1024


@torch.no_grad()
def learn_and_follow(
    parameters: Tensor,
    gradients: Tensor,
    velocity: Tensor,
    key_parameters: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
    keys_momentum: float,
) -> None:
    """θ_q by `torch.optim.SGD`, then θ_k ← m θ_k + (1 − m) θ_q, both in place.

    Args:
        parameters: θ_q, all in one vector.
        gradients: of the loss by them.
        velocity: SGD's momentum buffer; zeros before the first step.
        key_parameters: θ_k, in the same order.
        lr, momentum, weight_decay, nesterov: as in `torch.optim.SGD`.
        keys_momentum: m in [0, 1).

    Raises:
        ValueError: if the four are not vectors of one length and type.
    """
    four = (parameters, gradients, velocity, key_parameters)
    if any(t.dim() != 1 or t.shape != parameters.shape or t.dtype != parameters.dtype for t in four):
        raise ValueError(
            f"four vectors of one length and type are needed, got {[(tuple(t.shape), t.dtype) for t in four]}"
        )
    count = parameters.numel()
    _update[(triton.cdiv(count, _BLOCK),)](
        *four, count, lr, momentum, weight_decay, 1 - keys_momentum,
        NESTEROV=nesterov, BLOCK=_BLOCK, **OPTIONS,
    )  # fmt: skip


def flat(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """One vector with the values of tensors of any layout, and the same tensors as views into it."""
    vector = torch.empty(sum(t.numel() for t in tensors), dtype=tensors[0].dtype, device=tensors[0].device)
    views, start = [], 0
    for tensor in tensors:
        dense = torch.empty_like(tensor)  # keeps the order of dimensions in memory, drops gaps
        view = vector[start : start + tensor.numel()].as_strided(tensor.shape, dense.stride(), start)
        views.append(view.copy_(tensor.detach()))
        start += tensor.numel()
    return vector, views


@triton.jit
def _update(
    parameters, gradients, velocity, key_parameters, count, lr, momentum, weight_decay, follow,
    NESTEROV: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of all four vectors."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    theta_q = tl.load(parameters + at, mask=here)
    theta_k = tl.load(key_parameters + at, mask=here)
    gradient = tl.load(gradients + at, mask=here) + weight_decay * theta_q
    speed = momentum * tl.load(velocity + at, mask=here) + gradient
    theta_q -= lr * (gradient + momentum * speed if NESTEROV else speed)
    tl.store(velocity + at, speed, mask=here)
    tl.store(parameters + at, theta_q, mask=here)
    tl.store(key_parameters + at, theta_k + follow * (theta_q - theta_k), mask=here)
