"""Decoded pixels brought to the form of their set, tile by tile: a large image is not copied on the way."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from moco.data.form import FULL, Form
from moco.data.reading import Reading
from moco.data.unreadable import Unreadable
from moco.words import some

TILE = 1 << 18  # pixels
_KINDS = {torch.uint8: np.uint8, torch.uint16: np.uint16, torch.float32: np.float32}
_TURNS: dict[int, Callable[[Any], Any]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
"""From stored rows and columns to upright ones, by EXIF orientation."""
_BACK = {6: 8, 8: 6}  # the others undo themselves

Piece = Callable[[slice, slice], tuple[np.ndarray, bool]]
"""Rows and columns of a stored image to their pixels (rows, columns, channels), and whether the last
channel is transparency."""


def tiles(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the tiles of an image, of `TILE` pixels at most."""
    across = min(width, TILE)
    down = max(1, TILE // across)
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield slice(top, min(top + down, height)), slice(left, min(left + across, width))


def from_array(
    array: np.ndarray, alpha: bool, orientation: int, form: Form, reading: Reading, name: str
) -> Shaped[Tensor, "channels H W"]:
    """`assemble` of a stored image (H, W, channels), or the same memory if it has its form already.

    Raises:
        Unreadable: if it does not fit the form.
    """
    fits = array.dtype == _KINDS[form.dtype] and array.shape[2] == form.channels and not form.alpha
    if fits and not alpha and orientation == 1 and form.dtype != torch.float32:
        return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)

    def piece(rows: slice, columns: slice) -> tuple[np.ndarray, bool]:
        return array[rows, columns], alpha

    return assemble(piece, array.shape[0], array.shape[1], orientation, form, reading, name)


def assemble(
    piece: Piece, height: int, width: int, orientation: int, form: Form, reading: Reading, name: str
) -> Shaped[Tensor, "channels H W"]:
    """A stored image of this height and width, upright and in the form of its set.

    Raises:
        Unreadable: if it does not fit the form.
    """
    parts = list(tiles(height, width))
    if len(parts) == 1:
        result = _TURNS[orientation](_brought(*piece(*parts[0]), form, reading, name))
        return torch.from_numpy(np.ascontiguousarray(result)).permute(2, 0, 1)
    upright = (width, height) if orientation > 4 else (height, width)
    result = np.empty((*upright, form.channels), _KINDS[form.dtype])
    stored = _TURNS[_BACK.get(orientation, orientation)](result)
    for rows, columns in parts:
        stored[rows, columns] = _brought(*piece(rows, columns), form, reading, name)
    return torch.from_numpy(result).permute(2, 0, 1)


def _brought(array: np.ndarray, alpha: bool, form: Form, reading: Reading, name: str) -> np.ndarray:
    """One tile in the form of the set: transparency, channels and depth."""
    return _depth(_channels(_transparency(array, alpha, form, reading), form, name), form, name)


def _transparency(array: np.ndarray, alpha: bool, form: Form, reading: Reading) -> np.ndarray:
    """Composite, drop or keep transparency; give it to images without where others have it."""
    full = 1.0 if array.dtype == np.float32 else float(np.iinfo(array.dtype).max)
    if not alpha:
        if not form.alpha:
            return array
        return np.concatenate([array, np.full_like(array[..., :1], full)], 2)
    if reading.alpha == "keep":
        return array
    colour = array[..., :-1]
    if reading.alpha == "drop":
        return colour
    share = array[..., -1:].astype(np.float32) / full
    mixed = colour * share + reading.background * full * (1 - share)
    return mixed.astype(np.float32) if array.dtype == np.float32 else (mixed + 0.5).astype(array.dtype)


def _channels(array: np.ndarray, form: Form, name: str) -> np.ndarray:
    if array.shape[2] == form.channels:
        return array
    colours = form.channels - form.alpha
    if array.shape[2] - form.alpha == 1 and colours > 1:
        return np.concatenate([array[..., :1]] * colours + [array[..., 1:]] * form.alpha, 2)
    if array.shape[2] == 3 and form.channels == 1:
        grey = array @ np.array([0.2989, 0.587, 0.114], dtype=np.float32)
        return (grey if array.dtype == np.float32 else (grey + 0.5).astype(array.dtype))[..., None]
    raise Unreadable(name, f"it has {some(array.shape[2], 'channel')} where the set has {form.channels}")


def _depth(array: np.ndarray, form: Form, name: str) -> np.ndarray:
    """Scaled to the set's depth: full brightness stays full brightness."""
    if array.dtype == np.float32:
        if not np.isfinite(array).all():
            raise Unreadable(name, "it holds values that are not finite")
        if form.dtype == torch.float32:
            return array
        if array.min() < 0 or array.max() > 1:
            raise Unreadable(
                name,
                f"floating-point values from {array.min():.4g} to {array.max():.4g} among "
                f"{FULL[form.dtype]}-level images; only values in [0, 1] can be scaled to these",
            )
        kind = np.uint8 if form.dtype == torch.uint8 else np.uint16
        return (array * FULL[form.dtype] + 0.5).astype(kind)
    if form.dtype == torch.float32:
        return array.astype(np.float32) / np.iinfo(array.dtype).max
    if array.dtype == np.uint8 and form.dtype == torch.uint16:
        return array.astype(np.uint16) * np.uint16(257)
    if array.dtype == np.uint16 and form.dtype == torch.uint8:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return array
