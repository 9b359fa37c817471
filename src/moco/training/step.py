"""One step of Momentum Contrast: Algorithm 1 of the paper, on one screen.

Legend: N images per batch, C dimensions, q (N, C) queries, k (N, C) keys.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from moco.batch import Batch
from moco.dictionary import Dictionary
from moco.encoder import Encoder
from moco.keys import KeyEncoder
from moco.loss import Contrast, Entries
from moco.norm import PartsAsOne, average_statistics
from moco.training.gradients import averaged_gradients
from moco.world import World


class Setup(Protocol):
    """What a step works on."""

    f_q: Encoder
    keys: KeyEncoder
    dictionary: Dictionary
    optimizer: torch.optim.Optimizer
    symmetric: bool
    accumulate: int
    loss_weight: float

    def loss(self, q: Tensor, entries: Entries) -> Contrast: ...


class Measures(NamedTuple):
    """What a step tells; scalars that stay on the device, so reading them is the caller's choice.

    Attributes:
        loss: in nats for InfoNCE.
        accuracy: share of queries closer to their own key than to every negative, in [0, 1].
        spread: standard deviation of the queries over the batch, as a share of that of vectors
            spread evenly over the sphere: about 1 when healthy, 0 when all queries are the same.
    """

    loss: Tensor
    accuracy: Tensor
    spread: Tensor


def step(run: Setup, batch: Batch, world: World) -> Measures:
    """Learn from one batch: contrast, learn, follow, enqueue.

    A symmetric loss contrasts both terms before any key is enqueued, and averages them.

    Source: MoCo, Algorithm 1; the order of the last two lines and the released code's, which
    follows first and enqueues before learning, give the same losses.
    """
    if run.accumulate > 1:
        return _step_in_parts(run, batch, world)
    terms, keys = [], []
    for query, key, order in batch.pairs(symmetric=run.symmetric):
        q = run.f_q(query)  # queries
        k = run.keys.encode(key, q, order, world)  # keys; no gradient for momentum keys
        entries = run.dictionary.lookup(k, batch, world)  # positives and negatives
        terms.append((q.detach(), *run.loss(q, entries)))  # Eqn. (1)
        keys.append(k)
    loss = torch.stack([loss for _, loss, _ in terms]).mean()

    run.optimizer.zero_grad(set_to_none=True)
    with averaged_gradients(run.f_q, world):  # over the processes: those of the global batch
        (run.loss_weight * loss).backward()
    run.optimizer.step()
    run.keys.follow(run.f_q)  # θ_k ← m θ_k + (1 − m) θ_q, Eqn. (2)
    for k in keys:
        run.dictionary.enqueue(k, batch, world)  # newest keys in, oldest out
    average_statistics((run.f_q, run.keys), world)
    return measures(terms, world)


def _step_in_parts(run: Setup, batch: Batch, world: World) -> Measures:
    """The same step with the queries in parts, whose gradients add up to that of the whole batch.

    Keys carry no gradient, so they are encoded first and as a whole; the dictionary and f_k move
    once, after the last part.
    """
    terms: list[tuple[Tensor, Tensor, Tensor]] = []
    keys = []
    run.optimizer.zero_grad(set_to_none=True)
    pairs = list(batch.pairs(symmetric=run.symmetric))
    for query, key, order in pairs:
        k = run.keys.encode(key, None, order, world)
        entries = run.dictionary.lookup(k, batch, world)
        statistics = PartsAsOne(run.f_q)
        parts = []
        for part, part_entries in zip(
            query.chunk(run.accumulate), entries.chunk(run.accumulate), strict=True
        ):
            q = run.f_q(part)
            contrast = run.loss(q, part_entries)
            parts.append((q.detach(), contrast.loss.detach(), contrast.accuracy))
            last = len(terms) + 1 == len(pairs) and len(parts) == run.accumulate
            # the gradients of earlier parts are in `.grad` and travel with those of the last
            with averaged_gradients(run.f_q, world) if last else contextlib.nullcontext():
                (run.loss_weight * contrast.loss / (run.accumulate * len(pairs))).backward()
            statistics.part()
        statistics.finish()
        queries, losses, accuracies = zip(*parts, strict=True)
        terms.append((torch.cat(queries), torch.stack(losses).mean(), torch.stack(accuracies).mean()))
        keys.append(k)
    run.optimizer.step()
    run.keys.follow(run.f_q)
    for k in keys:
        run.dictionary.enqueue(k, batch, world)
    average_statistics((run.f_q, run.keys), world)
    return measures(terms, world)


@torch.no_grad()
def measures(terms: Sequence[tuple[Tensor, Tensor, Tensor]], world: World) -> Measures:
    """The measures of the global batch, from (queries, loss, accuracy) of each term on each process.

    The variance of a whole is the mean of its parts' variances plus the variance of their means.
    """
    own = []
    for q, loss, accuracy in terms:
        mean = q.mean(0)
        own.append(torch.cat([torch.stack([loss, accuracy, spread(q).square(), mean.square().sum()]), mean]))
    values = world.mean(torch.stack(own), "measures")
    variance = values[:, 2] + (values[:, 3] - values[:, 4:].square().sum(1)).clamp(min=0)
    return Measures(values[:, 0].mean(), values[:, 1].mean(), variance.sqrt().mean())


@torch.no_grad()
def spread(q: Tensor) -> Tensor:
    """Standard deviation of unit vectors (N, C) over the batch, times sqrt(C): 1 is even, 0 collapsed."""
    return q.std(0, correction=0).square().sum().sqrt()
