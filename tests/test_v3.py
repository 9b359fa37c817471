"""MoCo v3: its algorithm written out plainly, and the parts that v1 and v2 do without."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from moco import pretrain, recipe
from moco.build import build_encoder
from moco.data.augmentation import V3
from moco.descent import learning_rate, momentum
from moco.dictionary import InBatch
from moco.encoder import head
from moco.keys import MomentumKeys
from moco.loss import info_nce
from moco.recipes import get
from moco.training.lars import LARS
from moco.training.step import step
from moco.world import Solo
from test_run import StopAfter, assert_same_runs
from tiny import save_arrays, tiny_batch, tiny_encoder, tiny_recipe, tiny_run

WORLD = Solo()
STEPS, T, M = 6, 0.5, 0.9


def ctr(q, k):
    """Algorithm 1 of v3: 2 T times the cross-entropy of q k' / T with the diagonal."""
    return 2 * T * F.cross_entropy(q @ k.T / T, torch.arange(len(q)))


def by_hand(optimizer):
    """The released code: f_k follows first, with the m of this step; then queries, keys and both terms."""
    f_q = tiny_encoder(v3=True, bn_group=None)
    f_k = tiny_encoder(v3=True, bn_group=None)
    f_k.predictor = None
    descent = optimizer(f_q.parameters())
    losses = []
    for s in range(STEPS):
        x_1, x_2 = tiny_batch(step=s).views
        m = 1 - 0.5 * (1 + math.cos(math.pi * s / STEPS)) * (1 - M)
        with torch.no_grad():
            learnt = dict(f_q.named_parameters())
            for name, k in f_k.named_parameters():
                k.mul_(m).add_(learnt[name] * (1 - m))
        q_1, q_2 = f_q(x_1), f_q(x_2)
        with torch.no_grad():
            k_2, k_1 = f_k(x_2), f_k(x_1)
        loss = ctr(q_1, k_2) + ctr(q_2, k_1)
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.detach())
    return losses, f_q


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: LARS(p, 0.5, weight_decay=1e-3),
        lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1),
    ],
    ids=["LARS", "AdamW"],
)
def test_equals_algorithm_1_of_v3_in_the_released_order(optimizer):
    f_q = tiny_encoder(v3=True, bn_group=None)
    values = tiny_recipe(keys=recipe.MomentumKeys(M, rising=True))
    follow = momentum(values, STEPS)
    run = SimpleNamespace(
        f_q=f_q,
        keys=MomentumKeys(f_q, M, shuffle=False),
        dictionary=InBatch(),
        loss=lambda q, entries: info_nce(q, entries, T),
        optimizer=optimizer(f_q.parameters()),
        symmetric=True,
        accumulate=1,
        loss_weight=4 * T,
    )
    expected, learnt = by_hand(optimizer)
    for s in range(STEPS):
        run.keys.momentum = follow(s)
        ours = step(run, tiny_batch(step=s), WORLD).loss
        torch.testing.assert_close(4 * T * ours, expected[s])
    for a, b in zip(f_q.parameters(), learnt.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_only_queries_pass_the_predictor():
    f_q = tiny_encoder(v3=True)
    keys = MomentumKeys(f_q, 0.9)
    assert not [name for name, _ in keys.named_parameters() if "predictor" in name]
    before = {name: p.clone() for name, p in f_q.named_parameters()}
    with torch.no_grad():
        for p in f_q.parameters():
            p.add_(1)
    keys.follow(f_q)
    for name, p in keys.f_k.named_parameters():
        torch.testing.assert_close(p, before[name] + 0.1)
    x = tiny_batch().views[0]
    features = f_q.eval().features(x)
    torch.testing.assert_close(f_q(x), F.normalize(f_q.predictor(f_q.head(features))))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lars_scales_each_weight_and_leaves_biases(weight_decay):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in [(4, 3), (5,), (2, 3, 1, 1), (3, 3)]]
    with torch.no_grad():
        ours[3].zero_()  # a weight of length zero moves by its plain gradient
    plain = [p.detach().clone() for p in ours]
    speeds = [torch.zeros_like(p) for p in ours]
    optimizer = LARS(ours, 0.3, momentum=0.8, weight_decay=weight_decay, trust=0.01)
    for number in range(4):
        for p, w, v in zip(ours, plain, speeds, strict=True):
            p.grad = torch.randn(p.shape) if number != 2 else torch.zeros(p.shape)
            d = p.grad.clone()
            if w.dim() > 1:
                d += weight_decay * w
                if w.norm() > 0 and d.norm() > 0:
                    d *= 0.01 * w.norm() / d.norm()
            v.mul_(0.8).add_(d)
            w.sub_(0.3 * v)
        optimizer.step()
    for p, w in zip(ours, plain, strict=True):
        torch.testing.assert_close(p.detach(), w)


def test_the_heads_are_those_of_the_released_code():
    projection = head("mlp", 2048, 256, hidden=4096, norm="all")
    prediction = head("mlp", 256, 256, hidden=4096, norm="hidden")
    sizes = [tuple(p.shape) for p in projection.parameters()]
    assert sizes == [(4096, 2048), (4096,), (4096,), (256, 4096)]  # no bias; the last norm has no scale
    assert [tuple(p.shape) for p in prediction.parameters()] == [(4096, 256), (4096,), (4096,), (256, 4096)]
    assert [type(m).__name__ for m in projection] == [
        "Linear", "GroupedBatchNorm1d", "ReLU", "Linear", "GroupedBatchNorm1d",
    ]  # fmt: skip
    of_transformers = head("mlp", 384, 256, hidden=4096, layers=3, norm="all")
    assert [m.out_features for m in of_transformers if isinstance(m, torch.nn.Linear)] == [4096, 4096, 256]


@pytest.mark.parametrize("group", [None, 4])
def test_vectors_are_normalised_by_groups(group):
    torch.manual_seed(0)
    x = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    ours = head("mlp", 5, 3, norm="all", bn_group=group).double()[1]
    plain = torch.nn.BatchNorm1d(5).double()
    y = ours(x)
    expected = torch.cat([plain(part) for part in x.split(group or 12)])
    torch.testing.assert_close(y, expected)
    grads = [torch.autograd.grad((z * z.detach() ** 2).sum(), x)[0] for z in (y, expected)]
    torch.testing.assert_close(*grads)
    plain.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


def test_residual_blocks_may_begin_as_identities():
    net = build_encoder(dataclasses.replace(get("v3"), batch=8, precision="float32"), 3).trunk
    blocks = [m for m in net.modules() if hasattr(m, "bn3")]
    assert len(blocks) == 16
    assert not any(block.bn3.weight.any() for block in blocks)
    assert all(block.bn2.weight.all() for block in blocks)
    values = tiny_recipe(
        encoder=recipe.Encoder(arch="torchvision/shufflenet_v2_x0_5", bn_group=None, zero_residual=True),
        keys=recipe.MomentumKeys(shuffle=False),
    )
    with pytest.raises(ValueError, match=r"encoder\.zero_residual needs a ResNet"):
        build_encoder(values, 3)


def test_learning_rate_and_momentum_are_the_released_ones():
    values, per_epoch = get("v3"), 7
    steps = values.epochs * per_epoch
    rate, follow = learning_rate(values, steps, per_epoch), momentum(values, steps)
    for epoch in 10, 37, 99:
        released = 0.6 * 4096 / 256 * 0.5 * (1 + math.cos(math.pi * (epoch - 10) / 90))
        assert rate(epoch * per_epoch) == pytest.approx(released)
        m = 1 - 0.5 * (1 + math.cos(math.pi * epoch / 100)) * 0.01
        assert follow(epoch * per_epoch - 1) == pytest.approx(m)  # for the first step of that epoch
    assert rate(5 * per_epoch - 1) == pytest.approx(0.6 * 16 / 2)
    assert follow(steps - 1) == 1
    assert momentum(get("v2"), steps) is None


def small(**changes):
    """v3's parts in a tiny run."""
    base = tiny_recipe(
        encoder=dataclasses.replace(
            tiny_recipe().encoder, head="mlp", head_norm="all", hidden=24, predictor=True, bn_group=None
        ),
        views=dataclasses.replace(V3, size=16, mean=None, std=None),
        keys=recipe.MomentumKeys(0.9, rising=True, shuffle=False),
        dictionary=recipe.InBatch(),
        loss=recipe.InfoNCE(0.5, weight=2.0),
        symmetric=True,
        optimizer=recipe.LARS(lr=3.0),
        schedule=recipe.Cosine(warmup=0.5, after_warmup=True),
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("optimizer", [recipe.LARS(lr=3.0), recipe.AdamW(lr=0.01)])
def test_a_run_resumes_to_the_same_bits(tmp_path, optimizer):
    values, data = small(optimizer=optimizer), save_arrays(tmp_path)
    pretrain(values, data=data, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(values, data=data, out=tmp_path / "cut", observers=[StopAfter(6)])
    pretrain(values, data=data, out=tmp_path / "cut")
    assert_same_runs(tmp_path / "whole", tmp_path / "cut")


def test_m_rises_in_a_run_and_the_journal_holds_the_loss_without_its_weight():
    light, heavy = tiny_run(small(loss=recipe.InfoNCE(0.5))), tiny_run(small())
    assert (light.loss_weight, heavy.loss_weight) == (1.0, 2.0)
    losses = [step(run, next(run.batches(0, 1)), WORLD).loss for run in (light, heavy)]
    torch.testing.assert_close(*losses)
    rates = [heavy.momentum(s) for s in range(heavy.steps)]
    assert rates == sorted(rates)
    assert rates[0] > 0.9
    assert rates[-1] == 1


def test_unknown_norms_and_settings_are_refused():
    with pytest.raises(ValueError, match=r"encoder\.head_norm must be one of off, hidden, all, got 'on'"):
        recipe.Encoder(head_norm="on")
    with pytest.raises(ValueError, match=r"encoder\.head_layers must be at least 2, got 1"):
        recipe.Encoder(head_layers=1)
    with pytest.raises(ValueError, match=r"belong to the mlp head, got 3 and off with the linear one"):
        recipe.Encoder(head_layers=3)
    with pytest.raises(ValueError, match=r"encoder\.predictor needs momentum keys"):
        small(keys=recipe.TiedKeys(shuffle=False))
    with pytest.raises(ValueError, match=r"optimizer\.trust must be above 0, got 0"):
        recipe.LARS(trust=0)
    with pytest.raises(ValueError, match=r"optimizer\.betas must be in \[0, 1\)"):
        recipe.AdamW(betas=(0.9, 1.0))
