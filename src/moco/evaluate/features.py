"""Features of images, from a frozen encoder."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from moco.encoder import Encoder
from moco.norm import GroupedBatchNorm2d

_HELD = 2**28  # bytes of features that stay on a device before they are fetched: each fetching waits for it


class Features(NamedTuple):
    """Features of M images, on the CPU: what the trunk gives, and the head's unit-length output."""

    trunk: Float[Tensor, "M D"]
    output: Float[Tensor, "M C"]


@torch.no_grad()
def extract(encoder: Encoder, batches: Iterable[Float[Tensor, "N channels H W"]]) -> Features:
    """Features in evaluation mode; the encoder's mode and statistics are left as they were.

    Raises:
        ValueError: if there is no image.
    """
    was_training = encoder.training
    encoder.eval()
    try:
        found: list[Features] = []
        held: list[Features] = []
        for images in batches:
            features = encoder.features(images)
            held.append(Features(features.float(), encoder.project(features).float()))
            if sum(x.nbytes for part in held for x in part) >= _HELD:
                found += [Features(*(x.cpu() for x in part)) for part in held]
                held = []
    finally:
        encoder.train(was_training)
    found += [Features(*(x.cpu() for x in part)) for part in held]
    if not found:
        raise ValueError("none of the images can be read")
    return Features(*map(torch.cat, zip(*found, strict=True)))


def pixels(batches: Iterable[Float[Tensor, "N channels H W"]], *, side: int = 32) -> Float[Tensor, "M D"]:
    """Raw pixels as features, averaged down to at most `side` squared: the baseline of no network at all."""
    return torch.cat(
        [F.adaptive_avg_pool2d(images, min(side, images.shape[-1])).flatten(1).cpu() for images in batches]
    )


@torch.no_grad()
def calibrate(encoder: Encoder, batches: Iterable[Float[Tensor, "N channels H W"]]) -> None:
    """Set the running statistics of batch normalisation to their means over these batches.

    An untrained network has none; without them its features would be a handicapped baseline.
    """
    norms = [m for m in encoder.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    grouped = [(norm, norm.group_size) for norm in norms if isinstance(norm, GroupedBatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
    for norm, _ in grouped:
        norm.group_size = None
    was_training = encoder.training
    encoder.train()
    for number, images in enumerate(batches):
        for norm in norms:
            norm.momentum = 1 / (number + 1)
        encoder.features(images)
    encoder.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for norm, group_size in grouped:
        norm.group_size = group_size
