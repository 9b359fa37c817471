"""Each fused kernel against its torch form: through Triton's interpreter, compiled where there is a GPU."""

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("triton")

from moco import kernels, loss
from moco.build import build, resolve
from moco.data.augmentation import SMALL, V1, V2, V3
from moco.data.fused import FusedViews
from moco.data.loader import Loader
from moco.data.source import ArraySource
from moco.data.views import Views
from moco.encoder import trunk
from moco.kernels import groups
from moco.kernels import info_nce as fused_loss
from moco.kernels import views as fused_views
from moco.kernels.norm import FusedBatchNorm2d, FusedBlock, fuse
from moco.kernels.update import flat, learn_and_follow
from moco.loss import Entries
from moco.norm import GroupedBatchNorm2d
from moco.training.checkpoint import Checkpoints
from moco.training.step import step
from moco.world import Solo
from tiny import tiny_data, tiny_recipe


def version(package) -> tuple[int, ...]:
    return tuple(int(part) for part in package.__version__.split(".")[:2])


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
pytestmark = [
    *([] if INTERPRETED else [pytest.mark.gpu]),
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        INTERPRETED and version(sys.modules["triton"]) < (3, 7) and version(np) >= (2, 4),
        reason="this Triton's interpreter converts arrays as numpy no longer allows; numpy<2.4 goes with it",
    ),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning:triton.runtime.interpreter"),
]
BF16_STEP = 2**-7  # of bfloat16 near 1; the interpreter cuts where a GPU rounds


@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradient_equal_double_precision(unit, masked):
    q, p, d = (unit(*shape, seed=i) for i, shape in enumerate([(70, 20), (70, 20), (150, 20)]))
    p[:60] = F.normalize(q[:60] + 0.3 * p[:60], dim=1)  # most are right
    own = (torch.arange(70), torch.randint(-1, 70, (150,))) if masked else (None, None)
    a = q.clone().requires_grad_()
    expected = loss.info_nce(a, Entries(p, d, *own), 0.07)
    (3 * expected.loss).backward()
    b = q.float().to(DEVICE).requires_grad_()
    on_device = (p.float().to(DEVICE), d.float().to(DEVICE), *(o if o is None else o.to(DEVICE) for o in own))
    found = fused_loss.info_nce(b, Entries(*on_device), 0.07)
    (3 * found.loss).backward()
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=3e-6)
    assert found.accuracy.item() == pytest.approx(expected.accuracy.item())
    assert 0.5 < found.accuracy.item() < 1
    torch.testing.assert_close(b.grad.double().cpu(), a.grad, atol=3e-7, rtol=0)


def test_query_whose_negatives_are_all_its_own_image_costs_nothing(unit):
    q = unit(2, 8, dtype=torch.float32).to(DEVICE).requires_grad_()
    own = torch.tensor([7, 8], device=DEVICE)
    d = unit(40, 8, dtype=torch.float32, seed=1).to(DEVICE)
    found = fused_loss.info_nce(q, Entries(q.detach(), d, own, own.new_full((40,), 7)), 0.1)
    expected = loss.info_nce(q[1:], Entries(q.detach()[1:], d), 0.1)
    assert 2 * found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)


def test_loss_of_keys_that_learn_is_torchs(unit):
    q, k = unit(6, 8).requires_grad_(), unit(6, 8, seed=1).requires_grad_()
    entries = Entries(k, k, torch.arange(6), torch.arange(6))
    ours = torch.autograd.grad(fused_loss.info_nce(q, entries, 0.2).loss, (q, k))
    theirs = torch.autograd.grad(loss.info_nce(q, entries, 0.2).loss, (q, k))
    assert all(map(torch.equal, ours, theirs))
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0\.0"):
        fused_loss.info_nce(q, entries, 0.0)


def mixed(p, settings):
    """Whether some of the views are mirrored, changed in colour, grey, blurred or solarized, and some not."""
    chosen = (
        p.flip,
        p.grayscale,
        *([] if p.jitter.all() else [p.jitter]),
        *([p.blur] if p.blur.any() else []),
        *([p.solarize] if settings.second_solarize_probability else []),
    )
    return all(0 < c.sum() < len(c) for c in chosen)


@pytest.mark.parametrize(
    ("settings", "shape", "whole"),
    [
        (dataclasses.replace(SMALL, size=16), (16, 16), 4096),
        (dataclasses.replace(V1, size=12), (30, 41), 4096),
        (dataclasses.replace(V2, size=15), (17, 19), 4096),
        (dataclasses.replace(V2, size=12), (20, 31), 128),
        (dataclasses.replace(V3, size=12, second_blur_probability=0.5), (20, 31), 4096),
        (dataclasses.replace(V3, size=12, second_blur_probability=0.5), (20, 31), 128),
    ],
    ids=["small", "v1", "v2", "v2 in tiles", "v3", "v3 in tiles"],
)
def test_views_equal_torchs_from_the_same_parameters(monkeypatch, settings, shape, whole):
    monkeypatch.setattr(fused_views, "_WHOLE", whole)
    monkeypatch.setattr(fused_views, "_TILE", 128)
    views, generator = Views(settings), torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, 3, *shape), dtype=torch.uint8, generator=generator)
    index = torch.randperm(30, generator=generator)[:4]
    parameters = next(
        p for p in (views.draw(3, e, index.numpy(), 1) for e in range(999)) if mixed(p, settings)
    )
    expected = views.photometry(views.geometry(views.unit(pixels[index]), parameters), parameters)
    found = FusedViews(views).of_pixels(pixels.to(DEVICE), index.to(DEVICE), parameters)
    torch.testing.assert_close(found.cpu(), expected, atol=2e-5, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_colours_of_crops_made_elsewhere_are_torchs(dtype):
    views = Views(dataclasses.replace(V2, size=9))
    crops = torch.randint(0, 256, (4, 3, 9, 9), dtype=torch.uint8)
    crops = crops if dtype == torch.uint8 else crops / 255
    parameters = views.draw(1, 2, torch.arange(4).numpy(), 0)
    unit = views.unit(crops) if dtype == torch.uint8 else crops.clone()
    expected = views.photometry(unit, parameters)
    found = FusedViews(views, torch.bfloat16).of_crops(crops.to(DEVICE), parameters)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.cpu().float(), expected, atol=1e-5, rtol=BF16_STEP)


def test_impossible_views_are_refused():
    views = Views(dataclasses.replace(SMALL, size=8))
    parameters = views.draw(0, 0, torch.arange(2).numpy(), 0)
    with pytest.raises(ValueError, match="images of 3 channels, got 1"):
        FusedViews(views).of_crops(torch.zeros(2, 1, 8, 8), parameters)
    with pytest.raises(ValueError, match="must have 8 pixels a side"):
        FusedViews(views).of_crops(torch.zeros(2, 3, 8, 9), parameters)


def test_loader_takes_fused_views():
    pixels = torch.randint(0, 256, (12, 3, 10, 10), dtype=torch.uint8)
    views = Views(dataclasses.replace(SMALL, size=8))
    plain = Loader(ArraySource(pixels), views, 4).batch(1)
    fused = Loader(ArraySource(pixels), views, 4, device=DEVICE, fused=FusedViews(views)).batch(1)
    for a, b in zip(plain.views, fused.views, strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=2e-5, rtol=0)
    assert torch.equal(plain.index, fused.index.cpu())


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_normalisation_and_gradients_equal_double_precision(monkeypatch, relu, residual):
    monkeypatch.setattr(groups, "_PROGRAMS", 4)  # several parts of a group, so that they are merged
    torch.manual_seed(0)
    plain = GroupedBatchNorm2d(5, 3)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    ours, plain = FusedBatchNorm2d(copy.deepcopy(plain), relu=relu).to(DEVICE), plain.double()
    x, other, gradient = (torch.randn(6, 5, 4, 6) for _ in range(3))
    x = 3 * x + 100  # far from zero
    a, b = (t.double().requires_grad_() for t in (x, other))
    expected = plain(a) + b if residual else plain(a)
    expected = F.relu(expected) if relu else expected
    expected.backward(gradient.double())
    c, d = (t.to(DEVICE).contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, other))
    found = ours(c, d if residual else None)
    found.backward(gradient.to(DEVICE))
    pairs = [
        (found, expected), (c.grad, a.grad), (ours.weight.grad, plain.weight.grad),
        (ours.bias.grad, plain.bias.grad), (ours.running_mean, plain.running_mean),
        (ours.running_var, plain.running_var), *([(d.grad, b.grad)] if residual else []),
    ]  # fmt: skip
    for one, two in pairs:
        torch.testing.assert_close(one.detach().cpu().double(), two.detach(), atol=1e-4, rtol=1e-5)
    assert ours.num_batches_tracked == 1
    expected = plain.eval()(a) + b
    expected = F.relu(expected) if relu else expected
    torch.testing.assert_close(ours.eval()(c, d).cpu().double(), expected, atol=1e-4, rtol=0)


def test_normalisation_of_half_precision_keeps_its_sums_in_single():
    torch.manual_seed(0)
    plain, x = GroupedBatchNorm2d(4, 2), torch.randn(4, 4, 3, 3).bfloat16()
    x = x.to(DEVICE).contiguous(memory_format=torch.channels_last).requires_grad_()
    ours = FusedBatchNorm2d(copy.deepcopy(plain), relu=True).to(DEVICE)
    found = ours(x)
    found.sum().backward()
    assert found.dtype == x.grad.dtype == torch.bfloat16
    expected = F.relu(plain(x.detach().cpu().float()))
    torch.testing.assert_close(found.detach().cpu().float(), expected, atol=1e-6, rtol=BF16_STEP)
    torch.testing.assert_close(ours.running_var.cpu(), plain.running_var, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="a batch of 3 images does not divide into groups of 2"):
        ours(x[:3])


@pytest.mark.parametrize("arch", ["resnet10", "resnet50"])
def test_fused_block_has_the_same_keys_and_values(monkeypatch, arch):
    monkeypatch.setattr(groups, "_PIXELS", 128)
    torch.manual_seed(0)
    plain = trunk(arch, width=4, stem="small2", bn_group=2)[0].layer2[:1]
    fused = copy.deepcopy(plain)
    assert fuse(fused) == 1
    x = torch.randn(4, 4 if arch == "resnet10" else 16, 4, 4)
    fused = fused.to(DEVICE, memory_format=torch.channels_last)
    assert list(plain.state_dict()) == list(fused.state_dict())
    expected, found = plain(x), fused(x.to(DEVICE))
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
    expected.square().sum().backward()
    found.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), fused.parameters(), strict=True):
        scale = a.grad.abs().max().item()
        torch.testing.assert_close(b.grad.cpu(), a.grad, atol=1e-3 * scale, rtol=1e-3, msg=name)
    assert isinstance(fused[0], FusedBlock)


def test_networks_of_other_libraries_stay_as_they_are():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert fuse(net) == 0
    assert type(net[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("nesterov", [False, True])
def test_update_is_sgd_and_then_follows(nesterov):
    torch.manual_seed(0)
    shapes = (40, 3, 3, 3), (700,), (7, 11)
    theta = [torch.randn(shape).to(DEVICE) for shape in shapes]
    theta[0] = theta[0].contiguous(memory_format=torch.channels_last)
    keys = [torch.randn_like(t) for t in theta]
    parameters, views = flat(theta)
    assert all(v.stride() == t.stride() and torch.equal(v, t) for v, t in zip(views, theta, strict=True))
    key_parameters, key_views = flat(keys)
    velocity = torch.zeros_like(parameters)
    learners = [nn.Parameter(t.clone()) for t in theta]
    sgd = torch.optim.SGD(learners, 0.1, momentum=0.9, weight_decay=1e-2, nesterov=nesterov)
    for _ in range(3):
        for p in learners:
            p.grad = torch.randn_like(p)
        gradients, _ = flat([p.grad for p in learners])
        sgd.step()
        torch._foreach_lerp_(keys, [p.detach() for p in learners], 1 - 0.99)
        learn_and_follow(
            parameters, gradients, velocity, key_parameters,
            lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=nesterov, keys_momentum=0.99,
        )  # fmt: skip
    for ours, expected in [*zip(views, learners, strict=True), *zip(key_views, keys, strict=True)]:
        torch.testing.assert_close(ours, expected.detach(), atol=2e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="four vectors of one length and type"):
        learn_and_follow(
            parameters, gradients[:-1], velocity, key_parameters,
            lr=0.1, momentum=0.9, weight_decay=0, keys_momentum=0.99,
        )  # fmt: skip


def test_run_with_kernels_equals_the_run_without(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "why_not", lambda _: None)
    monkeypatch.setattr(groups, "_PIXELS", 512)  # fewer programs, for the interpreter's sake
    losses, weights = [], []
    for choice in "torch", "triton":
        values = tiny_recipe(kernels=choice, precision="float32", batch=8)
        values = dataclasses.replace(values, encoder=dataclasses.replace(values.encoder, arch="resnet10"))
        data = tiny_data()
        values = resolve(values, data, DEVICE)
        run = build(values, data, Solo(), device=DEVICE, checkpoints=Checkpoints(tmp_path / choice))
        before = [p.detach().clone() for p in run.f_q.parameters()]
        losses.append([step(run, batch, run.world).loss.item() for batch in run.batches(0, 1)])
        learnt = [p.detach() - b for p, b in zip(run.f_q.parameters(), before, strict=True)]
        weights.append((list(run.f_q.state_dict()), torch.cat([change.cpu().flatten() for change in learnt])))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert weights[0][0] == weights[1][0]
    torch.testing.assert_close(
        weights[0][1], weights[1][1], atol=1e-3 * weights[0][1].abs().max().item(), rtol=0
    )


@pytest.mark.skipif(not INTERPRETED, reason="there is a GPU to ask")
def test_kernels_are_refused_without_their_device(tmp_path):
    data = tiny_data()
    values = resolve(tiny_recipe(kernels="triton"), data, DEVICE)
    with pytest.raises(ValueError, match=r"kernels triton cannot be used: they need a CUDA device.*cpu"):
        build(values, data, Solo(), device=DEVICE, checkpoints=Checkpoints(tmp_path))


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu_that_is_not_here():
    script = Path(__file__).parents[1] / "benchmarks" / "kernels.py"
    done = subprocess.run(
        [sys.executable, str(script), "compile", "90"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) >= 13
