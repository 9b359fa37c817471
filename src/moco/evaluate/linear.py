"""Linear classification: the paper's protocol, and the same on cached features for a whole grid at once.

Legend: S settings (lr, weight decay), M images, D features, C classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moco import chance
from moco.encoder import Encoder
from moco.evaluate.knn import Labelled
from moco.evaluate.logistic import check_finite

LRS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
WEIGHT_DECAYS = (0.0, 1e-6, 1e-4)
_NOTHING = 1e-20
"""Smaller probabilities count as none: numbers below 1e-38 would slow a CPU's products down several times."""


@dataclass(frozen=True)
class LinearProtocol:
    """How the classifier is trained; the defaults are the paper's.

    Source: MoCo, Section 4.1, and the released `main_lincls.py`.
    """

    lr: float = 30.0
    """Learning rate of a batch of 256; another batch scales it linearly."""
    momentum: float = 0.9
    weight_decay: float = 0.0
    epochs: int = 100
    milestones: tuple[int, ...] = (60, 80)
    """Epochs at whose start the learning rate is multiplied by 0.1."""
    batch: int = 256

    def __post_init__(self):
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        for name in "epochs", "batch":
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, from 0."""
        return self.lr * self.batch / 256 * 0.1 ** sum(epoch >= m for m in self.milestones)


class Linear(NamedTuple):
    """S linear classifiers of the same features."""

    weight: Float[Tensor, "S C D"]
    bias: Float[Tensor, "S C"]

    def predict(self, features: Float[Tensor, "M D"]) -> Int[Tensor, "S M"]:
        """The class of each image under each classifier."""
        return torch.stack(
            [torch.addmm(b, features, w.T).argmax(1) for w, b in zip(self.weight, self.bias, strict=True)]
        )


def train_linear(
    features: Float[Tensor, "V M D"],
    labels: Int[Tensor, " M"],
    classes: int,
    *,
    lrs: Sequence[float],
    weight_decays: Sequence[float],
    protocol: LinearProtocol = LinearProtocol(),
    seed: int = 0,
) -> Linear:
    """Train S classifiers side by side on cached features, in the same batches from the same start.

    Every step is one pair of matrix products for all settings, so a grid costs little more than one
    setting. The result of each is that of training it alone.

    Args:
        features: of V cached views of M images; epoch e takes view e mod V.
        labels: their classes, from 0.
        classes: C.
        lrs, weight_decays: those of setting s, instead of the protocol's.
        protocol: everything else.
        seed: keys the order of the images and the initial weights, N(0, 0.01²) as released.

    Returns:
        The classifiers; one that diverged holds values that are not finite.

    Raises:
        ValueError: if the features are not finite.
    """
    check_finite(features)
    settings, images, dim = len(lrs), features.shape[1], features.shape[2]
    start = torch.randn(classes, dim, generator=chance.generator(seed, "linear weights")) * 0.01
    weight = start.to(features).repeat(settings, 1)
    bias = features.new_zeros(settings * classes, 1)
    moves = torch.zeros_like(weight), torch.zeros_like(bias)  # velocity times learning rate
    scale = features.new_tensor(lrs).repeat_interleave(classes)[:, None] / protocol.lr
    decay = features.new_tensor(weight_decays).repeat_interleave(classes)[:, None]
    decays = bool((decay > 0).any())
    rate = scale * protocol.rate(0)
    for epoch in range(protocol.epochs):
        view, before, rate = features[epoch % len(features)], rate, scale * protocol.rate(epoch)
        if epoch and protocol.rate(epoch) != protocol.rate(epoch - 1):
            for move in moves:
                move.mul_(rate / before)
        order = torch.randperm(images, generator=chance.generator(seed, "linear order", epoch))
        for index in order.to(features.device).split(protocol.batch):
            x = view[index]
            slopes = torch.mm(weight, x.T).add_(bias).view(settings, classes, -1).softmax(1)
            F.threshold(slopes, _NOTHING, 0, inplace=True)
            slopes -= F.one_hot(labels[index], classes).T
            slopes = slopes.view(settings * classes, -1).mul_(rate / len(x))
            moves[0].addmm_(slopes, x, beta=protocol.momentum)
            moves[1].mul_(protocol.momentum).add_(slopes.sum(1, keepdim=True))
            for move, tensor in zip(moves, (weight, bias), strict=True):
                if decays:
                    move.addcmul_(rate * decay, tensor)
                tensor -= move
    return Linear(weight.view(settings, classes, dim), bias.view(settings, classes))


class GridResult(NamedTuple):
    """The classifier a grid search chose.

    Attributes:
        lr, weight_decay: of the setting that did best on the held-out tenth of the training images.
        top1: its accuracy on the test images in percent, trained again on all training images.
        settings: (lr, weight decay, accuracy in percent on the held-out tenth) of the whole grid.
    """

    lr: float
    weight_decay: float
    top1: float
    settings: list[tuple[float, float, float]]


def linear_grid(
    features: Float[Tensor, "V M D"],
    labels: Int[Tensor, " M"],
    test_features: Float[Tensor, "T D"],
    test_labels: Int[Tensor, " T"],
    *,
    groups: Int[Tensor, " M"] | None = None,
    lrs: Sequence[float] = LRS,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    protocol: LinearProtocol = LinearProtocol(),
    seed: int = 0,
) -> GridResult:
    """The paper's grid search over learning rate and weight decay, on cached features.

    The choice is made on a tenth of the training images, of images in groups, such as patients, on whole
    groups; test images never take part in it.

    Raises:
        ValueError: if there are too few images to hold a tenth out, features are not finite, or no setting
            converged.
    """
    check_finite(test_features)
    if len(labels) < 20:
        raise ValueError(f"a grid search needs at least 20 labelled images, got {len(labels)}")
    classes = int(labels.max()) + 1
    grid = [(lr, decay) for decay in weight_decays for lr in lrs]
    held, kept = _tenth(len(labels), groups, chance.generator(seed, "linear held out"))
    train = train_linear(
        features[:, kept], labels[kept], classes,
        lrs=[lr for lr, _ in grid], weight_decays=[decay for _, decay in grid], protocol=protocol, seed=seed,
    )  # fmt: skip
    right = (train.predict(features[0, held]) == labels[held]).double().mean(1) * 100
    right[~(train.weight.isfinite().all((1, 2)))] = -1
    if not bool((right >= 0).any()):
        raise ValueError(
            "no setting of the grid converged; the features are too large for its learning rates"
        )
    best = int(right.argmax())
    lr, decay = grid[best]
    final = train_linear(
        features, labels, classes, lrs=[lr], weight_decays=[decay], protocol=protocol, seed=seed
    )
    top1 = 100 * (final.predict(test_features)[0] == test_labels).double().mean().item()
    table = [(*setting, round(value, 3)) for setting, value in zip(grid, right.tolist(), strict=True)]
    return GridResult(lr, decay, round(top1, 3), table)


def _tenth(count: int, groups: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random tenth of so many images, and the others; of images in groups, whole groups."""
    if groups is None:
        order = torch.randperm(count, generator=generator)
        return order[: count // 10], order[count // 10 :]
    _, number, sizes = groups.unique(return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        return _tenth(count, None, generator)
    held = torch.zeros(len(sizes), dtype=torch.bool)
    left = count // 10
    for group in torch.randperm(len(sizes), generator=generator).tolist():
        if sizes[group] <= left:
            held[group] = True
            left -= int(sizes[group])
    if not held.any():
        held[sizes.argmin()] = True
    return held[number].nonzero()[:, 0], (~held)[number].nonzero()[:, 0]


def linear_protocol(
    encoder: Encoder,
    train: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
    test: Labelled,
    classes: int,
    *,
    protocol: LinearProtocol = LinearProtocol(),
    seed: int = 0,
) -> Iterator[dict[str, float]]:
    """The paper's linear classification to the letter: a classifier on the frozen trunk's pooled features.

    The trunk stays in evaluation mode; that none of its tensors moved is checked at the end.

    Args:
        encoder: its trunk is measured.
        train: epoch to batches of randomly cropped and mirrored images and their classes.
        test: images cropped centrally, once.
        classes: C.
        protocol: see `LinearProtocol`.
        seed: keys the initial weights.

    Yields:
        After every epoch: epoch, mean loss, and top-1 and top-5 accuracy on the test images in percent.

    Raises:
        AssertionError: if the trunk was changed, which only a fault of this package could do.

    Source: MoCo, Section 4.1; released code `main_lincls.py`.
    """
    encoder.eval()
    before = {name: tensor.clone() for name, tensor in encoder.trunk.state_dict().items()}
    with torch.no_grad():
        tested = torch.cat([encoder.features(images).float() for images in test.batches()])
    check_finite(tested)
    device = tested.device
    fc = nn.Linear(tested.shape[1], classes)
    with torch.no_grad():
        fc.weight.copy_(
            torch.randn(fc.weight.shape, generator=chance.generator(seed, "linear weights")) * 0.01
        )
        fc.bias.zero_()
    fc.to(device)
    optimizer = torch.optim.SGD(
        fc.parameters(), protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay
    )
    for epoch in range(protocol.epochs):
        for group in optimizer.param_groups:
            group["lr"] = protocol.rate(epoch)
        total, seen = torch.zeros((), device=device), 0
        for images, labels in train(epoch):
            with torch.no_grad():
                features = encoder.features(images).float()
            loss = F.cross_entropy(fc(features), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total, seen = total + loss.detach() * len(labels), seen + len(labels)
        with torch.no_grad():
            top1, top5 = top_accuracy(fc(tested), test.labels.to(device))
        yield {"epoch": epoch + 1, "loss": round(float(total) / seen, 6), "top1": top1, "top5": top5}
    for name, tensor in encoder.trunk.state_dict().items():
        assert torch.equal(tensor, before[name]), f"the probe changed {name} of the trunk"


def top_accuracy(logits: Float[Tensor, "M C"], labels: Int[Tensor, " M"]) -> tuple[float, float]:
    """Shares of images whose class is the first, and among the first five, in percent."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best == labels[:, None]
    share = 100 / len(labels)
    return round(share * int(hits[:, 0].sum()), 3), round(share * int(hits.any(1).sum()), 3)
