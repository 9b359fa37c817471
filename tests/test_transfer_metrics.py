"""Metrics against slow references and the field's own evaluators."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
import torch

from moco.transfer import cityscapes, coco, coco_metrics, surface_metrics, voc, voc_metrics
from moco.transfer.cityscapes_metrics import Instances
from moco.transfer.densepose import Surface
from moco.transfer.example import Detections
from moco.transfer.pixel_metrics import Confusion
from moco.transfer.shapes import rasterise
from moco.transfer.surface_metrics import Bodies, Body, similarity
from moco.transfer_measure import Part, _table
from moco.transfer_recipe import TransferRecipe
from scenes import write_cityscapes, write_coco, write_voc


def perfect(example, shift=0.0, masks=None, keypoints=None):
    """The annotations as detections, moved to the right."""
    objects = example.objects
    move = torch.tensor([shift, 0, shift, 0])
    return Detections(objects.boxes + move, torch.ones(len(objects)), objects.labels, masks, keypoints)


def noisy(example, classes, seed, count=12):
    """Some annotations moved about, some random boxes, random scores and now and then another class."""
    rng = np.random.default_rng(seed)
    boxes = example.objects.boxes.numpy()
    rows = []
    for _ in range(count):
        if len(boxes) and rng.random() < 0.7:
            box = boxes[rng.integers(len(boxes))]
            rows.append(box + rng.normal(0, 3, 4).astype(np.float32) * rng.random())
        else:
            corner = rng.random(2) * [example.width * 0.6, example.height * 0.6]
            rows.append([*corner, *(corner + 4 + rng.random(2) * 30)])
    found = torch.tensor(np.array(rows, dtype=np.float32))
    found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1)
    own = example.objects.labels
    labels = [
        int(own[rng.integers(len(own))]) if len(own) and rng.random() < 0.8 else int(rng.integers(classes))
        for _ in range(count)
    ]
    scores = torch.tensor(rng.random(count).astype(np.float32)).sort(descending=True).values
    return Detections(found, scores, torch.tensor(labels))


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


@pytest.fixture(scope="module")
def coco_sets(tmp_path_factory):
    pytest.importorskip("faster_coco_eval")
    root = tmp_path_factory.mktemp("coco")
    write_coco(root, {"val2017": 10})
    write_coco(root, {"val2017": 10}, "keypoints")
    write_coco(root, {"v0.5_val": 10}, "lvis", folders={"v0.5_val": "val2017"})
    return {
        "instances": coco.coco(root, "val2017"),
        "keypoints": coco.coco(root, "val2017", kind="person_keypoints"),
        "lvis": coco.lvis(root, "v0.5_val"),
    }


def reference(examples, rows, kind):
    tools = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = tools.COCO(str(examples.source))
        evaluator = COCOeval(truth, truth.loadRes(rows), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return 100 * evaluator.stats[:3]


def masks_of(example, boxes):
    masks = torch.zeros(len(boxes), example.height, example.width, dtype=torch.bool)
    for mask, box in zip(masks, boxes.round().long().clamp(min=0).tolist(), strict=True):
        mask[box[1] : max(box[3], box[1] + 1), box[0] : max(box[2], box[0] + 1)] = True
    return masks


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_equals_pycocotools_on_random_detections(coco_sets, kind):
    examples = coco_sets["instances"]
    rows = []
    for number, example in enumerate(examples.examples):
        one = noisy(example, 3, number)
        found = Detections(one.boxes, one.scores, one.labels, masks_of(example, one.boxes))
        rows += coco_metrics.rows(examples, example, found, kind)
    ours = coco_metrics.evaluate(examples, rows, kind)
    np.testing.assert_allclose(
        [ours["AP"], ours["AP50"], ours["AP75"]], reference(examples, rows, kind), atol=1e-6
    )
    assert 5 < ours["AP50"] < 95


def test_annotations_may_be_numbered_from_zero(coco_sets, tmp_path):
    examples = coco_sets["instances"]
    rows = []
    for example in examples.examples:
        rows += coco_metrics.rows(examples, example, perfect(example), "bbox")
    content = json.loads(examples.source.read_text())
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number
    (tmp_path / "from0.json").write_text(json.dumps(content))
    renumbered = dataclasses.replace(examples, source=tmp_path / "from0.json")
    found, expected = (coco_metrics.evaluate(e, rows, "bbox")["AP"] for e in (renumbered, examples))
    assert found == expected


@pytest.mark.parametrize(
    ("image", "category"),
    [("{:02}".format, str), ("im{:02}".format, "k{}".format), (lambda i: i + 2**62, float)],
)
def test_images_and_classes_may_have_any_names(coco_sets, tmp_path, image, category):
    examples = coco_sets["instances"]
    content = json.loads(examples.source.read_text())
    for row in content["images"]:
        row["id"] = image(row["id"])
    for row in content["categories"]:
        row["id"] = category(row["id"])
    for row in content["annotations"]:
        row |= {"image_id": image(row["image_id"]), "category_id": category(row["category_id"])}
        row |= {"iscrowd": None, "area": None}
    content["images"].reverse()
    (tmp_path / "named.json").write_text(json.dumps(content))
    named = coco.read(tmp_path / "named.json", examples.examples[0].path.parent, masks=True)
    tables = []
    for one in examples, named:
        rows = []
        for example in sorted(one.examples, key=lambda e: e.path):
            found = noisy(example, 3, int(example.path.stem))
            found = dataclasses.replace(found, scores=found.scores.round(decimals=1))  # with ties
            rows += coco_metrics.rows(one, example, found, "bbox")
        tables.append(coco_metrics.evaluate(one, rows, "bbox"))
    assert tables[0] == tables[1]
    assert 5 < tables[0]["AP50"] < 95


def test_a_class_without_objects_hides_none_of_its_name(coco_sets, tmp_path):
    examples = coco_sets["instances"]
    content = json.loads(examples.source.read_text())
    content["categories"].append({"id": 99, "name": "cat"})
    (tmp_path / "twice.json").write_text(json.dumps(content))
    twice = coco.read(tmp_path / "twice.json", examples.examples[0].path.parent)
    rows = [r for e in twice.examples for r in coco_metrics.rows(twice, e, perfect(e), "bbox")]
    assert coco_metrics.evaluate(twice, rows, "bbox")["AP/cat"] == pytest.approx(100)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_keypoints_equal_pycocotools(coco_sets, noise):
    examples = coco_sets["keypoints"]
    rng = torch.Generator().manual_seed(0)
    rows = []
    for example in examples.examples:
        joints = example.objects.keypoints.clone()
        joints[:, :, :2] += noise * torch.randn((*joints.shape[:2], 2), generator=rng)
        one = perfect(example)
        scores = torch.rand(len(one), generator=rng).sort(descending=True).values
        found = Detections(one.boxes, scores, one.labels, keypoints=joints)
        rows += coco_metrics.rows(examples, example, found, "keypoints")
    ours = coco_metrics.evaluate(examples, rows, "keypoints")
    np.testing.assert_allclose(
        [ours["AP"], ours["AP50"], ours["AP75"]], reference(examples, rows, "keypoints"), atol=1e-6
    )
    assert ours["AP"] == pytest.approx(100) if noise == 0 else 2 < ours["AP"] < 90


@pytest.mark.parametrize("kind", ["keypoints", "bbox"])
def test_joints_are_counted_and_classes_without_them_left_out(coco_sets, tmp_path, kind):
    whole = coco_sets["keypoints"]
    content = json.loads(whole.source.read_text())
    for annotation in content["annotations"]:
        del annotation["num_keypoints"]
    content["categories"].append({"id": 2, "name": "dog"})
    content["annotations"].append({"id": 50, "image_id": 1, "category_id": 2, "bbox": [1, 1, 9, 9]})
    (tmp_path / "bare.json").write_text(json.dumps(content))
    bare = coco.read(tmp_path / "bare.json", whole.examples[0].path.parent, keypoints=True)
    rows = []
    for example in whole.examples:
        found = perfect(example, keypoints=example.objects.keypoints)
        rows += coco_metrics.rows(whole, example, found, kind)
    table = coco_metrics.evaluate(bare, rows, kind)
    assert table == coco_metrics.evaluate(whole, rows, kind)
    assert table["AP"] == pytest.approx(100)


def test_real_annotations_with_crowds_equal_pycocotools(shared_data, tmp_path):
    import zipfile

    pytest.importorskip("faster_coco_eval")
    with zipfile.ZipFile(shared_data / "coco" / "tiny_coco_36.zip") as archive:
        archive.extractall(tmp_path)
    examples = coco.coco(tmp_path, "val2017")
    rows = []
    for number, example in enumerate(examples.examples):
        one = noisy(example, 80, number, count=20)
        found = Detections(one.boxes, one.scores, one.labels, masks_of(example, one.boxes))
        rows += coco_metrics.rows(examples, example, found, "segm")
    ours = coco_metrics.evaluate(examples, rows, "segm")
    np.testing.assert_allclose(
        [ours["AP"], ours["AP50"], ours["AP75"]], reference(examples, rows, "segm"), atol=1e-6
    )
    assert any(bool(example.objects.skipped.any()) for example in examples.examples)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_perfect_is_100_and_shifted_is_less(coco_sets, kind):
    examples = coco_sets["instances"]
    table = {}
    for shift in (0.0, 4.0):
        rows = []
        for example in examples.examples:
            one = perfect(example, shift)
            found = Detections(one.boxes, one.scores, one.labels, masks_of(example, one.boxes))
            rows += coco_metrics.rows(examples, example, found, kind)
        table[shift] = coco_metrics.evaluate(examples, rows, kind)
    assert table[0.0]["AP"] == pytest.approx(100)
    assert table[4.0]["AP"] < 90
    assert table[0.0]["AP/cat"] == pytest.approx(100)


def test_no_detections_are_worth_nothing(coco_sets):
    assert coco_metrics.evaluate(coco_sets["instances"], [], "bbox")["AP"] == 0


def test_lvis_has_frequencies(coco_sets):
    examples = coco_sets["lvis"]
    rows = [
        row
        for example in examples.examples
        for row in coco_metrics.rows(examples, example, perfect(example), "bbox")
    ]
    table = coco_metrics.evaluate(examples, rows, "bbox", lvis=True, most=300)
    assert [table[f"AP{letter}"] for letter in "rcf"] == pytest.approx([100] * 3)
    rows = [row for row in rows if row["category_id"] != 10]
    table = coco_metrics.evaluate(examples, rows, "bbox", lvis=True, most=300)
    assert (table["APr"], table["APf"]) == (pytest.approx(0), pytest.approx(100))


def test_classes_an_image_was_not_checked_for_do_not_count_in_lvis(coco_sets):
    examples = coco_sets["lvis"]
    rows = [
        row
        for example in examples.examples
        for row in coco_metrics.rows(examples, example, perfect(example), "bbox")
    ]
    import json

    content = json.loads(examples.source.read_text())
    shown = {a["image_id"] for a in content["annotations"] if a["category_id"] == 10}
    absent = [image["id"] for image in content["images"] if image["id"] not in shown]
    wrong = {"image_id": absent[0], "category_id": 10, "score": 2.0, "bbox": [1, 1, 20, 20]}
    checked = coco_metrics.evaluate(examples, [*rows, wrong], "bbox", lvis=True, most=300)
    assert checked["APr"] < 100
    before = examples.source.read_text()
    for image in content["images"]:
        image["neg_category_ids"] = []
    examples.source.write_text(json.dumps(content))
    unchecked = coco_metrics.evaluate(examples, [*rows, wrong], "bbox", lvis=True, most=300)
    examples.source.write_text(before)
    assert unchecked["APr"] == pytest.approx(100)


def test_miou_equals_the_definition():
    rng = np.random.default_rng(0)
    truths = [torch.tensor(rng.integers(0, 4, (9, 11))) for _ in range(3)]
    found = [torch.where(torch.tensor(rng.random((9, 11)) < 0.6), t, 3 - t) for t in truths]
    truths[0][:2] = 255
    confusion = Confusion(["a", "b", "c", "d", "never"])
    for truth, one in zip(truths, found, strict=True):
        confusion.add(truth, one)
    table = confusion.result()
    ious = []
    for label in range(4):
        both = either = 0
        for truth, one in zip(truths, found, strict=True):
            for t, p in zip(truth.flatten().tolist(), one.flatten().tolist(), strict=True):
                if t != 255:
                    both += t == label and p == label
                    either += label in (t, p)
        ious.append(100 * both / either)
    assert table["mIoU"] == pytest.approx(np.mean(ious), abs=1e-9)
    assert "IoU/never" not in table
    again = Confusion(["a", "b", "c", "d"])
    again.add(truths[0], torch.where(truths[0] == 255, 0, truths[0]))
    assert again.result()["mIoU"] == 100
    with pytest.raises(ValueError, match="class numbers must be below 4 or 255, got 7"):
        again.add(torch.full((2, 2), 7), torch.zeros(2, 2, dtype=torch.long))


def test_cityscapes_perfect_is_100_shifted_is_less_and_void_does_not_count(tmp_path):
    examples = cityscapes.instances(write_cityscapes(tmp_path, {"val": 6}), "val")

    def score(change):
        metric = Instances(examples.classes)
        for example in examples.examples:
            whole = torch.from_numpy(cityscapes.instance_numbers(example.instances))
            masks = torch.stack([whole == n for n in example.objects.shapes])
            metric.add(example, change(example, masks))
        return metric.result()

    def as_found(example, masks):
        return Detections(
            example.objects.boxes, torch.linspace(0.9, 0.8, len(masks)), example.objects.labels, masks
        )

    def with_void(example, masks):
        void = torch.zeros(1, example.height, example.width, dtype=torch.bool)
        void[0, :2] = True  # where the labels say static
        label = example.objects.labels[:1]
        return Detections(
            torch.cat([example.objects.boxes, torch.zeros(1, 4)]),
            torch.cat([torch.linspace(0.9, 0.8, len(masks)), torch.tensor([0.99])]),
            torch.cat([example.objects.labels, label]),
            torch.cat([masks, void]),
        )

    assert score(as_found)["AP"] == pytest.approx(100)
    assert score(with_void)["AP"] == pytest.approx(100)
    shifted = score(lambda example, masks: as_found(example, masks.roll(4, 2)))
    assert 0 < shifted["AP"] < 90
    assert score(lambda example, masks: as_found(example, torch.zeros_like(masks)))["AP"] == 0


@pytest.fixture(scope="module")
def body():
    """Every part a flat square of 0.4 m with 9 x 9 points; different parts a metre apart."""
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 1, 9)), -1).reshape(-1, 2)
    parts = np.repeat(np.arange(1, 25), len(grid))
    uv = np.tile(grid, (24, 1))
    count = len(parts)
    high, low = np.tril_indices(count, -1)
    apart = 0.4 * np.linalg.norm(uv[high] - uv[low], axis=1)
    distances = np.where(parts[high] == parts[low], apart, 1.0)
    return Body(parts, uv[:, 0], uv[:, 1], np.arange(count), distances)


def test_distances_are_found_where_they_are(body):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, len(body.parts), (2, 50))
    for a, b, found in zip(first, second, body.between(first, second), strict=True):
        same = body.parts[a] == body.parts[b]
        apart = 0.4 * np.hypot(body.u[a] - body.u[b], body.v[a] - body.v[b])
        assert found == pytest.approx(apart if same else 1.0)
    assert body.between(np.array([3, -1]), np.array([3, 5])).tolist() == [0.0, np.inf]


def painted(example, number, part_shift=0, uv_shift=0.0):
    """A surface that gives each annotated point its own part, U and V."""
    left, top, right, bottom = (int(v) for v in example.objects.boxes[number])
    height, width = bottom - top, right - left
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    part = int(example.objects.surfaces[number]["dp_I"][0])
    parts = torch.full((height, width), (part - 1 + part_shift) % 24 + 1)
    uv = torch.tensor(np.stack([x + uv_shift, y])).clamp(0, 1)
    return Surface(left, top, parts, uv)


def surfaces_found(example, **changes):
    objects = example.objects
    surfaces = tuple(painted(example, n, **changes) for n in range(len(objects)))
    return Detections(objects.boxes, torch.ones(len(objects)), objects.labels, surfaces=surfaces)


def test_surface_precision(tmp_path, body):
    pytest.importorskip("faster_coco_eval")
    root = write_coco(tmp_path, {"minival": 6}, "densepose", folders={"minival": "val2014"})
    examples = coco.read(root / "annotations/densepose_coco_2014_minival.json", root / "val2014")

    def score(**changes):
        metric = Bodies(body)
        for example in examples.examples:
            metric.add(example, surfaces_found(example, **changes))
        return metric.judged.result()

    assert score()["AP"] == pytest.approx(100)
    assert score(part_shift=1)["AP"] == 0
    shifted = score(uv_shift=0.5)
    assert 0 <= shifted["AP"] < 90


def test_similarity_is_the_mean_over_points(tmp_path, body):
    root = write_coco(tmp_path, {"minival": 2}, "densepose", folders={"minival": "val2014"})
    example = coco.read(root / "annotations/densepose_coco_2014_minival.json", root / "val2014").examples[0]
    box = example.objects.boxes[0].numpy()
    found = painted(example, 0, uv_shift=0.25)
    value = similarity(body, example.objects.surfaces[0], box, found)
    expected = []
    surface = example.objects.surfaces[0]
    for x, y, u, v in zip(*(surface[f"dp_{n}"] for n in "xyUV"), strict=True):
        column, row = int(x / 256 * found.parts.shape[1]), int(y / 256 * found.parts.shape[0])
        own = np.round(np.array([u, v]) * 8) / 8  # the nearest of 9 x 9 points
        there = np.round(found.uv[:, row, column].numpy() * 8) / 8
        expected.append(np.exp(-((0.4 * np.linalg.norm(own - there)) ** 2) / (2 * 0.351**2)))
    assert value == pytest.approx(np.mean(expected), abs=1e-6)
    assert surface_metrics._NORMAL_DISTANCE[1] == 0.351


def test_masks_are_not_compared_with_boxes_alone(tmp_path):
    pytest.importorskip("faster_coco_eval")
    path = write_coco(tmp_path, {"val": 3}) / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    del content["annotations"][1]["segmentation"]
    path.write_text(json.dumps(content))
    examples = coco.coco(tmp_path, "val")
    with pytest.raises(ValueError, match=r"instances_val.json: annotation 2 has no segmentation to compare"):
        coco_metrics.evaluate(examples, [], "segm")


def test_rasterised_shapes():
    pytest.importorskip("faster_coco_eval")
    square = [[2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]]
    mask = rasterise(square, 12, 10)
    assert mask.sum() == 36
    assert mask[3:9, 2:8].all()
    counts = {"size": [12, 10], "counts": [3, 4, 113]}
    assert rasterise(counts, 12, 10)[:, 0].tolist() == [0] * 3 + [1] * 4 + [0] * 5
    assert rasterise(None, 12, 10).sum() == 0
    line = [1.0, 1.0, 9.0, 11.0]  # which pycocotools takes for left, top, width and height
    assert torch.equal(rasterise([line, [], *square], 12, 10), mask)
    assert rasterise([line], 12, 10).sum() == 0
