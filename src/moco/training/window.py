"""What the steps between two rows of the journal measured."""

from typing import Any

import torch
from torch import Tensor

from moco.training.step import Measures


class Window:
    """Means of the measures since the last journal row, summed on the device without synchronisation."""

    def __init__(self, sums: Tensor | None = None, count: int = 0):
        self.sums, self.count = sums, count
        self.bad: Tensor | None = None

    def add(self, measures: Measures, step: int) -> None:
        """Take in one step."""
        values = torch.stack(list(measures))
        self.sums = values if self.sums is None else self.sums + values
        self.count += 1
        bad = torch.where(measures.loss.isfinite(), -1, step)
        self.bad = bad if self.bad is None else torch.where(self.bad >= 0, self.bad, bad)

    def first_bad(self) -> int | None:
        """The first step of the window whose loss is not finite; waits for the device."""
        assert self.bad is not None
        bad = int(self.bad)
        return bad if bad >= 0 else None

    def means(self) -> dict[str, float]:
        """Mean of each measure, rounded to what is worth reading; waits for the device."""
        assert self.sums is not None
        means = (self.sums / self.count).tolist()
        return {name: round(mean, 6) for name, mean in zip(Measures._fields, means, strict=True)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"sums": self.sums, "count": self.count}
