"""COCO's annotations and Cityscapes's masks; what is wrong with them is said with name and id."""

import json
import math
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from moco.recipes.transfer import get_transfer
from moco.transfer import cityscapes, coco
from moco.transfer.example import has_keypoints, has_objects
from moco.transfer.loader import Pixels
from moco.transfer.surface import read_points
from moco.transfer.transforms import label_image
from moco.transfer_build import open_sets
from scenes import write_cityscapes, write_coco

PIXELS = Pixels((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CPU = torch.device("cpu")


def test_coco_boxes_crowds_and_images_without_objects(shared_data, tmp_path):
    with zipfile.ZipFile(shared_data / "coco" / "tiny_coco_36.zip") as archive:
        archive.extractall(tmp_path)
    examples = coco.coco(tmp_path, "train2017")
    assert (len(examples), len(examples.classes)) == (20, 80)
    assert sum(len(e.objects) for e in examples.examples) == 192
    assert sum(int(e.objects.skipped.sum()) for e in examples.examples) == 2
    assert len(examples.only(has_objects, "")) == 19
    joints = coco.coco(tmp_path, "train2017", kind="person_keypoints")
    assert joints.classes == ("person",)
    assert joints.mirrored == (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
    assert 0 < len(joints.only(has_keypoints, "")) < 20
    content = json.loads((tmp_path / "annotations/person_keypoints_train2017.json").read_text())
    first = next(a for a in content["annotations"] if a["num_keypoints"])
    example = next(e for e in joints.examples if e.image_id == first["image_id"])
    assert [*(example.objects.keypoints[0, 0, :2] - 0.5)] == first["keypoints"][:2] or len(
        example.objects
    ) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, r"instances_train.json: annotation 3 names image 99"),
        ({"image_id": "1"}, r"instances_train.json: annotation 3 names image '1', which is not"),
        ({"category_id": 11}, r"instances_train.json: annotation 3 has category 11"),
        ({"bbox": [1, 2]}, r"annotation 3 must have a bbox of four numbers, got \[1, 2\]"),
        ({"bbox": [1, 2, "3", 4]}, r"annotation 3 must have a bbox of four numbers, got \[1, 2, '3', 4\]"),
        ({"bbox": [math.nan, 2, 3, 4]}, r"annotation 3 must have a bbox of four numbers, got \[nan, 2"),
    ],
)
def test_what_is_wrong_with_an_annotation_is_named(tmp_path, change, message):
    path = write_coco(tmp_path, {"train": 4}) / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][2] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        coco.coco(tmp_path, "train")


def with_surface(root, change):
    """DensePose annotations, of which the third is changed."""
    path = write_coco(root, {"train": 4}, "densepose", folders={"train": "train2014"})
    path = path / "annotations/densepose_coco_2014_train.json"
    content = json.loads(path.read_text())
    content["annotations"][2] |= change
    path.write_text(json.dumps(content))
    return coco.coco(root, "train", kind="densepose_coco_2014")


@pytest.mark.parametrize("background", [0.0, 255.0])
def test_points_of_the_background_count_for_nothing(tmp_path, background):
    parts = [background, *[5.0] * 7, background]
    some, none = (with_surface(tmp_path, {"id": 3, "dp_I": found}) for found in (parts, [background] * 9))
    of_third = [[s for e in examples.examples for s in e.objects.surfaces][2] for examples in (some, none)]
    points = read_points({**of_third[0], "dp_masks": []})
    assert points.parts.tolist() == [5] * 7
    assert len(points.places) == len(points.uv) == 7
    assert of_third[1] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dp_I": [25.0] * 9},
            r"annotation 3 has a point of part 25; dp_I holds parts 1 to 24, and 0 or 255",
        ),
        ({"dp_I": [math.nan] * 9}, r"annotation 3 has a point of part nan"),
        ({"dp_U": [0.5] * 8}, r"annotation 3 must have as many of each of dp_x, .*, got \[8, 9\]"),
        ({"dp_masks": None}, r"annotation 3 has dp_x but no dp_masks"),
    ],
)
def test_what_is_wrong_with_points_of_a_body_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        with_surface(tmp_path, change)


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        ("images", {"height": None}, r"instances_train.json: image 2 has no height"),
        ("images", {"file_name": ""}, r"instances_train.json: image 2 has no file_name"),
        ("images", {"id": 1}, r"image 1 is there twice; annotations would belong to both"),
        ("categories", {"name": None}, r"category 20 has no name"),
        ("categories", {"id": 10}, r"category 10 is there twice; annotations would belong to both"),
    ],
)
def test_what_is_wrong_with_an_image_or_a_class_is_named(tmp_path, rows, change, message):
    path = write_coco(tmp_path, {"train": 4}) / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content[rows][1] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        coco.coco(tmp_path, "train")


def test_an_image_that_is_missing_is_no_other_one(tmp_path):
    path = write_coco(tmp_path, {"train": 4}) / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    name = content["images"][1]["file_name"]
    content["images"][1]["file_name"] = f"COCO_train2014_{name}"  # as LVIS v0.5 names COCO 2017's files
    path.write_text(json.dumps(content))
    assert coco.coco(tmp_path, "train").examples[1].path.name == name
    content["images"][1]["file_name"] = f"left_{name}"
    path.write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=f"there is no .*left_{name}"):
        coco.coco(tmp_path, "train")


@pytest.mark.parametrize(
    "shape",
    [None, [], [[]], [[10, 10, 30, 20]], [1, 1, 9, 1, 9, 9], {"size": [64, 96], "counts": []}],
)
def test_masks_need_an_outline_of_every_object(tmp_path, shape):
    root = write_coco(tmp_path, {"train2017": 4, "val2017": 2})
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["segmentation"] = shape
    if shape is None:
        del content["annotations"][1]["segmentation"]
    path.write_text(json.dumps(content))
    values = get_transfer("coco-fpn-1x")
    with pytest.raises(ValueError, match=r"val2017.json: annotation 2 has no segmentation.*--heads.no-masks"):
        open_sets(values, root)
    assert len(open_sets(replace(values, heads=replace(values.heads, masks=False)), root).test) == 2


def test_classes_without_joints_are_left_out(tmp_path):
    path = write_coco(tmp_path, {"train": 3}, "keypoints") / "annotations/person_keypoints_train.json"
    content = json.loads(path.read_text())
    whole = coco.read(path, tmp_path / "train", keypoints=True)
    content["categories"].append({"id": 2, "name": "dog"})
    content["annotations"].insert(0, {"id": 50, "image_id": 1, "category_id": 2, "bbox": [1, 1, 9, 9]})
    path.write_text(json.dumps(content))
    examples = coco.read(path, tmp_path / "train", keypoints=True)
    assert examples.classes == ("person",)
    assert [len(e.objects) for e in examples.examples] == [len(e.objects) for e in whole.examples]
    content["annotations"][0]["category_id"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="annotation 50 has category 3, which is not in the file"):
        coco.read(path, tmp_path / "train", keypoints=True)


def test_joints_that_the_metric_does_not_know_are_refused_at_once(tmp_path):
    path = write_coco(tmp_path, {"train": 2}, "keypoints") / "annotations/person_keypoints_train.json"
    content = json.loads(path.read_text())
    content["categories"][0]["keypoints"] = content["categories"][0]["keypoints"][:5]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has 5 keypoints for each object"):
        coco.read(path, tmp_path / "train", keypoints=True)


def test_files_of_another_kind_are_refused(tmp_path):
    path = write_coco(tmp_path, {"train": 2}) / "annotations/instances_train.json"
    with pytest.raises(ValueError, match=r"must have one class with keypoints, it has 0"):
        coco.read(path, tmp_path / "train", keypoints=True)
    with pytest.raises(FileNotFoundError, match=r"instances_val.json"):
        coco.coco(tmp_path, "val")
    (tmp_path / "train/000000000002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"000000000002.jpg"):
        coco.coco(tmp_path, "train")
    for text in ("[]", "{", '{"images": []}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"is no annotation file in COCO's form"):
            coco.coco(tmp_path, "train")


def test_nothing_to_train_on_is_said(tmp_path):
    path = write_coco(tmp_path, {"train": 2}) / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"none of its 2 images shows an object"):
        coco.coco(tmp_path, "train").only(has_objects, "shows an object")


def test_cityscapes_instances_have_boxes_of_their_pixels(tmp_path):
    examples = cityscapes.instances(write_cityscapes(tmp_path, {"train": 4}), "train")
    for example in examples.examples:
        numbers = cityscapes.instance_numbers(example.instances)
        for box, number in zip(example.objects.boxes.long().tolist(), example.objects.shapes, strict=True):
            rows, columns = np.nonzero(numbers == number)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    semantic = cityscapes.semantic(tmp_path, "train")
    assert len(semantic.classes) == 19
    assert semantic.classes[0] == "road"
    mask = label_image(semantic.examples[0], semantic)
    assert set(mask.unique().tolist()) <= {0, 11, 13, 14, 255}
    assert int((mask == 255).sum()) == 2 * semantic.examples[0].width
