"""The one form that every image of a set is brought to: its channels, and its depth."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from moco.data.reading import Reading

FULL = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}
"""The pixel value that means full brightness, for each type of pixel."""


@dataclass(frozen=True)
class Form:
    """What every image of a set is made into: its channels, and uint8, uint16 or float32."""

    channels: int = 3
    dtype: torch.dtype = torch.uint8
    alpha: bool = False
    """Whether the last channel is transparency."""


def common_form(counts: Mapping[tuple[int, int, bool], int], reading: Reading) -> Form:
    """The form that keeps what the files of a set have.

    Grey and colour together are colour; other numbers of channels do not mix, and the most frequent
    one wins. The deepest integers win; floating point counts where all files have it.

    Args:
        counts: number of files of each (channels, depth, alpha), as headers say.
        reading: may fix channels or depth.
    """
    if not counts:
        return Form(reading.channels or 3)
    colours = {channels for channels, _, _ in counts}
    alpha = reading.alpha == "keep" and any(alpha for _, _, alpha in counts)
    frequent = {c: sum(n for (channels, _, _), n in counts.items() if channels == c) for c in colours}
    channels = 3 if colours == {1, 3} else max(sorted(frequent), key=frequent.__getitem__)
    depths = {depth for _, depth, _ in counts}
    if reading.bits == 8:
        dtype = torch.uint8
    elif depths == {32}:
        dtype = torch.float32
    else:
        dtype = torch.uint16 if 16 in depths else torch.uint8
    return Form(reading.channels or channels + alpha, dtype, alpha)
