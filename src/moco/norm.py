"""Batch normalisation by groups: the statistics of an n-GPU run, on any number of processes.

The paper's batch normalisation sees the 32 images of one GPU at a time. Here that number is a
property of the layer, so one process with eight groups computes what eight processes with one
group each compute, and the shuffled keys of Section 3.3 have groups to be shuffled between.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from moco.world import World


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose training statistics cover `group_size` consecutive images each.

    Running statistics move by the mean over the groups, so evaluation is that of one
    `nn.BatchNorm2d` and the state dict has the same keys. Works on slices in either memory
    format without copying them.

    Args:
        features: channels.
        group_size: images per group (32 in the paper); None takes the whole batch as one group, over all
            processes once `synchronise` has been told of them.

    Raises:
        ValueError: if the group size is below 1, or, in training, a batch is no whole number of groups.

    Source: MoCo, Section 3.3 "Shuffling BN"; the released code's per-GPU batch normalisation.
    """

    def __init__(self, features: int, group_size: int | None = None, **options):
        super().__init__(features, **options)
        if group_size is not None and group_size < 1:
            raise ValueError(f"group_size must be at least 1 image, got {group_size}")
        self.group_size: int | None = group_size
        self.world: World | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.world is not None:
            return self._over_processes(x, self.world)
        if not self.training or self.group_size is None or len(x) == self.group_size:
            return super().forward(x)
        if len(x) % self.group_size:
            raise ValueError(
                f"a batch of {len(x)} images does not divide into groups of {self.group_size}; "
                "make the batch a multiple of the group size"
            )
        groups = len(x) // self.group_size
        if torch.compiler.is_compiling():
            return self._in_plain_operations(x, groups)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        weight = self.weight if self.affine else torch.ones_like(self.running_mean)
        bias = self.bias if self.affine else torch.zeros_like(self.running_mean)
        means = self.running_mean.repeat(groups, 1)
        variances = self.running_var.repeat(groups, 1)
        y = _NormaliseGroups.apply(
            x, weight, bias, means, variances, self.group_size, self.momentum, self.eps
        )
        with torch.no_grad():
            self.running_mean.copy_(means.mean(0))
            self.running_var.copy_(variances.mean(0))
            self.num_batches_tracked.add_(1)
        return y

    def _in_plain_operations(self, x: Tensor, groups: int) -> Tensor:
        """The same in operations that torch.compile fuses with those around them."""
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        parts = wide.unflatten(0, (groups, -1))
        variance, mean = torch.var_mean(parts, (1, 3, 4), correction=0, keepdim=True)
        y = self._scaled(parts, mean, variance)
        self._remember(mean.flatten(1).mean(0), variance.flatten(1).mean(0), parts[0, :, 0].numel())
        return y.flatten(0, 1).to(x.dtype)

    @torch.compiler.disable
    def _over_processes(self, x: Tensor, world: World) -> Tensor:
        """Normalised by the statistics of the global batch; gradients cross the processes, too.

        The variance of a whole is the mean of its parts' variances plus the variance of their means.
        """
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        means, variances = world.gather(torch.stack([mean, variance])[None]).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        y = self._scaled(wide, mean.view(1, -1, 1, 1), variance.view(1, -1, 1, 1))
        self._remember(mean, variance, world.size * x[:, 0].numel())
        return y.to(x.dtype)

    def _scaled(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        y = (x - mean) * (variance + self.eps).rsqrt()
        return y * self.weight[:, None, None] + self.bias[:, None, None] if self.affine else y

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics, whose variance is that of a sample of `count` values."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(
            variance.to(self.running_var.dtype) * (count / max(count - 1, 1)), self.momentum
        )
        self.num_batches_tracked.add_(1)


class GroupedBatchNorm1d(GroupedBatchNorm2d):
    """The same for vectors (N, C), as between the layers of a head; its state dict is `nn.BatchNorm1d`'s.

    Args: those of `GroupedBatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :, None, None])[:, :, 0, 0]


def synchronise(modules: Iterable[nn.Module], world: World) -> None:
    """Let batch normalisations without groups see the global batch of several processes (SyncBN).

    Raises:
        ValueError: if there is a variant, such as timm's BatchNormAct2d, that would see one process's share.
    """
    if world.size == 1:
        return
    for norm in (m for module in modules for m in module.modules() if isinstance(m, _BatchNorm)):
        if not isinstance(norm, GroupedBatchNorm2d):
            raise ValueError(
                f"{type(norm).__name__} normalises the share of one process; start one process for this "
                "architecture"
            )
        norm.world = world if norm.group_size is None else None


class _NormaliseGroups(torch.autograd.Function):
    """`native_batch_norm` on each group, written straight into its slice of one output."""

    @staticmethod
    def forward(ctx, x, weight, bias, means, variances, group_size, momentum, eps):
        y = torch.empty_like(x)
        saved = [(torch.empty_like(weight), torch.empty_like(weight)) for _ in means]
        for group, out, mean, variance, stats in zip(
            x.split(group_size), y.split(group_size), means, variances, saved, strict=True
        ):
            torch.native_batch_norm(
                group, weight, bias, mean, variance, True, momentum, eps, out=(out, *stats)
            )
        ctx.save_for_backward(x, weight)
        ctx.stats, ctx.group_size, ctx.eps = saved, group_size, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, weight = ctx.saved_tensors
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        grad_y = grad_y.contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        grad_x = torch.empty_like(x)
        grads = torch.zeros(2, len(ctx.stats), len(weight), dtype=weight.dtype, device=weight.device)
        for i, (group, grad, out) in enumerate(
            zip(
                x.split(ctx.group_size),
                grad_y.split(ctx.group_size),
                grad_x.split(ctx.group_size),
                strict=True,
            )
        ):
            torch.ops.aten.native_batch_norm_backward.out(
                grad, group, weight, None, None, *ctx.stats[i], True, ctx.eps, [True, True, True],
                out0=out, out1=grads[0, i], out2=grads[1, i],
            )  # fmt: skip
        grad_weight, grad_bias = grads.sum(1)
        return grad_x, grad_weight, grad_bias, None, None, None, None, None


class PartsAsOne:
    """Makes several forward passes, of equal parts of a batch, one update of the running statistics.

    Args:
        module: its batch normalisations are watched from here on.
    """

    def __init__(self, module: nn.Module):
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        self.buffers = [b for n in norms for b in (n.running_mean, n.running_var) if b is not None]
        self.counts = [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None]
        self.before = [buffer.clone() for buffer in self.buffers]
        self.sums = [torch.zeros_like(buffer) for buffer in self.buffers]
        self.parts = 0

    def part(self) -> None:
        """A part has passed: keep what it made of the statistics and put back those from before."""
        self.parts += 1
        for buffer, before, total in zip(self.buffers, self.before, self.sums, strict=True):
            total.add_(buffer)
            buffer.copy_(before)

    def finish(self) -> None:
        """All parts have passed: the statistics become the mean over the parts."""
        for buffer, total in zip(self.buffers, self.sums, strict=True):
            buffer.copy_(total / self.parts)
        for count in self.counts:
            count.sub_(self.parts - 1)


@torch.no_grad()
def average_statistics(modules: Iterable[nn.Module], world: World) -> None:
    """Make the running statistics those of the groups of all processes.

    They enter no training step, but checkpoints and measurements hold what one process would. Done
    at every step, so that a checkpoint out of turn changes no bit of what follows.
    """
    if world.size == 1:
        return
    norms = [m for module in modules for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    buffers = [b for n in norms for b in (n.running_mean, n.running_var) if b is not None]
    if not buffers:
        return
    means = world.mean(torch.cat([b.flatten() for b in buffers]), "batch-normalisation statistics")
    torch._foreach_copy_(buffers, list(means.split([b.numel() for b in buffers])))


def group_batch_norm(module: nn.Module, group_size: int | None) -> nn.Module:
    """Replace every `nn.BatchNorm2d` inside a module by a grouped one with the same state, in place.

    Raises:
        ValueError: if there is a variant of it that cannot be replaced, such as timm's BatchNormAct2d.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and type(child) is not nn.BatchNorm2d and group_size is not None:
            raise ValueError(
                f"{type(child).__name__} does not take batch-normalisation groups; "
                "set encoder.bn_group None and turn keys.shuffle off for this architecture"
            )
        if type(child) is nn.BatchNorm2d:
            grouped = GroupedBatchNorm2d(
                child.num_features, group_size, eps=child.eps, momentum=child.momentum
            )
            grouped.load_state_dict(child.state_dict())
            setattr(module, name, grouped)
        else:
            group_batch_norm(child, group_size)
    return module
