"""Keyed randomness: every random number is a pure function of a seed, a purpose and counters.

No generator is ever advanced, so a draw does not depend on how many workers, processes or earlier
steps there were. A checkpoint needs no random state, and a resumed run sees the same numbers.
"""

import hashlib
import math

import numpy as np
import torch

_ROUND_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_WORD = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_FEISTEL_ROUNDS = 8  # even, so that the unbalanced halves end where they began


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10: four 32-bit random words for each counter.

    Args:
        counter: (..., 4) unsigned integers below 2^32.
        key: two 32-bit words.

    Returns:
        (..., 4) uint64 array holding values below 2^32. The all-zero counter and key give
        6627e8d5 e169c58d bc57ac4c 9b00dbd8.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = (counter[..., word].astype(np.uint64) for word in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _ROUND_MULTIPLIERS[0] * c0, _ROUND_MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _WORD,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _WORD,
        )
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & 0xFFFFFFFF, (k1 + _KEY_INCREMENTS[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def key(seed: int, purpose: str) -> tuple[int, int]:
    """The 64-bit key of a purpose under a seed, as two words; different purposes never share draws."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def uniform(
    seed: int, purpose: str, index: np.ndarray, draws: int, *, step: int = 0, view: int = 0
) -> torch.Tensor:
    """Uniform numbers in (0, 1), one row for each sample.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for, such as "view".
        index: (N,) non-negative sample indices, below 2^63.
        draws: numbers per sample, at most 2^18.
        step: epoch or step the draws belong to, below 2^32.
        view: which view of the sample, below 2^16.

    Returns:
        (N, draws) float64. A row depends on its own sample index only, not on its neighbours.

    Raises:
        ValueError: if there are more draws than counters.
    """
    index = np.asarray(index, dtype=np.uint64)
    blocks = math.ceil(draws / 4)
    if blocks > 2**16:
        raise ValueError(f"a sample has at most 262,144 draws for one purpose, got {draws:,}")
    counter = np.empty((len(index), blocks, 4), dtype=np.uint64)
    counter[..., 0] = (index & _WORD)[:, None]
    counter[..., 1] = (index >> _SHIFT)[:, None]
    counter[..., 2] = np.uint64(step)
    counter[..., 3] = np.uint64(view << 16) | np.arange(blocks, dtype=np.uint64)
    words = philox(counter, key(seed, purpose)).reshape(len(index), blocks * 4)[:, :draws]
    return torch.from_numpy((words.astype(np.float64) + 0.5) / 2.0**32)


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator keyed by (seed, purpose, step), for bulk draws such as initial weights.

    torch's has 2^32 streams, so among very many steps a few share one.
    """
    return torch.Generator().manual_seed(key(seed, f"{purpose}/{step}")[0])


def permute(index: np.ndarray, count: int, seed: int, purpose: str, *, step: int = 0) -> np.ndarray:
    """Where a keyed random permutation of 0..count-1 sends each index, in O(len(index)) memory.

    A Feistel network over the next power of two, walked until it lands below `count`, so a batch
    of an order over 10^9 samples costs as much as a batch of an order over a thousand.

    Args:
        index: (N,) positions in [0, count).
        count: size of the permuted set, 1 to 2^62.
        seed, purpose, step: the key; another step (an epoch, say) gives another permutation.

    Returns:
        (N,) int64, distinct for distinct positions.
    """
    bits = max(2, (count - 1).bit_length())
    left_bits = bits // 2
    turns = np.zeros((_FEISTEL_ROUNDS, 4), dtype=np.uint64)
    turns[:, 0] = np.arange(_FEISTEL_ROUNDS)
    words = philox(turns, key(seed, f"{purpose}/{step}"))
    round_keys = words[:, 0] | words[:, 1] << _SHIFT

    def scramble(value: np.ndarray) -> np.ndarray:
        widths = left_bits, bits - left_bits
        left, right = value >> np.uint64(widths[1]), value & np.uint64((1 << widths[1]) - 1)
        for round_key in round_keys:
            mixed = _mix(right + round_key) & np.uint64((1 << widths[0]) - 1)
            left, right = right, left ^ mixed
            widths = widths[1], widths[0]
        return left << np.uint64(widths[1]) | right

    result = scramble(np.asarray(index, dtype=np.uint64))
    while (outside := result >= count).any():
        result[outside] = scramble(result[outside])
    return result.astype(np.int64)


def _mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every input bit changes every output bit with probability one half."""
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)
