"""Archives, Hugging Face sets and names on the shelf: the same images however they are stored."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data.doctor import look
from moco.data.open import locate, open_source
from moco.data.procedural import procedural
from moco.data.unreadable import Unreadable

PIXELS = procedural(12, size=16).pixels


def assert_same_images(source, folder):
    expected = open_source(str(folder))
    names = [Path(source.sample_name(i)).name for i in range(len(source))]
    for i in range(len(expected)):
        place = names.index(Path(expected.sample_name(i)).name)
        assert torch.equal(source.read(place), expected.read(i))
        if source.labels is not None:
            assert source.classes[source.labels[place]] == expected.classes[expected.labels[i]]
    assert len(source) == len(expected) == 12


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("deflated", [False, True])
def test_archives_are_read_in_place(folder, tmp_path, kind, deflated):
    path = tmp_path / f"x.{kind}"
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
            for file in files:
                archive.write(file, file.relative_to(folder))
    else:
        with tarfile.open(path, "w:gz" if deflated else "w") as archive:
            for file in files:
                archive.add(file, file.relative_to(folder))
        if deflated:
            with pytest.raises(ValueError, match=r"must be a .zip or an uncompressed .tar.*unpack a .tar.gz"):
                open_source(str(path))
            return
    before = sorted(os.listdir(tmp_path))
    train, test = open_source(str(path)), open_source(str(path), "test")
    assert_same_images(train, folder)
    assert train.labels is not None
    assert (len(test), test.labels.tolist(), test.classes) == (2, [0, 1], ["cat", "dog"])
    assert sorted(os.listdir(tmp_path)) == before
    fewer = open_source(str(path), quarantine=frozenset(["train/cat/00.png"]))
    assert len(fewer) == 11
    assert fewer.fingerprint() != train.fingerprint()


@pytest.mark.parametrize(
    ("compression", "damage", "reason"),
    [
        (zipfile.ZIP_STORED, "content", "Bad CRC-32"),
        (zipfile.ZIP_DEFLATED, "content", "while decompressing data"),
        (zipfile.ZIP_LZMA, "content", "Invalid or unsupported options"),
        (zipfile.ZIP_BZIP2, "content", "Invalid data stream"),
        (zipfile.ZIP_DEFLATED, "flag", "is encrypted"),
        (zipfile.ZIP_DEFLATED, "method", "compression method is not supported"),
    ],
)
def test_a_damaged_member_is_unreadable_and_the_others_are_read(
    folder, tmp_path, compression, damage, reason
):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted((folder / "train").rglob("*.png")):
            archive.write(file, file.relative_to(folder / "train"))
    with zipfile.ZipFile(path) as archive:
        member, central = archive.getinfo("dog/11.png"), archive.start_dir
    content = bytearray(path.read_bytes())
    start = member.header_offset + 30 + len(member.filename)
    entry = content.rindex(b"PK\x01\x02", central)
    assert content[entry + 46 :].startswith(b"dog/11.png")
    if damage == "content":
        content[start + 4 : start + 10] = b"\xff" * 6
    else:
        content[entry + {"flag": 8, "method": 10}[damage]] = {"flag": 1, "method": 77}[damage]
    path.write_bytes(content)
    source = open_source(str(path))
    with pytest.raises(Unreadable, match=reason):
        source.open(11)
    assert reason in look(source, 11).reason
    assert [look(source, i).reason for i in range(11)] == [""] * 11


def archived(path: Path, root: Path, below: str) -> str:
    """The files under a folder, in an archive, under names that begin so."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, below + str(file.relative_to(root)))
            archive.writestr("__MACOSX/._x.png", b"")
    else:
        with tarfile.open(path, "w") as archive:
            for file in files:
                archive.add(file, below + str(file.relative_to(root)))
    return str(path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("below", ["./", "images/", "./images/", ""])
@pytest.mark.parametrize("part", ["", "train", "train/cat"])
def test_the_folder_around_an_archive_counts_for_nothing(folder, tmp_path, kind, below, part):
    spec = archived(tmp_path / f"x.{kind}", folder / part, below)
    for split in "train", "test":
        stored, plain = open_source(spec, split), open_source(str(folder / part), split)
        assert (stored is None) == (plain is None)
        if stored is not None:
            names = [[Path(s.sample_name(i)).name for i in range(len(s))] for s in (stored, plain)]
            assert names[0] == names[1]
            assert stored.classes == plain.classes
            assert (stored.labels is None) == (plain.labels is None)
            assert stored.labels is None or torch.equal(stored.labels, plain.labels)
            assert torch.equal(stored.read(1), plain.read(1))
    source = open_source(spec)
    assert not any(source.sample_name(i).startswith(".") for i in range(len(source)))
    for mark in "", "./":  # as `find .` writes names
        listed = frozenset([mark + source.sample_name(0)])
        assert len(open_source(spec, quarantine=listed)) == len(source) - 1


def test_folders_of_a_zip_may_be_parted_by_backslashes(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            member = zipfile.ZipInfo()
            member.filename = "images\\" + str(file.relative_to(folder)).replace("/", "\\")
            archive.writestr(member, file.read_bytes())
    train, test = (open_source(str(tmp_path / "x.zip"), split) for split in ("train", "test"))
    plain = open_source(str(folder))
    assert train.sample_name(0) == "images\\train\\cat\\00.png"
    assert all(torch.equal(train.read(i), plain.read(i)) for i in range(12))
    assert train.labels.tolist() == plain.labels.tolist()
    assert (len(train), len(test), test.classes) == (12, 2, ["cat", "dog"])
    assert len(open_source(str(tmp_path / "x.zip"), quarantine=frozenset([train.sample_name(0)]))) == 11


def test_hugging_face_sets_on_disk_and_in_memory(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    from moco.data.huggingface import HuggingFaceSource

    files = sorted((folder / "train").rglob("*.png"))
    columns = {
        "image": [{"bytes": p.read_bytes(), "path": p.name} for p in files],
        "label": [int(p.parent.name == "dog") for p in files],
        "group": [p.name[0] for p in files],
    }
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["cat", "dog"]),
        group=datasets.Value("string"),
    )
    dataset = datasets.Dataset.from_dict(columns, features=features)
    dataset.save_to_disk(str(tmp_path / "saved"))
    dataset.to_parquet(str(tmp_path / "x.parquet"))
    sources = [
        HuggingFaceSource(dataset),
        open_source(f"hf:{tmp_path / 'saved'}"),
        open_source(f"hf:{tmp_path / 'x.parquet'}"),
    ]
    for source in sources:
        for i, path in enumerate(files):
            assert np.array_equal(source.read(i).permute(1, 2, 0).numpy(), np.asarray(Image.open(path)))
        assert source.labels.tolist() == columns["label"]
        assert source.groups.unique().tolist() == [0, 1]
    assert open_source(f"hf:{tmp_path / 'saved'}", "test") is None
    with pytest.raises(ValueError, match=r"must have a column of type Image, it has label, group"):
        HuggingFaceSource(dataset.remove_columns("image"))


def test_rows_of_hugging_face_without_a_group_belong_to_none(folder):
    datasets = pytest.importorskip("datasets")
    from moco.data.huggingface import HuggingFaceSource

    content = next(folder.rglob("*.png")).read_bytes()
    columns = {"image": [{"bytes": content, "path": None}] * 5, "group": [7, None, 7, None, -1]}
    features = datasets.Features(image=datasets.Image(), group=datasets.Value("int64"))
    groups = HuggingFaceSource(datasets.Dataset.from_dict(columns, features=features)).groups
    assert groups[0] == groups[2]
    assert len(groups.unique()) == 4


def test_test_images_of_hugging_face_have_the_classes_and_the_form_of_the_training_images(tmp_path):
    datasets = pytest.importorskip("datasets")

    def part(names, labels, kind):
        pictures = io.BytesIO()
        Image.new(kind, (9, 9)).save(pictures, "PNG")
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
        columns = {"image": [{"bytes": pictures.getvalue(), "path": None}] * len(labels), "label": labels}
        return datasets.Dataset.from_dict(columns, features=features)

    train = part(["a", "b", "c"], [0, 1, 2], "RGB")
    for names, where in (["a", "c"], "fits"), (["a", "d"], "foreign"):
        saved = datasets.DatasetDict(train=train, validation=part(names, [0, 1], "L"))
        saved.save_to_disk(str(tmp_path / where))
    test = open_source(f"hf:{tmp_path / 'fits'}", "test")
    assert (test.classes, test.labels.tolist()) == (["a", "b", "c"], [0, 2])
    assert test.read(0).shape == (3, 9, 9)
    with pytest.raises(ValueError, match="d is a class that the training images do not have"):
        open_source(f"hf:{tmp_path / 'foreign'}", "test")


def test_names_are_looked_for_here_and_on_the_shelf(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MOCO_DATA", str(tmp_path))
    assert locate("images") == str(folder)
    assert locate("procedural") == "procedural"
    assert locate("none") == "none"
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert locate("cifar10") == str(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert locate("torchvision:FashionMNIST:images") == f"torchvision:FashionMNIST:{folder}"
    assert locate("torchvision:FashionMNIST") == "torchvision:FashionMNIST"
    assert len(open_source("images")) == 12
    with pytest.raises(FileNotFoundError, match=r"there is no nothing, here or under \$MOCO_DATA"):
        open_source("nothing")
