"""Training a trunk with labels: fine-tuning of a pre-trained one, and the supervised counterpart."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moco import chance
from moco.evaluate.knn import Labelled
from moco.evaluate.linear import top_accuracy


@dataclass(frozen=True)
class FineTuning:
    """How trunk and classifier are trained together."""

    lr: float = 0.03
    """Learning rate of a batch of 256; another batch scales it linearly."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    epochs: int = 100
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] = (0.7, 0.9)
    """With "step": shares of the training at which the learning rate is multiplied by 0.1."""
    batch: int = 256

    def __post_init__(self):
        if not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        for name in "epochs", "batch":
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def rate(self, done: float) -> float:
        """The learning rate after a share of the training, in [0, 1)."""
        top = self.lr * self.batch / 256
        if self.schedule == "cosine":
            return top * (1 + math.cos(math.pi * done)) / 2
        return top * 0.1 ** sum(done >= m for m in self.milestones)


INATURALIST = FineTuning(lr=0.025)
"""MoCo, Appendix A.6: 100 epochs, ×0.1 at 70 and 90 %; 0.1 from random initialisation."""
IMAGENET = FineTuning(lr=0.03, epochs=90, milestones=(1 / 3, 2 / 3))
"""MoCo, Appendix A.7: 0.03 from MoCo, 0.1 from random initialisation. The paper does not state the
epochs; these are the usual 90, with steps at 30 and 60."""
SUPERVISED = FineTuning(lr=0.1, epochs=90, milestones=(1 / 3, 2 / 3))
"""The usual supervised training of a ResNet on ImageNet."""
PROTOCOLS = {"inaturalist": INATURALIST, "imagenet": IMAGENET, "supervised": SUPERVISED}


class Classifier(nn.Module):
    """A trunk with a fully connected layer on its features: images to logits (N, classes)."""

    def __init__(self, trunk: nn.Module, features: int, classes: int, *, seed: int = 0):
        super().__init__()
        self.trunk = trunk
        self.fc = nn.Linear(features, classes)
        start = torch.randn(classes, features, generator=chance.generator(seed, "classifier weights"))
        with torch.no_grad():
            self.fc.weight.copy_(start * 0.01)
            self.fc.bias.zero_()

    def forward(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N classes"]:
        return self.fc(self.trunk(images).float())


@runtime_checkable
class Keeper(Protocol):
    """Where the state of a training is kept between epochs."""

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Keep the state after an epoch."""

    def load(self, device: torch.device) -> tuple[int, dict[str, Any]] | None:
        """The newest state kept, and the epoch after which it was."""


def train_classifier(
    net: Classifier,
    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
    steps: int,
    test: Labelled | None,
    protocol: FineTuning,
    *,
    keeper: Keeper | None = None,
    seed: int = 0,
) -> Iterator[dict[str, float]]:
    """Train trunk and classifier end to end.

    Args:
        net: changed in place; in training mode while it learns.
        batches: epoch to batches of images and classes, a function of the epoch alone.
        steps: batches of an epoch.
        test: measured after every epoch; None measures nothing.
        protocol: see `FineTuning`.
        keeper: goes on from its newest state, and keeps one after every epoch; the end is then that
            of an undisturbed training.
        seed: keys what the network itself draws, such as dropout.

    Yields:
        After every epoch: epoch, mean loss, lr, and top-1 and top-5 accuracy on the test images in
        percent.

    Raises:
        FloatingPointError: if the loss stops being finite.

    Source: MoCo, Appendix A.6 and A.7.
    """
    device = net.fc.weight.device
    optimizer = torch.optim.SGD(
        net.parameters(), protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay
    )
    done = 0
    if keeper is not None and (found := keeper.load(device)) is not None:
        done, state = found
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
    for epoch in range(done, protocol.epochs):
        net.train()
        total, seen, rate = torch.zeros((), device=device), 0, 0.0
        for place, (images, labels) in enumerate(batches(epoch)):
            rate = protocol.rate((epoch + place / steps) / protocol.epochs)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(chance.generator(seed, "classifier", epoch * steps + place).initial_seed())
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total, seen = total + loss.detach() * len(labels), seen + len(labels)
        mean = float(total) / max(1, seen)
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss of epoch {epoch + 1} is not finite; lower lr, now {rate:.4g}")
        row = {"epoch": epoch + 1, "loss": round(mean, 6), "lr": rate}
        if test is not None:
            row["top1"], row["top5"] = top_accuracy(predict(net, test), test.labels)
        yield row
        if keeper is not None:  # after the row was taken, so that none is missing after a kill
            keeper.save(epoch + 1, {"net": net.state_dict(), "optimizer": optimizer.state_dict()})


@torch.no_grad()
def predict(net: Classifier, images: Labelled) -> Float[Tensor, "M classes"]:
    """Logits of images in evaluation mode, on the CPU."""
    net.eval()
    return torch.cat([net(batch).float().cpu() for batch in images.batches()])
