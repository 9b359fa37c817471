"""Batch normalisation of several processes is that of one with the joined batch; precise statistics."""

import subprocess
import sys
import threading

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from moco.encoder import trunk
from moco.transfer.norm import SyncedBatchNorm2d, measure_precisely, parameter_groups, set_norm
from moco.world import Solo


class Threads(Solo):
    """Processes made of threads that meet at every gathering."""

    def __init__(self, rank, meeting, table):
        self.place, self.meeting, self.table = rank, meeting, table

    @property
    def rank(self):
        return self.place

    @property
    def size(self):
        return len(self.table)

    def gather(self, x):
        return Gather.apply(x, self)

    def joined(self, x):
        self.table[self.place] = x.detach()
        self.meeting.wait(20)
        result = torch.cat(list(self.table))
        self.meeting.wait(20)
        return result


class Gather(torch.autograd.Function):
    """As `World.gather` has it: rows get the sum of what all processes ask of them."""

    @staticmethod
    def forward(ctx, x, world):
        ctx.world = world
        return world.joined(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.world.joined(grad[None]).sum(0).chunk(ctx.world.size)[ctx.world.rank], None


def together(count, work):
    """Run work(world) in `count` threads and return what each gave."""
    meeting, table, results = threading.Barrier(count), [None] * count, [None] * count

    def one(rank):
        results[rank] = work(Threads(rank, meeting, table))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def layer(world, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)  # not the global one, which the threads share
    norm = SyncedBatchNorm2d(3, world).to(dtype)
    nn.init.normal_(norm.weight, generator=generator)
    nn.init.normal_(norm.bias, generator=generator)
    return norm


@pytest.mark.parametrize("rows", [(4, 4), (1, 7), (3, 4, 1)])
def test_several_processes_normalise_as_one_with_gradients(rows):
    torch.manual_seed(1)
    whole = torch.randn(sum(rows), 3, 5, 4, dtype=torch.float64) * 3 + 10
    weights = torch.randn_like(whole)
    parts, part_weights = whole.split(rows), weights.split(rows)

    def work(world):
        norm, x = layer(world), parts[world.rank].clone().requires_grad_()
        y = norm(x)
        (y * part_weights[world.rank]).sum().backward()
        return y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var

    found = together(len(rows), work)
    one, x = layer(Solo()), whole.clone().requires_grad_()
    y = one(x)
    (y * weights).sum().backward()
    torch.testing.assert_close(torch.cat([f[0] for f in found]), y.detach())
    torch.testing.assert_close(torch.cat([f[1] for f in found]), x.grad)
    torch.testing.assert_close(sum(f[2] for f in found), one.weight.grad)
    torch.testing.assert_close(sum(f[3] for f in found), one.bias.grad)
    for mean, variance in ((f[4], f[5]) for f in found):
        torch.testing.assert_close(mean, one.running_mean)
        torch.testing.assert_close(variance, one.running_var)


def test_alone_or_evaluating_it_is_plain_batch_normalisation():
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    norm, plain = layer(Solo()), nn.BatchNorm2d(3).double()
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), plain(x))
    assert torch.equal(norm.eval()(x), plain.eval()(x))


GLOO = """
import sys, torch, torch.distributed as dist
from moco.processes import Processes
from moco.transfer.norm import SyncedBatchNorm2d

rank = int(sys.argv[1])
store = dist.FileStore(sys.argv[2], 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
torch.manual_seed(0)
whole = torch.randn(6, 3, 4, 4, dtype=torch.float64)
weights = torch.randn_like(whole)
x = whole[3 * rank : 3 * rank + 3].clone().requires_grad_()
norm = SyncedBatchNorm2d(3, Processes(store, 60)).double()
(norm(x) * weights[3 * rank : 3 * rank + 3]).sum().backward()
one, y = torch.nn.BatchNorm2d(3).double(), whole.clone().requires_grad_()
(one(y) * weights).sum().backward()
torch.testing.assert_close(x.grad, y.grad[3 * rank : 3 * rank + 3])
torch.testing.assert_close(norm.running_var, one.running_var)
dist.destroy_process_group()
print("equal")
"""


def test_two_gloo_processes_normalise_as_one(tmp_path):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", GLOO, str(rank), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for run in runs:
        out, errors = run.communicate(timeout=120)
        assert out.splitlines()[-1:] == ["equal"], errors[-2000:]  # torch 2.9's gloo counts its peers before


def test_precise_statistics_are_those_of_all_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), SyncedBatchNorm2d(4, Solo()))
    batches = [torch.randn(8, 3, 6, 6) * (1 + n) + n for n in range(5)]
    before = model[0].weight.clone()
    measure_precisely(model.eval(), batches, model, Solo())
    features = torch.cat([model[0](x) for x in batches])
    torch.testing.assert_close(model[1].running_mean, features.mean((0, 2, 3)).detach())
    variance = features.var((0, 2, 3)).detach()
    torch.testing.assert_close(model[1].running_var, variance, rtol=0.02, atol=0)
    assert (model[1].momentum, model.training) == (0.1, False)
    assert torch.equal(model[0].weight, before)


def test_frozen_normalisation_is_a_fixed_scale_without_training():
    net = trunk("resnet10", width=4)[0]
    with torch.no_grad():
        net.bn1.running_mean += 0.5
    x = torch.randn(2, 3, 32, 32)
    expected = net.eval()(x)
    state = net.state_dict()
    set_norm(net, "frozen", Solo())
    assert isinstance(net.bn1, FrozenBatchNorm2d)
    torch.testing.assert_close(net.train()(x), expected)
    decayed, free = parameter_groups(net, 1e-4)
    assert free["params"] == []
    assert len(decayed["params"]) == sum(
        key.endswith("weight") and value.ndim == 4 for key, value in state.items()
    )
