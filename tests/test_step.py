"""The step: order of its parts, symmetric and partial forms, and every mechanism."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from moco.dictionary import InBatch, MemoryBank, MomentumQueue
from moco.keys import MomentumKeys, QueryKeys, TiedKeys
from moco.loss import Entries, info_nce
from moco.training.step import spread, step
from moco.world import Solo
from tiny import tiny_batch, tiny_encoder

WORLD = Solo()


def make(
    keys="momentum",
    dictionary="queue",
    *,
    symmetric=False,
    accumulate=1,
    momentum=0.9,
    size=50,
    lr=0.05,
    mask_own=False,
):
    f_q = tiny_encoder()
    return SimpleNamespace(
        f_q=f_q,
        keys={
            "momentum": lambda: MomentumKeys(f_q, momentum),
            "tied": lambda: TiedKeys(f_q),
            "query": lambda: QueryKeys(),
        }[keys](),
        dictionary={
            "queue": lambda: MomentumQueue(size, 8, mask_own=mask_own),
            "in-batch": InBatch,
            "bank": lambda: MemoryBank(100, size, 8, mask_own=mask_own),
        }[dictionary]().double(),
        loss=lambda q, entries: info_nce(q, entries, 0.1),
        optimizer=torch.optim.SGD(f_q.parameters(), lr, momentum=0.9, weight_decay=1e-4),
        symmetric=symmetric,
        accumulate=accumulate,
        loss_weight=1.0,
    )


def state(run):
    tensors = [*run.f_q.state_dict().values(), *run.keys.state_dict().values()]
    return tensors + [t for t in run.dictionary.state_dict().values() if isinstance(t, torch.Tensor)]


def written_out(run, batch, *, released_order):
    """Algorithm 1 spelled out; the released code follows first and enqueues before it learns."""
    f_q, f_k, queue = run.f_q, run.keys.f_k, run.dictionary
    m = run.keys.momentum

    def follow():
        with torch.no_grad():
            for k, q in zip(f_k.parameters(), f_q.parameters(), strict=True):
                k.copy_(m * k + (1 - m) * q)

    if released_order:
        follow()
    q = f_q(batch.views[0])
    with torch.no_grad():
        order = batch.orders[1]
        k = f_k(batch.views[1][order])[order.argsort()]
    negatives = queue.keys.clone()
    if released_order:
        queue.enqueue(k, batch, WORLD)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.T], 1) / 0.1
    loss = torch.nn.functional.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    if not released_order:
        follow()
        queue.enqueue(k, batch, WORLD)
    return loss.detach()


@pytest.mark.parametrize("released_order", [False, True])
def test_equals_algorithm_1_and_the_released_order(released_order):
    ours, theirs = make(), make()
    for s in range(6):
        batch = tiny_batch(step=s)
        mine = step(ours, batch, WORLD).loss
        torch.testing.assert_close(mine, written_out(theirs, batch, released_order=released_order))
    torch.testing.assert_close(ours.dictionary.keys, theirs.dictionary.keys)


def test_symmetric_loss_averages_both_terms_before_anything_is_enqueued():
    ours, theirs = make(symmetric=True), make()
    for s in range(4):
        batch = tiny_batch(step=s)
        f_q, f_k, negatives = theirs.f_q, theirs.keys.f_k, theirs.dictionary.keys
        terms, keys = [], []
        for query, key in ((0, 1), (1, 0)):
            order = batch.orders[key]
            q = f_q(batch.views[query])
            with torch.no_grad():
                k = f_k(batch.views[key][order])[order.argsort()]
            terms.append(info_nce(q, Entries(k, negatives), 0.1).loss)
            keys.append(k)
        loss = (terms[0] + terms[1]) / 2
        theirs.optimizer.zero_grad()
        loss.backward()
        theirs.optimizer.step()
        theirs.keys.follow(f_q)
        for k in keys:
            theirs.dictionary.enqueue(k, batch, WORLD)
        torch.testing.assert_close(step(ours, batch, WORLD).loss, loss.detach())
    for a, b in zip(state(ours), state(theirs), strict=True):
        torch.testing.assert_close(a, b)


def test_a_sum_of_terms_is_an_average_at_twice_the_lr_and_half_the_decay():
    """How `cifar_symmetric` equals the released demo, which sums."""
    mean, total = make(symmetric=True, lr=0.1), make(symmetric=True, lr=0.05)
    mean.optimizer.param_groups[0]["weight_decay"] = 0.5 * total.optimizer.param_groups[0]["weight_decay"]
    original = total.loss
    total.loss = lambda q, entries: original(q, entries)._replace(loss=2 * original(q, entries).loss)
    for s in range(3):
        step(mean, tiny_batch(step=s), WORLD)
        step(total, tiny_batch(step=s), WORLD)
    for a, b in zip(mean.f_q.parameters(), total.f_q.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_add_up_to_the_whole(parts, symmetric):
    whole, split = make(symmetric=symmetric), make(symmetric=symmetric, accumulate=parts)
    for s in range(4):
        a, b = step(whole, tiny_batch(step=s), WORLD), step(split, tiny_batch(step=s), WORLD)
        torch.testing.assert_close(a.loss, b.loss, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(a.accuracy, b.accuracy)
    others = split.f_q.state_dict()
    for name, value in whole.f_q.state_dict().items():
        torch.testing.assert_close(value, others[name], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole.dictionary.keys, split.dictionary.keys, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("keys", "dictionary"),
    [("momentum", "queue"), ("momentum", "in-batch"), ("tied", "in-batch"), ("query", "bank")],
)
def test_every_mechanism_learns_one_batch_by_heart(keys, dictionary):
    run = make(keys, dictionary, size=30, mask_own=True)
    batch = tiny_batch(8)
    alike = (batch.views[0], batch.views[0] + 0.3 * batch.views[1])
    batch = dataclasses.replace(batch, views=alike)
    losses = [step(run, batch, WORLD).loss.item() for _ in range(50)]
    assert losses[-1] < 0.5 * max(losses[:10])
    assert math.isfinite(losses[-1])


def test_queries_only_receive_the_gradient():
    run = make()
    before = [p.clone() for p in run.keys.parameters()]
    run.keys.follow = lambda _: None  # what is left to move f_k is a gradient
    step(run, tiny_batch(), WORLD)
    assert all(p.grad is None for p in run.keys.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, run.keys.parameters(), strict=True))


def test_end_to_end_gradient_reaches_both_sides():
    both, one = make("tied", "in-batch"), make("tied", "in-batch")
    one.keys.encode = torch.no_grad()(one.keys.encode)
    gradients = []
    for run in both, one:
        step(run, tiny_batch(), WORLD)
        gradients.append(next(run.f_q.parameters()).grad)
    assert not torch.allclose(*gradients)


def test_no_momentum_makes_keys_the_query_encoders():
    run = make(momentum=0.0)
    step(run, tiny_batch(), WORLD)
    for k, q in zip(run.keys.f_k.parameters(), run.f_q.parameters(), strict=True):
        assert torch.equal(k, q)


def test_spread_is_one_on_the_sphere_and_zero_at_a_point(unit):
    assert spread(unit(20_000, 16)).item() == pytest.approx(1, abs=0.01)
    assert spread(unit(1, 16).expand(50, 16)).item() == pytest.approx(0, abs=1e-6)
