"""The processes that train together. A function communicates only if it takes a `World`."""

from abc import ABC, abstractmethod

from torch import Tensor


class World(ABC):
    """The processes of one run, each holding an equal, consecutive share of every global batch."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """This process, from 0."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many processes there are."""

    @abstractmethod
    def gather(self, x: Tensor) -> Tensor:
        """Rows of all processes in rank order: (n, ...) here, (n * size, ...) as result."""

    @abstractmethod
    def shuffle(self, x: Tensor, order: Tensor) -> Tensor:
        """This process's rows of the global batch taken in `order`, a permutation all processes share."""

    @abstractmethod
    def unshuffle(self, x: Tensor, order: Tensor) -> Tensor:
        """The inverse of `shuffle` with the same order."""


class Solo(World):
    """One process: its batch is the global batch."""

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return 1

    def gather(self, x: Tensor) -> Tensor:
        return x

    def shuffle(self, x: Tensor, order: Tensor) -> Tensor:
        return x[order]

    def unshuffle(self, x: Tensor, order: Tensor) -> Tensor:
        return x[order.argsort()]
