"""The processes that train together. A function communicates only if it takes a `World`.

A run is defined by its global batch; each process holds an equal, consecutive share of it. Whatever
passes through a `World` therefore has one meaning on any number of processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


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

    @property
    @abstractmethod
    def neighbours(self) -> int:
        """How many of them share this machine, itself included."""

    @abstractmethod
    def enter(self, step: int) -> None:
        """Say which step comes next, so that errors can name it."""

    @abstractmethod
    def gather(self, x: Tensor) -> Tensor:
        """Rows of all processes in rank order: (n, ...) here, (n * size, ...) as result.

        A gradient flows back: each process's rows get the sum of what all processes ask of them.
        """

    @abstractmethod
    def shuffle(self, x: Tensor, order: Tensor) -> Tensor:
        """This process's rows of the global batch taken in `order`, a permutation all processes share."""

    @abstractmethod
    def unshuffle(self, x: Tensor, order: Tensor) -> Tensor:
        """The inverse of `shuffle` with the same order; gradients pass both."""

    @abstractmethod
    def average(self, x: Tensor, what: str) -> Callable[[], None]:
        """Begin to replace a tensor by its mean over the processes; the result is there after the call."""

    @abstractmethod
    def largest(self, *values: int) -> Callable[[], list[int]]:
        """Begin to find the largest of the processes' numbers, for each of these; the call waits for them.
        On the CPU."""

    @abstractmethod
    def first(self, act: Callable[[], T]) -> T:
        """What `act` returns or raises on the first process, on all of them; the others do not run it."""

    @abstractmethod
    def assemble(self, own: T) -> list[T]:
        """What every process has, in rank order, on the first process; nothing on the others."""

    @abstractmethod
    def fetch(self, block: Tensor, rows: Tensor) -> Tensor:
        """Rows of a table of which process r holds rows r * len(block) to (r + 1) * len(block) - 1."""

    @abstractmethod
    def collect(self, block: Tensor) -> Tensor | None:
        """The table whole, on the CPU of the first process; None on the others."""

    @abstractmethod
    def deal(self, table: Tensor | None, block: Tensor) -> None:
        """The inverse of `collect`: fill each process's block from the table on the first."""

    def mean(self, x: Tensor, what: str) -> Tensor:
        """The mean over the processes, without gradient; the tensor itself when there is one process."""
        if self.size == 1:
            return x
        result = x.detach().clone()
        self.average(result, what)()
        return result

    def share(self, batch: int, group: int | None, parts: int = 1) -> int:
        """How many images of a global batch each process takes.

        Args:
            batch: images of the global batch.
            group: images per batch-normalisation group; None is the whole batch, whatever the share.
            parts: parts in which a share passes the encoder.

        Raises:
            ValueError: if the shares are unequal or do not hold whole groups.
        """
        share, rest = divmod(batch, self.size)
        if rest:
            raise ValueError(
                f"the batch must divide among the processes, got {batch} images for {self.size} processes; "
                f"start a number of processes that divides {batch}"
            )
        if self.size > 1 and group is not None and share % (group * parts):
            raise ValueError(
                f"each process must hold whole batch-normalisation groups, got a share of {share} images "
                f"(a batch of {batch} over {self.size} processes) and {group} images per group"
                f"{f' in {parts} parts' if parts > 1 else ''}; start at most {batch // (group * parts)} "
                "processes, or set encoder.bn_group to a divisor of the share"
            )
        return share


class Solo(World):
    """One process: its batch is the global batch."""

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return 1

    @property
    def neighbours(self) -> int:
        return 1

    def enter(self, step: int) -> None:
        """There is nobody to wait for."""

    def gather(self, x: Tensor) -> Tensor:
        return x

    def shuffle(self, x: Tensor, order: Tensor) -> Tensor:
        return x[order]

    def unshuffle(self, x: Tensor, order: Tensor) -> Tensor:
        return x[order.argsort()]

    def average(self, x: Tensor, what: str) -> Callable[[], None]:
        return _nothing

    def largest(self, *values: int) -> Callable[[], list[int]]:
        return lambda: list(values)

    def first(self, act: Callable[[], T]) -> T:
        return act()

    def assemble(self, own: T) -> list[T]:
        return [own]

    def fetch(self, block: Tensor, rows: Tensor) -> Tensor:
        return block[rows]

    def collect(self, block: Tensor) -> Tensor | None:
        return block

    def deal(self, table: Tensor | None, block: Tensor) -> None:
        assert table is not None
        block.copy_(table)


def _nothing() -> Any:
    """One process is its own mean."""
