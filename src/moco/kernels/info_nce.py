"""Eqn. (1) over a large dictionary in two launches, with its gradient.

The first streams the keys past each tile of queries, as `moco.loss` does in chunks; a dictionary is
split among many programs, because a batch alone has too few tiles to fill a GPU. The second merges
the parts, adds the positive and forms loss, accuracy and gradient. Nothing is added in an order
that depends on timing, so equal inputs give equal bits.

Legend: N queries, K keys, C dimensions; similarities are in units of the temperature.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from moco import loss
from moco.kernels import OPTIONS
from moco.loss import Contrast, Entries

_ROWS, _COLUMNS = 64, 64  # queries and keys of a tile
_PROGRAMS = 264  # two for each multiprocessor of an H100 or H200


def info_nce(q: Tensor, entries: Entries, temperature: float) -> Contrast:
    """`moco.loss.info_nce`, which is also what runs where keys carry gradients or are not shared.

    Args:
        q: queries (N, C), unit length.
        entries: their keys.
        temperature: T > 0.

    Returns:
        The loss in nats and the pretext task's accuracy, equal to the torch form's up to rounding.

    Raises:
        ValueError: if the temperature is not positive.

    Source: MoCo, Section 3.1, Eqn. (1).
    """
    keys_learn = entries.positives.requires_grad or entries.negatives.requires_grad
    if keys_learn or entries.negatives.dim() == 3 or q.dtype != torch.float32 or not temperature > 0:
        return loss.info_nce(q, entries, temperature)
    return Contrast(*_FusedInfoNCE.apply(q, entries, temperature))


class _FusedInfoNCE(torch.autograd.Function):
    """The gradient is there before the backward pass, as in the torch form."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, entries: Entries, temperature: float) -> tuple[Tensor, Tensor]:
        q, positives, keys = q.contiguous(), entries.positives.float().contiguous(), entries.negatives
        keys = keys.float().contiguous()
        (n, c), k = q.shape, len(keys)
        wide = max(16, triton.next_power_of_2(c))
        columns = _COLUMNS if wide <= 128 else _COLUMNS // 2  # what fits into a multiprocessor's memory
        tiles = triton.cdiv(n, _ROWS)
        length = triton.cdiv(k, min(triton.cdiv(_PROGRAMS, tiles), triton.cdiv(k, columns)))
        length = triton.cdiv(length, columns) * columns
        parts = triton.cdiv(k, length)
        peaks, masses = q.new_empty(parts, n), q.new_empty(parts, n)
        mixtures = q.new_empty(parts, n, c)
        masked = entries.query_identity is not None and entries.negative_identity is not None
        own = (entries.query_identity, entries.negative_identity) if masked else (q, q)
        _stream[(tiles, parts)](
            q, keys, *own, peaks, masses, mixtures, n, k, c, length, 1 / temperature,
            MASKED=masked, ROWS=_ROWS, COLUMNS=columns, WIDE=wide, num_warps=8, num_stages=2, **OPTIONS,
        )  # fmt: skip
        losses, right, grad_q = q.new_empty(n), q.new_empty(n), torch.empty_like(q)
        _merge[(triton.cdiv(n, 16),)](
            q, positives, peaks, masses, mixtures, losses, right, grad_q, n, c, parts, 1 / temperature,
            1 / (n * temperature), ROWS=16, WIDE=wide, **OPTIONS,
        )  # fmt: skip
        ctx.save_for_backward(grad_q)
        accuracy = right.mean()
        ctx.mark_non_differentiable(accuracy)
        return losses.mean(), accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (grad_q,) = ctx.saved_tensors
        return grad_q * grad_loss, None, None


@triton.jit
def _stream(
    q, keys, query_identity, key_identity, peaks, masses, mixtures, n, k, c, length, scale,
    MASKED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Peak, mass and mixture of one part of the keys, for one tile of queries."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    channels = tl.arange(0, WIDE)
    tile = (rows < n)[:, None] & (channels < c)[None, :]
    offsets = rows[:, None] * c + channels[None, :]
    queries = tl.load(q + offsets, mask=tile, other=0.0) * scale
    if MASKED:
        own = tl.load(query_identity + rows, mask=rows < n, other=-2)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    mixture = tl.zeros((ROWS, WIDE), tl.float32)
    end = tl.minimum((part + 1) * length, k)
    for start in range(part * length, end, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        here = columns < end
        at = columns[:, None].to(tl.int64) * c + channels[None, :]
        block = tl.load(keys + at, mask=here[:, None] & (channels < c)[None, :], other=0.0)
        similarity = tl.dot(queries, tl.trans(block), input_precision="tf32x3")
        allowed = here[None, :] & (rows < n)[:, None]
        if MASKED:
            allowed = allowed & (
                own[:, None] != tl.load(key_identity + columns, mask=here, other=-1)[None, :]
            )
        similarity = tl.where(allowed, similarity, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(similarity, 1))
        pivot = tl.where(new_peak == float("-inf"), 0.0, new_peak)  # while every key was masked
        shrink = tl.exp(peak - pivot)
        weights = tl.exp(similarity - pivot[:, None])
        mass = mass * shrink + tl.sum(weights, 1)
        mixture = tl.dot(weights, block, mixture * shrink[:, None], input_precision="tf32x3")
        peak = new_peak
    tl.store(peaks + part * n + rows, peak, mask=rows < n)
    tl.store(masses + part * n + rows, mass, mask=rows < n)
    tl.store(mixtures + part.to(tl.int64) * n * c + offsets, mixture, mask=tile)


@triton.jit
def _merge(
    q, positives, peaks, masses, mixtures, losses, right, grad_q, n, c, parts, scale, per_nat,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Loss, accuracy and gradient of each query from its positive and the parts of the dictionary."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, WIDE)
    tile = (rows < n)[:, None] & (channels < c)[None, :]
    offsets = rows[:, None] * c + channels[None, :]
    queries = tl.load(q + offsets, mask=tile, other=0.0) * scale
    own_keys = tl.load(positives + offsets, mask=tile, other=0.0)
    positive = tl.sum(queries * own_keys, 1)
    peak, mass = positive, tl.full((ROWS,), 1.0, tl.float32)
    mixture = tl.zeros((ROWS, WIDE), tl.float32)
    hardest = tl.full((ROWS,), float("-inf"), tl.float32)
    for part in range(parts):
        of_part = tl.load(peaks + part * n + rows, mask=rows < n, other=float("-inf"))
        hardest = tl.maximum(hardest, of_part)
        new_peak = tl.maximum(peak, of_part)
        shrink, share = tl.exp(peak - new_peak), tl.exp(of_part - new_peak)
        mass = mass * shrink + tl.load(masses + part * n + rows, mask=rows < n, other=0.0) * share
        at = mixtures + tl.cast(part, tl.int64) * n * c + offsets
        mixture = mixture * shrink[:, None] + tl.load(at, mask=tile, other=0.0) * share[:, None]
        peak = new_peak
    probability = tl.exp(positive - peak) / mass  # of the positive
    gradient = (mixture / mass[:, None] + (probability - 1)[:, None] * own_keys) * per_nat
    tl.store(losses + rows, peak + tl.log(mass) - positive, mask=rows < n)
    tl.store(right + rows, tl.where(positive > hardest, 1.0, 0.0), mask=rows < n)
    tl.store(grad_q + offsets, gradient, mask=tile)
