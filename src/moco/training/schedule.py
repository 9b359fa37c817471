"""Learning rates as pure functions of the step: nothing is remembered, so resuming is nothing special.

Each function returns the factor by which the base learning rate is multiplied at a step.
"""

import math
from collections.abc import Sequence


def linear_scaling(lr: float, batch: int, reference: int = 256) -> float:
    """The learning rate of a global batch, given that of the reference batch.

    Source: Goyal et al. 2017; MoCo, Section 4.1 (0.03 for 256 images, 0.12 for 1024).
    """
    return lr * batch / reference


def step_decay(epoch: int, milestones: Sequence[int], factor: float) -> float:
    """`factor` to the power of the milestones reached; MoCo v1: 0.1 at epochs 120 and 160 of 200."""
    return factor ** sum(epoch >= milestone for milestone in milestones)


def cosine(progress: float) -> float:
    """Half a cosine, 1 at progress 0 to 0 at progress 1. Source: MoCo v2, Section 3."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def rising(momentum: float, progress: float) -> float:
    """m of the momentum encoder, from `momentum` at progress 0 to 1 at progress 1, by half a cosine.

    Source: MoCo v3's released code; BYOL before it.
    """
    return 1 - cosine(progress) * (1 - momentum)


def exponential(step: int, every: int, factor: float) -> float:
    """`factor` for every so many steps; Instagram-1B: 0.9 per 62,500 (MoCo, Section 4.1)."""
    return factor ** (step // every)


def warm_up(step: int, steps: float) -> float:
    """A linear rise to 1 over the first steps; 1 when there are none."""
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0
