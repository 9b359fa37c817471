"""The contrastive loss as dictionary look-up, Eqn. (1), and the two alternatives the paper names.

Legend: N queries, K negative keys, C dimensions, q (N, C) queries, T temperature; every row is a
unit-length vector, so a dot product is a cosine similarity.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moco.world import Solo, World

CHUNK = 1024  # keys per pass: N x CHUNK similarities stay in the cache of a CPU core at N = 256


@dataclass(frozen=True)
class Entries:
    """What a dictionary holds for N queries.

    Attributes:
        positives: the key of each query's own image.
        negatives: keys shared by all queries (K, C), or K keys for each query (N, K, C).
        query_identity: what `Batch.identity` is of each query; None compares none, so nothing is masked.
        negative_identity: the same of each negative, -1 where it belongs to no sample.
    """

    positives: Float[Tensor, "N C"]
    negatives: Float[Tensor, "K C"] | Float[Tensor, "N K C"]
    query_identity: Int[Tensor, " N"] | None = None
    negative_identity: Int[Tensor, " K"] | Int[Tensor, "N K"] | None = None

    def chunk(self, parts: int) -> list["Entries"]:
        """The same entries for each of `parts` equal, consecutive groups of queries."""

        def split(x: Any, per_query: bool) -> list[Any]:
            return list(x.chunk(parts)) if x is not None and per_query else [x] * parts

        per_query = self.negatives.dim() == 3
        return [
            Entries(p, n, i, j)
            for p, n, i, j in zip(
                self.positives.chunk(parts),
                split(self.negatives, per_query),
                split(self.query_identity, True),
                split(self.negative_identity, per_query),
                strict=True,
            )
        ]

    def own(self, columns: slice = slice(None)) -> Bool[Tensor, "N k"] | None:
        """True where a negative (of those in `columns`) is a key of the query's own image or group."""
        if self.query_identity is None or self.negative_identity is None:
            return None
        return self.query_identity[:, None] == self.negative_identity[..., columns]


class Contrast(NamedTuple):
    """The loss (a scalar that carries the gradient) and the pretext task's accuracy in [0, 1]."""

    loss: Tensor
    accuracy: Tensor


def info_nce(q: Float[Tensor, "N C"], entries: Entries, temperature: float) -> Contrast:
    """(K+1)-way classification of each query as its own key, averaged over the queries.

    L_q = -log[ exp(q.k+ / T) / sum_{i=0..K} exp(q.k_i / T) ]

    Shared negatives are streamed in chunks and the gradient is formed on the way, so the memory
    is O(N * CHUNK) and the N x (1 + K) matrix never exists. Gradients reach q, the positives and
    the negatives, whichever ask for them; they cannot be differentiated again.

    Args:
        q: queries, unit length.
        entries: their keys.
        temperature: T > 0; 0.07 in v1, 0.2 in v2.

    Returns:
        The loss in nats (equal similarities give log(1 + K)) and the share of queries more
        similar to their own key than to every negative.

    Raises:
        ValueError: if the temperature is not positive.

    Source: MoCo, Section 3.1, Eqn. (1).
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature} (v1 uses 0.07, v2 uses 0.2)")
    with torch.autocast(q.device.type, enabled=False):
        if entries.negatives.dim() == 3:
            positive, negative = _similarities(q, entries)
            logits = torch.cat([positive[:, None], negative], dim=1) / temperature
            loss = F.cross_entropy(logits, logits.new_zeros(len(q), dtype=torch.long))
            return Contrast(loss, _accuracy(positive, negative))
        loss, accuracy = _StreamedInfoNCE.apply(q, entries.positives, entries.negatives, entries, temperature)
    return Contrast(loss, accuracy)


class _StreamedInfoNCE(torch.autograd.Function):
    """Softmax over the dictionary with a running maximum; the gradient is computed in the forward pass."""

    @staticmethod
    def forward(ctx, q, positives, negatives, entries, temperature):
        scaled = q / temperature
        positive = (scaled * positives).sum(1)
        peak, mass, mixture = positive.clone(), torch.ones_like(positive), torch.zeros_like(q)
        hardest = torch.full_like(positive, -torch.inf)

        def chunks():
            for start in range(0, len(negatives), CHUNK):
                columns = slice(start, start + CHUNK)
                similarity = scaled @ negatives[columns].T
                if (own := entries.own(columns)) is not None:
                    similarity.masked_fill_(own, -torch.inf)
                yield columns, similarity

        for columns, similarity in chunks():
            hardest = torch.maximum(hardest, similarity.amax(1))
            new_peak = torch.maximum(peak, hardest)
            shrink = (peak - new_peak).exp_()
            weights = similarity.sub_(new_peak[:, None]).exp_()
            mass = mass.mul_(shrink).add_(weights.sum(1))
            mixture = mixture.mul_(shrink[:, None]).addmm_(weights, negatives[columns])
            peak = new_peak

        share = (positive - peak).exp_() / mass  # softmax probability of the positive
        per_nat = 1 / (len(q) * temperature)
        grad_q = grad_positives = grad_negatives = None
        if ctx.needs_input_grad[0]:
            grad_q = (mixture / mass[:, None]).addcmul_(share[:, None] - 1, positives).mul_(per_nat)
        if ctx.needs_input_grad[1]:
            grad_positives = (share[:, None] - 1) * q * per_nat
        if ctx.needs_input_grad[2]:
            grad_negatives = torch.empty_like(negatives)
            log_total = peak + mass.log()
            for columns, similarity in chunks():
                weights = similarity.sub_(log_total[:, None]).exp_()
                grad_negatives[columns] = weights.T @ q * per_nat
        ctx.save_for_backward(grad_q, grad_positives, grad_negatives)
        accuracy = (positive > hardest).to(q.dtype).mean()
        ctx.mark_non_differentiable(accuracy)
        return (peak + mass.log() - positive).mean(), accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, _):
        grads = [None if grad is None else grad * grad_loss for grad in ctx.saved_tensors]
        return *grads, None, None


def nce(
    q: Float[Tensor, "N C"], entries: Entries, temperature: float, images: int, log_normalizer: Tensor
) -> Contrast:
    """Noise-contrastive estimation of "which image is it", against uniform noise over all images.

    With P(i|q) = exp(q.k_i / T) / Z, noise Pn = 1 / images and h = P / (P + K Pn):
    L_q = -log h(k+) - sum_{i=1..K} log(1 - h(k_i)), averaged over the queries.

    Args:
        q: queries, unit length.
        entries: their keys; masked negatives count as absent, and a query that has no other costs nothing.
        temperature: T > 0; InstDisc uses 0.07.
        images: number of images in the data set, of which the noise draws uniformly.
        log_normalizer: log Z, a scalar constant (see `nce_log_normalizer`).

    Returns:
        The loss in nats and the accuracy of `info_nce`. At its optimum P equals the data density.

    Source: Wu et al. 2018 (InstDisc), Eqns. (4)-(8); the rival of MoCo's footnote 2. *Deviation:*
    computed from log-odds, so the released code's 1e-7 inside each quotient is not needed.
    """
    positive, negative = _similarities(q, entries)
    count = negative.isfinite().sum(1)
    log_noise = (count.clamp(min=1).to(q.dtype) / images).log() + log_normalizer
    loss = -F.logsigmoid(positive / temperature - log_noise) - F.logsigmoid(
        log_noise[:, None] - negative / temperature
    ).sum(1)
    return Contrast((loss * (count > 0)).mean(), _accuracy(positive, negative))


@torch.no_grad()
def nce_log_normalizer(q: Float[Tensor, "N C"], entries: Entries, temperature: float, images: int) -> Tensor:
    """log Z as InstDisc sets it once, from its first batch: Z = mean of exp(q.k / T), times the images."""
    positive, negative = _similarities(q, entries)
    logits = torch.cat([positive[:, None], negative], dim=1) / temperature
    return logits.flatten().logsumexp(0) - (logits.isfinite().sum() / images).log()


class NCE(nn.Module):
    """`nce` with the constant log Z that its first batch sets and checkpoints keep."""

    def __init__(self, temperature: float, images: int, world: World | None = None):
        super().__init__()
        self.temperature, self.images, self._world = temperature, images, world or Solo()
        self.log_normalizer: Tensor
        self.register_buffer("log_normalizer", torch.zeros(()))
        self.known = False

    def forward(self, q: Tensor, entries: Entries) -> Contrast:
        if not self.known:
            own = nce_log_normalizer(q, entries, self.temperature, self.images)
            if self._world.size > 1:  # Z is a mean over the global batch
                own = self._world.mean(own.double().exp(), "NCE's Z").log()
            self.log_normalizer.copy_(own)
            self.known = True
        return nce(q, entries, self.temperature, self.images, self.log_normalizer)

    def get_extra_state(self) -> bool:
        return self.known

    def set_extra_state(self, state: bool) -> None:
        self.known = state


def margin(q: Float[Tensor, "N C"], entries: Entries, margin: float, world: World | None = None) -> Contrast:
    """Each negative must be less similar than the positive by a margin; violations are averaged.

    L = mean over violating (q, k-) of q.k- - q.k+ + margin; zero once no pair violates.

    Args:
        q: queries, unit length.
        entries: their keys.
        margin: in cosine similarity, between 0 and 2.
        world: the processes over which violations are counted; None is this one alone.

    Returns:
        The loss in cosine similarity (equal similarities give `margin`) and the accuracy of `info_nce`.

    Source: the margin-based losses of MoCo, Section 2 (Hadsell et al. 2006), in the triplet form
    averaged over non-zero terms of Hermans et al. 2017.
    """
    positive, negative = _similarities(q, entries)
    violation = (negative - positive[:, None] + margin).clamp(min=0)
    count = (violation > 0).sum().to(q.dtype)
    if world is not None and world.size > 1:  # so that the processes' mean is that of all violations
        loss = violation.sum() / world.mean(count, "margin violations").clamp(min=1 / world.size)
    else:
        loss = violation.sum() / count.clamp(min=1)
    return Contrast(loss, _accuracy(positive, negative))


def _similarities(q: Tensor, entries: Entries) -> tuple[Tensor, Tensor]:
    """Cosine similarity to the positive (N,) and to each negative (N, K), -inf where it is masked."""
    shared = entries.negatives.dim() == 2
    negative = q @ entries.negatives.T if shared else torch.einsum("nc,nkc->nk", q, entries.negatives)
    if (own := entries.own()) is not None:
        negative = negative.masked_fill(own, -torch.inf)
    return (q * entries.positives).sum(1), negative


@torch.no_grad()
def _accuracy(positive: Tensor, negative: Tensor) -> Tensor:
    """Share of queries whose positive beats every negative."""
    return (positive > negative.amax(1)).to(positive.dtype).mean()
