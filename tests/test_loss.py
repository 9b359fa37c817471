import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from moco import loss as loss_module
from moco.loss import Entries, info_nce, margin, nce, nce_log_normalizer


def naive_info_nce(q, positives, negatives, temperature, own=None):
    """The N x (1 + K) matrix and cross entropy, as Algorithm 1 writes it."""
    negative = q @ negatives.T
    if own is not None:
        negative = negative.masked_fill(own, -torch.inf)
    logits = torch.cat([(q * positives).sum(1, keepdim=True), negative], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9),
    k=st.integers(1, 70),
    chunk=st.integers(1, 80),
    temperature=st.sampled_from([0.01, 0.07, 0.2, 1.0]),
    masked=st.booleans(),
)
def test_info_nce_equals_the_naive_form(n, k, chunk, temperature, masked):
    generator = torch.Generator().manual_seed(n * 1000 + k)

    def unit(rows):
        x = F.normalize(torch.randn(rows, 6, generator=generator, dtype=torch.float64), dim=1)
        return x.requires_grad_()

    def draw():
        return torch.randint(4, (n,), generator=generator), torch.randint(4, (k,), generator=generator)

    q, p, d = unit(n), unit(n), unit(k)
    ids = draw() if masked else (None, None)
    own = ids[0][:, None] == ids[1] if masked else None
    expected = naive_info_nce(q, p, d, temperature, own)
    expected_gradients = torch.autograd.grad(expected, (q, p, d))
    before, loss_module.CHUNK = loss_module.CHUNK, chunk
    try:
        result = info_nce(q, Entries(p, d, *ids), temperature)
        gradients = torch.autograd.grad(result.loss, (q, p, d))
    finally:
        loss_module.CHUNK = before
    torch.testing.assert_close(result.loss, expected, rtol=1e-12, atol=1e-12)
    for ours, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


def test_info_nce_of_own_negatives_per_query_equals_the_shared_form(unit):
    q, p, d = unit(5, 8), unit(5, 8, seed=1), unit(11, 8, seed=2)
    shared = info_nce(q, Entries(p, d), 0.1)
    own = info_nce(q, Entries(p, d.expand(5, 11, 8)), 0.1)
    torch.testing.assert_close(shared.loss, own.loss)
    assert shared.accuracy == own.accuracy


def test_gradient_by_finite_differences(unit):
    q, p, d = (unit(*s, seed=i).requires_grad_() for i, s in enumerate([(3, 4), (3, 4), (7, 4)]))
    assert torch.autograd.gradcheck(lambda q, p, d: info_nce(q, Entries(p, d), 0.2).loss, (q, p, d))


def test_equal_similarities_cost_log_of_1_plus_k(unit):
    same = unit(1, 8).expand(4, 8)
    result = info_nce(same, Entries(same, same[:1].expand(100, 8)), 0.07)
    assert result.loss.item() == pytest.approx(math.log(101))
    assert result.accuracy == 0


def test_a_positive_among_the_negatives_costs_at_least_log_2(unit):
    """What enqueueing before contrasting does."""
    q = unit(6, 32)
    assert info_nce(q, Entries(q, q), 0.01).loss >= math.log(2) - 1e-9
    apart = info_nce(q, Entries(q, q, torch.arange(6), torch.arange(6)), 0.01)
    assert apart.loss < 1e-6
    assert apart.accuracy == 1


def test_well_separated_queries_cost_nothing():
    axes = torch.eye(8, dtype=torch.float64)
    result = info_nce(axes[:3], Entries(axes[:3], axes[3:]), 0.02)
    assert result.loss < 1e-12
    assert result.accuracy == 1


def test_extreme_temperatures_stay_finite(unit):
    q = unit(4, 8, dtype=torch.float32).requires_grad_()
    far = -q.detach()
    result = info_nce(q, Entries(far, q.detach()), 0.001)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(2000, rel=0.01)
    assert q.grad.isfinite().all()


def test_masking_every_negative_leaves_the_positive(unit):
    q = unit(3, 8)
    ids = torch.zeros(3, dtype=torch.long)
    assert info_nce(q, Entries(q, unit(5, 8), ids, torch.zeros(5, dtype=torch.long)), 0.1).loss == 0


def test_streamed_loss_never_holds_the_matrix(unit):
    n, k = 64, 32_768
    q = unit(n, 16, dtype=torch.float32).requires_grad_()
    entries = Entries(unit(n, 16, seed=1, dtype=torch.float32), unit(k, 16, seed=2, dtype=torch.float32))
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        info_nce(q, entries, 0.07).loss.backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest < n * k * 4 / 8


def test_saved_for_backward_holds_no_dictionary(unit):
    q = unit(4, 8).requires_grad_()
    queue = unit(100, 8)
    result = info_nce(q, Entries(unit(4, 8, seed=1), queue), 0.1)
    expected = torch.autograd.grad(result.loss, q, retain_graph=True)[0]
    queue.zero_()  # enqueueing before the backward pass does no harm
    assert torch.equal(torch.autograd.grad(result.loss, q)[0], expected)


def test_accuracy_is_the_share_whose_positive_beats_all(unit):
    q = unit(200, 3)
    p, d = unit(200, 3, seed=1), unit(4, 3, seed=2)
    expected = ((q * p).sum(1) > (q @ d.T).max(1).values).double().mean()
    for contrast in (info_nce(q, Entries(p, d), 0.1), margin(q, Entries(p, d), 0.5)):
        assert contrast.accuracy == expected


def test_chunked_entries_give_the_mean_of_the_parts(unit):
    q, p, d = unit(6, 8), unit(6, 8, seed=1), unit(9, 8, seed=2)
    ids = torch.arange(6), torch.arange(9)
    whole = info_nce(q, Entries(p, d, *ids), 0.1).loss
    parts = [
        info_nce(part, entries, 0.1).loss
        for part, entries in zip(q.chunk(3), Entries(p, d, *ids).chunk(3), strict=True)
    ]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_nce_equals_the_released_formula(unit):
    """P / (P + K Pn) and its complement, multiplied out slowly."""
    q, p, d = unit(4, 8), unit(4, 8, seed=1), unit(9, 8, seed=2)
    images, z, t = 50, torch.tensor(3.7, dtype=torch.float64), 0.3
    noise = 9 / images
    positive = ((q * p).sum(1) / t).exp() / z
    negative = (q @ d.T / t).exp() / z
    expected = -(positive / (positive + noise)).log() - (noise / (negative + noise)).log().sum(1)
    torch.testing.assert_close(nce(q, Entries(p, d), t, images, z.log()).loss, expected.mean())


def test_nce_normalizer_is_the_mean_weight_times_the_images(unit):
    q, p, d = unit(4, 8), unit(4, 8, seed=1), unit(9, 8, seed=2)
    weights = torch.cat([(q * p).sum(1, keepdim=True), q @ d.T], 1).div(0.3).exp()
    log_z = nce_log_normalizer(q, Entries(p, d), 0.3, 50)
    torch.testing.assert_close(log_z.exp(), weights.mean() * 50)


def test_nce_of_masked_negatives_is_that_of_the_others(unit):
    q, p, d = unit(3, 8), unit(3, 8, seed=1), unit(9, 8, seed=2)
    ids = torch.full((3,), 7), torch.tensor([7, 1, 2, 7, 3, 4, 5, 6, 7])
    kept = d[ids[1] != 7]
    masked, short = Entries(p, d, *ids), Entries(p, kept)
    log_z = nce_log_normalizer(q, short, 0.01, 50)
    torch.testing.assert_close(nce_log_normalizer(q, masked, 0.01, 50), log_z)
    torch.testing.assert_close(nce(q, masked, 0.01, 50, log_z).loss, nce(q, short, 0.01, 50, log_z).loss)


def test_a_query_without_negatives_costs_nothing(unit):
    q, p, d = unit(3, 8).requires_grad_(), unit(3, 8, seed=1), unit(2, 8, seed=2)
    entries = Entries(p, d, torch.tensor([7, 1, 7]), torch.tensor([7, 7]))
    log_z = nce_log_normalizer(q, entries, 0.1, 50)
    found = nce(q, entries, 0.1, 50, log_z).loss
    found.backward()
    alone = nce(q[1:2], Entries(p[1:2], d), 0.1, 50, log_z).loss
    torch.testing.assert_close(found, alone / 3)
    assert q.grad.isfinite().all()
    assert not q.grad[[0, 2]].any()
    assert info_nce(q, Entries(p, d, torch.full((3,), 7), torch.tensor([7, 7])), 0.1).loss == 0


def test_optimum_of_nce_is_the_log_density_ratio():
    """Over a toy world of six images with known probabilities the scores find log(p / uniform)."""
    density = torch.tensor([0.3, 0.25, 0.2, 0.12, 0.08, 0.05], dtype=torch.float64)
    images, negatives = 6, 6 * 4
    scores = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    one = torch.ones(6, 1, dtype=torch.float64)
    noise = torch.arange(6).repeat(4)  # uniform noise, in exact proportion
    optimizer = torch.optim.LBFGS([scores], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for image in range(6):
            entries = Entries(scores[image].view(1, 1), scores[noise][:, None])
            total = total + density[image] * nce(one[:1], entries, 1.0, images, 0 * one[0, 0]).loss
        total.backward()
        return total

    optimizer.step(closure)
    assert negatives == len(noise)
    torch.testing.assert_close(scores.detach() - math.log(1 / 6), (density * 6).log(), atol=1e-4, rtol=0)


def test_margin_counts_violations_only():
    axes = torch.eye(4, dtype=torch.float64)
    apart = margin(axes[:1], Entries(axes[:1], axes[1:]), 0.5)
    assert apart.loss == 0
    near = torch.tensor([[0.8, 0.6, 0.0, 0.0]], dtype=torch.float64)
    mixed = margin(axes[:1], Entries(axes[:1], torch.cat([near, axes[1:]])), 0.5)
    assert mixed.loss.item() == pytest.approx(0.8 - 1 + 0.5)
    same = margin(axes[:1], Entries(axes[:1], axes[:1]), 0.5)
    assert same.loss.item() == pytest.approx(0.5)


def test_half_precision_surroundings_do_not_reach_the_loss(unit):
    q, p, d = (unit(*s, seed=i, dtype=torch.float32) for i, s in enumerate([(8, 16), (8, 16), (99, 16)]))
    plain = info_nce(q, Entries(p, d), 0.07).loss
    with torch.autocast("cpu", torch.bfloat16):
        inside = info_nce(q, Entries(p, d), 0.07).loss
    assert torch.equal(plain, inside)


def test_temperature_must_be_positive(unit):
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0\.0"):
        info_nce(unit(2, 4), Entries(unit(2, 4), unit(3, 4)), 0.0)


def test_one_process_needs_no_double_precision_for_nce(unit, monkeypatch):
    q, p, d = (unit(*shape, seed=i, dtype=torch.float32) for i, shape in enumerate([(4, 8), (4, 8), (9, 8)]))
    monkeypatch.setattr(torch.Tensor, "double", lambda _: pytest.fail("Metal has no float64"))
    found = loss_module.NCE(0.1, images=20)(q, Entries(p, d))
    assert found.loss.isfinite()
