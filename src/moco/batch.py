"""One step's input: two views of every image, and what identifies them."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Two views of the N images of this process's share of a global batch.

    Attributes:
        views: two tensors (N, channels, height, width); the first is the query view.
        index: (N,) sample index of each image in its source.
        orders: for each view, the permutation of the global batch in which it passes a key encoder
            that shuffles, (N,) for one process.
        step: the step the batch belongs to.
        group: (N,) number of the group of each image, or None. Images of a group are never each
            other's negatives.
        unreadable: name and reason of each image that could not be read and was replaced here.
    """

    views: tuple[Tensor, Tensor]
    index: Tensor
    orders: tuple[Tensor, Tensor]
    step: int
    group: Tensor | None = None
    unreadable: tuple[tuple[str, str], ...] = ()

    @property
    def identity(self) -> Tensor:
        """(N,) what must not be told apart: the group of each image, or else its sample index."""
        return self.index if self.group is None else self.group

    def pairs(self, *, symmetric: bool = False) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (query view, key view, order of the key view); with `symmetric`, the roles swapped too."""
        (first, second), (first_order, second_order) = self.views, self.orders
        yield first, second, second_order
        if symmetric:
            yield second, first, first_order


class TooManyUnreadable(RuntimeError):
    """More images than `reading.budget` allows, or too many in a row, cannot be read."""
