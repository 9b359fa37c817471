"""Layer-wise adaptive rate scaling: SGD for very large batches."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose gradients are first scaled to a share of their weights' length.

    For a weight w of two or more dimensions with gradient g:
    d = g + weight_decay w; d ← d trust |w| / |d|, if both lengths are above zero. Biases and batch
    normalisation (one dimension) have d = g. Then v ← momentum v + d and w ← w − lr v.

    Args:
        params: parameters.
        lr: learning rate.
        momentum: of the scaled gradients.
        weight_decay: see above.
        trust: see above.

    Source: You et al. 2017; MoCo v3's released code for what is left out.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            moves = [p.grad for p in weights]
            scaled = [i for i, p in enumerate(weights) if p.dim() > 1]
            if scaled:
                w = [weights[i] for i in scaled]
                d = torch._foreach_add([moves[i] for i in scaled], w, alpha=group["weight_decay"])
                lengths, of_moves = torch.stack(torch._foreach_norm(w)), torch.stack(torch._foreach_norm(d))
                share = group["trust"] * lengths / of_moves
                share = torch.where((lengths > 0) & (of_moves > 0), share, 1.0)  # stays on the device
                torch._foreach_mul_(d, list(share.unbind()))
                for i, move in zip(scaled, d, strict=True):
                    moves[i] = move
            speeds = [self._speed(p) for p in weights]
            if speeds:
                torch._foreach_mul_(speeds, group["momentum"])
                torch._foreach_add_(speeds, moves)
                torch._foreach_add_(weights, speeds, alpha=-group["lr"])
        return loss

    def _speed(self, p: Tensor) -> Tensor:
        """A parameter's v; zeros before its first gradient."""
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]
