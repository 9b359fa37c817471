import copy

import pytest
import torch
from torch import nn

from moco.keys import MomentumKeys, QueryKeys, TiedKeys, momentum_update
from moco.world import Solo
from tiny import tiny_encoder

WORLD = Solo()


def moved(encoder):
    with torch.no_grad():
        for i, p in enumerate(encoder.parameters()):
            p.add_(0.1 * (i + 1))
    return encoder


def test_key_encoder_begins_as_the_query_encoder_head_included():
    f_q = tiny_encoder()
    keys = MomentumKeys(f_q)
    pairs = list(zip(f_q.named_parameters(), keys.f_k.named_parameters(), strict=True))
    assert {name.split(".")[0] for (name, _), _ in pairs} == {"trunk", "head"}
    for (name, q), (other, k) in pairs:
        assert name == other
        assert torch.equal(q, k)
        assert q.data_ptr() != k.data_ptr()
        assert not k.requires_grad


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999])
def test_momentum_update_is_equation_2(momentum):
    f_q = tiny_encoder()
    keys = MomentumKeys(f_q, momentum)
    before = [p.clone() for p in keys.f_k.parameters()]
    moved(f_q)
    keys.follow(f_q)
    for old, k, q in zip(before, keys.f_k.parameters(), f_q.parameters(), strict=True):
        torch.testing.assert_close(k, momentum * old + (1 - momentum) * q)
        if momentum == 0:
            assert torch.equal(k, q)


def test_many_updates_are_an_exponential_average():
    f_q = tiny_encoder()
    keys = MomentumKeys(f_q, 0.9)
    first = next(keys.f_k.parameters()).clone()
    moved(f_q)
    for _ in range(20):
        keys.follow(f_q)
    target = next(f_q.parameters())
    torch.testing.assert_close(next(keys.f_k.parameters()), target + 0.9**20 * (first - target))


def test_momentum_never_touches_the_statistics_of_batch_norm():
    f_q = tiny_encoder()
    keys = MomentumKeys(f_q, 0.5)
    f_q(torch.randn(8, 3, 16, 16, dtype=torch.float64))
    before = {name: buffer.clone() for name, buffer in keys.f_k.named_buffers()}
    keys.follow(f_q)
    for name, buffer in keys.f_k.named_buffers():
        assert torch.equal(buffer, before[name])


def test_a_copy_follows_the_encoder_it_is_given_and_no_other():
    f_q = tiny_encoder()
    keys = MomentumKeys(f_q, 0.5)
    keys.follow(f_q)
    twin, other = copy.deepcopy(keys), tiny_encoder()
    moved(f_q), moved(other)
    for follower, leader in (keys, f_q), (twin, f_q), (keys, other), (twin, other), (keys, f_q):
        expected = copy.deepcopy(follower.f_k)
        momentum_update(expected, leader, 0.5)
        follower.follow(leader)
        for k, e in zip(follower.f_k.parameters(), expected.parameters(), strict=True):
            assert torch.equal(k, e)


@pytest.mark.parametrize("momentum", [1.0, 1.5, -0.1])
def test_impossible_momentum_is_refused_at_construction(momentum):
    message = rf"keys.momentum must be in \[0, 1\), got {momentum} \(it is m in θ_k"
    with pytest.raises(ValueError, match=message):
        MomentumKeys(tiny_encoder(), momentum)
    with pytest.raises(ValueError, match=message):
        momentum_update(nn.Linear(1, 1), nn.Linear(1, 1), momentum)


@pytest.mark.parametrize("kind", [MomentumKeys, TiedKeys])
def test_keys_come_back_in_the_order_of_their_images(kind):
    """With one group the statistics do not depend on the order, so shuffling must change nothing."""
    f_q = tiny_encoder(bn_group=None)
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    order = torch.randperm(8)
    shuffled = kind(f_q, shuffle=True).encode(images, None, order, WORLD)
    plain = kind(f_q, shuffle=False).encode(images, None, order, WORLD)
    torch.testing.assert_close(shuffled, plain)


@pytest.mark.parametrize("kind", [MomentumKeys, TiedKeys])
def test_shuffling_changes_the_groups(kind):
    f_q = tiny_encoder(bn_group=4)
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    shuffled = kind(f_q, shuffle=True).encode(images, None, order, WORLD)
    expected = f_q(images[order])[order.argsort()]
    torch.testing.assert_close(shuffled, expected)
    assert not torch.allclose(shuffled, f_q(images))


def test_who_carries_a_gradient():
    f_q = tiny_encoder()
    images, order = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.randperm(8)
    q = f_q(images)
    assert not MomentumKeys(f_q).encode(images, q, order, WORLD).requires_grad
    assert not QueryKeys().encode(images, q, order, WORLD).requires_grad
    assert torch.equal(QueryKeys().encode(images, q, order, WORLD), q)
    tied = TiedKeys(f_q).encode(images, q, order, WORLD)
    gradients = torch.autograd.grad(tied.square().sum() + tied[0, 0], list(f_q.parameters()))
    assert any(g.abs().sum() > 0 for g in gradients)


def test_tied_keys_own_no_parameters():
    f_q = tiny_encoder()
    assert not list(TiedKeys(f_q).parameters())
    assert TiedKeys(f_q).state_dict() == {}


def test_shuffling_closes_the_channel_through_which_the_pretext_task_leaks():
    """Without it, what a group mate does to a query it also does to the key: a signature they share.

    MoCo, Section 3.3: "the intra-batch communication among samples (caused by BN) leaks information".
    """

    def effect_of_replacing_the_mates(shuffle):
        f_q = tiny_encoder(dim=16, bn_group=2).train()
        keys = MomentumKeys(f_q, 0.9, shuffle=shuffle).train()
        generator = torch.Generator().manual_seed(0)
        images, others, *noises = torch.randn(4, 16, 3, 16, 16, generator=generator, dtype=torch.float64)
        replaced = torch.where(torch.arange(16)[:, None, None, None] % 2 == 1, others, images)
        parted = torch.arange(16).view(8, 2).T.reshape(-1)  # even images together, odd images together
        q, k = [], []
        with torch.no_grad():
            for batch in images, replaced:
                q.append(f_q(batch + 0.1 * noises[0])[::2])
                k.append(keys.encode(batch + 0.1 * noises[1], None, parted, Solo())[::2])
        return q[1] - q[0], k[1] - k[0]

    dq, dk = effect_of_replacing_the_mates(shuffle=False)
    assert torch.cosine_similarity(dq, dk).min() > 0.3
    dq, dk = effect_of_replacing_the_mates(shuffle=True)
    assert dq.norm(dim=1).min() > 0.05  # the query still hears of its mate
    assert torch.equal(dk, torch.zeros_like(dk))  # the key does not: there is nothing to match
