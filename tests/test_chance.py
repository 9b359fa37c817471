import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moco import chance


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter, key, words):
    def numbers(text):
        return [int(word, 16) for word in text.split()]

    result = chance.philox(np.array(numbers(counter), dtype=np.uint64), tuple(numbers(key)))
    assert result.tolist() == numbers(words)


def test_uniform_row_depends_on_its_own_index_only():
    together = chance.uniform(3, "view", np.array([5, 9, 2**40]), 7, step=4, view=1)
    alone = chance.uniform(3, "view", np.array([2**40]), 7, step=4, view=1)
    assert torch.equal(together[2:], alone)
    assert torch.equal(together[:, :3], chance.uniform(3, "view", np.array([5, 9, 2**40]), 3, step=4, view=1))


@pytest.mark.parametrize("change", [{"seed": 1}, {"purpose": "other"}, {"step": 1}, {"view": 1}])
def test_uniform_changes_with_every_part_of_the_key(change):
    base = {"seed": 0, "purpose": "view", "step": 0, "view": 0}

    def draw(seed, purpose, step, view):
        return chance.uniform(seed, purpose, np.arange(100), 8, step=step, view=view)

    same = (draw(**base) == draw(**(base | change))).double().mean()
    assert same < 0.01


def test_uniform_is_uniform_and_uncorrelated():
    draws = chance.uniform(0, "view", np.arange(20_000), 8)
    assert 0 < draws.min() < draws.max() < 1
    histogram = torch.histc(draws.float(), 100, 0, 1)
    expected = draws.numel() / 100
    chi_square = ((histogram - expected) ** 2 / expected).sum()
    assert chi_square < 160  # 99 degrees of freedom: mean 99, deviation 14
    correlation = torch.corrcoef(draws.T) - torch.eye(8)
    assert correlation.abs().max() < 0.03


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 3000), seed=st.integers(0, 2**31), step=st.integers(0, 1000))
def test_permute_is_a_permutation(count, seed, step):
    result = chance.permute(np.arange(count), count, seed, "order", step=step)
    assert sorted(result.tolist()) == list(range(count))


def test_permute_of_a_slice_is_a_slice_of_the_permutation():
    whole = chance.permute(np.arange(1000), 1000, 0, "order", step=2)
    part = chance.permute(np.arange(100, 200), 1000, 0, "order", step=2)
    assert part.tolist() == whole[100:200].tolist()


def test_permute_reaches_every_order_equally_often():
    orders = list(itertools.permutations(range(4)))
    counts = dict.fromkeys(orders, 0)
    for step in range(4800):
        counts[tuple(chance.permute(np.arange(4), 4, 0, "order", step=step).tolist())] += 1
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_square < 60  # 23 degrees of freedom: mean 23, deviation 7


def test_permute_of_a_billion_costs_one_batch():
    result = chance.permute(np.arange(10**9 - 4096, 10**9), 10**9, 0, "order")
    assert len(set(result.tolist())) == 4096
    assert 0 <= result.min() < result.max() < 10**9
    assert abs(result.mean() / 10**9 - 0.5) < 0.03


def test_generators_of_different_keys_differ():
    draws = [
        torch.rand(4, generator=chance.generator(seed, purpose, step)).tolist()
        for seed, purpose, step in [(0, "queue", 0), (1, "queue", 0), (0, "bank", 0), (0, "queue", 1)]
    ]
    assert len({tuple(draw) for draw in draws}) == 4
    again = torch.rand(4, generator=chance.generator(0, "queue", 0)).tolist()
    assert draws[0] == again
