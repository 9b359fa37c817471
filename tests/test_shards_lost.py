"""Shards that are missing, short or damaged, and samples on a quarantine list."""

import numpy as np
import pytest
import torch

import moco
from moco.cli import main
from moco.data.doctor import report
from moco.data.loader import Loader
from moco.data.open import open_source
from moco.data.order import WindowedOrder
from moco.data.pack import verify
from moco.data.quarantine import read_quarantine
from moco.data.reading import Reading
from moco.data.shard_table import RECORD, SAMPLES, SHARDS
from moco.data.shards import ShardSource
from moco.data.unreadable import Unreadable
from moco.export.backbone import backbone_bytes
from moco.images import Data, portions
from moco.starts import open_setting
from shard_images import copy, damaged, image, number_of, packed, split, views  # noqa: F401


def test_missing_and_short_shards_are_told_within_the_budget(damaged):  # noqa: F811
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


def test_samples_of_missing_and_short_shards_have_neither_pixels_nor_a_class(damaged, packed):  # noqa: F811
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


def test_measurements_with_labels_leave_lost_samples_out(damaged, tmp_path, monkeypatch):  # noqa: F811
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
def test_other_images_under_their_own_numbers_take_the_place_of_lost_ones(damaged, packed, window):  # noqa: F811
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


def test_samples_on_a_quarantine_list_are_left_out(packed, tmp_path):  # noqa: F811
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
    moved = folder.rename(tmp_path / "new" / "name")
    assert len(open_source(str(moved), quarantine=listed)) == 126


def test_a_quarantine_list_of_training_shards_leaves_the_test_shards_whole(tmp_path):
    split(tmp_path)
    listed = frozenset([open_source(str(tmp_path)).sample_name(0)])
    kept = [len(open_source(str(tmp_path), part, quarantine=listed)) for part in ("train", "test")]
    assert kept == [5, 4]
    every = frozenset(map(ShardSource(tmp_path / "test").sample_name, range(4)))
    with pytest.raises(FileNotFoundError, match="no image in the shards of"):
        ShardSource(tmp_path / "test", quarantine=every)


def test_samples_of_missing_shards_may_be_on_a_quarantine_list(damaged):  # noqa: F811
    names = {ShardSource(damaged, reading=Reading(budget=1)).sample_name(i) for i in range(40, 60)}
    source = open_source(str(damaged), quarantine=frozenset(names))
    assert (len(source), source.notes) == (110, ())
    assert (source.labels >= 0).all()
    assert all(number_of(source, i) >= 0 for i in range(110))


def test_damaged_tables_are_refused(packed, tmp_path):  # noqa: F811
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
