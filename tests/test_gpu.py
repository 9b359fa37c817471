"""The same laws on a CUDA device; the CPU tests prove each rule, these that the device keeps it."""

from pathlib import Path

import jaxtyping
import pytest
import torch

from moco.build import build, resolve
from moco.loss import Entries, info_nce
from moco.norm import GroupedBatchNorm2d
from moco.training.checkpoint import Checkpoints
from moco.training.step import step
from moco.world import Solo
from tiny import tiny_data, tiny_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_streamed_loss_equals_the_cpu(unit):
    values = []
    for device in "cpu", "cuda":
        q, p, d = (unit(*s, seed=i).to(device) for i, s in enumerate([(32, 16), (32, 16), (5000, 16)]))
        q.requires_grad_()
        contrast = info_nce(q, Entries(p, d), 0.07)
        contrast.loss.backward()
        values.append((contrast.loss.detach().cpu(), contrast.accuracy.cpu(), q.grad.cpu()))
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_grouped_statistics_equal_the_cpu(memory_format):
    torch.manual_seed(0)
    x = torch.randn(12, 6, 5, 5, dtype=torch.float64).contiguous(memory_format=memory_format)
    gradient = torch.randn(12, 6, 5, 5, dtype=torch.float64)
    values = []
    for device in "cpu", "cuda":
        norm = GroupedBatchNorm2d(6, 4, dtype=torch.float64, device=device)
        leaf = x.to(device).requires_grad_()
        result = norm(leaf)
        result.backward(gradient.to(device))
        tensors = result.detach(), leaf.grad, norm.weight.grad, norm.bias.grad, norm.running_var
        values.append([tensor.cpu() for tensor in tensors])
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_run_on_the_device_follows_the_cpu(tmp_path, symmetric):
    losses = []
    for name in "cpu", "cuda":
        device, data = torch.device(name), tiny_data()
        values = resolve(tiny_recipe(symmetric=symmetric, precision="float32"), data, device)
        run = build(values, data, Solo(), device=device, checkpoints=Checkpoints(tmp_path / name))
        losses.append([step(run, batch, run.world).loss.item() for batch in run.batches(0, 6)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_reduced_precision_trains():
    device, data = torch.device("cuda"), tiny_data()
    values = resolve(tiny_recipe(precision="bfloat16"), data, device)
    run = build(values, data, Solo(), device=device, checkpoints=Checkpoints(Path("nowhere")))
    for batch in run.batches(0, 4):
        assert step(run, batch, run.world).loss.isfinite()


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"symmetric": True}])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_encoders_follow_the_plain_ones(tmp_path, mode, changes):
    """Graphs are recorded at the second call and replayed from the third on."""
    jaxtyping.config.update("jaxtyping_disable", True)  # such checks cannot be traced
    losses, device, data = [], torch.device("cuda"), tiny_data()
    for choice in "off", mode:
        torch.compiler.reset()
        values = resolve(tiny_recipe(compile=choice, precision="float32", **changes), data, device)
        run = build(values, data, Solo(), device=device, checkpoints=Checkpoints(tmp_path / choice))
        run.f_q.train(), run.keys.train()
        losses.append([step(run, batch, run.world).loss.item() for batch in run.batches(0, 6)])
    jaxtyping.config.update("jaxtyping_disable", False)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
