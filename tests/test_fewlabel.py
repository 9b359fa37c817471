"""Few labels: splits, intervals, worth, and the verdict drawn from them."""

import math
import re

import pytest
import torch

from moco.evaluate.fewlabel import (
    Amount,
    Interval,
    Point,
    comparable,
    few_label_curve,
    interval,
    on_features,
    proportion,
    split,
    student,
    worth,
)
from moco.evaluate.verdict import Contender, best, difference, envelope, factor_interval, factor_words, judge

LABELS = torch.arange(300) % 3


def test_a_split_has_its_share_of_every_class_and_is_a_keyed_draw():
    chosen = split(LABELS, Amount(per_class=7), 0)
    assert torch.bincount(LABELS[chosen]).tolist() == [7, 7, 7]
    assert len(set(chosen.tolist())) == 21
    assert torch.equal(chosen, split(LABELS, Amount(per_class=7), 0))
    assert not torch.equal(chosen, split(LABELS, Amount(per_class=7), 1))
    assert not torch.equal(chosen, split(LABELS, Amount(per_class=7), 0, seed=1))
    assert torch.bincount(LABELS[split(LABELS, Amount(share=0.1), 0)]).tolist() == [10, 10, 10]
    assert torch.bincount(LABELS[split(LABELS, Amount(share=0.001), 0)]).tolist() == [1, 1, 1]


def test_every_image_is_labelled_equally_often():
    counts = torch.zeros(300)
    for repeat in range(100):
        counts[split(LABELS, Amount(per_class=10), repeat)] += 1
    expected, spread = 10, (100 * 0.1 * 0.9) ** 0.5
    assert (counts - expected).abs().max() < 4.5 * spread


def test_students_quantiles():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (*range(1, 40), 100, 1000):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=2e-4)


def test_an_interval_is_students():
    found = interval([1.0, 2.0, 3.0])
    half = 4.3027 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-3)
    assert interval([4.0])[:3] == (4, -math.inf, math.inf)
    with pytest.raises(ValueError, match="at least one value"):
        interval([])


def test_intervals_cover_the_truth_at_their_nominal_rate():
    """On simulated features, whose true accuracy over splits is known from very many splits."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (2000,), generator=generator)
    features = labels[:, None] * 1.0 + torch.randn(2000, 2, generator=generator)
    answers = torch.randint(2, (300,), generator=generator)
    test = answers[:, None] * 1.0 + torch.randn(300, 2, generator=generator)
    learner = on_features(features, labels, test)
    (point,) = few_label_curve(learner, labels, answers, amounts=[Amount(per_class=10)], repeats=400)
    values = torch.tensor(point.top1.values)
    truth, covered = values.mean().item(), 0
    for part in values.view(40, 10):
        found = interval(part.tolist())
        covered += found.low <= truth <= found.high
    assert 34 <= covered <= 40  # 38 expected; below 34 has a chance of 1 in 70


def test_more_labels_do_better_and_impossible_amounts_are_left_out():
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.one_hot(LABELS, 3) * 2.0 + torch.randn(300, 3, generator=generator)
    amounts = [Amount(per_class=n) for n in (1, 20, 101)] + [Amount(share=0.2), Amount(share=1.0)]
    left_out: list[str] = []
    assert comparable(LABELS, amounts, left_out) == {3: amounts[0], 60: amounts[1]}
    curve = few_label_curve(
        on_features(features, LABELS, features), LABELS, LABELS, amounts=amounts, repeats=3
    )
    assert left_out == [
        "101 per class is left out: a class has only 100 images",
        "20 % is left out: it comes to 60 labels, like 20 per class",
        "100 % is left out: its 300 labels are more than half of the 300 images",
    ]
    assert [point.labels for point in curve] == [3, 60]  # 20 of each and a fifth are one; all are no split
    assert curve[0].top1.mean < curve[1].top1.mean


def point(count, values, images=1000):
    """A point of these accuracies, at which the easiest of the images are right."""
    right = torch.arange(images) < torch.tensor(values)[:, None] * images / 100
    return Point(f"{count}", count, interval(list(values)), right)


def points(counts, *rows):
    return [point(count, row) for count, row in zip(counts, rows, strict=True)]


def test_worth_reads_the_reference_curve():
    reference = points((10, 100, 1000), (20, 20), (40, 40), (60, 60))
    ours = points((5, 10, 100), (10, 10), (40, 40), (50, 50))
    found = worth(ours, reference)
    assert [w.labels for w in found] == [10, 100]  # the first lies below all that is known
    assert [w.equals for w in found] == pytest.approx([100, 10**2.5])
    assert found[0].factor == pytest.approx(10)
    beyond = worth(points((10,), (70, 70)), reference)[0]
    assert beyond.at_least
    assert beyond.equals == pytest.approx(1000)


def test_differences_are_paired_over_splits_and_images():
    ours, other = point(10, [50.0, 60.0, 70.0]), point(10, [49.0, 59.0, 69.0])
    found = difference(ours, other)
    gaps = torch.zeros(1000)
    gaps[490:500] = gaps[590:600] = gaps[690:700] = 100 / 3  # each right in one split of three
    assert found.mean == pytest.approx(1)
    assert found.high - 1 == 1 - found.low == pytest.approx(1.96 * gaps.std().item() / 1000**0.5, rel=1e-3)
    splits = difference(point(10, [50.0, 62.0]), point(10, [49.0, 59.0]))
    assert splits.high - splits.mean == pytest.approx(math.hypot(12.7062, 1.96 * 10.14 / 1000**0.5), rel=1e-3)


def test_splits_that_agree_do_not_make_up_for_few_test_images():
    """12 of 20 images right against 10, in every split: over the splits alone the interval is a point."""
    found = judge(
        [Contender("this backbone", [point(10, [60.0] * 10, 20)])],
        [Contender("raw pixels", [point(10, [50.0] * 10, 20)])],
    )
    assert found.outcome == "no difference shown"
    assert "between -3.5 and +23.5 points" in found.sentence
    assert difference(point(10, [100.0, 100.0], 1), point(10, [0.0, 0.0], 1))[1:3] == (-math.inf, math.inf)


@pytest.mark.parametrize(("between_splits", "images"), [(0.0, 50), (0.03, 50), (0.1, 50), (0.1, 1000)])
def test_the_interval_of_a_difference_covers_other_splits_and_other_test_images(between_splits, images):
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        easy = torch.rand(images, generator=generator) * 0.6 + 0.1
        better = 0.1 + between_splits * torch.randn(10, 1, generator=generator)
        luck = torch.rand(2, 10, images, generator=generator)
        ours, other = luck[0] < easy + better, luck[1] < easy
        found = difference(*(Point("", 10, interval([0.0, 0.0]), right) for right in (ours, other)))
        covered += found.low <= 10 <= found.high
    assert covered >= 370  # 380 expected of 400 where the interval is not too wide


COUNTS = (10, 100)
LOW, MIDDLE, HIGH = (points(COUNTS, (a, a + 1, a + 2), (a + 20, a + 21, a + 22)) for a in (20.0, 24.0, 30.0))


def test_a_verdict_says_that_it_helped_and_by_how_much():
    found = judge([Contender("this backbone", HIGH)], [Contender("raw pixels", LOW)])
    assert found.outcome == "it helped"
    assert "times the labels" in found.sentence
    assert "raw pixels" in found.sentence
    assert len(found.evidence) == 2


def test_a_verdict_says_that_it_did_not():
    found = judge([Contender("this backbone", LOW)], [Contender("raw pixels", HIGH)])
    assert found.outcome == "it did not help"
    assert "use raw pixels" in found.sentence


def test_a_verdict_admits_that_nothing_was_shown():
    wide = points(COUNTS, (10.0, 26.0, 40.0), (30.0, 46.0, 60.0))
    found = judge([Contender("this backbone", wide)], [Contender("raw pixels", MIDDLE)])
    assert found.outcome == "no difference shown"


def test_a_verdict_that_depends_says_on_what():
    crossing = points(COUNTS, (40.0, 41.0, 42.0), (10.0, 11.0, 12.0))
    found = judge([Contender("this backbone", crossing)], [Contender("raw pixels", MIDDLE)])
    assert found.outcome == "it depends"
    assert "with 10 this backbone is better than raw pixels, with 100 worse than raw pixels" in found.sentence


def test_a_verdict_points_to_better_weights():
    found = judge(
        [Contender("this backbone", MIDDLE)],
        [Contender("raw pixels", LOW)],
        [Contender("other.safetensors", HIGH)],
    )
    assert found.sentence.endswith("But other.safetensors is better: use that, or begin from it.")


def test_the_reference_is_the_best_over_the_amounts_all_share():
    short = points((10,), (99.0, 99.0))
    assert best([Contender("a", LOW), Contender("b", short)]).name == "b"
    assert best([Contender("a", HIGH), Contender("b", LOW)]).name == "a"
    with pytest.raises(ValueError, match="something to compare with"):
        best([])
    with pytest.raises(ValueError, match="same amounts of labels"):
        best([Contender("a", points((5,), (1.0, 2.0))), Contender("b", short)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Amount(), "and not both"),
        (lambda: Amount(per_class=1, share=0.1), "and not both"),
        (lambda: Amount(per_class=0), "at least 1, got 0"),
        (lambda: Amount(share=1.5), r"in \(0, 1\], got 1.5"),
        (lambda: split(LABELS, Amount(per_class=101), 0), "class 0 has 100 images"),
    ],
)
def test_impossible_amounts_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_interval_prints_as_mean_and_half_width_or_by_its_ends():
    assert str(Interval(50.0, 48.5, 51.5, ())) == "50.0 ± 1.5"
    assert str(proportion(19, 20)) == "95.0 (76.4 to 99.1)"
    assert str(proportion(6, 6)) == "100.0 (61.0 to 100.0)"


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (6, 6), (19, 20), (1, 30), (500, 1000)])
def test_a_proportion_has_wilsons_interval(right, count):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert proportion(right, count)[:3] == pytest.approx(
        (100 * right / count, 100 * expected.low, 100 * expected.high), abs=1e-4
    )


def test_the_reference_is_whatever_is_best_at_each_amount():
    flat, steep = points(COUNTS, (20.0, 21.0), (22.0, 23.0)), points(COUNTS, (10.0, 11.0), (40.0, 41.0))
    found = envelope([Contender("raw pixels", flat), Contender("training from scratch", steep)])
    assert found.name == "raw pixels or training from scratch"
    assert [point.top1.mean for point in found.curve] == [20.5, 40.5]
    with pytest.raises(ValueError, match="something to compare with"):
        envelope([])


def test_an_interval_that_reaches_beyond_what_was_tried_says_so():
    def around(labels, mean, spread):
        return point(labels, [mean + spread * place for place in (-2, -1, 0, 1, 2)], 10_000)

    low = [around(10, 20.0, 0.5), around(100, 40.0, 0.5)]
    for mean, spread, text in (
        (39.8, 0.8, r"\(95 % interval \d\.\d to more than 5\.0\)"),
        (30.0, 0.5, r"\(95 % interval \d\.\d to \d\.\d\)"),
        (20.2, 0.8, r"\(95 % interval from less than 0\.5 to \d\.\d\)"),
    ):
        mine, reference = Contender("this backbone", [around(20, mean, spread)]), Contender("raw pixels", low)
        assert re.fullmatch(text, factor_words(mine, reference, worth(mine.curve, low)[0]))
    wide = Contender("this backbone", [around(20, 30.0, 50.0)])
    assert factor_interval(wide, reference, worth(wide.curve, low)[0]) == (-math.inf, math.inf)


def test_a_factor_is_no_surer_than_its_test_images():
    """Splits that all agree leave the images: a hundred say less than ten thousand."""
    widths = []
    for images in 100, 10_000:
        low = [point(10, [20.0] * 5, images), point(100, [40.0] * 5, images)]
        mine = [point(20, [30.0] * 5, images)]
        begin, end = factor_interval(
            Contender("this backbone", mine), Contender("raw pixels", low), worth(mine, low)[0]
        )
        assert begin < 10**1.5 / 20 < end
        widths.append(end - begin)
    assert widths[0] > 5 * widths[1]


def test_a_factor_that_is_known_goes_before_one_that_is_only_bounded():
    low = points((10, 100, 1000), (20, 21, 22), (30, 31, 32), (40, 41, 42))
    ours = points((10, 100, 1000), (30.5, 31.5, 32.5), (45, 46, 47), (60, 61, 62))
    found = judge([Contender("this backbone", ours)], [Contender("raw pixels", low)])
    assert "worth 11." in found.sentence
    assert "10 (10) with this backbone do what 1" in found.sentence
