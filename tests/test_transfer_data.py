"""Layouts, transforms, order and batches; what is wrong with a file is said with its name and id."""

import json
import math
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from moco.recipes.transfer import get_transfer
from moco.report.transfer import plot_found
from moco.transfer import cityscapes, coco, voc
from moco.transfer.batch import Images
from moco.transfer.example import Detections, has_keypoints, has_objects
from moco.transfer.loader import Pixels, checked, detection_loader, segmentation_loader
from moco.transfer.order import Order, repeat_factors
from moco.transfer.surface import Symmetry, read_points
from moco.transfer.transforms import Sizes, Wanted, for_detection, for_segmentation, label_image
from moco.transfer_build import open_sets
from moco.transfer_build import read_image as decode
from moco.world import Solo
from scenes import surface, write_cityscapes, write_coco, write_voc

PIXELS = Pixels((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CPU = torch.device("cpu")


@pytest.fixture
def voc_root(tmp_path):
    return write_voc(tmp_path, {"train": 8, "test": 4})


def test_voc_boxes_begin_at_zero_and_splits_are_joined(voc_root):
    examples = voc.detection(voc_root, ("VOC2007:train", "VOC2007:test"))
    assert len(examples) == 12
    first = examples.examples[0]
    pixels = decode(first.path).permute(1, 2, 0).numpy().astype(int)
    left, top, right, bottom = (int(v) for v in first.objects.boxes[0])
    inside = pixels[top + 2 : bottom - 2, left + 2 : right - 2]
    assert abs(inside - inside[0, 0]).max() < 12  # one colour
    assert abs(pixels[top + 3, left - 3] - inside[0, 0]).max() > 40
    assert voc.CLASSES[int(first.objects.labels[0])] == "cat"


def test_voc_roots_may_be_given_in_two_ways(voc_root):
    ids = [e.image_id for e in voc.detection(voc_root, ("VOC2007:test",)).examples]
    assert [e.image_id for e in voc.detection(voc_root / "VOCdevkit", ("VOC2007:test",)).examples] == ids


def break_voc(root, what):
    home = root / "VOCdevkit/VOC2007"
    if what == "list":
        (home / "ImageSets/Main/train.txt").unlink()
    elif what == "image":
        (home / "JPEGImages/train003.jpg").unlink()
    elif what == "year":
        (home / "ImageSets").rename(root / "away")
    else:
        path = home / "Annotations/train002.xml"
        text = path.read_text()
        changes = {
            "class": ("<name>person", "<name>unicorn"),
            "size": ("<size>", "<siz>"),
            "xml": ("</annotation>", ""),
            "number": ("<xmin>", "<xmin>x"),
            "corner": ("<xmax>", "<xmax>-"),
            "no number": ("<ymax>", "<ymax>nan</ymax><ymax>"),
        }
        path.write_text(text.replace(*changes[what]))


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("list", FileNotFoundError, r"there is no .*ImageSets/Main/train.txt"),
        ("image", FileNotFoundError, r"VOC2007 train: there is no .*JPEGImages/train003.jpg"),
        ("class", ValueError, r"train002.xml: unknown class 'unicorn'"),
        ("size", ValueError, r"train002.xml: "),
        ("xml", ValueError, r"train002.xml: "),
        ("number", ValueError, r"train002.xml: could not convert string to float: 'x"),
        (
            "corner",
            ValueError,
            r"train002.xml: a \w+ has the empty box xmin \d+, ymin \d+, xmax -\d+, ymax \d+",
        ),
        ("no number", ValueError, r"train002.xml: a \w+ has the empty box .* ymax nan"),
    ],
)
def test_what_is_wrong_with_voc_is_named(voc_root, what, error, message):
    break_voc(voc_root, what)
    with pytest.raises(error, match=message):
        voc.detection(voc_root, ("VOC2007:train",))


def test_wrong_splits_and_folders(voc_root, tmp_path):
    with pytest.raises(ValueError, match=r"a split of VOC is written YEAR:NAME"):
        voc.detection(voc_root, ("train",))
    with pytest.raises(FileNotFoundError, match=r"there is no .*VOCdevkit/VOC2012"):
        voc.detection(voc_root, ("VOC2012:train",))
    with pytest.raises(FileNotFoundError, match=r"there is no .*leftImg8bit/val"):
        cityscapes.instances(tmp_path / "nowhere", "val")


def test_voc_segmentation_and_train_aug(voc_root):
    examples = voc.segmentation(voc_root, "VOC2007:train")
    assert len(examples.classes) == 21
    mask = label_image(examples.examples[0], examples)
    assert set(mask.unique().tolist()) == {0, 8, 255}
    with pytest.raises(FileNotFoundError, match=r"train_aug.txt"):
        voc.segmentation(voc_root, "VOC2007:train_aug")
    size = np.zeros((5, 5), np.uint8)
    Image.fromarray(size).save(voc_root / "VOCdevkit/VOC2007/SegmentationClass/train001.png")
    with pytest.raises(ValueError, match=r"train001.png is not of the size of its image, 96 x 64"):
        voc.segmentation(voc_root, "VOC2007:train")


def test_a_layout_without_years_and_real_masks(shared_data, tmp_path):
    with zipfile.ZipFile(shared_data / "seg" / "camvid36_voc.zip") as archive:
        archive.extractall(tmp_path)
    home = next(tmp_path.rglob("JPEGImages")).parent
    examples = voc.segmentation(home, "train")
    assert (len(examples), len(examples.classes)) == (24, 11)
    assert int(label_image(examples.examples[0], examples).max()) <= 255


def test_a_class_that_does_not_exist_is_named_with_its_file(voc_root):
    values = replace(get_transfer("voc-segmentation"), train=("VOC2007:train",), test="VOC2007:test")
    home = voc_root / "VOCdevkit/VOC2007"
    (home / "classes.txt").write_text("".join(f"thing {number}\n" for number in range(15)))
    with pytest.raises(ValueError, match=r"test001.png has a pixel of class 15.*15 classes.*classes.txt"):
        open_sets(values, voc_root)
    examples = voc.segmentation(voc_root, "VOC2007:train")
    with pytest.raises(ValueError, match=r"train001.png has a pixel of class 15"):
        [label_image(example, examples) for example in examples.examples]


def test_a_difficult_object_is_marked_by_a_number_or_a_word(voc_root):
    before = [e.objects.difficult.tolist() for e in voc.detection(voc_root, ("VOC2007:train",)).examples]
    assert any(map(any, before))
    for path in (voc_root / "VOCdevkit/VOC2007/Annotations").glob("*.xml"):
        words = (
            path.read_text()
            .replace("<difficult>1<", "<difficult> True <")
            .replace("<difficult>0<", "<difficult><")
        )
        path.write_text(words)
    assert [
        e.objects.difficult.tolist() for e in voc.detection(voc_root, ("VOC2007:train",)).examples
    ] == before


def test_names_with_signs_of_mathematics_are_drawn_as_they_are(voc_root, tmp_path):
    examples = voc.detection(voc_root, ("VOC2007:test",))
    labels = examples.examples[0].objects.labels
    odd = replace(examples, classes=("$_$", *examples.classes[1:]))
    first = replace(odd.examples[0], image_id="$_$")
    first = replace(first, objects=replace(first.objects, labels=torch.zeros_like(labels)))
    found = Detections(first.objects.boxes, torch.ones(len(labels)), torch.zeros_like(labels))
    plot_found(tmp_path / "found.png", odd, [(first, found)])
    assert (tmp_path / "found.png").stat().st_size > 5000


def test_boxes_of_other_classes_than_voc_s_take_classes_txt(voc_root):
    home = voc_root / "VOCdevkit/VOC2007"
    before = voc.detection(voc_root, ("VOC2007:train",)).examples[0].objects.labels
    for path in (home / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("<name>cat", "<name>ripe apple"))
    with pytest.raises(ValueError, match=r"unknown class 'ripe apple'; .* classes.txt beside Annotations"):
        voc.detection(voc_root, ("VOC2007:train",))
    (home / "classes.txt").write_text("background\nperson\nripe apple\ndog\n")
    examples = voc.detection(voc_root, ("VOC2007:train",))
    assert examples.classes == ("person", "ripe apple", "dog")
    first = examples.examples[0].objects.labels
    assert [examples.classes[label] for label in first.tolist()] == [
        voc.CLASSES[label].replace("cat", "ripe apple") for label in before.tolist()
    ]


def test_masks_of_0_and_255_are_no_two_classes(voc_root):
    values = replace(get_transfer("voc-segmentation"), train=("VOC2007:train",), test="VOC2007:test")
    home = voc_root / "VOCdevkit/VOC2007"
    (home / "classes.txt").write_text("background\nthing\n")
    for path in (home / "SegmentationClass").glob("*.png"):
        Image.fromarray((np.array(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)
    with pytest.raises(ValueError, match=r"the masks of VOC2007 test hold 0 and 255 only; .* 255 counts"):
        open_sets(values, voc_root)


def test_lists_may_be_saved_by_an_editor_and_names_have_spaces(voc_root):
    home = voc_root / "VOCdevkit/VOC2007"
    for old in home / "JPEGImages/train001.jpg", home / "Annotations/train001.xml":
        old.rename(old.with_stem("my photo"))
    names = home / "ImageSets/Main/train.txt"
    text = names.read_text().replace("train001", "my photo")
    names.write_text(text, encoding="utf-8-sig")
    examples = voc.detection(voc_root, ("VOC2007:train",))
    assert [e.image_id for e in examples.examples][:3] == ["train000", "my photo", "train002"]
    names.write_text(text.replace("\n", "  -1\n"))  # as in the lists of single classes
    assert voc.detection(voc_root, ("VOC2007:train",)).examples[1].image_id == "my photo"
    numbered = "".join(f"{number} thing\n" for number in range(21)) + "255 void\n"
    (home / "classes.txt").write_text(numbered, encoding="utf-8-sig")
    assert voc.segmentation(voc_root, "VOC2007:test").classes == ("thing",) * 21


def test_a_size_that_a_tool_did_not_know_is_the_image_s(voc_root):
    path = voc_root / "VOCdevkit/VOC2007/Annotations/train001.xml"
    before = voc.detection(voc_root, ("VOC2007:train",)).examples[1]
    for width in ("0", f"{before.width}.0"):
        path.write_text(re.sub(r"<width>[\d.]+", f"<width>{width}", path.read_text()))
        example = voc.detection(voc_root, ("VOC2007:train",)).examples[1]
        assert (example.height, example.width) == (before.height, before.width)


def test_a_turned_photograph_takes_the_mask_of_the_upright_one(voc_root):
    home = voc_root / "VOCdevkit/VOC2007"
    path = home / "JPEGImages/train000.jpg"
    with Image.open(path) as image:
        upright, exif = image.copy(), image.getexif()
    exif[274] = 6
    upright.rotate(90, expand=True).save(path, exif=exif)
    examples = voc.segmentation(voc_root, "VOC2007:train")
    first = examples.examples[0]
    assert checked(decode, first).shape[1:] == label_image(first, examples).shape == (96, 64)
    mask = home / "SegmentationClass/train000.png"
    Image.open(mask).rotate(90, expand=True).save(mask)
    with pytest.raises(ValueError, match=r"train000.png is not of the size of its image, 64 x 96"):
        voc.segmentation(voc_root, "VOC2007:train")


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


def test_resizing_and_mirroring_move_everything_together(tmp_path):
    pytest.importorskip("faster_coco_eval")
    root = write_coco(tmp_path, {"train": 2}, "keypoints")
    examples = coco.coco(root, "train", kind="person_keypoints")
    example = examples.examples[1]
    image = decode(example.path)
    wanted = Wanted(masks=True, keypoints=True)
    results = []
    for mirror in (0.9, 0.1):
        picture, target = for_detection(
            image, example, examples, Sizes((128,), 1000), wanted, [0.5, mirror, 0, 0]
        )
        assert picture.shape[1:] == (128, 192)
        for box, mask in zip(target.boxes, target.masks, strict=True):
            rows, columns = mask.nonzero().unbind(1)
            extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            torch.testing.assert_close(torch.stack(extent).float(), box, atol=1.0, rtol=0)
        results.append((picture, target))
    (plain, target), (mirrored, other) = results
    assert torch.equal(plain.flip(-1), mirrored)
    torch.testing.assert_close(192 - other.boxes[:, [2, 0]], target.boxes[:, [0, 2]])
    left, right = 1, 2  # eyes
    torch.testing.assert_close(192 - other.keypoints[:, left, 0], target.keypoints[:, right, 0])
    torch.testing.assert_close(192 - other.keypoints[:, 0, 0], target.keypoints[:, 0, 0])
    torch.testing.assert_close(target.keypoints[:, 0, :2], 2 * example.objects.keypoints[:, 0, :2])


def test_boxes_outside_and_without_area_are_cut_or_dropped(tmp_path):
    path = write_coco(tmp_path, {"train": 2}) / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    image = content["images"][0]["id"]
    for number, box in enumerate([[-10, 5, 30, 20], [500, 500, 20, 20], [5, 5, 0, 9]]):
        content["annotations"].append(content["annotations"][0] | {"id": 90 + number, "bbox": box})
        content["annotations"][-1]["image_id"] = image
    path.write_text(json.dumps(content))
    examples = coco.coco(tmp_path, "train")
    example = examples.examples[0]
    assert len(example.objects) == 4
    _, target = for_detection(
        decode(example.path), example, examples, Sizes((64,), 1000), Wanted(), [0.5, 0.9, 0, 0]
    )
    assert target.boxes.tolist()[1] == [0, 5, 20, 25]
    assert len(target.boxes) == len(target.labels) == 2


def test_the_short_side_is_drawn_and_the_long_side_limited():
    sizes = Sizes((480, 512, 800), 1333)
    assert sizes.of(500, 1000, 0.1) == (480, 960)
    assert sizes.of(500, 1000, 0.9) == (667, 1333)
    assert sizes.of(1000, 500, 0.5) == (1024, 512)


def test_crops_for_segmentation_keep_pixels_and_labels_together():
    rows = torch.arange(40).float()[None, :, None].expand(3, 40, 30)
    labels = torch.arange(40)[:, None].expand(40, 30).to(torch.uint8)
    for draw in ([0.4999, 0.9, 0.6, 0.2], [0.0, 0.1, 0.5, 0.5], [0.99, 0.9, 0.9, 0.1]):
        picture, truth = for_segmentation(rows, labels, 33, (0.5, 1.5), draw)
        assert picture.shape == (3, 33, 33)
        seen = truth != 255
        assert (picture[0][seen] - truth[seen].float()).abs().max() < 1.5
        assert bool((picture[:, ~seen] == 0).all())
    assert int(seen.sum()) == 33 * 33


def test_batches_are_all_wide_or_all_tall_and_take_every_image():
    wide = [n % 3 == 0 for n in range(60)]
    order = Order(wide, 4, seed=5)
    steps = 15
    batches = [order.index(step) for step in range(steps)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(60))
    assert all(len({wide[i] for i in batch}) == 1 for batch in batches)
    again = Order(wide, 4, seed=5)
    assert [again.index(step).tolist() for step in (20, 3)] == [order.index(20).tolist(), batches[3].tolist()]
    assert order.index(15).tolist() != batches[0].tolist()
    with pytest.raises(ValueError, match=r"there are 3 images, fewer than a batch of 4"):
        Order(wide[:3], 4, seed=0)


def test_rare_classes_are_repeated_as_often_as_defined(tmp_path):
    examples = coco.coco(write_coco(tmp_path, {"train": 30}), "train")
    factors = repeat_factors(examples, 0.9)
    share = [0.0] * 3
    for example in examples.examples:
        for label in set(example.objects.labels.tolist()):
            share[label] += 1 / 30
    for factor, example in zip(factors, examples.examples, strict=True):
        own = [max(1, math.sqrt(0.9 / share[label])) for label in set(example.objects.labels.tolist())]
        assert factor == pytest.approx(max(own))
    order = Order([True] * 30, 1, seed=0, repeats=np.linspace(1, 3, 30))
    seen = np.bincount([int(order.index(step)[0]) for step in range(60 * 40)], minlength=30)
    np.testing.assert_allclose(seen / seen.sum(), np.linspace(1, 3, 30) / 60, atol=0.006)


def loader(examples, world=None, workers=2):
    order = Order([e.width > e.height for e in examples.examples], 4, 0)
    return detection_loader(
        examples, order, decode, PIXELS, Sizes((48, 64), 200), Wanted(), divisor=32,
        seed=0, world=world or Solo(), device=CPU, workers=workers,
    )  # fmt: skip


def test_a_batch_depends_on_its_step_alone(voc_root):
    examples = voc.detection(voc_root, ("VOC2007:train",))
    streamed = list(loader(examples, workers=3).stream(0, 4))
    alone = loader(examples, workers=1).batch(3)
    assert torch.equal(streamed[3].images.pixels, alone.images.pixels)
    assert streamed[3].seeds == alone.seeds
    assert len({batch.seeds for batch in streamed}) == 4
    assert all(side % 32 == 0 for side in alone.images.pixels.shape[2:])
    for one, other in zip(streamed[3].targets, alone.targets, strict=True):
        assert torch.equal(one.boxes, other.boxes)


def test_processes_share_a_batch(voc_root):
    class Half(Solo):
        def __init__(self, rank):
            self.place = rank

        @property
        def rank(self):
            return self.place

        @property
        def size(self):
            return 2

    examples = voc.detection(voc_root, ("VOC2007:train",))
    whole = loader(examples).batch(1)
    parts = [loader(examples, Half(rank)).batch(1) for rank in (0, 1)]
    assert parts[0].seeds + parts[1].seeds == whole.seeds
    assert torch.equal(parts[1].targets[1].boxes, whole.targets[3].boxes)

    class Three(Half):
        @property
        def size(self):
            return 3

    with pytest.raises(ValueError, match=r"a batch of 4 images cannot be shared by 3 processes"):
        loader(examples, Three(0))


def test_images_of_another_size_than_annotated_end_the_run(voc_root):
    examples = voc.detection(voc_root, ("VOC2007:train",))
    Image.new("RGB", (10, 10)).save(examples.examples[0].path)
    with pytest.raises(RuntimeError, match=r"train000.jpg is 10 x 10 pixels, its annotation says 64 x 96"):
        list(loader(examples).stream(0, 2))


def test_segmentation_batches(voc_root):
    examples = voc.segmentation(voc_root, "VOC2007:train")
    order = Order([True] * 8, 4, 0)
    batches = segmentation_loader(
        examples, order, decode, PIXELS, 33, (0.5, 2.0), seed=0, world=Solo(), device=CPU
    )
    batch = batches.batch(0)
    assert batch.images.pixels.shape == (4, 3, 33, 33)
    assert batch.labels.shape == (4, 33, 33)
    assert set(batch.labels.unique().tolist()) <= {0, 8, 12, 15, 255}
    rgb = Image.new("RGB", (64, 96))
    rgb.save(examples.examples[0].semantic)
    with pytest.raises(ValueError, match=r"must hold one class number per pixel, it has mode RGB"):
        list(batches.stream(0, 2))


def test_images_are_padded_at_the_right_and_below():
    images = Images.stack([torch.ones(3, 5, 9), torch.ones(3, 7, 4)], divisor=4)
    assert images.pixels.shape == (2, 3, 8, 12)
    assert images.sizes == ((5, 9), (7, 4))
    assert [int(row.sum()) for row in images.pixels] == [3 * 45, 3 * 28]


def test_surface_points_and_their_mirror(tmp_path):
    pytest.importorskip("faster_coco_eval")
    points = read_points(surface(2))
    assert points.parts.tolist() == [3] * 9
    torch.testing.assert_close(points.places[0], torch.tensor([40 / 256, 40 / 256]))
    assert int(points.inside.sum()) == 256 * 256
    assert read_points(None) is None
    tables = torch.zeros(2, 24, 256, 256)
    tables[0, 2] = 0.25
    tables[1, 2, 40, :] = 0.75
    mirrored = Symmetry(tables).mirrored(points)
    assert mirrored.parts.tolist() == [4] * 9
    torch.testing.assert_close(mirrored.places[:, 0], 1 - points.places[:, 0])
    assert mirrored.uv[:, 0].tolist() == [0.25] * 9
    with pytest.raises(
        FileNotFoundError, match=r"UV_symmetry_transforms.mat; it belongs to the DensePose data"
    ):
        Symmetry.read(tmp_path / "UV_symmetry_transforms.mat")
    scipy_io = pytest.importorskip("scipy.io")
    content = {}
    for axis, table in zip("UV", tables.numpy(), strict=True):
        cell = np.empty((1, 24), dtype=object)
        for part in range(24):
            cell[0, part] = table[part]
        content[f"{axis}_transforms"] = cell
    scipy_io.savemat(tmp_path / "UV_symmetry_transforms.mat", content)
    assert torch.equal(Symmetry.read(tmp_path / "UV_symmetry_transforms.mat").tables, tables)
