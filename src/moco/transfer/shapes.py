"""Shapes of objects in files, as COCO writes them, and as images of 0 and 1."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

SMALLEST_POLYGON = 6  # numbers; four would be taken for a box


def package() -> Any:
    """faster-coco-eval.

    Raises:
        ModuleNotFoundError: if it is not there; the message says how to get it.
    """
    try:
        import faster_coco_eval
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "masks, keypoints and COCO's metrics need faster-coco-eval: "
            "pip install 'momentum-contrast[transfer]'"
        ) from None
    return faster_coco_eval


def coco_masks() -> Any:
    """COCO's mask tools: run-length encodings and polygons.

    Raises:
        ModuleNotFoundError: if faster-coco-eval is not there.
    """
    package()
    from faster_coco_eval import mask

    return mask


def rasterise(shape: Any, height: int, width: int) -> UInt8[Tensor, "height width"]:
    """A shape of a COCO annotation as an image of 0 and 1; no shape is an empty mask.

    Args:
        shape: polygons, of which those with fewer than three corners count for nothing, a run-length
            encoding (compressed or not), or None.
        height, width: of the image.

    Raises:
        ModuleNotFoundError: if faster-coco-eval is not there.
    """
    if isinstance(shape, list):
        shape = [part for part in shape if len(part) >= SMALLEST_POLYGON]
    if not shape:
        return torch.zeros(height, width, dtype=torch.uint8)
    tools = coco_masks()
    if isinstance(shape, list):
        encoded = tools.merge(tools.frPyObjects(shape, height, width))
    elif isinstance(shape["counts"], list):
        encoded = tools.frPyObjects(shape, height, width)
    else:
        encoded = shape
    return torch.from_numpy(np.ascontiguousarray(tools.decode(encoded)))


def run_lengths(mask: Bool[Tensor, "height width"]) -> dict[str, Any]:
    """A mask as COCO's compressed run-length encoding, ready for JSON."""
    encoded = coco_masks().encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    counts = encoded["counts"]
    return {
        "size": [int(side) for side in encoded["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }
