"""Lists, tables, archives, Hugging Face sets and the index: the same images however they are stored."""

import csv
import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data import index as index_module
from moco.data import scan as scan_module
from moco.data.doctor import look
from moco.data.encoded import FolderSource
from moco.data.index import open_index
from moco.data.open import locate, open_source
from moco.data.procedural import procedural
from moco.data.scan import scan
from moco.data.unreadable import Unreadable

PIXELS = procedural(12, size=16).pixels


@pytest.fixture
def folder(tmp_path):
    """Class folders train/cat and train/dog with six images each, and two in test/."""
    for i in range(12):
        path = tmp_path / "images" / "train" / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[i].permute(1, 2, 0).numpy()).save(path)
    for i in range(2):
        path = tmp_path / "images" / "test" / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[i].permute(1, 2, 0).numpy()).save(path)
    return tmp_path / "images"


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
    name = open_source(spec).sample_name(0)
    assert len(open_source(spec, quarantine=frozenset([name]))) == len(open_source(spec)) - 1


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


@pytest.mark.parametrize(
    ("kind", "mark"), [("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t"), ("parquet", "")]
)
def test_tables_have_labels_groups_and_splits(folder, tmp_path, kind, mark):
    rows = [
        {"path": str(p.relative_to(tmp_path)), "label": p.parent.name, "group": f"site {i % 3}",
         "split": p.parent.parent.name}
        for i, p in enumerate(sorted(folder.rglob("*.png")))
    ]  # fmt: skip
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=mark)
            writer.writeheader()
            writer.writerows(rows)
    train, test = open_source(str(path)), open_source(str(path), "test")
    assert_same_images(train, folder)
    assert train.labels is not None
    assert sorted(train.groups.unique().tolist()) == [0, 1, 2]
    assert (len(test), test.classes) == (2, train.classes)


def test_tables_test_on_validation_rows_only_where_there_are_no_others(folder, tmp_path):
    files = sorted(p.relative_to(tmp_path) for p in folder.rglob("*.png"))
    for words, count in (("train", "val", "test"), 1), (("train", "val", "val"), 2):
        lines = [f"{path},{words[min(i, 2)]}" for i, path in enumerate(files[:3])]
        (tmp_path / "s.csv").write_text("path,split\n" + "\n".join(lines) + "\n")
        assert len(open_source(str(tmp_path / "s.csv"), "test")) == count


def test_a_table_without_training_rows_says_what_its_rows_are_called(tmp_path):
    (tmp_path / "x.csv").write_text("path,split\na.png,dev\nb.png,test\n")
    with pytest.raises(FileNotFoundError, match='"split" holds dev, test: training images are called train'):
        open_source(str(tmp_path / "x.csv"))


def test_rows_of_no_group_belong_to_none(folder, tmp_path):
    files = sorted(p.relative_to(tmp_path) for p in folder.rglob("*.png"))
    lines = [f"{path},{'-1' if i < 4 else 'a'}" for i, path in enumerate(files[:6])]
    (tmp_path / "g.csv").write_text("path,group\n" + "\n".join(lines) + "\n")
    groups = open_source(str(tmp_path / "g.csv")).groups
    assert len(groups[:4].unique()) == 4
    assert groups[4] == groups[5]
    assert groups[4] not in groups[:4]


def test_a_list_of_training_files_leaves_test_files_of_the_same_name(folder):
    name = str(sorted((folder / "train").rglob("*.png"))[0].relative_to(folder / "train"))
    (folder / "test" / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "test" / name).write_bytes((folder / "train" / name).read_bytes())
    whole = [len(open_source(str(folder), split)) for split in ("train", "test")]
    listed = frozenset([name])
    assert len(open_source(str(folder), "train", quarantine=listed)) == whole[0] - 1
    assert len(open_source(str(folder), "test", quarantine=listed)) == whole[1]
    listed = frozenset([f"test/{name}"])
    assert len(open_source(str(folder), "test", quarantine=listed)) == whole[1] - 1


def test_a_list_of_paths(folder, tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("\n".join(str(p) for p in sorted((folder / "train").rglob("*.png"))) + "\n\n")
    source = open_source(str(path))
    assert_same_images(source, folder)
    assert source.labels is None
    assert open_source(str(path), "test") is None
    (tmp_path / "x.txt").write_text("nowhere.png\n")
    with pytest.raises(RuntimeError, match=r"cannot decode nowhere.png: there is no such file"):
        open_source(str(path)).read(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,label\na.png,1\n",
            r"must have a column path \(and may have label, group, split\), got file, label",
        ),
        ("path,label\na.png,1\nb.png,\n", r"must have a label, or none; 1 of 2 have none, such as b.png"),
        ("path\n", "no training image in"),
        (
            "path,label,split\na.png,1,train\nb.png,2,test\n",
            "2 is a class that the training images do not have",
        ),
    ],
)
def test_impossible_tables_are_refused(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    split = "test" if "split" in text else "train"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_source(str(tmp_path / "x.csv"), split)


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.txt"])
def test_a_table_that_is_not_utf_8_is_named(tmp_path, name):
    (tmp_path / name).write_bytes("path\nMüller.png\n".encode("cp1252"))
    with pytest.raises(ValueError, match=rf"{name} must be UTF-8, .* 0xfc .*; save it as UTF-8"):
        open_source(str(tmp_path / name))


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


def many(images: Path, root: Path, folders: int = 6, files: int = 40) -> Path:
    content = next(images.rglob("*.png")).read_bytes()
    for f in range(folders):
        for i in range(files):
            path = root / "many" / f"f{f}" / "deep" / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            os.utime(path.parent, (1e9, 1e9))
    return root / "many"


def slow_paths(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*.png"))


def test_the_index_is_kept_and_follows_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_module, "KEPT_FROM", 100)
    monkeypatch.setattr(scan_module, "_SETTLED", 0)
    root = many(folder, tmp_path)
    first = open_index(root)
    assert [first.path(i) for i in range(len(first))] == slow_paths(root)

    def refuse(*_):
        raise AssertionError("scanned again")

    with monkeypatch.context() as patch:
        patch.setattr(index_module, "scan", refuse)
        again = open_index(root)
    assert isinstance(again.names, np.memmap)
    assert again.fingerprint() == first.fingerprint()
    assert again.forms == first.forms == {(3, 8, False): 240}

    (root / "f2" / "deep" / "000.png").unlink()
    (root / "f3" / "deep" / "new.png").write_bytes((root / "f1" / "deep" / "001.png").read_bytes())
    (root / "f9").mkdir()
    (root / "f9" / "x.png").write_bytes(b"")
    changed = open_index(root)
    assert [changed.path(i) for i in range(len(changed))] == slow_paths(root)
    assert changed.forms == {(3, 8, False): 240}  # one is empty
    assert changed.fingerprint() != first.fingerprint()
    for file in (tmp_path / "cache" / "moco").iterdir():
        file.write_bytes(file.read_bytes()[:-5])
    assert open_index(root).fingerprint() == changed.fingerprint()


def test_of_many_files_some_say_what_form_all_have(folder, tmp_path, monkeypatch):
    root = many(folder, tmp_path)
    (root / "f2" / "deep" / "005.png").write_bytes(b"")
    read = []
    headers = scan_module._header
    monkeypatch.setattr(scan_module, "_header", lambda path: read.append(path) or headers(path))
    whole = open_index(root)
    assert [os.path.relpath(path, root) for path in read] == slow_paths(root)
    assert whole.forms == {(3, 8, False): 239}
    read.clear()
    monkeypatch.setattr(index_module, "HEADERS", 24)
    some = open_index(root)
    assert [slow_paths(root).index(os.path.relpath(path, root)) for path in read] == [
        *np.linspace(0, 239, 24).astype(int)
    ]
    assert some.forms == {(3, 8, False): 24}
    larger = root / some.path(239)
    larger.write_bytes(larger.read_bytes() + b"more")
    assert open_index(root).fingerprint() != some.fingerprint()


def test_no_file_is_opened_or_asked_for_by_a_scan(folder, tmp_path, monkeypatch):
    root = many(folder, tmp_path, 4, 12)
    monkeypatch.setattr(os, "open", None)
    asked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: asked.append(path) or stat(path, **how))
    found = scan(str(root), False)
    assert sum(len(f.ends) for f in found) == 48
    assert len(asked) == len(found) == 9  # folders


def test_names_in_any_encoding_are_found_and_read(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (9, 9)).save(content, "PNG")
    names = [b"\xff\xfe.png", "ä ö.PNG".encode(), b"z.png", b"Z.png", "\u65e5.png".encode()]
    for name in names:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(content.getvalue())
    source = FolderSource(tmp_path)
    assert [os.fsencode(source.sample_name(i)) for i in range(5)] == sorted(names)
    assert all(source.read(i).shape == (3, 9, 9) for i in range(5))


def test_pipes_and_vanished_files_do_not_hang_the_scan(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    index = open_index(tmp_path)
    assert (len(index), index.skipped) == (1, {"neither files nor folders": 1})
    assert len(FolderSource(tmp_path)) == 1
