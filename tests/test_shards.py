"""Shards: what is packed comes back, in an order that is random, resumable and shared; damage is told."""

import io
import tarfile

import pytest
import torch
from PIL import Image

from moco.data.open import open_source
from moco.data.pack import Member, pack
from moco.data.shard_table import SAMPLES, SHARDS
from moco.data.shards import ShardSource
from shard_images import copy, image, number_of, packed, split, tarred  # noqa: F401


def test_every_image_comes_back_once_with_its_class_in_another_order(packed):  # noqa: F811
    source = open_source(str(packed))
    assert isinstance(source, ShardSource)
    numbers = [number_of(source, i) for i in range(len(source))]
    assert sorted(numbers) == list(range(130))
    assert numbers != sorted(numbers)
    assert source.labels.tolist() == [n % 3 for n in numbers]
    assert source.classes == ["a", "b", "c"]
    assert source.notes == ()
    assert open_source(str(packed), "test") is None


def test_shards_are_plain_tar_files_of_named_samples(packed):  # noqa: F811
    with tarfile.open(packed / "shard-000000.tar") as tar:
        names = tar.getnames()
        assert names[:2] == ["000000000.png", "000000000.cls"]
        assert len(names) == 40
    for path in sorted(packed.glob("*.tar"))[:2]:
        assert path.stat().st_size % 512 == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves files open
def test_other_libraries_read_them(packed):  # noqa: F811
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(str(packed / "shard-{000000..000006}.tar"), shardshuffle=False))
    assert len(samples) == 130
    source = ShardSource(packed)
    for index in 0, 57, 129:
        assert samples[index]["png"] == source.content(index)
        assert int(samples[index]["cls"]) == source.labels[index]


def test_hugging_face_reads_them(packed):  # noqa: F811
    datasets = pytest.importorskip("datasets")
    files = [str(path) for path in sorted(packed.glob("*.tar"))]
    rows = list(datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True))
    assert len(rows) == 130
    assert sorted(int(row["cls"]) for row in rows) == sorted(ShardSource(packed).labels.tolist())


def test_shards_from_elsewhere_are_indexed_once(packed, tmp_path):  # noqa: F811
    folder = tmp_path / "foreign"
    folder.mkdir()
    for path in packed.glob("*.tar"):
        (folder / path.name).write_bytes(path.read_bytes())
    ours, theirs = ShardSource(packed), open_source(str(folder))
    assert [number_of(theirs, i) for i in range(130)] == [number_of(ours, i) for i in range(130)]
    assert torch.equal(theirs.labels, ours.labels)
    assert (folder / SAMPLES).read_bytes() == (packed / SAMPLES).read_bytes()
    before = (folder / SHARDS).stat().st_mtime_ns
    ShardSource(folder)
    assert (folder / SHARDS).stat().st_mtime_ns == before


def test_tar_files_beside_images_are_no_shards(tmp_path):
    root = tmp_path / "imagenet"
    for i, name in enumerate(["train/a/1", "train/a/2", "train/b/3", "val/a/4", "val/b/5"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.png").write_bytes(image(i))
    for name in "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar":
        tarred(root / name, "n01.tar", "n02.tar")
    train, test = open_source(str(root)), open_source(str(root), "test")
    assert (len(train), len(test)) == (3, 2)
    assert train.classes == test.classes == ["a", "b"]
    (note,) = train.notes
    assert "2 tar files in" in note
    assert "ILSVRC2012_img_train.tar" in note
    tarred(root / "train" / "a" / "old.tar", "x.png")
    tarred(root / "train" / "old.tar", "x.png")
    assert len(open_source(str(root)).notes) == 2
    tars = tmp_path / "tars"
    tars.mkdir()
    tarred(tars / "train.tar", "n01.tar", "n02.tar")
    with pytest.raises(FileNotFoundError, match="no image in the tar files of"):
        open_source(str(tars))
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(8):
        (flat / f"{i}.png").write_bytes(image(i))
    tarred(flat / "old.tar", "x.png")
    source = open_source(str(flat))
    assert len(source) == 8
    assert "1 tar file in" in source.notes[0]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith((SHARDS, SAMPLES))]


def test_images_beside_shards_that_have_a_table_are_left_out(packed, tmp_path):  # noqa: F811
    folder = copy(packed, tmp_path / "with")
    (folder / "views.png").write_bytes(image(1))
    (folder / "notes").mkdir()
    assert len(open_source(str(folder))) == 130
    for name in SHARDS, SAMPLES:
        (folder / name).unlink()
    (folder / "views.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no image in .* tar files .* folder of their own"):
        open_source(str(folder))
    (folder / "notes").rmdir()
    (folder / "README.md").touch()
    (folder / ".hidden").mkdir()
    assert len(open_source(str(folder))) == 130


def test_a_sample_without_a_class_is_the_only_one_without(tmp_path):
    members = {"0.png": image(0), "0.cls": b"1", "1.png": image(1), "2.png": image(2), "2.cls": b"0"}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    source = open_source(str(tmp_path))
    assert (source.labels >= 0).tolist() == [True, False, True]


@pytest.mark.parametrize("said", [b"cat", b"3000000000", b"-2", b""])
def test_a_class_that_is_no_number_is_named(tmp_path, said):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in {"0.png": image(0), "0.cls": said}.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"0\.cls must hold the number of a class, from 0, below 1,000,000"):
        open_source(str(tmp_path))


def test_hidden_tar_files_do_not_count(tmp_path):
    """macOS keeps a file's attributes in ._FILE."""
    tarred(tmp_path / "a.tar", "0.png", "1.png")
    (tmp_path / "._a.tar").write_bytes(b"attributes")
    for _ in range(2):
        source = open_source(str(tmp_path))
        assert (len(source), source.notes) == (2, ())


def test_tar_files_that_came_later_are_told(tmp_path):
    tarred(tmp_path / "a.tar", "0.png", "1.png")
    assert open_source(str(tmp_path)).notes == ()
    tarred(tmp_path / "b.tar", "0.png")
    (note,) = open_source(str(tmp_path)).notes
    assert note.startswith("1 tar file in ")
    assert "left out (b.tar), which shards.tsv does not name" in note


def test_second_images_of_one_key_are_told(tmp_path):
    tarred(tmp_path / "a.tar", *(f"cat.{i}.jpg" for i in range(5)), "dog.jpg")
    tarred(tmp_path / "b.tar", "x.png", "y.png")
    for _ in range(2):  # as it is indexed, and from the index
        source = open_source(str(tmp_path))
        assert len(source) == 4
        (note,) = source.notes
        assert note.startswith("4 images in shards are left out")
        assert "cat.0.jpg and cat.1.jpg of a.tar" in note


def test_test_shards_have_the_classes_of_the_training_shards(tmp_path):
    split(tmp_path)
    train, test = (open_source(str(tmp_path), part) for part in ("train", "test"))
    assert test.classes == train.classes == ["a", "b", "c"]
    assert test.labels.tolist() == [2 * (number_of(test, i) % 2) for i in range(4)]


def test_test_shards_have_the_form_of_the_training_shards(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (9, 9)).save(buffer, "PNG")
    pack(lambda i: Member(".png", image(i), i % 3), 6, tmp_path / "train", classes=("a", "b", "c"))
    pack(lambda _: Member(".png", buffer.getvalue()), 4, tmp_path / "test")
    test = open_source(str(tmp_path), "test")
    assert test.read(0).shape == (3, 9, 9)
    assert test.labels is None


def test_test_shards_of_another_class_are_refused(tmp_path):
    split(tmp_path, ("a", "d"))
    with pytest.raises(ValueError, match="d is a class that the training images do not have"):
        open_source(str(tmp_path), "test")


def test_test_images_beside_shards_have_their_classes(tmp_path):
    split(tmp_path)
    (tmp_path / "test").rename(tmp_path / "aside")
    for name in "c/1.png", "a/2.png":
        (tmp_path / "val" / name).parent.mkdir(parents=True)
        (tmp_path / "val" / name).write_bytes(image(1))
    assert open_source(str(tmp_path), "test").labels.tolist() == [0, 2]
