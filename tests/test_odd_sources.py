"""Sets as people have them: capitals, spaces, byte order marks, words for numbers, files cut short."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data.decode import decode
from moco.data.doctor import report
from moco.data.encoded import ListSource
from moco.data.form import Form
from moco.data.open import open_source
from moco.data.quarantine import read_quarantine
from moco.data.reading import Reading
from moco.data.shard_table import shard_records
from moco.data.unreadable import Unreadable

GREY16, COLOUR16 = Form(1, torch.uint16), Form(3, torch.uint16)


def picture(value=0):
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(root, *paths):
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(i))
    return str(root)


def names(source):
    return [source.sample_name(i) for i in range(len(source))]


TABLES = [
    "path, label, split\na.png, cat, train\nb.png, dog, train\nc.png, cat, test\n",
    "Path,Label,Split\na.png,cat,Train\nb.png,dog,Train\nc.png,cat,Test\n",
    "path; label; split\na.png; cat; train\nb.png; dog; train\nc.png; cat; test\n",
    'path , label, SPLIT\na.png , "cat", train\nb.png, "dog", train\nc.png, "cat" , test\n',
]


@pytest.mark.parametrize("table", TABLES)
def test_column_names_and_values_of_tables_may_have_spaces_and_capitals(tmp_path, table):
    write(tmp_path, "a.png", "b.png", "c.png")
    path = tmp_path / "table.csv"
    path.write_text(table)
    train, test = open_source(str(path)), open_source(str(path), "test")
    assert names(train) == ["a.png", "b.png"]
    assert names(test) == ["c.png"]
    assert train.classes == test.classes == ["cat", "dog"]
    assert train.labels.tolist() == [0, 1]
    assert test.labels.tolist() == [0]


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_rows_that_a_spreadsheet_left_empty_are_no_images(tmp_path, delimiter):
    """Whoever deletes the content of rows there keeps the delimiters in the file."""
    write(tmp_path, "a.png", "b.png")
    lines = ["path,label", "a.png,cat", ",", " , ", "b.png,dog", ",", ","]
    (tmp_path / "table.csv").write_text("\r\n".join(lines).replace(",", delimiter))
    train = open_source(str(tmp_path / "table.csv"))
    assert names(train) == ["a.png", "b.png"]
    assert train.labels.tolist() == [0, 1]


def test_columns_of_parquet_may_have_capitals(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path, "a.png", "b.png")
    table = pyarrow.table({" Path": ["a.png", "b.png"], "Label": [3, 4], "Split": ["Train", "Test"]})
    parquet.write_table(table, tmp_path / "table.parquet")
    train = open_source(str(tmp_path / "table.parquet"))
    assert (names(train), train.classes) == (["a.png"], ["3"])


def packed(folder, kind, *paths):
    """Images at these paths of a folder, or of an archive of it."""
    spec = write(folder / "set", *paths)
    if kind == "folder":
        return spec
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for path in paths:
            archive.write(folder / "set" / path, path)
    return str(folder / "set.zip")


def test_columns_that_differ_by_capitals_only_are_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("path,Label,label,,\na.png,1,2,,\n")
    with pytest.raises(ValueError, match=r"table\.csv.*2 columns named label"):
        open_source(str(path))


def test_values_of_tables_may_be_long_and_digits_that_are_no_numbers(tmp_path):
    write(tmp_path, "a.png", "b.png", "c.png")
    caption = 200_000 * "x"
    (tmp_path / "t.csv").write_text(f'path,label,caption\na.png,²,"{caption}"\nb.png,10,\nc.png,9,\n')
    assert open_source(str(tmp_path / "t.csv")).classes == ["9", "10", "²"]


def test_a_path_over_the_end_of_a_line_is_a_quotation_mark_left_open(tmp_path):
    (tmp_path / "t.csv").write_text('path,label\n"a.png,1\nb.png,2\n')
    with pytest.raises(
        ValueError, match=r"t\.csv goes over the end of a line.*mark there that is not closed"
    ):
        open_source(str(tmp_path / "t.csv"))


def test_rows_of_no_split_are_counted(tmp_path):
    write(tmp_path, "a.png")
    rows = ["a.png,Train", "b.png,val", "c.png,", "d.png,holdout", "e.png,Holdout"]
    (tmp_path / "t.csv").write_text("\n".join(["path,split", *rows]))
    (note,) = open_source(str(tmp_path / "t.csv")).notes
    assert "3 rows of " in note
    assert '(2 of holdout, 1 of "")' in note
    (tmp_path / "t.csv").write_text("\n".join(["path,split", *rows[:2]]))
    assert open_source(str(tmp_path / "t.csv")).notes == ()


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("TRAIN", "VAL"), ("train", "Valid")])
def test_parts_are_found_whatever_their_case(tmp_path, kind, train, test):
    paths = [f"{train}/cat/0.png", f"{train}/dog/1.png", f"{test}/cat/2.png", f"{test}/dog/3.png"]
    spec = packed(tmp_path, kind, *paths)
    seen, unseen = open_source(spec), open_source(spec, "test")
    below = paths if kind == "zip" else [path.partition("/")[2] for path in paths]
    assert names(seen) == below[:2]
    assert names(unseen) == below[2:]
    assert seen.classes == unseen.classes == ["cat", "dog"]
    assert not seen.notes
    left = open_source(spec, quarantine=frozenset([paths[0]]))
    assert names(left) == below[1:2]


def test_a_run_s_list_applies_to_a_capital_train(tmp_path):
    spec = write(tmp_path, "Train/0.png", "Train/1.png")
    assert names(open_source(spec, quarantine=frozenset(["0.png"]))) == ["1.png"]


def test_the_exact_name_of_a_part_comes_first(tmp_path):
    write(tmp_path, "Train/0.png", "train/1.png", "TEST/2.png", "test/3.png", "Val/4.png")
    if not (tmp_path / "train" / "1.png").exists() or (tmp_path / "train" / "0.png").exists():
        pytest.skip("this file system does not tell them apart")
    train, test = open_source(str(tmp_path)), open_source(str(tmp_path), "test")
    assert names(train) == ["1.png"]
    assert names(test) == ["3.png"]
    assert "1 other folder" in train.notes[0]
    assert "(Train)" in train.notes[0]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_folders_beside_train_are_left_out_and_named(tmp_path, kind):
    paths = ["bus/0.png", "car/1.png", "train/2.png", "test/3.png", ".cache/4.png"]
    spec = packed(tmp_path, kind, *paths)
    source = open_source(spec)
    assert len(source) == 1
    assert len(source.notes) == 1
    assert "2 other folders" in source.notes[0]
    assert "(bus, car)" in source.notes[0]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_training_folders_that_are_no_classes_are_named_with_what_to_do(tmp_path, kind):
    tests = ["test/cat/2.png", "test/dog/3.png"]
    spec = packed(tmp_path / "years", kind, "train/2019/0.png", "train/2020/1.png", *tests)
    with pytest.raises(
        ValueError, match=r"test/cat is a class that .*theirs are 2019, 2020\. If .*train/all/"
    ):
        open_source(spec, "test")
    spec = packed(tmp_path / "mended", kind, "train/all/2019/0.png", "train/all/2020/1.png", *tests)
    assert open_source(spec).labels is None
    assert open_source(spec, "test").classes == ["cat", "dog"]


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.csv", "x.txt", "x.zip"])
def test_endings_of_files_may_have_capitals(tmp_path, name):
    write(tmp_path, "0.png", "1.png")
    path = tmp_path / name
    if name == "x.npy":
        np.save(path, np.zeros((2, 8, 8), np.uint8))
    elif name == "x.npz":
        np.savez(path, images=np.zeros((2, 8, 8), np.uint8))
    elif name == "x.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "0.png", "0.png")
            archive.write(tmp_path / "1.png", "1.png")
    else:
        path.write_text("path\n" * (name == "x.csv") + "0.png\n1.png\n")
    assert len(open_source(str(path.rename(tmp_path / name.upper())))) == 2
    assert open_source(str(tmp_path / name.upper()), "test") is None


def deep(kind, values, full):
    height, width = values.shape[:2]
    return f"{kind}\n# of a camera\n{width} {height}\n{full}\n".encode() + values.astype(">u2").tobytes()


def test_sixteen_bits_of_a_pgm_are_kept():
    values = np.array([[0, 1, 258], [40_000, 65_534, 65_535]])
    pixels = decode(deep("P5", values, 65_535), "x.pgm", GREY16, Reading())
    assert pixels.dtype == torch.uint16
    assert pixels[0].tolist() == values.tolist()


@pytest.mark.parametrize("full", [65_535, 4095])
def test_sixteen_bits_of_a_ppm_are_kept(full):
    values = np.arange(18).reshape(2, 3, 3) * 227
    values[0, 0] = full
    pixels = decode(deep("P6", values, full), "x.ppm", COLOUR16, Reading()).permute(1, 2, 0)
    assert pixels.dtype == torch.uint16
    assert pixels.tolist() == np.round(values * (65_535 / full)).astype(int).tolist()
    grey = decode(deep("P5", values[..., 0], full), "x.pgm", GREY16, Reading())  # scaled in the same way
    assert pixels[..., 0].tolist() == grey[0].tolist()


def in_words(values, full, end=b""):
    height, width = values.shape[:2]
    rows = [" ".join(map(str, row.ravel())) + "  # a row\r" for row in values]
    return f"P3\n# of a camera\n{width} {height}\n{full}\n".encode() + "\n".join(rows).encode() + end


@pytest.mark.parametrize("full", [65_535, 4095, 1000])
def test_a_ppm_in_words_holds_what_a_binary_one_does(full):
    values = np.random.default_rng(0).integers(0, full + 1, (20, 30, 3))
    values[0, 0] = full
    read = [
        decode(c, "x.ppm", COLOUR16, Reading()) for c in (in_words(values, full), deep("P6", values, full))
    ]
    assert torch.equal(*read)


def test_broken_sixteen_bit_ppm_are_named():
    values = np.ones((2, 3, 3), int)
    whole = deep("P6", values, 65_535)
    words = in_words(values, 1000)
    broken = words.replace(b"1 1", b"1 x", 1), words.replace(b"1 1 1 ", b"1 1 ", 1), in_words(-values, 1000)
    for content in whole[:-1], deep("P6", values, 65_536), *broken, in_words(1001 * values, 1000), words[:40]:
        with pytest.raises(Unreadable, match=r"x\.ppm"):
            decode(content, "x.ppm", COLOUR16, Reading())


def test_lists_may_begin_with_a_byte_order_mark(tmp_path):
    write(tmp_path, "a.png", "b.png")
    (tmp_path / "list.txt").write_text("a.png\nb.png\n", encoding="utf-8-sig")
    assert names(open_source(str(tmp_path / "list.txt"))) == ["a.png", "b.png"]
    (tmp_path / "left.jsonl").write_text('{"file": "a.png"}\n', encoding="utf-8-sig")
    assert read_quarantine(tmp_path / "left.jsonl") == {"a.png"}


def test_a_tar_at_whose_end_a_zip_lies_is_a_tar(tmp_path):
    write(tmp_path / "images", "a.png", "b.png")
    with zipfile.ZipFile(tmp_path / "images" / "notes.zip", "w") as notes:
        notes.write(tmp_path / "images" / "a.png", "inside.png")
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for name in "a.png", "b.png", "notes.zip":
            tar.add(tmp_path / "images" / name, name)
    source = open_source(str(tmp_path / "images.tar"))
    assert names(source) == ["a.png", "b.png"]
    assert source.read(1).shape[0] == 3


def test_an_empty_word_is_not_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a.png")
    with pytest.raises(ValueError, match="data must name images, got an empty word"):
        open_source("")


def test_missing_files_are_no_copies_of_each_other(tmp_path):
    write(tmp_path, "a.png")
    paths = ["gone.png", "a.png", "lost.png", "a.png"]
    source = ListSource(tmp_path, paths, name="list", reading=Reading(), form=Form(3))
    told = report(source, source)
    assert set(told["unreadable"]) == {"gone.png", "lost.png"}
    assert told["duplicates"]["exact"] == [["a.png", "a.png"]]
    assert told["leakage"]["exact"] == [["a.png", "a.png"]] * 2


def test_resource_forks_in_shards_are_no_images(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in [("._000.png", b"Mac"), ("a/._000.cls", b"Mac"), ("000.png", picture())]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    records, second = shard_records(tmp_path / "x.tar")
    assert (len(records), second) == (1, [])
    assert records["length"][0] == len(picture())


def test_samples_of_shards_are_named_without_the_folder_they_were_packed_in(tmp_path):
    write(tmp_path / "images", "1.png", "1.b.png")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "images", ".")
    (told,) = shard_records(tmp_path / "x.tar")[1]
    assert sorted(told.removesuffix(" of x.tar").split(" and ")) == ["1.b.png", "1.png"]


def test_labels_of_hugging_face_sets_may_be_null():
    datasets = pytest.importorskip("datasets")
    from moco.data.huggingface import HuggingFaceSource

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    image = {"bytes": picture(), "path": None}
    found = datasets.Dataset.from_dict({"image": [image] * 3, "label": [None, 1, 0]}, features=features)
    assert HuggingFaceSource(found).labels is None  # as where some are -1
    known = HuggingFaceSource(found, quarantine=frozenset(["dataset[0]"]))
    assert known.labels.tolist() == [1, 0]
