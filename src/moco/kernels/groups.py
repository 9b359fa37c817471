"""Normalise, sum and rectify by groups: the kernels behind `moco.kernels.norm`, and their gradient.

Three launches forward (moments of parts, moments of groups, result) and three backward, whatever
the number of groups. Moments are merged in a fixed order, so equal inputs give equal bits.

Legend: G groups of `rows` pixels each (images of the group x height x width), C channels; a tensor
laid out channels last is a matrix of G x rows pixels and C columns.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from moco.kernels import OPTIONS

_PIXELS, _CHANNELS = 32, 64  # of a tile
_PROGRAMS = 528  # four for each multiprocessor of an H100 or H200


class Normalise(torch.autograd.Function):
    """Result, and mean and unbiased variance of each group, which carry no gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, group: int, eps: float,
        relu: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        ctx.shape = groups, rows, c, blocks, parts, length = _shape(x, group)
        partial = torch.empty(2, groups, parts, c, device=x.device)
        moments = torch.empty(3, groups, c, device=x.device)  # mean, 1 / deviation, unbiased variance
        _moments[(groups * parts, blocks)](
            x, partial, rows, c, parts, length, PIXELS=_PIXELS, CHANNELS=_CHANNELS, **OPTIONS
        )
        _merge_moments[(groups, blocks)](
            partial, moments, rows, c, parts, length, eps, CHANNELS=_CHANNELS, **OPTIONS
        )
        y = torch.empty_like(x)
        _apply[(groups * triton.cdiv(rows, _PIXELS), blocks)](
            x, x if residual is None else residual, weight, bias, moments, y, rows, c,
            RESIDUAL=residual is not None, RELU=relu, PIXELS=_PIXELS, CHANNELS=_CHANNELS, **OPTIONS,
        )  # fmt: skip
        ctx.save_for_backward(x, y if relu else None, weight, moments)
        ctx.residual, ctx.relu = residual is not None, relu
        mean, variance = moments[0], moments[2]
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, moments = ctx.saved_tensors
        groups, rows, c, blocks, parts, length = ctx.shape
        grad_y = grad_y.contiguous(memory_format=torch.channels_last)
        partial = torch.empty(2, groups, parts, c, device=x.device)
        sums = torch.empty(2, groups, c, device=x.device)  # of the gradient, and with the normalised input
        gate = grad_y if y is None else y
        _sums[(groups * parts, blocks)](
            x, gate, grad_y, moments, partial, rows, c, parts, length,
            RELU=ctx.relu, PIXELS=_PIXELS, CHANNELS=_CHANNELS, **OPTIONS,
        )  # fmt: skip
        _merge_sums[(groups, blocks)](partial, sums, c, parts, CHANNELS=_CHANNELS, **OPTIONS)
        grad_x = torch.empty_like(x)
        grad_residual = torch.empty_like(x) if ctx.residual and ctx.relu else None
        _gradient[(groups * triton.cdiv(rows, _PIXELS), blocks)](
            x, gate, grad_y, weight, moments, sums, grad_x,
            grad_x if grad_residual is None else grad_residual, rows, c,
            RESIDUAL=grad_residual is not None, RELU=ctx.relu, PIXELS=_PIXELS, CHANNELS=_CHANNELS, **OPTIONS,
        )  # fmt: skip
        if ctx.residual and not ctx.relu:
            grad_residual = grad_y
        grad_bias, grad_weight = sums.sum(1)
        return grad_x, grad_residual, grad_weight, grad_bias, None, None, None


def _shape(x: Tensor, group: int) -> tuple[int, int, int, int, int, int]:
    """Groups, pixels per group, channels, blocks of channels, parts of a group, pixels per part."""
    n, c, height, width = x.shape
    groups, rows = n // group, group * height * width
    blocks = triton.cdiv(c, _CHANNELS)
    parts = min(triton.cdiv(_PROGRAMS, groups * blocks), triton.cdiv(rows, _PIXELS))
    length = triton.cdiv(triton.cdiv(rows, parts), _PIXELS) * _PIXELS
    return groups, rows, c, blocks, triton.cdiv(rows, length), length


@triton.jit
def _moments(
    x, partial, rows, c, parts, length, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Mean and sum of squared deviations of one part of a group."""
    group, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mean = tl.zeros((CHANNELS,), tl.float32)
    spread = tl.zeros((CHANNELS,), tl.float32)
    count = 0.0
    end = tl.minimum((part + 1) * length, rows)
    for start in range(part * length, end, PIXELS):
        pixels = start + tl.arange(0, PIXELS)
        here = (pixels < end)[:, None] & (channels < c)[None, :]
        at = (group * rows + pixels).to(tl.int64)[:, None] * c + channels[None, :]
        values = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
        new = tl.minimum(PIXELS, end - start).to(tl.float32)
        own_mean = tl.sum(values, 0) / new
        apart = tl.where(here, values - own_mean[None, :], 0.0)
        gap = own_mean - mean
        total = count + new
        mean += gap * (new / total)
        spread += tl.sum(apart * apart, 0) + gap * gap * (count * new / total)
        count = total
    groups = tl.num_programs(0) // parts
    at = (group * parts + part) * c + channels
    tl.store(partial + at, mean, mask=channels < c)
    tl.store(partial + groups * parts * c + at, spread, mask=channels < c)


@triton.jit
def _merge_moments(partial, moments, rows, c, parts, length, eps, CHANNELS: tl.constexpr):
    """Mean, reciprocal deviation and unbiased variance of a group, from those of its parts."""
    group, groups = tl.program_id(0), tl.num_programs(0)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mean = tl.zeros((CHANNELS,), tl.float32)
    spread = tl.zeros((CHANNELS,), tl.float32)
    count = 0.0
    for part in range(parts):
        at = (group * parts + part) * c + channels
        new = tl.minimum(length, rows - part * length).to(tl.float32)
        gap = tl.load(partial + at, mask=channels < c, other=0.0) - mean
        total = count + new
        mean += gap * (new / total)
        spread += tl.load(partial + groups * parts * c + at, mask=channels < c, other=0.0)
        spread += gap * gap * (count * new / total)
        count = total
    at = group * c + channels
    tl.store(moments + at, mean, mask=channels < c)
    tl.store(moments + groups * c + at, 1 / tl.sqrt(spread / count + eps), mask=channels < c)
    tl.store(moments + 2 * groups * c + at, spread / (count - 1), mask=channels < c)


@triton.jit
def _apply(
    x, residual, weight, bias, moments, y, rows, c,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The normalised, scaled, summed and rectified result, one tile of it."""
    tiles = tl.cdiv(rows, PIXELS)
    group, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    groups = tl.num_programs(0) // tiles
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channels < c
    pixels = tile * PIXELS + tl.arange(0, PIXELS)
    here = (pixels < rows)[:, None] & known[None, :]
    at = (group * rows + pixels).to(tl.int64)[:, None] * c + channels[None, :]
    mean = tl.load(moments + group * c + channels, mask=known, other=0.0)
    sharpness = tl.load(moments + groups * c + group * c + channels, mask=known, other=0.0)
    scale = tl.load(weight + channels, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(bias + channels, mask=known, other=0.0).to(tl.float32)
    values = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
    values = (values - mean[None, :]) * (sharpness * scale)[None, :] + shift[None, :]
    if RESIDUAL:
        values += tl.load(residual + at, mask=here, other=0.0).to(tl.float32)
    if RELU:
        values = tl.maximum(values, 0.0)
    tl.store(y + at, values.to(y.dtype.element_ty), mask=here)


@triton.jit
def _sums(
    x, gate, grad_y, moments, partial, rows, c, parts, length,
    RELU: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums over one part of a group: of the gradient, and of it times the normalised input."""
    group, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    groups = tl.num_programs(0) // parts
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channels < c
    mean = tl.load(moments + group * c + channels, mask=known, other=0.0)
    sharpness = tl.load(moments + groups * c + group * c + channels, mask=known, other=0.0)
    plain = tl.zeros((CHANNELS,), tl.float32)
    weighted = tl.zeros((CHANNELS,), tl.float32)
    end = tl.minimum((part + 1) * length, rows)
    for start in range(part * length, end, PIXELS):
        pixels = start + tl.arange(0, PIXELS)
        here = (pixels < end)[:, None] & known[None, :]
        at = (group * rows + pixels).to(tl.int64)[:, None] * c + channels[None, :]
        gradient = tl.load(grad_y + at, mask=here, other=0.0).to(tl.float32)
        if RELU:
            gradient = tl.where(tl.load(gate + at, mask=here, other=0.0).to(tl.float32) > 0, gradient, 0.0)
        values = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
        plain += tl.sum(gradient, 0)
        weighted += tl.sum(gradient * (values - mean[None, :]), 0)
    at = (group * parts + part) * c + channels
    tl.store(partial + at, plain, mask=known)
    tl.store(partial + groups * parts * c + at, weighted * sharpness, mask=known)


@triton.jit
def _merge_sums(partial, sums, c, parts, CHANNELS: tl.constexpr):
    """The same sums over whole groups."""
    group, groups = tl.program_id(0), tl.num_programs(0)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    plain = tl.zeros((CHANNELS,), tl.float32)
    weighted = tl.zeros((CHANNELS,), tl.float32)
    for part in range(parts):
        at = (group * parts + part) * c + channels
        plain += tl.load(partial + at, mask=channels < c, other=0.0)
        weighted += tl.load(partial + groups * parts * c + at, mask=channels < c, other=0.0)
    tl.store(sums + group * c + channels, plain, mask=channels < c)
    tl.store(sums + (groups + group) * c + channels, weighted, mask=channels < c)


@triton.jit
def _gradient(
    x, gate, grad_y, weight, moments, sums, grad_x, grad_residual, rows, c,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradient of the input, and of the residual, one tile of it."""
    tiles = tl.cdiv(rows, PIXELS)
    group, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    groups = tl.num_programs(0) // tiles
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channels < c
    pixels = tile * PIXELS + tl.arange(0, PIXELS)
    here = (pixels < rows)[:, None] & known[None, :]
    at = (group * rows + pixels).to(tl.int64)[:, None] * c + channels[None, :]
    of_group = group * c + channels
    mean = tl.load(moments + of_group, mask=known, other=0.0)
    sharpness = tl.load(moments + groups * c + of_group, mask=known, other=0.0)
    plain = tl.load(sums + of_group, mask=known, other=0.0) / rows
    weighted = tl.load(sums + groups * c + of_group, mask=known, other=0.0) / rows
    scale = tl.load(weight + channels, mask=known, other=0.0).to(tl.float32) * sharpness
    gradient = tl.load(grad_y + at, mask=here, other=0.0).to(tl.float32)
    if RELU:
        gradient = tl.where(tl.load(gate + at, mask=here, other=0.0).to(tl.float32) > 0, gradient, 0.0)
    normalised = (tl.load(x + at, mask=here, other=0.0).to(tl.float32) - mean[None, :]) * sharpness[None, :]
    own = (gradient - plain[None, :] - normalised * weighted[None, :]) * scale[None, :]
    tl.store(grad_x + at, own.to(grad_x.dtype.element_ty), mask=here)
    if RESIDUAL:
        tl.store(grad_residual + at, gradient.to(grad_residual.dtype.element_ty), mask=here)
