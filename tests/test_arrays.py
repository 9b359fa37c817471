"""Arrays of images, labels and groups: what they become, and which are refused."""

import re

import numpy as np
import pytest
import torch

from moco.data.open import open_source
from moco.data.reading import Reading
from moco.data.source import ArraySource


@pytest.mark.parametrize("shape", [(5, 8, 9), (5, 8, 9, 3), (5, 8, 9, 4)])
def test_arrays(tmp_path, shape):
    images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(5), test_images=images[:2])
    np.save(tmp_path / "x.npy", images)
    train, test = open_source(str(tmp_path / "x.npz")), open_source(str(tmp_path / "x.npz"), "test")
    plain = open_source(str(tmp_path / "x.npy"))
    assert train is not None
    assert test is not None
    assert plain is not None
    channels = shape[3] if len(shape) == 4 else 1
    assert train.read(3).shape == (channels, 8, 9)
    assert train.read(3)[0, 2, 1] == images.reshape(5, 8, 9, -1)[3, 2, 1, 0]
    assert (len(test), test.labels, plain.labels) == (2, None, None)
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("shape", "refused"),
    [
        ((6, 3, 32, 32), True), ((6, 1, 28, 28), True), ((6, 4, 20, 30), True), ((6, 3, 5, 5), True),
        ((6, 3, 4, 8), False), ((6, 4, 4, 8), False), ((6, 3, 40, 3), False), ((6, 1, 40, 4), False),
        ((6, 13, 32, 32), True), ((6, 2, 20, 30), True), ((6, 13, 20, 30), False), ((6, 32, 32, 32), False),
    ],
)  # fmt: skip
def test_arrays_with_channels_first_are_refused(tmp_path, shape, refused):
    images = np.zeros(shape, np.uint8)
    np.save(tmp_path / "x.npy", images)
    np.savez(tmp_path / "x.npz", images=images)
    for path in tmp_path / "x.npy", tmp_path / "x.npz":
        if refused:
            with pytest.raises(ValueError, match=rf"{path.name} .*save np\.moveaxis\(images, 1, -1\)"):
                open_source(str(path))
        else:
            assert open_source(str(path)).channels == shape[3]


@pytest.mark.parametrize(
    "images", [np.zeros((6, 8, 8, 3)), np.zeros((6, 8, 8), bool), np.zeros((6, 192), np.uint8)]
)
def test_arrays_of_another_form_are_refused_in_the_terms_of_their_file(tmp_path, images):
    np.savez(tmp_path / "x.npz", images=images)
    asked = r"images of uint8, uint16 or float32, of shape \(N, H, W\) or \(N, H, W, channels\), "
    got = f"got {images.dtype} of shape {images.shape}"
    with pytest.raises(ValueError, match=asked + re.escape(got)):
        open_source(str(tmp_path / "x.npz"))


def test_images_without_a_group_are_each_others_negatives(tmp_path):
    images = np.arange(5 * 64, dtype=np.uint8).reshape(5, 8, 8)
    np.savez(tmp_path / "x.npz", images=images, groups=np.array([7, -1, 7, -1, -1]))
    source = open_source(str(tmp_path / "x.npz"))
    assert source is not None
    assert source.groups is not None
    assert source.groups[0] == source.groups[2] == 7
    assert len(source.groups.unique()) == 4
    assert (source.groups >= 0).all()


def test_impossible_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4, 4), dtype=np.int64))
    with pytest.raises(ValueError, match=r"of uint8, uint16 or float32, .* got int64 of shape \(2, 4, 4\)"):
        open_source(str(tmp_path / "x.npz"))
    np.savez(tmp_path / "y.npz", pictures=np.zeros(2))
    with pytest.raises(ValueError, match="has no array 'images', it has pictures"):
        open_source(str(tmp_path / "y.npz"))
    with pytest.raises(ValueError, match=r"labels must be one class number .* shape \(3,\) for 2 images"):
        ArraySource(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3))
    with pytest.raises(
        ValueError, match=r"groups must be one number from 0 per image, .* shape \(3,\) for 2 images"
    ):
        ArraySource(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), groups=torch.zeros(3))
    with pytest.raises(ValueError, match=r"groups must be .* or -1 for none, got -2"):
        ArraySource(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), groups=torch.tensor([-1, -2]))
    with pytest.raises(ValueError, match=r"must hold finite values"):
        ArraySource(torch.full((2, 1, 4, 4), float("nan")))
    (tmp_path / "z.dat").write_text("")
    with pytest.raises(ValueError, match=r"is a file but none of .npz .npy .zip .tar .txt .csv"):
        open_source(str(tmp_path / "z.dat"))


def test_labels_and_groups_of_arrays_may_be_words(tmp_path):
    path, images = tmp_path / "set.npz", np.zeros((4, 8, 8), np.uint8)
    np.savez(
        path, images=images, labels=np.array(["dog", "cat", "", "dog"]), test_images=images[:1],
        groups=np.array(["b", "-1", "a", "b"]), test_labels=np.array([b"dog"]),
    )  # fmt: skip
    train, test = open_source(str(path)), open_source(str(path), "test")
    assert train.classes == test.classes == ["cat", "dog"]
    assert train.labels.tolist() == [1, 0, -1, 1]
    assert test.labels.tolist() == [1]
    assert train.groups[0] == train.groups[3]
    assert len(train.groups.unique()) == 3


def test_classes_of_test_arrays_are_those_of_training(tmp_path):
    path, images = tmp_path / "set.npz", np.zeros((1, 8, 8), np.uint8)
    for words in ["emu"], [0]:
        np.savez(path, images=images, labels=["cat"], test_images=images, test_labels=words)
        with pytest.raises(ValueError, match=r"set\.npz"):
            open_source(str(path), "test")


def test_a_class_that_only_test_arrays_have_is_refused(tmp_path):
    path, images = tmp_path / "set.npz", np.zeros((3, 8, 8), np.uint8)
    np.savez(path, images=images, labels=[0, 2, 2], test_images=images, test_labels=[2, 1, -1])
    with pytest.raises(ValueError, match=r"class 1 of the test images of .*set\.npz has no training image"):
        open_source(str(path), "test")
    for learnt, asked in ([0, 2, 2], [2, -1, -1]), ([-1, -1, -1], [0, 1, 2]):
        np.savez(path, images=images, labels=learnt, test_images=images, test_labels=asked)
        assert len(open_source(str(path), "test")) == 3


@pytest.mark.parametrize("kind", ["labels", "groups"])
@pytest.mark.parametrize(
    "values", [[0, 0.5, 1], [0, 1, np.nan], np.ones(3, complex), np.ones(3, "M8[D]")], ids=str
)
def test_labels_and_groups_of_arrays_are_whole_numbers(tmp_path, kind, values):
    arrays = {"images": np.zeros((3, 8, 8), np.uint8), kind: np.asarray(values)}
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=rf"set\.npz must have whole numbers or words in {kind}"):
        open_source(str(tmp_path / "set.npz"))


@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_of_either_byte_order_are_read(tmp_path, order):
    images = np.arange(3 * 64).reshape(3, 8, 8)
    np.savez(
        tmp_path / "set.npz", images=images.astype(f"{order}u2"), labels=np.array([0, 300, 1], f"{order}i4")
    )
    source = open_source(str(tmp_path / "set.npz"))
    assert source.pixels[:, 0].tolist() == images.tolist()
    assert source.labels.tolist() == [0, 300, 1]


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_array_files_cut_short_are_named(tmp_path, name, share):
    path, images = tmp_path / name, np.zeros((4, 8, 8), np.uint8)
    np.save(path, images) if name == "x.npy" else np.savez(path, images=images)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=name):
        open_source(str(path))


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_arrays_of_other_bits_or_channels_than_are_asked_for_are_refused(tmp_path, kind):
    images = np.ones((5, 8, 9, 3))
    for split in "train", "test":
        other = "test_images" if split == "train" else "images"
        name = "images" if split == "train" else "test_images"
        np.savez(tmp_path / "x.npz", **{name: images.astype(kind), other: images.astype(np.uint8)})
        asked = rf"x\.npz \({split}\) has {np.dtype(kind)} pixels where 8 bits .* scale it to uint8"
        with pytest.raises(ValueError, match=asked):
            open_source(str(tmp_path / "x.npz"), split, reading=Reading(bits=8))
    np.save(tmp_path / "x.npy", images.astype(np.uint8))
    assert open_source(str(tmp_path / "x.npy"), reading=Reading(bits=8, channels=3)).channels == 3
    with pytest.raises(ValueError, match=r"x\.npy has images of 3 channels where 1 are asked for"):
        open_source(str(tmp_path / "x.npy"), reading=Reading(channels=1))
