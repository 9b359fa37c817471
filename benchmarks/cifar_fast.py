"""A study for `moco ablate`: recipe `cifar-fast` alone, for its accuracy and its time over seeds."""

from moco.recipe import Recipe
from moco.studies import Axis, Cell, Study


def study(base: Recipe) -> Study:
    """How soon can ResNet-18 reach the released CIFAR-10 demo's 82.6 %?"""
    return Study(
        name="cifar-fast",
        question="How soon can ResNet-18 reach the released CIFAR-10 demo's 82.6 %?",
        cells=(Cell("fast", base, "fast"),),
        axis=Axis("recipe"),
        metric="knn_output",
    )
