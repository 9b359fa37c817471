"""Views in one or two launches: crop, mirror, colours in each image's own order, grey, blur, normalise.

The pixels stay in registers between the operations of `moco.data.views`, which in torch are some
hundred passes over the batch. Contrast needs the mean grey of the whole image: up to `_WHOLE` pixels
one program holds the image, larger ones stop before it and leave sums of their tiles, in a fixed order.
Blurred images take two launches more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moco.kernels import OPTIONS

_WHOLE = 4096  # pixels that one program holds
_TILE = 512


def make_views(
    pixels: Tensor,
    index: Tensor,
    numbers: Tensor,
    fractions: Tensor,
    *,
    size: int,
    crop: bool,
    grayscale_first: bool,
    blur: bool,
    low: float,
    high: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype,
) -> Tensor:
    """Views of the images pixels[index], (N, 3, size, size), laid out channels last.

    Args:
        pixels: (M, 3, H, W) of any type, on the device.
        index: (N,) which images, one row per view.
        numbers: (N, 13) int32: top, left, height and width of each crop; whether it is mirrored, changed
            in colour, made grey and blurred; the order of brightness 0, contrast 1, saturation 2, hue 3;
            whether it is solarized.
        fractions: (N, 5) float32: factor or shift of each of these four; deviation of the blur, pixels.
        size: of a view.
        crop: False takes square images of `size` as they are, neither cropped nor mirrored.
        grayscale_first: colour is taken away before the colour changes, not after.
        blur: whether any view may be blurred.
        low, high: pixel values that become 0 and 1.
        mean, std: per channel, of pixels in [0, 1].
        dtype: of the result, float32 or bfloat16.

    Raises:
        ValueError: if the images are not RGB, or those not to be cropped have another size.
    """
    if pixels.shape[1] != 3:
        raise ValueError(f"fused views need images of 3 channels, got {pixels.shape[1]}")
    if not crop and tuple(pixels.shape[2:]) != (size, size):
        raise ValueError(
            f"images that are not cropped must have {size} pixels a side, got {tuple(pixels.shape)}"
        )
    device, n = pixels.device, len(index)
    pixels = pixels.contiguous()
    out = torch.empty(n, 3, size, size, dtype=dtype, device=device, memory_format=torch.channels_last)
    fits = size * size <= _WHOLE
    block = max(16, triton.next_power_of_2(size * size)) if fits else _TILE
    tiles = triton.cdiv(size * size, block)
    scratch = torch.empty((2, n, 3, size, size) if blur or not fits else (1,), device=device)
    sums = torch.empty(n, tiles, device=device)
    shared = (numbers, fractions, scratch)
    normalise = (*mean, *(1 / s for s in std))
    for stage in (0,) if fits else (1, 2):
        _colour[(n, tiles)](
            pixels, index, *shared, sums, out, *pixels.shape[2:], low, 1 / (high - low), *normalise,
            STAGE=stage, CROP=crop, GRAY_FIRST=grayscale_first, BLUR=blur, SIZE=size,
            TILES=tiles, WIDE=triton.next_power_of_2(tiles), BLOCK=block, **OPTIONS,
        )  # fmt: skip
    if blur:
        for down in (False, True):
            _blur[(n, triton.cdiv(size * size, _TILE))](
                *shared, out, *normalise, DOWN=down, SIZE=size, BLOCK=_TILE, **OPTIONS
            )
    return out


@triton.jit
def _shares(start, length, place, step, SIZE: tl.constexpr):
    """Of one axis: which input pixel is a result's tap number `step`, and its unnormalised share."""
    scale = length / SIZE
    reach = tl.maximum(scale, 1.0)
    centre = start + (place.to(tl.float32) + 0.5) * scale
    pixel = tl.floor(centre - reach) + step
    inside = (pixel + 0.5 > start) & (pixel + 0.5 < start + length)
    share = tl.maximum(1 - tl.abs(pixel + 0.5 - centre) / reach, 0.0)
    return pixel.to(tl.int32), tl.where(inside, share, 0.0)


@triton.jit
def _blend(values, other, factor):
    """`torch.lerp` from other to values, cut to [0, 1]."""
    gap = values - other
    mixed = tl.where(factor < 0.5, other + factor * gap, values - gap * (1 - factor))
    return tl.minimum(tl.maximum(mixed, 0.0), 1.0)


@triton.jit
def _luma(red, green, blue):
    """Grey, ITU-R BT.601."""
    return 0.2989 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _stored(view, here, solarized, red, green, blue, mean_0, mean_1, mean_2, per_std_0, per_std_1, per_std_2):
    """Write finished pixels: the bright half inverted where that was drawn, then normalised."""
    kind = view.dtype.element_ty
    red = tl.where((solarized != 0) & (red >= 0.5), 1 - red, red)
    green = tl.where((solarized != 0) & (green >= 0.5), 1 - green, green)
    blue = tl.where((solarized != 0) & (blue >= 0.5), 1 - blue, blue)
    tl.store(view, ((red - mean_0) * per_std_0).to(kind), mask=here)
    tl.store(view + 1, ((green - mean_1) * per_std_1).to(kind), mask=here)
    tl.store(view + 2, ((blue - mean_2) * per_std_2).to(kind), mask=here)


@triton.jit
def _hued(value, chroma, sixth, OFFSET: tl.constexpr):
    """One channel of a colour, from its place on the circle in sixths."""
    phase = sixth + OFFSET
    phase = phase - 6 * tl.floor(phase / 6)
    return value - chroma * tl.minimum(tl.maximum(tl.minimum(phase, 4 - phase), 0.0), 1.0)


@triton.jit
def _change(operation, factor, mean, red, green, blue):
    """One of brightness (0), contrast (1), saturation (2) and hue (3)."""
    if operation == 0:
        red = tl.minimum(tl.maximum(red * factor, 0.0), 1.0)
        green = tl.minimum(tl.maximum(green * factor, 0.0), 1.0)
        blue = tl.minimum(tl.maximum(blue * factor, 0.0), 1.0)
    elif operation == 3:
        value = tl.maximum(tl.maximum(red, green), blue)
        chroma = value - tl.minimum(tl.minimum(red, green), blue)
        per_chroma = 1 / tl.where(chroma == 0, 1.0, chroma)
        at_green, at_blue = (blue - red) * per_chroma + 2, (red - green) * per_chroma + 4
        sixth = tl.where(value == green, at_green, at_blue)
        sixth = tl.where(value == red, (green - blue) * per_chroma, sixth) + 6 * factor
        red = _hued(value, chroma, sixth, 5)
        green = _hued(value, chroma, sixth, 3)
        blue = _hued(value, chroma, sixth, 1)
    else:
        grey = _luma(red, green, blue)
        other = tl.where(operation == 1, grey * 0 + mean, grey)
        red, green, blue = (
            _blend(red, other, factor),
            _blend(green, other, factor),
            _blend(blue, other, factor),
        )
    return red, green, blue


@triton.jit
def _colour(
    pixels, index, all_numbers, all_fractions, scratch, sums, out, height, width, low, unit,
    mean_0, mean_1, mean_2, per_std_0, per_std_1, per_std_2,
    STAGE: tl.constexpr, CROP: tl.constexpr, GRAY_FIRST: tl.constexpr, BLUR: tl.constexpr,
    SIZE: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of a view: the whole way (stage 0), up to its contrast (1), or from there on (2)."""
    sample, tile = tl.program_id(0), tl.program_id(1)
    at = tile * BLOCK + tl.arange(0, BLOCK)
    here = at < SIZE * SIZE
    numbers, factors = all_numbers + sample * 13, all_fractions + sample * 5
    jitter, gray, blurred = tl.load(numbers + 5), tl.load(numbers + 6), tl.load(numbers + 7)
    kept = scratch + sample.to(tl.int64) * 3 * SIZE * SIZE + at
    if STAGE == 2:
        red = tl.load(kept, mask=here, other=0.0)
        green = tl.load(kept + SIZE * SIZE, mask=here, other=0.0)
        blue = tl.load(kept + 2 * SIZE * SIZE, mask=here, other=0.0)
    else:
        plane = height * width
        source = pixels + tl.load(index + sample).to(tl.int64) * 3 * plane
        if CROP:
            top, left = tl.load(numbers), tl.load(numbers + 1)
            rows, columns = tl.load(numbers + 2), tl.load(numbers + 3)
            within = tl.minimum(at, SIZE * SIZE - 1)
            y, x = within // SIZE, within % SIZE
            x = tl.where(tl.load(numbers + 4) != 0, SIZE - 1 - x, x)
            red = tl.zeros((BLOCK,), tl.float32)
            green = tl.zeros((BLOCK,), tl.float32)
            blue = tl.zeros((BLOCK,), tl.float32)
            all_down = tl.zeros((BLOCK,), tl.float32)
            all_across = tl.zeros((BLOCK,), tl.float32)
            taps_across = 2 * tl.cdiv(tl.maximum(columns, SIZE), SIZE) + 1
            for step_across in range(taps_across):
                all_across += _shares(left, columns, x, step_across, SIZE)[1]
            for step_down in range(2 * tl.cdiv(tl.maximum(rows, SIZE), SIZE) + 1):
                row, down = _shares(top, rows, y, step_down, SIZE)
                all_down += down
                for step_across in range(taps_across):
                    column, across = _shares(left, columns, x, step_across, SIZE)
                    share = down * across / all_across
                    use = here & (share > 0)
                    from_here = source + row * width + column
                    red += share * ((tl.load(from_here, mask=use, other=0).to(tl.float32) - low) * unit)
                    from_here += plane
                    green += share * ((tl.load(from_here, mask=use, other=0).to(tl.float32) - low) * unit)
                    from_here += plane
                    blue += share * ((tl.load(from_here, mask=use, other=0).to(tl.float32) - low) * unit)
            red, green, blue = red / all_down, green / all_down, blue / all_down
        else:
            red = (tl.load(source + at, mask=here, other=0).to(tl.float32) - low) * unit
            green = (tl.load(source + plane + at, mask=here, other=0).to(tl.float32) - low) * unit
            blue = (tl.load(source + 2 * plane + at, mask=here, other=0).to(tl.float32) - low) * unit
    if GRAY_FIRST and STAGE != 2 and gray != 0:
        red = _luma(red, green, blue)
        green, blue = red, red
    if jitter != 0:
        met = 0  # contrast
        for place in range(4):
            operation = tl.load(numbers + 8 + place)
            factor = tl.load(factors + operation)
            if operation == 1:
                met = 1
            if STAGE == 0 or (STAGE == 1 and met == 0) or (STAGE == 2 and met == 1):
                mean = 0.0
                if operation == 1:
                    if STAGE == 0:
                        grey = tl.where(here, _luma(red, green, blue), 0.0)
                        mean = tl.sum(grey, 0) / (SIZE * SIZE)
                    else:
                        tiles = tl.arange(0, WIDE)
                        of_tiles = tl.load(sums + sample * TILES + tiles, mask=tiles < TILES, other=0.0)
                        mean = tl.sum(of_tiles, 0) / (SIZE * SIZE)
                red, green, blue = _change(operation, factor, mean, red, green, blue)
    if STAGE == 1:
        grey = tl.where(here, _luma(red, green, blue), 0.0)
        tl.store(sums + sample * TILES + tile, tl.sum(grey, 0))
    elif not GRAY_FIRST and gray != 0:
        red = _luma(red, green, blue)
        green, blue = red, red
    unfinished = BLUR and blurred != 0
    if STAGE == 1 or unfinished:
        tl.store(kept, red, mask=here)
        tl.store(kept + SIZE * SIZE, green, mask=here)
        tl.store(kept + 2 * SIZE * SIZE, blue, mask=here)
    else:
        view = out + (sample.to(tl.int64) * SIZE * SIZE + at) * 3
        _stored(
            view, here, tl.load(numbers + 12), red, green, blue,
            mean_0, mean_1, mean_2, per_std_0, per_std_1, per_std_2,
        )  # fmt: skip


@triton.jit
def _blur(
    all_numbers, all_fractions, scratch, out, mean_0, mean_1, mean_2, per_std_0, per_std_1, per_std_2,
    DOWN: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gaussian means along rows, or then along columns and normalised, of the images that are blurred."""
    sample = tl.program_id(0)
    if tl.load(all_numbers + sample * 13 + 7) != 0:
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        here = at < SIZE * SIZE
        y, x = at // SIZE, at % SIZE
        sigma = tl.load(all_fractions + sample * 5 + 4)
        reach = tl.ceil(4 * sigma).to(tl.int32)
        image = sample.to(tl.int64) * 3 * SIZE * SIZE
        other_half = tl.num_programs(0).to(tl.int64) * 3 * SIZE * SIZE
        source = scratch + image + (other_half if DOWN else 0)
        red = tl.zeros((BLOCK,), tl.float32)
        green = tl.zeros((BLOCK,), tl.float32)
        blue = tl.zeros((BLOCK,), tl.float32)
        total = 0.0
        for step in range(2 * reach + 1):
            distance = (step - reach).to(tl.float32) / sigma
            share = tl.where(tl.abs(distance) <= 4, tl.exp(-0.5 * distance * distance), 0.0)
            total += share
            if DOWN:
                place = tl.minimum(tl.maximum(y + step - reach, 0), SIZE - 1) * SIZE + x
            else:
                place = y * SIZE + tl.minimum(tl.maximum(x + step - reach, 0), SIZE - 1)
            red += share * tl.load(source + place, mask=here, other=0.0)
            green += share * tl.load(source + SIZE * SIZE + place, mask=here, other=0.0)
            blue += share * tl.load(source + 2 * SIZE * SIZE + place, mask=here, other=0.0)
        red, green, blue = red / total, green / total, blue / total
        if DOWN:
            view = out + (sample.to(tl.int64) * SIZE * SIZE + at) * 3
            _stored(
                view, here, tl.load(all_numbers + sample * 13 + 12), red, green, blue,
                mean_0, mean_1, mean_2, per_std_0, per_std_1, per_std_2,
            )  # fmt: skip
        else:
            target = scratch + other_half + image + at
            tl.store(target, red, mask=here)
            tl.store(target + SIZE * SIZE, green, mask=here)
            tl.store(target + 2 * SIZE * SIZE, blue, mask=here)
