"""Batch normalisation while fine-tuning: trained, synchronised, and measured precisely before evaluation.

Source: MoCo, Section 4.2: batch normalisation is tuned and synchronised across GPUs, in new layers too.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from moco.world import World

Norm = Literal["synced", "frozen"]


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the statistics of all processes, on any backend, with gradients through them.

    Processes may hold different numbers of pixels; the result is that of one process with all of them.

    Args:
        features: channels.
        world: the processes.

    *Deviation:* the released configuration averages the statistics of GPUs of equal weight, which is
    the same where they hold equally many pixels.
    """

    def __init__(self, features: int, world: World, **options: Any):
        super().__init__(features, **options)
        self.world = world

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.world.size == 1:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        count = x.new_tensor([x.numel() // x.shape[1]])
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        gathered = self.world.gather(torch.cat([mean, variance, count])[None])  # one collective per layer
        means, variances, counts = gathered.split([len(mean), len(mean), 1], dim=1)
        shares, total = counts / counts.sum(), counts.sum()
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)
        with torch.no_grad():
            rate = self.momentum if self.momentum is not None else 1 / (float(self.num_batches_tracked) + 1)
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance * total / (total - 1), rate)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


def set_norm(module: nn.Module, kind: Norm, world: World) -> nn.Module:
    """Replace every batch normalisation inside a module, keeping its state, in place.

    Args:
        module: a trunk.
        kind: "synced" trains it over all processes; "frozen" makes it a fixed scale and shift.
        world: the processes.
    """
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            set_norm(child, kind, world)
            continue
        new: nn.Module
        if kind == "frozen":
            new = FrozenBatchNorm2d(child.num_features, eps=child.eps)
        else:
            new = SyncedBatchNorm2d(child.num_features, world, eps=child.eps, momentum=child.momentum)
        state = child.state_dict()
        if kind == "frozen":
            state.pop("num_batches_tracked")
        new.load_state_dict(state)
        setattr(module, name, new)
    return module


@torch.no_grad()
def measure_precisely(
    model: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any], world: World
) -> None:
    """Set running statistics to those of the final weights: means over many training batches.

    Args:
        model: its batch normalisations are measured; all else stays as it is.
        batches: 200 in the paper's stack.
        run: passes a batch through the model as in training.
        world: the processes, which may each see other batches.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    sums = [torch.zeros(2, norm.num_features, device=norm.weight.device) for norm in norms]
    was_training, count = model.training, 0
    model.train()
    for norm in norms:
        norm.momentum = 1.0  # running statistics become those of the batch
    for batch in batches:
        run(batch)
        count += 1
        for norm, total in zip(norms, sums, strict=True):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            total += torch.stack([norm.running_mean, norm.running_var + norm.running_mean.square()])
    for norm, momentum, total in zip(norms, momenta, sums, strict=True):
        norm.momentum = momentum
        if not count:
            continue
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, square = world.gather((total / count)[None]).mean(0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((square - mean.square()).clamp(min=0))
    model.train(was_training)


def new_norm(world: World) -> Callable[[int], nn.Module]:
    """A factory of trained, synchronised normalisations for new layers."""

    def make(features: int) -> nn.Module:
        return SyncedBatchNorm2d(features, world)

    return make


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters for an optimiser: weight decay on all but the scales and shifts of normalisation.

    Source: the paper's detection stack (decay 1e-4, 0 on normalisation).
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    free = {id(p) for norm in norms for p in norm.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in free], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in free], "weight_decay": 0.0},
    ]
