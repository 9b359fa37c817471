"""k-nearest-neighbour classification: what features are worth without training anything on them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moco.device import send
from moco.encoder import Encoder
from moco.evaluate.features import extract
from moco.evaluate.logistic import check_finite
from moco.processor import product_with

_QUERIES, _BANK = 125, 65_536  # rows of similarities held at once: 32 MB, which malloc keeps
_ON_GPU = 4  # times as many queries; beside a training that fills its memory
_GROUP = 4


def knn_predict(
    queries: Float[Tensor, "Q D"],
    bank: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    *,
    k: int = 200,
    temperature: float = 0.1,
    device: torch.device | None = None,
) -> Int[Tensor, " Q"]:
    """The class for which a query's k most similar bank entries vote, each with exp(cosine / T).

    Args:
        queries: features to classify; any length, they are normalised here.
        bank: features that vote.
        labels: classes of the bank, from 0.
        k: voters, 1 to M.
        temperature: T > 0; infinity counts every vote the same.
        device: see `nearest`.

    Returns:
        The class of each query, on the CPU; the lower number where votes are equal.

    Raises:
        ValueError: if k or the temperature is out of range, or the features are not finite.

    Source: Wu et al. 2018, Section 3.4; k = 200 and T = 0.1 are those of the released CIFAR-10 demo.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be above 0, got {temperature}")
    for features in queries, bank:  # a NaN is no neighbour, and would be voted on all the same
        check_finite(features)
    labels = labels.cpu()
    predictions, classes = [], int(labels.max()) + 1
    for top, rows in _nearest(queries.detach(), bank.detach(), k, device):
        votes = torch.zeros(len(top), classes, dtype=top.dtype)
        votes.scatter_add_(1, labels[rows], ((top - 1) / temperature).exp())
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def nearest(
    queries: Float[Tensor, "Q D"], bank: Float[Tensor, "M D"], k: int, device: torch.device | None = None
) -> tuple[Float[Tensor, "Q k"], Int[Tensor, "Q k"]]:
    """The k most similar rows of the bank for each query, best first: cosine similarities and row numbers.

    Args:
        queries, bank: features of any length; they are normalised here.
        k: 1 to M.
        device: where they are compared, a part of the bank at a time; None is where the queries are. One
            of Metal leaves it to the CPU.

    Returns:
        Two tensors on the CPU.

    Raises:
        ValueError: if k is out of range.
    """
    similarity, rows = zip(*_nearest(queries, bank, k, device), strict=True)
    return torch.cat(similarity), torch.cat(rows)


def _nearest(
    queries: Tensor, bank: Tensor, k: int, device: torch.device | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """`nearest`, for some of the queries at a time."""
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must be between 1 and the {len(bank)} images searched, got {k}")
    device = device or queries.device
    if device.type == "mps":
        device = torch.device("cpu")
    count = min(len(queries), _QUERIES * (1 if device.type == "cpu" else _ON_GPU))
    chunks = F.normalize(send(queries, device), dim=1).split(count)
    # one piece of memory for all products: fresh pages would take a quarter of their time
    held = chunks[0].new_empty(count * min(len(bank), _BANK))
    found = [(chunk[:, :0], chunk[:, :0].long()) for chunk in chunks]
    for start in range(0, len(bank), _BANK):
        part = F.normalize(send(bank[start : start + _BANK], device), dim=1)
        product = product_with(part)
        for i, chunk in enumerate(chunks):
            similarity = product(chunk, held[: len(chunk) * len(part)].view(len(chunk), len(part)))
            top, rows = _largest(similarity, min(k, similarity.shape[1]))
            top, rows = torch.cat([found[i][0], top], 1), torch.cat([found[i][1], rows + start], 1)
            # sorted: sums of votes do not depend on how the bank is cut
            best, chosen = top.topk(min(k, top.shape[1]), dim=1)
            found[i] = best, rows.gather(1, chosen)
    for best, rows in found:
        yield best.cpu(), rows.cpu()


def _largest(values: Float[Tensor, "Q M"], k: int) -> tuple[Float[Tensor, "Q k"], Int[Tensor, "Q k"]]:
    """`values.topk(k, sorted=False)` in a third of the time.

    The k largest lie in the k groups of largest maximum, of _GROUP values each, found the same way.
    """
    count = values.shape[1] // _GROUP
    if count < 2 * k:
        top = values.topk(k, dim=1, sorted=False)
        return top.values, top.indices
    even = count * _GROUP
    _, groups = _largest(values[:, :even].unflatten(1, (_GROUP, count)).amax(1), k)
    steps = count * torch.arange(_GROUP, device=values.device)
    index = (groups[:, None] + steps[:, None]).flatten(1)
    rest = torch.arange(even, values.shape[1], device=values.device)
    index = torch.cat([index, rest.expand(len(values), -1)], 1)
    best, place = values.gather(1, index).topk(k, dim=1, sorted=False)
    return best, index.gather(1, place)


@dataclass(frozen=True)
class Labelled:
    """Labelled images as evaluation takes them: a way to read them again and again, and their classes.

    Attributes:
        batches: yields the images.
        classes: of all images.
        unreadable: places of images that `batches` met and left out, so far.
    """

    batches: Callable[[], Iterable[Float[Tensor, "N channels H W"]]]
    classes: Int[Tensor, " M"]
    unreadable: set[int] = field(default_factory=set)

    @property
    def labels(self) -> Int[Tensor, " read"]:
        """Classes of the images that `batches` yields, known for sure once it has been through."""
        if not self.unreadable:
            return self.classes
        kept = torch.ones(len(self.classes), dtype=torch.bool)
        kept[list(self.unreadable)] = False
        return self.classes[kept]


def neighbours(labels: Int[Tensor, " M"]) -> int:
    """How many should vote where classes are small: a third of a class's images, 1 to 200.

    200 is what the published protocols take, for classes of 1,300 images and more. Voters beyond a
    query's own class speak for others.

    Args:
        labels: classes of the voters; below 0 where there is none.
    """
    known = labels[labels >= 0]
    return max(1, min(200, len(known) // (3 * max(1, len(known.unique())))))


def accuracy(
    queries: Float[Tensor, "Q D"],
    query_labels: Int[Tensor, " Q"],
    bank: Float[Tensor, "M D"],
    bank_labels: Int[Tensor, " M"],
    *,
    k: int = 200,
    temperature: float = 0.1,
    device: torch.device | None = None,
) -> float:
    """Share of queries that `knn_predict` classifies rightly, in percent; k is at most the bank."""
    predicted = knn_predict(
        queries, bank, bank_labels, k=min(k, len(bank)), temperature=temperature, device=device
    )
    return 100 * (predicted == query_labels).double().mean().item()


def knn(
    encoder: Encoder, bank: Labelled, queries: Labelled, *, k: int = 200, temperature: float = 0.1
) -> Iterator[tuple[str, float]]:
    """Yield kNN accuracy in percent on trunk features and on the unit-length output."""
    device = next(encoder.parameters()).device
    of_bank, of_queries = extract(encoder, bank.batches()), extract(encoder, queries.batches())
    for layer in "trunk", "output":
        q, b = getattr(of_queries, layer), getattr(of_bank, layer)
        value = accuracy(q, queries.labels, b, bank.labels, k=k, temperature=temperature, device=device)
        yield f"knn_{layer}", round(value, 3)
