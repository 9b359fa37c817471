"""Anchors, coded boxes, matching, sampling, and features of regions."""

import math

import pytest
import torch
from torchvision.ops import box_iou

from moco.transfer import boxes as B
from moco.transfer.regions import Pooler


def test_anchors_are_centred_unrounded_and_in_order_of_row_column_size_ratio():
    found = B.anchors([32, 64], [0.5, 1.0, 2.0], 16, 2, 3)
    assert found.shape == (2 * 3 * 2 * 3, 4)
    first = math.sqrt(32 * 32 / 0.5) / 2, math.sqrt(32 * 32 * 0.5) / 2
    torch.testing.assert_close(found[0], torch.tensor([-first[0], -first[1], first[0], first[1]]))
    torch.testing.assert_close(found[4], torch.tensor([-32.0, -32.0, 32.0, 32.0]))  # size 64, ratio 1
    torch.testing.assert_close(found[6], found[0] + torch.tensor([16.0, 0, 16, 0]))  # next column
    torch.testing.assert_close(found[18], found[0] + torch.tensor([0.0, 16, 0, 16]))  # next row
    area = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    torch.testing.assert_close(area[:6], torch.tensor([1024.0] * 3 + [4096.0] * 3))


def random_boxes(count, seed=0, side=100.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * side * 0.7
    return torch.cat([corner, corner + 2 + torch.rand(count, 2, generator=generator) * side * 0.3], 1)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decoding_undoes_encoding_for_one_or_several_predictions(weights):
    boxes, reference = random_boxes(20), random_boxes(20, 1)
    moves = B.encode(boxes, reference, weights)
    torch.testing.assert_close(B.decode(moves, reference, weights), boxes)
    twice = B.decode(torch.cat([moves, torch.zeros_like(moves)], 1), reference, weights)
    torch.testing.assert_close(twice, torch.cat([boxes, reference], 1))


def test_a_box_grows_to_a_limit_only():
    one = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    grown = B.decode(torch.full((1, 4), 100.0) * torch.tensor([0, 0, 1, 1]), one, (1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(grown[0, 2] - grown[0, 0], torch.tensor(1000.0))


def test_no_boxes_are_no_trouble():
    none = torch.zeros(0, 4)
    assert B.clip(none, 3, 4).shape == (0, 4)
    assert B.decode(torch.zeros(0, 8), none, (1.0, 1.0, 1.0, 1.0)).shape == (0, 8)
    which, kind = B.match(none, random_boxes(5), 0.3, 0.7, keep_best=True)
    assert which.tolist() == kind.tolist() == [0] * 5


@pytest.mark.parametrize("keep_best", [True, False])
def test_matching_is_as_defined(keep_best):
    truth, boxes = random_boxes(4), random_boxes(200, 1)
    which, kind = B.match(truth, boxes, 0.1, 0.3, keep_best=keep_best)
    overlap = box_iou(truth, boxes)
    assert {-1, 0, 1} == set(kind.tolist())
    for number in range(200):
        best = max(range(4), key=lambda m: float(overlap[m, number]))
        value = float(overlap[best, number])
        expected = 1 if value >= 0.3 else 0 if value < 0.1 else -1
        if keep_best and any(overlap[m, number] == overlap[m].max() for m in range(4)):
            expected = 1
        assert (int(which[number]), int(kind[number])) == (best, expected)


def test_sampling_takes_at_most_a_share_of_objects_and_repeats_itself():
    objects = torch.arange(100) < 40
    for count, share, want in ((64, 0.25, (16, 48)), (64, 1.0, (40, 24)), (500, 0.25, (40, 60))):
        draws = [torch.Generator().manual_seed(3) for _ in range(2)]
        first, second = (B.sample(objects, ~objects, count, share, draw) for draw in draws)
        assert (len(first[0]), len(first[1])) == want
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert bool(objects[first[0]].all())
        assert not bool(objects[first[1]].any())
        assert len(set(torch.cat(first).tolist())) == sum(want)


def test_regions_go_to_the_map_that_suits_their_size():
    pooler = Pooler(7, (4, 8, 16, 32))
    sides = torch.tensor([20.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 2000.0])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], 1)
    assert pooler._level(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    maps = [torch.full((1, 1, 640 // s, 640 // s), float(s)) for s in (4, 8, 16, 32, 64)]
    assert pooler(maps, [boxes[:7]])[:, 0, 3, 3].tolist() == [4, 4, 8, 8, 16, 16, 32]


def test_regions_are_aligned_to_half_pixels():
    ramp = torch.arange(32.0)[None].expand(32, 32)[None, None]  # value = column of the cell's centre
    pooled = Pooler(2, (16,))([ramp], [torch.tensor([[64.0, 64.0, 128.0, 128.0]])])
    # the region covers cells 4 to 8; its left half is centred at 5, half a cell left of a cell's centre
    torch.testing.assert_close(pooled[0, 0, 0], torch.tensor([4.5, 6.5]))
