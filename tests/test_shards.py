"""Shards: what is packed comes back, in an order that is random, resumable and shared; damage is told."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import moco
from moco.cli import main
from moco.data.doctor import report
from moco.data.loader import Loader
from moco.data.open import open_source
from moco.data.order import WindowedOrder
from moco.data.pack import Member, pack, smaller, verify
from moco.data.quarantine import read_quarantine
from moco.data.reading import Reading
from moco.data.shard_table import RECORD, SAMPLES, SHARDS, ShardTable
from moco.data.shards import ShardSource
from moco.data.unreadable import Unreadable
from moco.data.views import Views
from moco.export.backbone import backbone_bytes
from moco.images import Data, portions
from moco.recipe import MomentumQueue
from moco.starts import open_setting
from moco.world import Solo
from test_run import StopAfter, assert_same_runs
from test_world import Share
from tiny import tiny_recipe


def image(number: int, size: int = 20, kind: str = "PNG") -> bytes:
    """A picture that tells its number."""
    pixels = np.random.default_rng(number).integers(0, 255, (size, size + 4, 3), dtype=np.uint8)
    pixels[0, 0] = number // 256, number % 256, 7
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def number_of(source, index: int) -> int:
    high, low, mark = source.read(index)[:, 0, 0].tolist()
    assert mark == 7
    return 256 * high + low


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """130 pictures of three classes in shards of twenty."""
    folder = tmp_path_factory.mktemp("packed") / "shards"
    made = pack(
        lambda i: Member(".png", image(i), i % 3), 130, folder, classes=("a", "b", "c"), shard_images=20
    )
    assert (made.images, made.shards, made.skipped) == (130, 7, ())
    return folder


def copy(folder, to):
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_every_image_comes_back_once_with_its_class_in_another_order(packed):
    source = open_source(str(packed))
    assert isinstance(source, ShardSource)
    numbers = [number_of(source, i) for i in range(len(source))]
    assert sorted(numbers) == list(range(130))
    assert numbers != sorted(numbers)
    assert source.labels.tolist() == [n % 3 for n in numbers]
    assert source.classes == ["a", "b", "c"]
    assert source.notes == ()
    assert open_source(str(packed), "test") is None


def test_shards_are_plain_tar_files_of_named_samples(packed):
    with tarfile.open(packed / "shard-000000.tar") as tar:
        names = tar.getnames()
        assert names[:2] == ["000000000.png", "000000000.cls"]
        assert len(names) == 40
    for path in sorted(packed.glob("*.tar"))[:2]:
        assert path.stat().st_size % 512 == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves files open
def test_other_libraries_read_them(packed):
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(str(packed / "shard-{000000..000006}.tar"), shardshuffle=False))
    assert len(samples) == 130
    source = ShardSource(packed)
    for index in 0, 57, 129:
        assert samples[index]["png"] == source.content(index)
        assert int(samples[index]["cls"]) == source.labels[index]


def test_hugging_face_reads_them(packed):
    datasets = pytest.importorskip("datasets")
    files = [str(path) for path in sorted(packed.glob("*.tar"))]
    rows = list(datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True))
    assert len(rows) == 130
    assert sorted(int(row["cls"]) for row in rows) == sorted(ShardSource(packed).labels.tolist())


def test_shards_from_elsewhere_are_indexed_once(packed, tmp_path):
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


def tarred(path, *names):
    """A tar file of pictures under these names."""
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            about = tarfile.TarInfo(name)
            about.size = len(image(number))
            tar.addfile(about, io.BytesIO(image(number)))


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


def test_images_beside_shards_that_have_a_table_are_left_out(packed, tmp_path):
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


def test_second_images_of_one_key_are_told(tmp_path):
    tarred(tmp_path / "a.tar", *(f"cat.{i}.jpg" for i in range(5)), "dog.jpg")
    tarred(tmp_path / "b.tar", "x.png", "y.png")
    for _ in range(2):  # as it is indexed, and from the index
        source = open_source(str(tmp_path))
        assert len(source) == 4
        (note,) = source.notes
        assert note.startswith("4 images in shards are left out")
        assert "cat.0.jpg and cat.1.jpg of a.tar" in note


@pytest.fixture
def damaged(packed, tmp_path):
    """The shards without the third."""
    folder = copy(packed, tmp_path / "damaged")
    (folder / "shard-000002.tar").unlink()
    return folder


def test_missing_and_short_shards_are_told_within_the_budget(damaged):
    with pytest.raises(
        ValueError, match=r"at most 1 % of the samples may be missing, but 1 of 7 shards .*15 %"
    ):
        ShardSource(damaged)
    (note,) = ShardSource(damaged, reading=Reading(budget=0.2)).notes
    assert "shard-000002.tar" in note
    assert "20 samples, 15 %" in note
    content = (damaged / "shard-000004.tar").read_bytes()
    (damaged / "shard-000004.tar").write_bytes(content[:-600])
    assert "2 of 7 shards" in ShardSource(damaged, reading=Reading(budget=0.5)).notes[0]
    assert verify(damaged) == [
        "shard-000002.tar: missing",
        f"shard-000004.tar: {len(content) - 600:,} bytes of {len(content):,}",
    ]


def test_samples_of_missing_and_short_shards_have_neither_pixels_nor_a_class(damaged, packed):
    content = (damaged / "shard-000004.tar").read_bytes()
    (damaged / "shard-000004.tar").write_bytes(content[:-600])
    source, whole = ShardSource(damaged, reading=Reading(budget=0.5)), ShardSource(packed)
    lost = [*range(40, 60), *range(80, 100)]
    for i in range(130):
        if i in lost:
            with pytest.raises(
                Unreadable, match=rf"sample {i % 20} of .*00{i // 20}.tar: its shard is missing"
            ):
                source.read(i)
        else:
            assert number_of(source, i) == number_of(whole, i)
    assert (source.labels[lost] == -1).all()
    kept = [i for i in range(130) if i not in lost]
    assert torch.equal(source.labels[kept], whole.labels[kept])
    found = portions(Data(source, None), 0)
    assert sorted(i for part in found for i in part.indices.tolist()) == kept
    counts = report(source)["classes"]
    assert counts == {name: int((source.labels == i).sum()) for i, name in enumerate("abc")}


def test_measurements_with_labels_leave_lost_samples_out(damaged, tmp_path, monkeypatch):
    source = ShardSource(damaged, reading=Reading(budget=0.5))
    assert source.lost.nonzero().flatten().tolist() == [*range(40, 60)]
    monkeypatch.setattr("moco.starts.open_like", lambda *_: Data(source, None))
    net = moco.trunk("resnet10", width=8, stem="small")[0]
    about = {"arch": "resnet10", "width": 8, "stem": "small", "channels": 3, "size": 16}
    weights = tmp_path / "backbone.safetensors"
    weights.write_bytes(backbone_bytes(net, about | {"mean": [0.5] * 3, "std": [0.2] * 3}))
    found = open_setting(weights, "shards")
    assert len(found.train.labels) + len(found.test.labels) == 110
    source.labels[0] = -1
    with pytest.raises(ValueError, match=r"1 of the 130 images of .* have no label"):
        open_setting(weights, "shards")


@pytest.mark.parametrize("window", [None, 2])
def test_other_images_under_their_own_numbers_take_the_place_of_lost_ones(damaged, packed, window):
    source = ShardSource(damaged, reading=Reading(budget=0.2))
    pixels = {i: ShardSource(packed).read(i) for i in range(130)}
    loader = Loader(source, views(), 13, seed=3, window=window)
    taken = []
    for step, batch in enumerate(loader.stream(0, 20)):
        planned = loader.index(step).tolist()
        assert batch.unreadable == ()  # they were told at the start
        assert torch.equal(loader.batch(step).index, batch.index)
        for wanted, index in zip(planned, batch.index.tolist(), strict=True):
            assert not 40 <= index < 60
            if 40 <= wanted < 60:
                draws = [loader.replacement(step, wanted, attempt) for attempt in range(1, 9)]
                assert index == next(draw for draw in draws if not 40 <= draw < 60)
                taken.append(index)
            else:
                assert index == wanted
    assert len(taken) == 40
    assert len(set(taken)) > 20
    assert loader.unreadable == {}
    assert all(torch.equal(source.read(i), pixels[i]) for i in set(taken))


def split(root, test=("a", "c")):
    """Shards of three classes below train/, and below test/ of two that have numbers of their own."""
    pack(lambda i: Member(".png", image(i), i % 3), 6, root / "train", classes=("a", "b", "c"))
    pack(lambda i: Member(".png", image(i), i % 2), 4, root / "test", classes=test)


def test_samples_on_a_quarantine_list_are_left_out(packed, tmp_path):
    folder = copy(packed, tmp_path / "torn")
    whole = ShardSource(folder)
    broken = [whole.sample_name(i) for i in (3, 25, 39, 129)]
    for index in 3, 25, 39, 129:
        record = np.fromfile(folder / SAMPLES, RECORD)[index]
        with open(folder / f"shard-{index // 20:06d}.tar", "r+b") as file:
            file.seek(int(record["block"]) * 512)
            file.write(b"no image")
    with pytest.raises(SystemExit):
        main(["doctor", str(folder), "--out", str(tmp_path / "doctor"), "--recipe", "cpu"])
    listed = read_quarantine(tmp_path / "doctor" / "quarantine.jsonl")
    assert listed == set(broken)
    source = open_source(str(folder), quarantine=listed)
    kept = [i for i in range(130) if i not in (3, 25, 39, 129)]
    assert [source.sample_name(i) for i in range(126)] == [whole.sample_name(i) for i in kept]
    assert [number_of(source, i) for i in range(126)] == [number_of(whole, i) for i in kept]
    assert torch.equal(source.labels, whole.labels[kept])
    assert source.shards.tolist() == [19, 18, 20, 20, 20, 20, 9]
    assert len({source.fingerprint(), whole.fingerprint()}) == 2
    order = WindowedOrder(source.shards, 2, seed=0).at(np.arange(126), 0)
    assert sorted(order) == list(range(126))
    (tmp_path / "new").mkdir()
    moved = folder.rename(tmp_path / "new" / "torn")
    assert len(open_source(str(moved), quarantine=listed)) == 126
    assert len(open_source(str(packed), quarantine=listed)) == 130


def test_a_quarantine_list_of_training_shards_leaves_the_test_shards_whole(tmp_path):
    split(tmp_path)
    listed = frozenset([open_source(str(tmp_path)).sample_name(0)])
    kept = [len(open_source(str(tmp_path), part, quarantine=listed)) for part in ("train", "test")]
    assert kept == [5, 4]
    every = frozenset(map(ShardSource(tmp_path / "test").sample_name, range(4)))
    with pytest.raises(FileNotFoundError, match="no image in the shards of"):
        ShardSource(tmp_path / "test", quarantine=every)


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


def test_samples_of_missing_shards_may_be_on_a_quarantine_list(damaged):
    names = {ShardSource(damaged, reading=Reading(budget=1)).sample_name(i) for i in range(40, 60)}
    source = open_source(str(damaged), quarantine=frozenset(names))
    assert (len(source), source.notes) == (110, ())
    assert (source.labels >= 0).all()
    assert all(number_of(source, i) >= 0 for i in range(110))


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


def test_verification_finds_a_flipped_bit(packed, tmp_path):
    assert verify(packed) == []
    folder = copy(packed, tmp_path / "flipped")
    content = bytearray((folder / "shard-000003.tar").read_bytes())
    content[5000] ^= 1
    (folder / "shard-000003.tar").write_bytes(content)
    (damage,) = verify(folder)
    assert damage == "shard-000003.tar: its checksum does not match its content"


def test_damaged_tables_are_refused(packed, tmp_path):
    folder = copy(packed, tmp_path / "x")
    (folder / SAMPLES).write_bytes(b"12345")
    with pytest.raises(ValueError, match="must hold 130 samples, it has 5 bytes"):
        ShardSource(folder)
    (folder / SHARDS).write_text("nonsense")
    with pytest.raises(ValueError, match=r"shards.tsv is damaged .*delete it"):
        ShardSource(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no tar shard"):
        ShardSource(tmp_path / "empty")
    (tmp_path / "empty" / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"1 of 1 shards cannot be indexed: a\.tar"):
        ShardSource(tmp_path / "empty")


def test_nothing_is_overwritten_but_an_unfinished_packing_starts_anew(packed, tmp_path):
    def member(i):
        if i == 5 and stop:
            raise KeyboardInterrupt
        return Member(".png", image(i))

    with pytest.raises(FileExistsError, match="is not empty"):
        pack(member, 9, packed)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        pack(member, 9, tmp_path / "out", shard_images=3)
    with pytest.raises(ValueError, match=r"the packing of .*out did not finish"):
        ShardSource(tmp_path / "out")
    stop = False
    pack(member, 9, tmp_path / "out", shard_images=3)
    source = ShardSource(tmp_path / "out")
    assert sorted(number_of(source, i) for i in range(9)) == list(range(9))
    assert source.labels is None
    with pytest.raises(ValueError, match="shard_images must be at least 1 image, got 0"):
        pack(member, 9, tmp_path / "other", shard_images=0)


def test_resizing_keeps_small_files_and_shrinks_large_ones():
    small = image(3)
    assert smaller(small, ".png", 20, "x") == (small, ".png", False)
    content, ending, large = smaller(image(3, size=60, kind="JPEG"), ".jpg", 30, "x")
    assert (ending, Image.open(io.BytesIO(content)).size, large) == (".jpg", (32, 30), False)
    with pytest.raises(RuntimeError, match=r"broken\.png"):
        smaller(b"no image", ".png", 30, "broken.png")


def test_resizing_keeps_grey_and_leaves_what_it_would_spoil(tmp_path, capsys):
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64)
    grey = Image.fromarray((ramp // 16).astype(np.uint8))
    red = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    palette = Image.new("P", (64, 64))
    palette.putpalette([0, 255, 0] * 256)
    spoilt = {
        "deep.png": Image.fromarray(ramp.astype(np.uint16)),
        "float.tiff": Image.fromarray((ramp / 4095).astype(np.float32)),
        "clear.png": red,
        "hidden.png": red.convert("RGB"),
        "palette.png": palette,
        "ink.jpg": red.convert("CMYK"),
    }
    images = tmp_path / "images"
    images.mkdir()
    for name, picture in (spoilt | {"grey.png": grey, "small.png": grey.resize((32, 32))}).items():
        picture.save(images / name, **({"transparency": (255, 0, 0)} if name == "hidden.png" else {}))
    for name in spoilt:
        content, ending = (images / name).read_bytes(), (images / name).suffix
        assert smaller(content, ending, 32, name) == (content, ending, True)
        assert smaller(content, ending, 64, name) == (content, ending, False)
    content, *rest = smaller((images / "grey.png").read_bytes(), ".png", 32, "x")
    resized = Image.open(io.BytesIO(content))
    assert (resized.mode, resized.size, rest) == ("L", (32, 32), [".png", False])
    words = ["pack", str(images), "--short-side", "32", "--out"]
    with pytest.raises(SystemExit) as ended:
        main([*words, str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert ended.value.code == 0
    assert "6 larger images were left as they are" in shown.err
    assert "8 images in 1 shards" in shown.out
    with pytest.raises(SystemExit):
        main([*words, str(tmp_path / "again"), "--json"])
    assert json.loads(capsys.readouterr().out)["left"] == 6


def test_a_folder_of_splits_is_not_packed_as_one(tmp_path, capsys):
    for name in "train/cat", "train/dog", "test/cat":
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "x.png").write_bytes(image(1))
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(tmp_path / "images"), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "has a folder train/; pack each split by itself" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for split in "train", "test":
        with pytest.raises(SystemExit) as ended:
            main(["pack", str(tmp_path / "images" / split), "--out", str(tmp_path / "out" / split)])
        assert ended.value.code == 0
    assert open_source(str(tmp_path / "out")).classes == ["cat", "dog"]


def test_the_command_packs_a_folder_and_checks_it(tmp_path, capsys):
    for i in range(120):
        path = tmp_path / "photos" / "xy"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i) if i != 7 else b"")
    out = tmp_path / "shards"
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(tmp_path / "photos"), "--out", str(out), "--shard-images", "50", "--json"])
    assert ended.value.code == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert (result["images"], result["shards"], len(result["skipped"])) == (119, 3, 1)
    assert "7.png: it is empty" in shown.err
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(out), "--verify"])
    assert ended.value.code == 0
    assert "3 of 3 shards are whole" in capsys.readouterr().out
    (out / "shard-000001.tar").unlink()
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(out), "--verify"])
    assert ended.value.code == 1
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(tmp_path / "photos")])
    assert ended.value.code == 2
    assert "--out is needed" in capsys.readouterr().err


SIZES = np.array([50, 30, 1, 70, 50, 0, 49, 50])


@pytest.mark.parametrize("window", [1, 3, 99])
def test_a_windowed_order_is_a_permutation_that_keeps_to_its_windows(window):
    count = int(SIZES.sum())
    owner = np.repeat(np.arange(len(SIZES)), SIZES)
    for epoch in range(3):
        order = WindowedOrder(SIZES, window, seed=1)
        whole = order.at(np.arange(count), epoch)
        assert sorted(whole) == list(range(count))
        for start in range(0, count, 37):  # a batch of positions is a function of these alone
            part = np.arange(start, min(start + 37, count))
            assert (WindowedOrder(SIZES, window, seed=1).at(part, epoch) == whole[part]).all()
        seen = [len(set(owner[whole[start : start + 20]])) for start in range(0, count, 20)]
        assert max(seen) <= 2 * window + 2
    assert (order.at(np.arange(count), 0) != order.at(np.arange(count), 1)).any()
    assert (WindowedOrder(SIZES, window, seed=2).at(np.arange(count), 2) != whole).any()


def test_windows_below_one_shard_or_without_shards_are_refused():
    with pytest.raises(ValueError, match="window must be at least 1 shard, got 0"):
        WindowedOrder(SIZES, 0, seed=0)
    with pytest.raises(ValueError, match=r"window 4 needs images in shards, .* has none"):
        Loader(open_source("procedural"), views(), 8, window=4)


def views():
    values = tiny_recipe().views
    return Views(type(values)(**{**vars(values), "mean": (0.5,) * 3, "std": (0.25,) * 3}))


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_epoch_takes_every_image_once_over_processes_and_a_change_of_their_number(packed, size, window):
    source = ShardSource(packed)

    def loaders(count):
        worlds = [Solo()] if count == 1 else [Share(rank, count) for rank in range(count)]
        return [Loader(source, views(), 12, seed=5, world=world, window=window) for world in worlds]

    before, after = loaders(size), loaders(size % 3 + 1)
    epoch = before[0].steps_per_epoch
    assert epoch == 10
    for start in 0, epoch:
        seen = [i for step in range(start, start + 4) for loader in before for i in loader.index(step)]
        seen += [
            i for step in range(start + 4, start + epoch) for loader in after for i in loader.index(step)
        ]
        assert len(set(seen)) == len(seen) == 120


@pytest.mark.parametrize("window", [None, 8])
def test_positions_say_nothing_about_numbers(window):
    """Chi-square of tenth of the epoch against tenth of the data, over packed-size shards."""
    shards = np.full(64, 250)
    count = int(shards.sum())
    table = np.zeros((10, 10))
    for epoch in range(4):
        if window is None:
            order = moco.chance.permute(np.arange(count), count, 3, "order", step=epoch)
        else:  # shards hold images in random order: numbers within a shard mean nothing
            order = WindowedOrder(shards, window, 3).at(np.arange(count), epoch) % 250 * 64
        np.add.at(table, (np.arange(count) * 10 // count, order * 10 // count), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_a_run_over_shards_resumes_in_the_middle_of_an_epoch_to_the_same_bits(packed, tmp_path):
    values = tiny_recipe(epochs=1, checkpoint_every=3, window=3, dictionary=MomentumQueue(size=24))
    moco.pretrain(values, data=str(packed), out=tmp_path / "calm")
    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(values, data=str(packed), out=tmp_path / "run", observers=[StopAfter(5)])
    moco.resume(tmp_path / "run")
    assert_same_runs(tmp_path / "calm", tmp_path / "run")


def test_a_run_over_damaged_shards_resumes_to_the_same_bits(damaged, tmp_path):
    values = tiny_recipe(
        reading=Reading(budget=0.2), epochs=1, checkpoint_every=3, dictionary=MomentumQueue(size=24)
    )
    moco.pretrain(values, data=str(damaged), out=tmp_path / "calm")
    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(values, data=str(damaged), out=tmp_path / "run", observers=[StopAfter(5)])
    moco.resume(tmp_path / "run", workers=1)
    assert_same_runs(tmp_path / "calm", tmp_path / "run")


def test_a_billion_samples_cost_no_memory(tmp_path):
    """An index of 10^9 samples, sparse on disk: opening it and placing a batch touch almost nothing."""
    import resource

    shards = 20_000
    names = np.array([f"shard-{i:06d}.tar".encode() for i in range(shards)])
    table = ShardTable(names, np.full(shards, 50_000), np.zeros(shards, np.int64))
    table.write(tmp_path, ["-"] * shards)
    with open(tmp_path / SAMPLES, "wb") as file:
        file.truncate(10**9 * RECORD.itemsize)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = ShardSource(tmp_path, reading=Reading(budget=1))
    loader = Loader(source, views(), 4096, world=Share(5, 64))
    windowed = Loader(source, views(), 4096, window=64)
    for step in range(0, loader.steps_per_epoch, 30_000):
        assert len(set(loader.index(step))) == 64
        assert len(set(windowed.index(step))) == 4096
    assert len(source) == 10**9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
