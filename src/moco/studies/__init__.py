"""Studies: what the papers compared, as functions from a base recipe to named recipes.

A study has values only. `moco.ablate` runs one; a study of one's own is a Python file with a
function `study(base)`, or `study(base, values)`, that returns a `Study`.
"""

from collections.abc import Callable
from dataclasses import replace

from moco.recipe import Encoder, MomentumKeys, Monitor, Recipe
from moco.recipes import RECIPES
from moco.recipes.small import cpu
from moco.studies.mechanisms import batch, mechanisms, momentum, shuffle_bn
from moco.studies.study import Axis, Cell, Point, Published, Study
from moco.studies.variants import architectures, symmetric, temperature, v2, v3

__all__ = ["BASES", "STUDIES", "Axis", "Cell", "Point", "Published", "Study", "cores"]

STUDIES: dict[str, Callable[..., Study]] = {
    "mechanisms": mechanisms,
    "momentum": momentum,
    "shuffle-bn": shuffle_bn,
    "temperature": temperature,
    "v2": v2,
    "v3": v3,
    "architectures": architectures,
    "batch": batch,
    "symmetric": symmetric,
}


def cores() -> Recipe:
    """The base of studies on processor cores: minutes on one, on 10,000 small images.

    docs/reproduction.md says what it costs in accuracy. It is `cpu` with a quarter of the pixels after
    the first convolution, batches of 128 in eight batch-normalisation groups (as many as the paper's
    GPUs), and m = 0.99, as in the released CIFAR-10 demo.
    """
    return replace(
        cpu(),
        name="cores",
        encoder=Encoder(arch="resnet10", width=16, stem="small2", bn_group=16),
        keys=MomentumKeys(momentum=0.99),
        batch=128,
        precision="float32",
        epochs=5,
        monitor=Monitor(every=1, bank=2000, queries=1000),
        journal_every=13,
        checkpoint_every=156,
        keep_checkpoints=1,
    )


BASES: dict[str, Callable[[], Recipe]] = {"cores": cores, **RECIPES}
"""Recipes that a study may start from, by name."""
