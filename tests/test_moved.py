"""Runs go on where their images moved to, whatever kind of images they are."""

import json
import shutil

import pytest

import moco
from moco.assess import measure_knn
from moco.data.open import open_source
from moco.data.pack import Member, pack
from moco.data.quarantine import quarantine_text
from moco.data.reading import Reading
from moco.data.source import DatasetSource
from moco.images import open_data
from moco.recipe import MomentumQueue
from moco.run_folder import read_run
from moco.starts import open_setting
from moco.supervised import planned, supervised
from shard_images import image
from test_run import StopAfter
from test_supervised import QUICK
from tiny import save_arrays, tiny_recipe

SHORT = tiny_recipe(
    epochs=2,
    dictionary=MomentumQueue(size=15),
    checkpoint_every=2,
    journal_every=1,
    reading=Reading(budget=0.03),
)
PICTURES = 40


def write_folder(root):
    for i in range(PICTURES):
        path = root / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(i))
    return str(root / "images")


def write_saved(root, kind):
    datasets = pytest.importorskip("datasets")
    columns = {"image": [{"bytes": image(i), "path": None} for i in range(PICTURES)]}
    found = datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image()}))
    if kind == "parquet":
        found.to_parquet(root / "set.parquet")
        return f"hf:{root / 'set.parquet'}"
    found.save_to_disk(root / "set")
    return f"hf:{root / 'set'}"


def write_shards(root):
    """Shards with a truncated image, which the run meets in its first epoch."""

    def member(i):
        return Member(".png", image(i)[:200] if i == 3 else image(i), -1)

    pack(member, PICTURES, root / "shards", shard_images=20)
    return str(root / "shards")


KINDS = {
    "folder": write_folder,
    "saved": lambda root: write_saved(root, "saved"),
    "parquet": lambda root: write_saved(root, "parquet"),
    "shards": write_shards,
}


def journal(out):
    rows = map(json.loads, (out / "journal.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_project_that_moved_goes_on_to_the_rows_of_one_that_did_not(kind, listed, tmp_path):
    """Run, images and quarantine list lie elsewhere, under another name, when the run is resumed."""
    here = tmp_path / "here"
    here.mkdir()
    spec = KINDS[kind](here)
    calls = {"data": spec}
    if listed:
        (here / "list.jsonl").write_text(quarantine_text([{"file": open_source(spec).sample_name(5)}]))
        calls["quarantine"] = here / "list.jsonl"
    calm = moco.pretrain(SHORT, out=tmp_path / "calm", **calls)
    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(SHORT, out=here / "run", observers=[StopAfter(3)], **calls)
    there = here.rename(tmp_path / "there")
    moved = spec.replace(str(here), str(there))
    done = moco.resume(there / "run", data=moved)
    assert journal(there / "run") == journal(tmp_path / "calm")
    assert done.unreadable == calm.unreadable == (1 if kind == "shards" else 0)
    assert len(open_source(moved)) - read_run(there / "run")[1]["images"] == listed
    if kind == "folder":
        assert measure_knn(there / "run", k=5) == measure_knn(there / "run", data=moved, k=5)


@pytest.mark.parametrize("kind", [*KINDS, "zip", "csv"])
def test_a_list_that_names_none_of_the_images_is_told_of(kind, tmp_path):
    if kind in KINDS:
        spec = KINDS[kind](tmp_path)
    else:
        folder = write_folder(tmp_path)
        spec = shutil.make_archive(folder, "zip", folder)
        if kind == "csv":
            (tmp_path / "table.csv").write_text("path\nimages/a/0.png\nimages/b/1.png\n")
            spec = str(tmp_path / "table.csv")
    name = open_source(spec).sample_name(0)
    for listed, told in (["x.png", "y.png"], True), (["x.png", name], False):
        notes = open_data(spec, listed=frozenset(listed)).train.notes
        assert told == any("none of the 2 files on the quarantine list" in note for note in notes)


def test_the_same_list_elsewhere_is_the_same_call(tmp_path):
    data = write_folder(tmp_path)
    for name, file in ("one", "a/4.png"), ("same", "a/4.png"), ("other", "a/6.png"):
        (tmp_path / f"{name}.jsonl").write_text(quarantine_text([{"file": file}]))
    moco.pretrain(SHORT, data=data, out=tmp_path / "run", quarantine=tmp_path / "one.jsonl")
    moco.pretrain(SHORT, data=data, out=tmp_path / "run", quarantine=tmp_path / "same.jsonl")
    for other in tmp_path / "other.jsonl", None:
        with pytest.raises(FileExistsError, match="holds another run"):
            moco.pretrain(SHORT, data=data, out=tmp_path / "run", quarantine=other)


def test_a_set_of_torchvision_is_known_wherever_it_lies(tmp_path):
    folders = pytest.importorskip("torchvision.datasets").ImageFolder
    data = write_folder(tmp_path)
    copy = shutil.copytree(data, tmp_path / "copy")
    prints = {DatasetSource(folders(str(x)), None, name="x").fingerprint() for x in (data, copy)}
    (copy / "a/0.png").unlink()
    assert len(prints) == 1
    assert DatasetSource(folders(str(copy)), None, name="x").fingerprint() not in prints


def test_a_counterpart_of_images_that_moved_is_that_of_the_run(tmp_path):
    data = save_arrays(tmp_path)
    moco.pretrain(SHORT, data=data, out=tmp_path / "run")
    setting = open_setting(tmp_path / "run")
    rows = supervised(setting, tmp_path / "run/supervised", QUICK, say=lambda _: None)
    moved = (tmp_path / "images.npz").rename(tmp_path / "moved.npz")
    moco.resume(tmp_path / "run", data=str(moved))
    setting = open_setting(tmp_path / "run")
    assert planned(setting, tmp_path / "run/supervised") == QUICK
    assert supervised(setting, tmp_path / "run/supervised", QUICK, say=lambda _: None) == rows
