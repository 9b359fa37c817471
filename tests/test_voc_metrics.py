"""VOC's precision against the development kit written slowly."""

import numpy as np
import pytest
import torch

from moco.transfer import voc, voc_metrics
from moco.transfer.example import Detections
from moco.transfer_measure import Part, _table
from moco.transfer_recipe import TransferRecipe
from scenes import noisy, perfect, write_voc

FIRST_PIXEL = torch.tensor([1, 1, 0, 0])  # VOC counts pixels from 1


def slow_voc(examples, found, threshold, label):
    """One class and threshold, in the words of the 2007 development kit."""
    rows = [
        (
            round(float(one.scores[d]), 3),
            n,
            [round(float(x), 1) for x in (one.boxes[d] + torch.tensor([1, 1, 0, 0]))],
        )
        for n, one in enumerate(found)
        for d in range(len(one))
        if int(one.labels[d]) == label
    ]
    rows.sort(key=lambda row: -row[0])
    claimed, hits, objects = set(), [], 0
    for example in examples.examples:
        o = example.objects
        objects += sum(int(c) == label and not d for c, d in zip(o.labels, o.difficult, strict=True))
    for _, n, box in rows:
        o = examples.examples[n].objects
        best, overlap = None, -1.0
        for m in range(len(o)):
            if int(o.labels[m]) != label:
                continue
            x0, y0, x1, y1 = (float(v) for v in o.boxes[m] + torch.tensor([1, 1, 0, 0]))
            w, h = min(box[2], x1) - max(box[0], x0) + 1, min(box[3], y1) - max(box[1], y0) + 1
            if w > 0 and h > 0:
                both = (box[2] - box[0] + 1) * (box[3] - box[1] + 1) + (x1 - x0 + 1) * (y1 - y0 + 1) - w * h
                if w * h / both > overlap:
                    best, overlap = m, w * h / both
        if overlap > threshold:
            if o.difficult[best]:
                continue
            hits.append((n, best) not in claimed)
            claimed.add((n, best))
        else:
            hits.append(False)
    total = 0.0
    for level in range(11):
        best = 0.0
        for place in range(1, len(hits) + 1):
            if objects and sum(hits[:place]) / objects >= level * 0.1:
                best = max(best, sum(hits[:place]) / place)
        total += best / 11
    return 100 * total, objects


@pytest.mark.parametrize("seed", [0, 1])
def test_voc_equals_the_development_kit_written_slowly(tmp_path, seed):
    examples = voc.detection(write_voc(tmp_path, {"test": 12}), ("VOC2007:test",))
    assert any(bool(example.objects.difficult.any()) for example in examples.examples)
    found = [noisy(example, 20, seed * 100 + n) for n, example in enumerate(examples.examples)]
    result = voc_metrics.evaluate(examples, found)
    means = []
    for threshold in voc_metrics.THRESHOLDS:
        values = [slow_voc(examples, found, threshold, label) for label in range(20)]
        means.append(np.mean([value for value, objects in values if objects]))
    assert 5 < result["AP50"] < 95
    assert result["AP"] == pytest.approx(np.mean(means), abs=1e-9)
    assert result["AP50"] == pytest.approx(means[0], abs=1e-9)
    assert result["AP75"] == pytest.approx(means[5], abs=1e-9)


def test_voc_on_real_boxes_equals_the_slow_version(shared_data, tmp_path):
    import zipfile

    with zipfile.ZipFile(shared_data / "voc" / "voc_coco44.zip") as archive:
        archive.extractall(tmp_path)
    examples = voc.detection(tmp_path, ("VOC2007:test",))
    found = [noisy(example, 20, n) for n, example in enumerate(examples.examples)]
    result = voc_metrics.evaluate(examples, found, thresholds=(0.5,))
    values = [slow_voc(examples, found, 0.5, label) for label in range(20)]
    expected = [value for value, objects in values if objects]
    assert result["AP50"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert sum(bool(e.objects.difficult.any()) for e in examples.examples) > 2
    best = voc_metrics.evaluate(examples, [perfect(e) for e in examples.examples])
    assert best["AP"] == pytest.approx(100)


def test_voc_perfect_shifted_nothing_and_duplicates(tmp_path):
    examples = voc.detection(write_voc(tmp_path, {"test": 8}), ("VOC2007:test",))
    assert voc_metrics.evaluate(examples, [perfect(e) for e in examples.examples])["AP"] == pytest.approx(100)
    shifted = voc_metrics.evaluate(examples, [perfect(e, 3.0) for e in examples.examples])
    assert 0 < shifted["AP"] < 100
    assert shifted["AP50"] == pytest.approx(100)
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert voc_metrics.evaluate(examples, [none] * 8)["AP"] == 0
    twice = []
    for example in examples.examples:
        one = perfect(example)
        twice.append(
            Detections(
                one.boxes.repeat(2, 1), torch.cat([one.scores, one.scores * 0.9]), one.labels.repeat(2)
            )
        )
    assert voc_metrics.evaluate(examples, twice)["AP"] == pytest.approx(100)  # duplicates come after
    assert voc_metrics.average_precision(np.array([0.5, 1.0]), np.array([1.0, 0.5]), "area") == 0.75


@pytest.mark.parametrize(
    ("test", "area"),
    [
        ("VOC2007:test", "11 points"), ("VOC2009:val", "11 points"), ("VOC2010:val", "area"),
        ("VOC2012:val", "area"), ("mine:test", "11 points"),
    ],
)  # fmt: skip
def test_precision_is_the_one_of_the_year(tmp_path, test, area):
    year, _, split = test.partition(":")
    examples = voc.detection(write_voc(tmp_path, {split: 8}, year), (test,))
    found = [noisy(example, 20, n) for n, example in enumerate(examples.examples)]
    table = _table(TransferRecipe(test=test), examples, Part(boxes=found))
    assert table == voc_metrics.evaluate(examples, found, area=area)
    other = "area" if area == "11 points" else "11 points"
    assert table != voc_metrics.evaluate(examples, found, area=other)
