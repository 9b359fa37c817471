"""The dictionaries a query is looked up in: a queue, the current batch, or a memory bank (Figure 2).

Legend: N queries, K negative keys, C dimensions, k (N, C) keys of the current batch.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moco import chance
from moco.batch import Batch
from moco.device import send
from moco.loss import Entries
from moco.world import Solo, World


class Dictionary(nn.Module, ABC):
    """Keeps keys; says which are a query's positive and negatives.

    Attributes:
        dealt: for each buffer of which every process holds one block of rows, its number of rows; the
            other buffers are equal on all processes.
    """

    dealt: Mapping[str, int] = {}

    @abstractmethod
    def lookup(self, k: Float[Tensor, "N C"], batch: Batch, world: World) -> Entries:
        """Positives and negatives of the batch's queries; the current keys k are not yet enqueued."""

    @abstractmethod
    def enqueue(self, k: Float[Tensor, "N C"], batch: Batch, world: World) -> None:
        """Take in the batch's keys, of all processes in rank order."""

    @abstractmethod
    def identities(self, batch: Batch, world: World) -> Tensor | None:
        """What `Batch.identity` was of each negative, (K,) or (N, K); None if nothing is masked."""

    @torch.no_grad()
    def masked(self, batch: Batch, world: World) -> Tensor:
        """Share of the global batch's negatives that are left out, because they are of the query's own
        image or group; a scalar that stays on the device."""
        negatives = self.identities(batch, world)
        own = batch.identity
        if negatives is None:
            return torch.zeros((), device=own.device)
        if negatives.dim() == 2:
            count, all_of_them = (negatives == own[:, None]).sum(), negatives.numel()
        else:
            ordered = negatives.sort().values  # counting matches one by one would take N x K comparisons
            first, last = (torch.searchsorted(ordered, own, right=right) for right in (False, True))
            count, all_of_them = (last - first).sum(), len(own) * len(ordered)
        return world.mean(count.float(), "shares of masked keys") / all_of_them


class MomentumQueue(Dictionary):
    """The last K keys, oldest out first; they serve every query as negatives.

    K is any number: it need not be a multiple of the batch, and a batch larger than K leaves its
    last K keys. The queue starts with random unit vectors that belong to no image.

    Args:
        size: K, at least 1; 65,536 in the paper.
        dim: C.
        mask_own: leave out keys of the query's own image, or group. Needed once K reaches the number
            of images, where each image would meet its own earlier keys as negatives.
        seed: of the initial keys.

    Raises:
        ValueError: if K is below 1.

    Source: MoCo, Section 3.2 "Dictionary as a queue", Algorithm 1.
    """

    def __init__(self, size: int = 65536, dim: int = 128, *, mask_own: bool = False, seed: int = 0):
        super().__init__()
        if size < 1:
            raise ValueError(f"dictionary.size must be at least 1 key, got {size} (the paper uses 65536)")
        start = torch.randn(size, dim, generator=chance.generator(seed, "queue"))
        self.keys: Tensor
        self.identity: Tensor
        self.register_buffer("keys", F.normalize(start, dim=1))
        self.register_buffer("identity", torch.full((size,), -1))
        self.mask_own = mask_own
        self.enqueued = 0

    def lookup(self, k, batch, world):
        if not self.mask_own:
            return Entries(k, self.keys)
        return Entries(k, self.keys, batch.identity, self.identity)

    def identities(self, batch, world):
        return self.identity if self.mask_own else None

    @torch.no_grad()
    def enqueue(self, k, batch, world):
        size = len(self.keys)
        k, identity = world.gather(k), world.gather(batch.identity)
        self.enqueued += len(k)
        k, identity = k[-size:], identity[-size:]
        start = (self.enqueued - len(k)) % size
        head = min(len(k), size - start)  # keys before the end of the buffer; the rest wraps around
        for buffer, new in (self.keys, k), (self.identity, identity):
            buffer[start : start + head] = new[:head]
            buffer[: len(k) - head] = new[head:]

    def get_extra_state(self) -> int:
        return self.enqueued

    def set_extra_state(self, state: int) -> None:
        self.enqueued = state


class InBatch(Dictionary):
    """The keys of the current batch: each query's negatives are the other images' keys.

    With `TiedKeys` this is the end-to-end mechanism; the gradient reaches the keys. A batch of K
    images gives K − 1 negatives.

    Source: MoCo, Section 3.2 "Relations to previous mechanisms", Figure 2a.
    """

    def lookup(self, k, batch, world):
        return Entries(k, world.gather(k), batch.identity, self.identities(batch, world))

    def identities(self, batch, world):
        return world.gather(batch.identity)

    def enqueue(self, k, batch, world):
        """Nothing outlives the step."""


class MemoryBank(Dictionary):
    """One slot for each image of the data set; K of them are drawn as negatives at each step.

    The positive is the image's own slot, so a slot is the average of its image's last queries:
    v_i ← normalise(m v_i + (1 − m) q_i).

    Args:
        images: number of slots.
        size: K, drawn uniformly with replacement.
        dim: C.
        momentum: m of the representation in [0, 1); 0.5 in InstDisc. Not the momentum of an encoder.
        per_query: draw K negatives for each query, as InstDisc does, at N * K * C numbers of
            memory; otherwise the queries of a step share K draws.
        mask_own: leave out draws of the query's own slot, or of its group (InstDisc keeps them).
        groups: (images,) group of each image, or None.
        seed: of the initial slots and the draws.
        world: the processes that hold the bank between them, images / size slots each.

    Raises:
        ValueError: if K is below 1 or m outside [0, 1).
        MemoryError: if the images * dim * 4 bytes, or their share on this machine, are more than three
            quarters of its memory.

    Source: MoCo, Section 3.2, Figure 2b; Wu et al. 2018 and its released code for the initial
    values (uniform in ±1/sqrt(C/3), not normalised) and the momentum.
    """

    def __init__(
        self,
        images: int,
        size: int = 65536,
        dim: int = 128,
        *,
        momentum: float = 0.5,
        per_query: bool = False,
        mask_own: bool = False,
        groups: Tensor | None = None,
        seed: int = 0,
        world: World | None = None,
    ):
        super().__init__()
        if size < 1:
            raise ValueError(f"dictionary.size must be at least 1 key, got {size}")
        if not 0 <= momentum < 1:
            raise ValueError(
                f"dictionary.momentum must be in [0, 1), got {momentum} "
                "(the share of its old value that a slot keeps; InstDisc uses 0.5)"
            )
        if per_query and size > 2**18:
            raise ValueError(f"dictionary.size must be at most 262,144 keys per query, got {size:,}")
        world = world or Solo()
        rows = -(-images // world.size)  # slots of each process
        need = rows * world.neighbours * dim * 4
        have = _machine_memory() * 3 // 4
        if need > have:
            raise MemoryError(
                f"a memory bank of {images:,} images x {dim} numbers needs {need / 2**30:,.1f} GiB on this "
                f"machine, {have / 2**30:,.1f} GiB may be used; a momentum queue does not grow with the data"
            )
        slots = _rows_of_uniform(rows * world.rank, rows, dim, chance.generator(seed, "bank"))
        self.slots: Tensor
        self.register_buffer("slots", slots.mul_(2).sub_(1).div_((dim / 3) ** 0.5))
        self.images, self.dealt = images, {"slots": images}
        self.size, self.momentum, self.per_query = size, momentum, per_query
        self.mask_own, self.seed = mask_own, seed
        self.groups: Tensor | None
        self.register_buffer("groups", groups, persistent=False)
        self._last = -1, torch.empty(0), torch.empty(0)  # step, images and slots of the last draw

    def lookup(self, k, batch, world):
        drawn = self._drawn(batch)
        own = (batch.identity, self.identities(batch, world)) if self.mask_own else (None, None)
        return Entries(world.fetch(self.slots, batch.index), world.fetch(self.slots, drawn), *own)

    def identities(self, batch, world):
        if not self.mask_own:
            return None
        drawn = self._drawn(batch)
        return drawn if self.groups is None else self.groups[drawn]

    def _drawn(self, batch: Batch) -> Tensor:
        """Slots that are the batch's negatives; a function of the step, and per query of its images."""
        step, index, drawn = self._last
        if step == batch.step and (index is batch.index or not self.per_query):
            return drawn
        if self.per_query:
            rows = batch.index.cpu().numpy()
            draws = chance.uniform(self.seed, "bank draws", rows, self.size, step=batch.step)
            drawn = (draws * self.images).long()
        else:
            generator = chance.generator(self.seed, "bank draws", batch.step)
            drawn = torch.randint(self.images, (self.size,), generator=generator)
        drawn = send(drawn, self.slots.device)
        self._last = batch.step, batch.index, drawn
        return drawn

    @torch.no_grad()
    def enqueue(self, k, batch, world):
        k, index = world.gather(k), world.gather(batch.index)
        if world.size > 1:  # each process keeps its own block
            index = index - len(self.slots) * world.rank
            own = (index >= 0) & (index < len(self.slots))
            k, index = k[own], index[own]
        self.slots[index] = F.normalize(torch.lerp(k, self.slots[index], self.momentum), dim=1)


def _rows_of_uniform(start: int, rows: int, dim: int, generator: torch.Generator) -> Tensor:
    """Rows start to start + rows - 1 of one long draw of `torch.rand`; the earlier ones are passed by."""
    while start:
        passed = min(start, 2**16)
        torch.rand(passed, dim, generator=generator)
        start -= passed
    return torch.rand(rows, dim, generator=generator)


def _machine_memory() -> int:
    """Bytes of memory this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
