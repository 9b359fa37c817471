"""COCO's and LVIS's metrics against the field's own evaluators."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
import torch

from moco.transfer import coco, coco_metrics
from moco.transfer.example import Detections
from moco.transfer.shapes import rasterise
from scenes import noisy, perfect, write_coco


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


def all_perfect(examples):
    """The boxes of the annotations, as results."""
    return [r for e in examples.examples for r in coco_metrics.rows(examples, e, perfect(e), "bbox")]


def test_lvis_has_frequencies(coco_sets):
    examples = coco_sets["lvis"]
    rows = all_perfect(examples)
    table = coco_metrics.evaluate(examples, rows, "bbox", lvis=True, most=300)
    assert [table[f"AP{letter}"] for letter in "rcf"] == pytest.approx([100] * 3)
    rows = [row for row in rows if row["category_id"] != 10]
    table = coco_metrics.evaluate(examples, rows, "bbox", lvis=True, most=300)
    assert (table["APr"], table["APf"]) == (pytest.approx(0), pytest.approx(100))


def test_classes_an_image_was_not_checked_for_do_not_count_in_lvis(coco_sets):
    examples = coco_sets["lvis"]
    rows = all_perfect(examples)
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
