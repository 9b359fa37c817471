"""Points of a body surface: where in the image, which of 24 parts, and U, V on that part."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from moco.transfer.shapes import rasterise

PARTS = 24
BACKGROUND = (0, 255)
"""What tools write as the part of a point that is on no body: such points count for nothing."""
COARSE_SIDE = 256
"""DensePose files give points and coarse masks in the object's box, scaled to a square of this side."""
_MIRRORED_PARTS = (1, 2, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15, 18, 17, 20, 19, 22, 21, 24, 23)


@dataclass(frozen=True)
class Points:
    """The annotated points of one object.

    Attributes:
        places: x and y inside the object's box, in [0, 1].
        parts: 1 to 24.
        uv: U and V in [0, 1].
        inside: where in the box the body is, 0 or 1, on a square; None where not annotated.
    """

    places: Float[Tensor, "P 2"]
    parts: Int[Tensor, " P"]
    uv: Float[Tensor, "P 2"]
    inside: UInt8[Tensor, "side side"] | None = None

    def to(self, device: torch.device) -> "Points":
        """The same on a device."""
        inside = None if self.inside is None else self.inside.to(device)
        return Points(self.places.to(device), self.parts.to(device), self.uv.to(device), inside)


@dataclass(frozen=True)
class Symmetry:
    """Where a point of each part lies on the part it becomes in a mirror.

    Attributes:
        tables: U and V of the mirrored point, for each part and each of 256 x 256 values of V and U.
    """

    tables: Float[Tensor, "2 24 256 256"]

    @staticmethod
    def read(path: str | Path) -> "Symmetry":
        """From the file `UV_symmetry_transforms.mat` of the data's owners.

        Raises:
            FileNotFoundError: if it is not there.
            ModuleNotFoundError: if scipy is not there.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no {path}; it belongs to the DensePose data")
        try:
            from scipy.io import loadmat
        except ModuleNotFoundError:
            raise ModuleNotFoundError(f"reading {path} needs scipy") from None
        content = loadmat(str(path))
        tables = [np.stack(list(content[f"{axis}_transforms"][0])) for axis in "UV"]
        return Symmetry(torch.from_numpy(np.stack(tables)).float())

    def mirrored(self, points: Points) -> Points:
        """The points of the mirrored object."""
        u, v = (points.uv * 255).long().unbind(1)
        uv = self.tables[:, points.parts - 1, v, u].T.to(points.uv)
        parts = torch.tensor(_MIRRORED_PARTS)[points.parts - 1]
        places = points.places.clone()
        places[:, 0] = 1 - places[:, 0]
        return Points(places, parts, uv, None if points.inside is None else points.inside.flip(-1))


def read_points(surface: dict[str, Any] | None) -> Points | None:
    """The points of a DensePose annotation that are on a body; an object without one has none.

    Args:
        surface: `dp_x`, `dp_y`, `dp_I`, `dp_U`, `dp_V` and `dp_masks` (run-length encodings of up to 14
            coarse body parts in a square of 256).
    """
    if surface is None:
        return None
    columns = [np.asarray(surface[name], dtype=np.float32) for name in ("dp_x", "dp_y", "dp_U", "dp_V")]
    x, y, u, v = (torch.from_numpy(column) for column in columns)
    parts = torch.from_numpy(np.asarray(surface["dp_I"]).round().astype(np.int64))
    body = (parts >= 1) & (parts <= PARTS)
    inside = None
    if any(surface["dp_masks"]):
        coarse = [rasterise(mask, COARSE_SIDE, COARSE_SIDE) for mask in surface["dp_masks"] if mask]
        inside = torch.stack(coarse).amax(0)
    places, uv = torch.stack([x, y], 1) / COARSE_SIDE, torch.stack([u, v], 1)
    return Points(places[body], parts[body], uv[body], inside)
