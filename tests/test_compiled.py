"""Compiled passes of the encoders: the same values, and nothing but training compiled."""

import copy
import shutil
from dataclasses import replace

import jaxtyping
import pytest
import torch
from torch import nn

from moco.encoder import Encoder
from moco.loss import Entries, info_nce
from moco.norm import GroupedBatchNorm2d
from moco.training.compiled import compile_passes
from moco.training.step import step
from tiny import RECIPE, tiny_encoder, tiny_recipe, tiny_run


@pytest.fixture(autouse=True)
def unchecked_shapes():
    """Checks of annotated shapes, which no run has, cannot be traced."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def traced(monkeypatch):
    """torch.compile traces and differentiates, but what it makes is run by torch's own operations.

    Nothing of a pass may be left out of the graph.
    """
    asked = []

    def compile(call, *, mode, dynamic):
        asked.append(mode)
        return original(call, backend="aot_eager", fullgraph=True, dynamic=dynamic)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile)
    return asked


@pytest.mark.usefixtures("traced")
def test_a_pass_in_one_graph_has_the_values_of_the_plain_one(unit):
    plain = tiny_encoder(dim=16, arch="resnet10").train()
    compiled = copy.deepcopy(plain)
    compiled.compile(mode="default", dynamic=False)
    x = torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=torch.channels_last)
    entries = Entries(unit(8, 16), unit(50, 16, seed=1))
    results = []
    for net in plain, compiled:
        q = net(x)
        info_nce(q, entries, 0.2).loss.backward()
        results.append([q.detach(), *(p.grad for p in net.parameters()), *net.buffers()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    assert list(plain.state_dict()) == list(compiled.state_dict())


@pytest.mark.usefixtures("traced")
def test_groups_under_the_compiler_are_the_groups():
    torch.manual_seed(0)
    plain = GroupedBatchNorm2d(5, 4, dtype=torch.float64)
    compiled = copy.deepcopy(plain)
    compiled.compile(mode="default", dynamic=False)
    x = torch.randn(12, 5, 3, 4, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    results = [norm(leaf) for norm, leaf in zip((plain, compiled), leaves, strict=True)]
    torch.testing.assert_close(*results)
    for result in results:
        (result * torch.arange(12)[:, None, None, None]).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    for a, b in zip(plain.buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def losses(run, start, stop):
    run.f_q.train(), run.keys.train()
    return [step(run, batch, run.world).loss.item() for batch in run.batches(start, stop)]


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"symmetric": True}])
def test_a_run_follows_the_plain_one_and_resumes_to_the_same_bits(traced, changes):
    values = tiny_recipe(encoder=replace(RECIPE.encoder, arch="resnet10"), **changes)
    plain = losses(tiny_run(values), 0, 4)
    assert not traced
    values = replace(values, compile="reduce-overhead")
    whole = losses(tiny_run(values), 0, 4)
    assert traced == ["reduce-overhead"] * 2  # f_q and f_k
    assert whole == pytest.approx(plain, rel=1e-3)
    first, second = tiny_run(values), tiny_run(values)
    begun = losses(first, 0, 2)
    second.restore(copy.deepcopy(first.state()), {})
    assert begun + losses(second, 2, 4) == whole


def test_measurements_are_not_compiled(monkeypatch):
    def refuse(*_):
        raise AssertionError("compiled code was called")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    run = tiny_run(tiny_recipe(compile="default"))
    assert any("torch.compile" in sentence for sentence in run.interpreter.introduction())
    assert dict(run.measure(run.f_q))
    with pytest.raises(AssertionError, match="compiled code"):
        losses(run, 0, 1)


def test_a_machine_without_a_compiler_is_told_so_before_a_run_begins(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ValueError, match=r"compile default cannot be used without a C\+\+ compiler"):
        tiny_run(tiny_recipe(compile="default"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiler_s_own_code_has_the_values_too(unit):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), GroupedBatchNorm2d(8, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    plain = Encoder(nn.Sequential(*layers), nn.Linear(8, 4)).train()
    compiled = copy.deepcopy(plain)
    compile_passes([compiled], "default")
    x, entries = torch.randn(8, 3, 9, 9), Entries(unit(8, 4).float(), unit(20, 4, seed=1).float())
    results = []
    for net in plain, compiled:
        contrast = info_nce(net(x), entries, 0.2)
        contrast.loss.backward()
        results.append([contrast.loss.detach(), *(p.grad for p in net.parameters()), *net.buffers()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
