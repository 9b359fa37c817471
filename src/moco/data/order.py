"""The order of an epoch when images come in shards that are slow to open: by windows."""

import numpy as np

from moco import chance


class WindowedOrder:
    """A keyed permutation that keeps to a window of shards at a time.

    Each epoch permutes the shards, cuts them into windows and permutes the images of each window, so
    only the shards of one or two windows are read at any time. Every image comes once. With one
    window over everything this is a permutation as uniform as any.

    Args:
        shards: images of each shard, in the order in which they are numbered.
        window: shards per window, at least 1.
        seed: keys every draw.

    Raises:
        ValueError: if the window is below 1 shard.
    """

    def __init__(self, shards: np.ndarray, window: int, seed: int):
        if window < 1:
            raise ValueError(f"window must be at least 1 shard, got {window}")
        self.shards, self.window, self.seed = shards, window, seed
        self._starts = np.cumsum(shards) - shards
        self._epoch = -1
        self._order = self._ends = np.empty(0, np.int64)

    def at(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """Sample indices at these positions of an epoch, (N,) int64."""
        if epoch != self._epoch:
            numbers = np.arange(len(self.shards))
            self._order = chance.permute(numbers, len(numbers), self.seed, "shard order", step=epoch)
            self._ends, self._epoch = np.cumsum(self.shards[self._order]), epoch
        lasts = np.append(np.arange(self.window - 1, len(self.shards) - 1, self.window), len(self.shards) - 1)
        window_ends = self._ends[lasts]
        windows = np.searchsorted(window_ends, positions, side="right")
        result = np.empty(len(positions), np.int64)
        for window in np.unique(windows):
            chosen = windows == window
            start = int(window_ends[window - 1]) if window else 0
            count = int(window_ends[window]) - start
            place = start + chance.permute(
                positions[chosen] - start, count, self.seed, f"window {window}", step=epoch
            )
            shard = np.searchsorted(self._ends, place, side="right")
            within = place - (self._ends[shard] - self.shards[self._order[shard]])
            result[chosen] = self._starts[self._order[shard]] + within
        return result
