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
                inputs = [p, p.grad]
                if group["momentum"]:
                    inputs.append(self._buffer(p))
                if not all(x.is_contiguous() for x in inputs):
                    inputs = self._in_order(p, inputs)
                parameters.append(inputs[0])
                gradients.append(inputs[1])
                buffers += inputs[2:]
            sgd(
                parameters, gradients, buffers, lr=group["lr"], momentum=group["momentum"],
                weight_decay=group["weight_decay"], dampening=group["dampening"],
                nesterov=group["nesterov"], maximize=group["maximize"], fused=True,
            )  # fmt: skip
        return loss

    def _buffer(self, p: Tensor) -> Tensor:
        """A parameter's momentum buffer; zeros before its first gradient."""
        state = self.state[p]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]

    def _in_order(self, p: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        """Parameter, gradient and buffer with their dimensions in the order of the parameter's memory."""
        order = sorted(range(p.dim()), key=p.stride, reverse=True)
        p, gradient, *buffers = (x.permute(order) for x in inputs)
        if buffers and not buffers[0].is_contiguous():
            state = self.state[inputs[0]]
            state["momentum_buffer"] = torch.empty_like(inputs[0]).copy_(inputs[2])
            buffers = [state["momentum_buffer"].permute(order)]
        return [p, gradient.contiguous(), *buffers]
