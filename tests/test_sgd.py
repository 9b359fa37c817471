"""The optimizer against torch's plain loop, in whatever order numbers lie in memory."""

import copy

import pytest
import torch
from torch import nn

from moco.training.sgd import SGD

VALUES = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}


def pair(values=None, *, made=torch.channels_last):
    torch.manual_seed(0)
    ours = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)
    )
    plain = copy.deepcopy(ours)
    ours.to(memory_format=made)
    values = VALUES if values is None else values
    return (
        (ours, SGD(ours.parameters(), **values)),
        (plain, torch.optim.SGD(plain.parameters(), **values, foreach=False, fused=False)),
    )


def learn(net, optimizer, steps=3, seed=1, order=torch.preserve_format):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in net.parameters():
            gradient = torch.randn(p.shape, generator=generator)
            p.grad = torch.empty_like(p, memory_format=order).copy_(gradient)
        optimizer.step()


def same(a, b):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("made", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("gradients", [torch.preserve_format, torch.contiguous_format])
@pytest.mark.parametrize(
    "values", [VALUES, {"lr": 0.1}, {**VALUES, "nesterov": True}], ids=["momentum", "plain", "nesterov"]
)
def test_steps_are_those_of_torchs_loop(made, gradients, values):
    ours, plain = pair(values, made=made)
    learn(*ours, order=gradients)
    learn(*plain)
    same(ours[0], plain[0])


def test_state_moves_between_ours_and_torchs_whatever_its_order():
    ours, plain = pair()
    learn(*plain)
    ours[0].load_state_dict(plain[0].state_dict())
    ours[1].load_state_dict(copy.deepcopy(plain[1].state_dict()))  # channels first
    learn(*ours, seed=2)
    learn(*plain, seed=2)
    same(ours[0], plain[0])
    plain[1].load_state_dict(copy.deepcopy(ours[1].state_dict()))
    learn(*ours, seed=3)
    learn(*plain, seed=3)
    same(ours[0], plain[0])


def test_parameters_without_a_gradient_stay_and_may_get_one_later():
    ours, plain = pair({"lr": 0.1, "momentum": 0.9})
    for net, optimizer in ours, plain:
        before = net[0].weight.detach().clone()
        optimizer.zero_grad(set_to_none=True)
        net[1].weight.grad = torch.ones_like(net[1].weight)
        optimizer.step()
        assert torch.equal(net[0].weight, before)
        learn(net, optimizer)
    same(ours[0], plain[0])


def test_memory_of_gradients_in_the_order_of_their_parameters_is_not_copied():
    (net, optimizer), _ = pair()
    learn(net, optimizer)
    with torch.profiler.profile(acc_events=True) as profile:
        optimizer.step()
    assert not {"aten::clone", "aten::copy_"} & {event.key for event in profile.key_averages()}
