"""Label-free measures take their known values on constructed features."""

import math

import pytest
import torch
import torch.nn.functional as F

from moco.build import build_encoder, resolve
from moco.evaluate.diagnostics import (
    alignment,
    deviation,
    diagnose,
    effective_rank,
    rankme,
    retrieval,
    trend,
    uniformity,
)
from moco.images import pairs
from tiny import CPU, tiny_data, tiny_recipe

CONSTANT = torch.ones(50, 8, dtype=torch.float64)
ORTHOGONAL = torch.eye(8, dtype=torch.float64)


def sphere(count=4000, dim=16):
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)


def test_collapsed_features():
    assert retrieval(CONSTANT, CONSTANT) == 0
    assert alignment(CONSTANT, CONSTANT) == 0
    assert uniformity(CONSTANT) == pytest.approx(0)
    assert rankme(CONSTANT) == pytest.approx(1)
    assert effective_rank(CONSTANT + 1e-9 * torch.arange(50)[:, None]) == pytest.approx(1)
    assert deviation(CONSTANT) == pytest.approx(0)


def test_orthogonal_features():
    assert retrieval(ORTHOGONAL, ORTHOGONAL) == 100
    assert alignment(ORTHOGONAL, ORTHOGONAL.roll(1, 0)) == pytest.approx(2)
    assert uniformity(ORTHOGONAL) == pytest.approx(-4)
    assert rankme(ORTHOGONAL) == pytest.approx(8)
    assert effective_rank(ORTHOGONAL) == pytest.approx(7)  # centring takes one direction away


def test_features_spread_evenly_over_the_sphere():
    even = sphere()
    dim, other = even.shape[1], sphere().roll(1, 0)
    assert alignment(even, other) == pytest.approx(2, abs=0.05)
    assert deviation(even) == pytest.approx(1, abs=0.01)
    # log E exp(4 cos − 4) with cos of variance 1 / C
    assert uniformity(even) == pytest.approx(-4 + 8 / dim, abs=0.1)
    assert rankme(even) == pytest.approx(dim, rel=0.01)
    assert retrieval(even, even) == 100
    assert retrieval(even[:500], sphere(1000)[500:]) < 2  # unrelated views: chance is 0.2 %


def test_retrieval_does_not_depend_on_the_chunks():
    first, second = sphere(3000), F.normalize(sphere(3000) + 0.4 * sphere(6000)[3000:], dim=1)
    similarity = first @ second.T
    slow = 100 * (similarity.argmax(1) == torch.arange(3000)).double().mean().item()
    assert retrieval(first, second) == pytest.approx(slow)


def test_measures_of_an_encoder_are_the_same_every_time():
    values = resolve(tiny_recipe(), data := tiny_data(), CPU)
    encoder = build_encoder(values, 3)
    views = pairs(values, data, CPU, count=30)
    found = dict(diagnose(encoder, views()))
    assert found == dict(diagnose(encoder, views()))
    assert set(found) == {"retrieval", "alignment", "uniformity", "rankme", "effective_rank", "deviation"}
    assert all(math.isfinite(value) for value in found.values())


def rows(values, deviations=None):
    return [
        {"retrieval": value, "deviation": 0.9 if deviations is None else deviations[i]}
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "deviations", "expected"),
    [
        ([1, 2, 3], None, "too early to say"),
        ([10, 20, 30, 40, 50, 60], None, "still improving"),
        ([10, 40, 50, 50.1, 49.9, 50.0], None, "flat"),
        ([10, 40, 50, 48, 52, 49.5, 50.5, 50], None, "flat"),
        ([10, 40, 50, 60], [0.9, 0.9, 0.9, 0.05], "collapsing"),
        ([10, 40, 50, 60], [0.9, 0.8, 0.6, 0.4], "collapsing"),
    ],
)
def test_the_trend(values, deviations, expected):
    assert trend(rows(values, deviations)) == expected


def test_too_few_images_and_broken_features_are_refused():
    values = resolve(tiny_recipe(), data := tiny_data(), CPU)
    encoder = build_encoder(values, 3)
    with pytest.raises(ValueError, match="at least two images, got 1"):
        list(diagnose(encoder, pairs(values, data, CPU, count=1)()))
    with torch.no_grad():
        next(encoder.trunk.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        list(diagnose(encoder, pairs(values, data, CPU, count=10)()))
