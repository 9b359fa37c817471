"""From values to descent: the optimizer, its learning rate at a step, and the momentum of f_k."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from moco import recipe
from moco.training import schedule
from moco.training.lars import LARS
from moco.training.sgd import SGD


def build_optimizer(
    values: recipe.Recipe, parameters: Iterable[Tensor], device: torch.device
) -> torch.optim.Optimizer:
    """The recipe's optimizer, in the form that is fastest on a device."""
    fused = device.type in ("cpu", "cuda")
    match values.optimizer:
        case recipe.SGD(lr, momentum, weight_decay, nesterov):
            kind = SGD if device.type == "cpu" else torch.optim.SGD
            return kind(
                parameters, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused
            )
        case recipe.LARS(lr, momentum, weight_decay, trust):
            return LARS(parameters, lr, momentum=momentum, weight_decay=weight_decay, trust=trust)
        case recipe.AdamW(lr, weight_decay, betas):
            return torch.optim.AdamW(parameters, lr, betas, weight_decay=weight_decay, fused=fused)


def learning_rate(values: recipe.Recipe, steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """The recipe's learning rate as a function of the step."""
    base = schedule.linear_scaling(values.optimizer.lr, values.batch)
    kind = values.schedule

    def rate(step: int) -> float:
        epoch = step // steps_per_epoch
        match kind:
            case recipe.Step(milestones, factor):
                decay = schedule.step_decay(epoch, milestones, factor)
            case recipe.Cosine(by_epoch=True, first_epoch=first):
                decay = schedule.cosine(min(1, (epoch + first) * steps_per_epoch / steps))
            case recipe.Cosine(after_warmup=True, warmup=warmup):
                before = warmup * steps_per_epoch
                decay = schedule.cosine(max(0, step - before) / max(1, steps - before))
            case recipe.Cosine():
                decay = schedule.cosine(step / steps)
            case recipe.Exponential(every, factor):
                decay = schedule.exponential(step, every, factor)
            case recipe.Constant():
                decay = 1.0
        return base * schedule.warm_up(step, kind.warmup * steps_per_epoch) * decay

    return rate


def momentum(values: recipe.Recipe, steps: int) -> Callable[[int], float] | None:
    """m with which f_k follows after a step, as a function of the step; None if it stays the same.

    The released code of v3 follows before a step instead of after it, so what it takes for the next
    step is taken here after this one.
    """
    match values.keys:
        case recipe.MomentumKeys(m, rising=True):
            return lambda step: schedule.rising(m, (step + 1) / steps)
    return None
