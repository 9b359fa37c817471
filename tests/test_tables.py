"""Tables and lists of images: labels, groups, splits, and what is wrong with them."""

import csv

import pytest
from PIL import Image

from moco.data.open import open_source
from moco.data.procedural import procedural
from moco.images import open_data, portions
from test_sources_on_disk import assert_same_images

PIXELS = procedural(12, size=16).pixels


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


@pytest.mark.usefixtures("folder")
def test_images_that_are_named_twice_are_mentioned(tmp_path):
    (tmp_path / "twice.txt").write_text("images/train/cat/00.png\nimages/train/dog/01.png\n" * 2)
    (note,) = open_source(str(tmp_path / "twice.txt")).notes
    assert "2 rows of" in note
    assert "already, such as images/train/cat/00.png" in note
    table = "path,group\n" + "images/train/cat/00.png,a\n" * 2
    (tmp_path / "grouped.csv").write_text(table)
    assert open_source(str(tmp_path / "grouped.csv")).notes == ()


def test_rows_of_no_group_belong_to_none(folder, tmp_path):
    files = sorted(p.relative_to(tmp_path) for p in folder.rglob("*.png"))
    lines = [f"{path},{'-1' if i < 4 else 'a'}" for i, path in enumerate(files[:6])]
    (tmp_path / "g.csv").write_text("path,group\n" + "\n".join(lines) + "\n")
    groups = open_source(str(tmp_path / "g.csv")).groups
    assert len(groups[:4].unique()) == 4
    assert groups[4] == groups[5]
    assert groups[4] not in groups[:4]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_of_label_minus_one_have_no_class(tmp_path, kind):
    """As in arrays and shards, and as torchvision's STL10 has it."""
    for i in range(6):
        Image.fromarray(PIXELS[i].permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    rows = [
        {"path": f"{i}.png", "label": [3, -1, 7][i % 3], "split": ["train", "test"][i > 3]} for i in range(6)
    ]
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(
            "path,label,split\n" + "".join(f"{r['path']},{r['label']},{r['split']}\n" for r in rows)
        )
    data = open_data(str(path))
    assert data.train.classes == data.test.classes == ["3", "7"]
    assert data.train.labels.tolist() == [0, -1, 1, 0]
    assert data.test.labels.tolist() == [-1, 1]
    bank, queries = portions(data, 0)
    assert (len(bank.labels), len(queries.labels)) == (3, 1)
    (note,) = data.train.notes
    assert "1 row of " in note
    assert "with the label -1, which is no class" in note


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
        (
            "path,label\na.png,1\nb.png,\n",
            r"must have a label, or none; 1 of 2 have none, such as b.png; -1 there",
        ),
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
