"""Which images each step takes: a pure function of the step, grouped by shape, rare classes repeated."""

import math
from collections.abc import Sequence

import numpy as np

from moco import chance
from moco.transfer.example import Examples


class Order:
    """Batches of image numbers.

    In every pass the images come in a new keyed order and are grouped so that a batch is all wide or
    all tall and needs little padding; what is left of both groups is put together, and the last,
    incomplete batch is dropped.

    Args:
        wide: whether each image is wider than high.
        batch: images per step.
        seed: keys every draw.
        repeats: how often each image comes in a pass, on average; None is once.
        purpose: another purpose gives another order.

    Raises:
        ValueError: if there are fewer images than a batch takes.
    """

    def __init__(
        self,
        wide: Sequence[bool],
        batch: int,
        seed: int,
        *,
        repeats: np.ndarray | None = None,
        purpose: str = "transfer order",
    ):
        if len(wide) < batch:
            raise ValueError(f"there are {len(wide)} images, fewer than a batch of {batch}; lower --batch")
        self.wide, self.batch, self.seed = np.asarray(wide), batch, seed
        self.repeats, self.purpose = repeats, purpose
        self._first = [0]  # the step with which each pass begins
        self._kept: tuple[int, np.ndarray] = -1, np.zeros((0, batch), dtype=np.int64)

    def index(self, step: int) -> np.ndarray:
        """Image numbers of a step's batch, (batch,) int64."""
        while self._first[-1] <= step:
            self._first.append(self._first[-1] + len(self._pass(len(self._first) - 1)))
        number = int(np.searchsorted(self._first, step, side="right")) - 1
        return self._pass(number)[step - self._first[number]]

    def _pass(self, number: int) -> np.ndarray:
        if self._kept[0] != number:
            self._kept = number, self._make(number)
        return self._kept[1]

    def _make(self, number: int) -> np.ndarray:
        images = np.arange(len(self.wide))
        if self.repeats is not None:
            draws = chance.uniform(self.seed, f"{self.purpose} repeats", images, 1, step=number)[:, 0].numpy()
            whole = np.floor(self.repeats)
            images = np.repeat(images, (whole + (draws < self.repeats - whole)).astype(int))
        shuffled = images[_permuted(len(images), self.seed, self.purpose, number)]
        wide = self.wide[shuffled]
        groups = [shuffled[wide], shuffled[~wide]]
        whole_batches = [group[: len(group) // self.batch * self.batch] for group in groups]
        rest = np.concatenate(
            [group[len(whole) :] for group, whole in zip(groups, whole_batches, strict=True)]
        )
        rest = rest[: len(rest) // self.batch * self.batch]
        batches = np.concatenate([*whole_batches, rest]).reshape(-1, self.batch)
        return batches[_permuted(len(batches), self.seed, f"{self.purpose} batches", number)]


def _permuted(count: int, seed: int, purpose: str, step: int) -> np.ndarray:
    return chance.permute(np.arange(count), count, seed, purpose, step=step)


def repeat_factors(examples: Examples, threshold: float) -> np.ndarray:
    """How often each image comes in a pass, so that rare classes are seen.

    Args:
        examples: the images.
        threshold: share of images below which a class is rare (0.001 for LVIS).

    Returns:
        max(1, sqrt(threshold / f)) of the rarest class in each image; f is the share of images with it.

    Source: Gupta et al. 2019 (LVIS), appendix B.
    """
    present = [
        set() if example.objects is None else set(example.objects.labels.tolist())
        for example in examples.examples
    ]
    counts: dict[int, int] = {}
    for labels in present:
        for label in labels:
            counts[label] = counts.get(label, 0) + 1
    of_class = {
        label: max(1.0, math.sqrt(threshold * len(examples) / count)) for label, count in counts.items()
    }
    return np.array([max((of_class[label] for label in labels), default=1.0) for labels in present])
