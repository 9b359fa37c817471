"""Pascal VOC's layout as tools write it; what is wrong with a file is said with its name."""

import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from moco.recipes.transfer import get_transfer
from moco.report.transfer import plot_found
from moco.transfer import cityscapes, voc
from moco.transfer.example import Detections
from moco.transfer.loader import Pixels, checked
from moco.transfer.transforms import label_image
from moco.transfer_build import open_sets
from moco.transfer_build import read_image as decode

PIXELS = Pixels((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CPU = torch.device("cpu")


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
