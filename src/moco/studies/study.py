"""What a study is: named recipes to compare, where they stand on an axis, and what was published."""

import re
from dataclasses import dataclass
from typing import Literal

from moco.recipe import Recipe


@dataclass(frozen=True)
class Cell:
    """One recipe of a study, run once for each seed; two cells of one name are one run at two places."""

    name: str
    """Lower-case letters, digits, points and hyphens: the name of a folder."""
    recipe: Recipe
    x: float | str
    """Where it stands on the axis; a word on an axis of words."""
    series: str = ""
    """The curve it belongs to."""

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.name):
            raise ValueError(
                f"a cell's name must be lower-case letters, digits, points and hyphens, got {self.name!r}"
            )


@dataclass(frozen=True)
class Axis:
    """What cells differ in."""

    label: str
    scale: Literal["linear", "log2", "log10", "words"] = "words"


@dataclass(frozen=True)
class Point:
    """A published number."""

    x: float | str
    value: float | None
    """None where the run failed."""
    series: str = ""
    note: str = ""


@dataclass(frozen=True)
class Published:
    """Numbers of a paper, with all that is needed to know whether ours may stand beside them."""

    source: str
    """Where they are printed."""
    data: str
    """Data set, network and length of training."""
    metric: str
    """What the numbers are: "linear top-1", or a column of our tables."""
    points: tuple[Point, ...]
    images: int = 1_281_167
    """Training images and classes of the data set: by these it is recognised."""
    classes: int = 1000


@dataclass(frozen=True)
class Study:
    """A question, the cells that answer it, and the paper's answer."""

    name: str
    question: str
    cells: tuple[Cell, ...]
    axis: Axis
    metric: str = "knn_trunk"
    """The column that the figure shows."""
    reference: str = ""
    """The cell that the others are compared to, seed by seed."""
    curves: tuple[str, ...] = ()
    """Columns of the journal to draw over epochs."""
    cost: bool = False
    """Also draw the memory that each cell took."""
    published: tuple[Published, ...] = ()

    def __post_init__(self):
        if not self.cells:
            raise ValueError(f"study {self.name} has no cell")
        recipes: dict[str, Recipe] = {}
        for cell in self.cells:
            if recipes.setdefault(cell.name, cell.recipe) != cell.recipe:
                raise ValueError(f"two cells of study {self.name} are named {cell.name} and differ")
        if self.reference and self.reference not in recipes:
            raise ValueError(
                f"the reference of study {self.name} must be one of its cells, got {self.reference!r}"
            )

    def recipes(self) -> dict[str, Recipe]:
        """Each distinct recipe by the name of its cell, in order."""
        return {cell.name: cell.recipe for cell in self.cells}
