"""Stochastic gradient descent for networks in channels-last order on CPUs."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.sgd import sgd


class SGD(torch.optim.SGD):
    """`torch.optim.SGD`, fused, whatever order the parameters have in memory; state files are the same.

    torch's fused form for CPUs walks through memory. It copies every gradient that is not in
    channels-first order and throws the copy away, and where a gradient or momentum buffer has
    another order than its parameter it adds the wrong numbers to each other. Here it is given all
    three in the parameter's order.

    Args: those of `torch.optim.SGD`.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            buffers: list[Tensor | None] = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                order = sorted(range(p.dim()), key=p.stride, reverse=True)
                parameters.append(p.detach().permute(order))
                gradients.append(p.grad.permute(order).contiguous())
                if group["momentum"]:
                    buffers.append(self._buffer(p, order))
            sgd(
                parameters, gradients, buffers, lr=group["lr"], momentum=group["momentum"],
                weight_decay=group["weight_decay"], dampening=group["dampening"],
                nesterov=group["nesterov"], maximize=group["maximize"], fused=True,
            )  # fmt: skip
        return loss

    def _buffer(self, p: Tensor, order: list[int]) -> Tensor:
        """A parameter's momentum buffer in this order of dimensions; zeros before its first gradient."""
        state = self.state[p]
        buffer = state.get("momentum_buffer")
        if buffer is None:
            buffer = state["momentum_buffer"] = torch.zeros_like(p)
        elif not buffer.permute(order).is_contiguous():
            buffer = state["momentum_buffer"] = torch.empty_like(p).copy_(buffer)
        return buffer.permute(order)
