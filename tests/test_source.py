import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data.doctor import strays
from moco.data.encoded import FolderSource, ListSource
from moco.data.open import open_source
from moco.data.procedural import CLASSES, procedural
from moco.data.reading import Reading
from moco.data.scan import LINKS
from moco.data.source import ArraySource


def write(path: Path, mode="RGB", size=(20, 14), colour=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if colour is not None else 77).save(path)
    return path


def names(source):
    return [source.sample_name(i) for i in range(len(source))]


def test_flat_folder_has_images_in_order_and_no_labels(tmp_path):
    for name in "b.png", "a.jpg", "c.PNG", "notes.txt":
        write(tmp_path / name) if name != "notes.txt" else (tmp_path / name).write_text("no image")
    source = FolderSource(tmp_path)
    assert names(source) == ["a.jpg", "b.png", "c.PNG"]
    assert source.labels is None
    assert source.read(0).shape == (3, 14, 20)


def test_class_folders_are_labels(tmp_path):
    for name in "cat/1.png", "cat/deep/2.png", "dog/1.png":
        write(tmp_path / name)
    source = FolderSource(tmp_path)
    assert source.classes == ["cat", "dog"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 1]


def test_one_image_outside_class_folders_means_no_labels(tmp_path):
    for name in "cat/1.png", "dog/1.png", "0.png":
        write(tmp_path / name)
    assert FolderSource(tmp_path).labels is None


def test_train_and_test_folders_are_the_splits(tmp_path):
    for name in "train/cat/1.png", "train/dog/2.png", "val/cat/3.png":
        write(tmp_path / name)
    train, test = open_source(str(tmp_path)), open_source(str(tmp_path), "test")
    assert train is not None
    assert test is not None
    assert (len(train), len(test)) == (2, 1)
    assert open_source(str(tmp_path / "train"), "test") is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_a_set_of_one_kind_keeps_its_channels_and_grey_among_colour_is_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    source = FolderSource(write(tmp_path / f"x.{suffix}", mode, colour=1 if mode == "1" else None).parent)
    channels = 1 if mode in ("1", "L", "LA") else 3
    assert source.read(0).shape == (channels, 14, 20)
    assert source.dtype == source.read(0).dtype == torch.uint8
    write(tmp_path / "y.png")
    assert FolderSource(tmp_path).read(0).shape == (3, 14, 20)


def test_broken_files_are_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    with pytest.raises(RuntimeError, match=r"cannot decode .*broken.jpg"):
        FolderSource(tmp_path).read(0)


def test_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (20, 14))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert FolderSource(tmp_path).read(0).shape == (3, 20, 14)


def test_links_are_not_followed_unless_asked_for_and_their_loops_end(tmp_path):
    write(tmp_path / "elsewhere" / "secret.png")
    root = tmp_path / "root"
    write(root / "sub" / "x.png")
    write(root / "y.png")
    os.symlink(root, root / "sub" / "again")
    os.symlink(root / "sub", root / "twin")
    os.symlink(tmp_path / "elsewhere", root / "out")
    os.symlink(tmp_path / "elsewhere" / "secret.png", root / "link.png")
    source = FolderSource(root)
    assert names(source) == ["y.png", "sub/x.png"]
    assert source.index.skipped == {LINKS: 4}
    followed = FolderSource(root, reading=Reading(follow_links=True))
    assert sorted(Path(name).name for name in names(followed)) == ["link.png", "secret.png", "x.png", "y.png"]


@pytest.mark.parametrize("linked", ["files", "folders"])
def test_a_folder_of_nothing_but_links_is_followed(tmp_path, linked):
    """As data versioning and caches lay images out; every command reads them so."""
    write(tmp_path / "store" / "cat" / "x.png")
    write(tmp_path / "store" / "dog" / "y.png")
    root = tmp_path / "root"
    root.mkdir()
    for path in (tmp_path / "store").iterdir() if linked == "folders" else (tmp_path / "store").glob("*/*"):
        os.symlink(path, root / path.name)
    source = open_source(str(root))
    assert sorted(Path(name).name for name in names(source)) == ["x.png", "y.png"]
    assert source.read(0).shape[0] == 3
    assert source.notes == (f"{root} has symbolic links only, so they are followed",)
    assert not list(strays(source))
    write(root / "own.png")
    assert names(open_source(str(root))) == ["own.png"]


def test_run_folders_are_no_images(tmp_path):
    write(tmp_path / "x.png")
    write(tmp_path / "runs" / "first" / "views.png")
    (tmp_path / "runs" / "first" / "recipe.toml").touch()
    for name, mark in ("doctor", "doctor.json"), ("study", "study.json"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "runs" / "first" / "views.png", tmp_path / name)
        (tmp_path / name / mark).touch()
    assert names(FolderSource(tmp_path)) == ["x.png"]


def test_test_images_have_the_classes_of_the_training_images(tmp_path):
    for name in "train/cat/1.png", "train/cow/1.png", "train/dog/2.png", "test/cat/3.png", "test/dog/4.png":
        write(tmp_path / name)
    test = open_source(str(tmp_path), "test")
    assert test is not None
    assert test.labels is not None
    assert test.labels.tolist() == [0, 2]
    write(tmp_path / "test" / "emu" / "5.png")
    with pytest.raises(ValueError, match=r"emu is a class that the training images do not have"):
        open_source(str(tmp_path), "test")


def test_fingerprint_follows_the_files(tmp_path):
    write(tmp_path / "a.png")
    before = FolderSource(tmp_path).fingerprint()
    assert FolderSource(tmp_path).fingerprint() == before
    write(tmp_path / "b.png")
    assert FolderSource(tmp_path).fingerprint() != before
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    other = pixels.clone()
    other[1, 2, 3, 3] = 1
    assert ArraySource(pixels).fingerprint() != ArraySource(other).fingerprint()


def test_fingerprint_follows_the_groups(tmp_path):
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    paths = [write(tmp_path / name).name for name in ("a.png", "b.png")]
    plain = ArraySource(pixels).fingerprint(), ListSource(tmp_path, paths, name="x").fingerprint()
    seen = {plain}
    for groups in torch.tensor([0, 0]), torch.tensor([0, 1]):
        array = ArraySource(pixels, groups=groups)
        files = ListSource(tmp_path, paths, name="x", groups=groups)
        assert files.fingerprint() == ListSource(tmp_path, paths, name="x", groups=groups).fingerprint()
        seen.add((array.fingerprint(), files.fingerprint()))
    assert all(len(set(prints)) == 3 for prints in zip(*seen, strict=True))


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no image in .*\(looked for .jpg"):
        open_source(str(tmp_path))


def test_a_quarantine_list_of_images_that_are_no_files_is_refused(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8), np.uint8))
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for spec in str(tmp_path / "x.npy"), "procedural", str(cifar_folder(tmp_path)):
        with pytest.raises(ValueError, match=r"a quarantine list names files, the images of .* are none"):
            open_source(spec, quarantine=frozenset(["a"]))
    assert open_source(str(tmp_path / "x.npy"), "test", quarantine=frozenset(["a"])) is None


def test_digits_are_scikit_learns():
    pytest.importorskip("sklearn")
    train, test = open_source("digits"), open_source("digits", "test")
    assert train is not None
    assert test is not None
    assert len(train) + len(test) == 1797
    assert train.read(0).shape == (1, 8, 8)
    assert train.read(0).max() == 255 * 15 // 16


def test_procedural_images_are_keyed_and_balanced():
    few, many = procedural(30), procedural(60)
    assert torch.equal(few.labels.bincount(), torch.full((10,), 3))
    assert few.classes == list(CLASSES)
    assert not torch.equal(procedural(30, split="test").pixels, few.pixels)
    assert torch.equal(procedural(30).pixels, few.pixels)
    assert many.pixels.float().std() > 30


def cifar_folder(root: Path) -> Path:
    """CIFAR-10 as torchvision stores it, with 5 images a file."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        rows = np.random.default_rng(0).integers(0, 256, (5, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [0, 1, 2, 3, 4]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return root


def test_torchvision_sets_on_disk(tmp_path, monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    source = open_source(str(cifar_folder(tmp_path)))
    assert source is not None
    assert (len(source), source.read(0).shape) == (25, (3, 32, 32))
    named = open_source(f"torchvision:CIFAR10:{tmp_path}", "test")
    assert named is not None
    assert len(named) == 5


def test_torchvision_sets_that_are_absent_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"torchvision's CIFAR10 is not in .*datasets\.CIFAR10\("):
        open_source(f"torchvision:CIFAR10:{tmp_path}")
    with pytest.raises(ValueError, match="torchvision has no data set 'CIFAR11'"):
        open_source("torchvision:CIFAR11:data")


def test_packed_cifar_holds_the_published_pixels(shared_data):
    test = open_source(str(shared_data / "cifar10"), "test")
    assert isinstance(test, ArraySource)
    assert test.pixels.shape == (10_000, 3, 32, 32)
    assert test.labels is not None
    assert test.labels.bincount().tolist() == [1000] * 10
    strip = np.load(shared_data / "cifar10" / "test.npz")
    first = Image.open(io.BytesIO(strip["blob"][: strip["offsets"][1]].tobytes())).convert("RGB")
    assert np.array_equal(test.read(7).permute(1, 2, 0).numpy(), np.asarray(first)[7 * 32 : 8 * 32])


def test_photo_folder_of_mixed_sizes_and_colours(shared_data, tmp_path):
    with zipfile.ZipFile(shared_data / "natural" / "caltech25_160.zip") as archive:
        archive.extractall(tmp_path, [n for n in archive.namelist() if "/car_side/" in n or "/ketch/" in n])
    train, test = open_source(str(tmp_path)), open_source(str(tmp_path), "test")
    assert train is not None
    assert test is not None
    assert (len(train), len(test), train.classes) == (128, 32, ["car_side", "ketch"])
    assert len({tuple(train.read(i).shape) for i in range(0, 128, 16)}) > 1
