"""Images that cannot be read: replaced by a keyed draw, named in the journal, and limited in number."""

import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import moco
from moco import assess, chance, recipe_file
from moco.batch import TooManyUnreadable
from moco.cli import main
from moco.data.decoding import ATTEMPTS
from moco.data.encoded import FolderSource
from moco.data.loader import Loader
from moco.data.procedural import procedural
from moco.data.quarantine import read_quarantine
from moco.data.reading import Reading
from moco.data.unreadable import Unreadable
from moco.data.views import Views
from moco.evaluate.features import pixels
from moco.recipe import MomentumQueue, Monitor, Recipe
from moco.report import page
from moco.starts import open_setting
from moco.weights import images_of, open_weights
from ranks import fork, wait
from test_run import StopAfter, assert_same_runs
from test_world import free_port
from tiny import CPU, tiny_recipe

BROKEN = ("03.png", "17.png", "30.png")
QUEUE = MomentumQueue(size=15)
VALUES = tiny_recipe(reading=Reading(budget=0.1), epochs=3, dictionary=QUEUE)
STRICT = tiny_recipe(reading=Reading(budget=0.05), dictionary=QUEUE)


def photographs(root: Path, count: int = 40, broken=BROKEN) -> Path:
    root.mkdir(exist_ok=True)
    source = procedural(count, size=20)
    for i in range(count):
        Image.fromarray(source.pixels[i].permute(1, 2, 0).numpy()).save(root / f"{i:02d}.png")
    for name in broken:
        (root / name).write_bytes((root / name).read_bytes()[:200])
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unreadable")
    data = photographs(folder / "images")
    result = moco.pretrain(VALUES, data=str(data), out=folder / "run")
    return folder / "run", data, result


def views() -> Views:
    augmentation = VALUES.views
    return Views(type(augmentation)(size=16, mean=(0.5,) * 3, std=(0.2,) * 3))


def test_a_replacement_is_a_function_of_seed_epoch_image_and_attempt(tmp_path):
    source = FolderSource(photographs(tmp_path / "x"))
    loader = Loader(source, views(), 10, seed=3)
    batches = list(loader.stream(0, 12))
    again = Loader(source, views(), 10, seed=3, workers=5)
    for step, batch in enumerate(batches):
        planned = loader.index(step)
        alone = again.batch(step)
        assert torch.equal(alone.index, batch.index)
        assert all(torch.equal(a, b) for a, b in zip(alone.views, batch.views, strict=True))
        assert alone.unreadable == batch.unreadable
        bad = {i for i in planned.tolist() if source.sample_name(i) in BROKEN}
        assert bad <= {int(name[:2]) for name, _ in batch.unreadable}
        for index, taken in zip(planned.tolist(), batch.index.tolist(), strict=True):
            if index not in bad:
                assert taken == index
                continue
            draws = chance.uniform(3, "replacement", np.array([index]), ATTEMPTS, step=step // 4)[0]
            candidates = [int(draw * 40) for draw in draws]
            assert taken == next(c for c in candidates if source.sample_name(c) not in BROKEN)
    assert {int(i) for batch in batches for i in batch.index} <= set(range(40)) - {3, 17, 30}
    epochs = [[b.index.tolist() for b in batches[s : s + 4]] for s in (0, 4)]
    assert epochs[0] != epochs[1]


def test_a_replacement_keeps_its_neighbours_as_they_were(tmp_path):
    whole = Loader(FolderSource(photographs(tmp_path / "whole", broken=())), views(), 10)
    torn = Loader(FolderSource(photographs(tmp_path / "torn")), views(), 10)
    for step in range(4):
        a, b = whole.batch(step), torn.batch(step)
        same = a.index == b.index
        for x, y in zip(a.views, b.views, strict=True):
            torch.testing.assert_close(x[same], y[same])


def test_journal_and_quarantine_agree_and_the_run_ends(finished):
    out, _, result = finished
    rows = named(out)
    assert {row["unreadable"] for row in rows} == set(BROKEN)
    assert result.unreadable == len(rows) == 3
    assert all("truncated" in row["reason"] for row in rows)
    assert read_quarantine(out / "quarantine.jsonl") == set(BROKEN)


@pytest.mark.parametrize("stop", [1, 5])
def test_resuming_gives_the_same_bits_with_unreadable_images_too(finished, tmp_path, stop):
    out, data, _ = finished
    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(VALUES, data=str(data), out=tmp_path / "run", observers=[StopAfter(stop)])
    moco.resume(tmp_path / "run", workers=1)
    assert_same_runs(out, tmp_path / "run")
    assert (out / "quarantine.jsonl").read_bytes() == (tmp_path / "run" / "quarantine.jsonl").read_bytes()


def test_files_in_quarantine_are_left_out(finished, tmp_path):
    out, data, _ = finished
    listed = out / "quarantine.jsonl"
    result = moco.pretrain(VALUES, data=str(data), out=tmp_path / "run", quarantine=listed)
    assert result.unreadable == 0
    assert not (tmp_path / "run" / "quarantine.jsonl").exists()
    assert recipe_file.read(tmp_path / "run" / "recipe.toml")[1]["images"] == 37
    with pytest.raises(FileExistsError, match="holds another run"):
        moco.pretrain(VALUES, data=str(data), out=tmp_path / "run")
    moco.resume(tmp_path / "run")
    (tmp_path / "bad.jsonl").write_text("03.png\n")
    with pytest.raises(ValueError, match=r'bad.jsonl, line 1, must be an object with a "file", got'):
        moco.pretrain(VALUES, data=str(data), out=tmp_path / "other", quarantine=tmp_path / "bad.jsonl")


def test_more_than_the_budget_ends_the_run_and_names_them(finished, tmp_path):
    _, data, _ = finished
    with pytest.raises(RuntimeError, match=r"3 of 40 images cannot be read, more than reading.budget = 0.05"):
        moco.pretrain(STRICT, data=str(data), out=tmp_path / "run")
    assert read_quarantine(tmp_path / "run" / "quarantine.jsonl") == set(BROKEN)


@pytest.mark.parametrize("error", [TooManyUnreadable("3 of 40"), RuntimeError("a fault")])
def test_only_faults_of_code_end_with_a_traceback(error, monkeypatch, capsys):
    def run(_):
        raise error

    monkeypatch.setattr("moco.cli.knn.run", run)
    with pytest.raises(SystemExit, match="1"):
        main(["knn"])
    shown = capsys.readouterr().err
    assert f"moco: the run failed: {error}" in shown
    assert ("Traceback" in shown) == (type(error) is RuntimeError)


class LeaveAfter(StopAfter):
    """Has SIGTERM sent after a step."""

    def progress(self, done, row):
        if done == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def process(rank: int, port: int, values: Recipe, data: str, out: Path, observers: Sequence) -> None:
    """One of two processes that train; what a failure says is written down."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    try:
        moco.pretrain(values, data=data, out=out, observers=observers)
    except RuntimeError as error:
        (out / f"error-{rank}").write_text(str(error))


def both(data: str, out: Path) -> None:
    """Two processes train with a stop in the middle, then two train with a smaller budget."""
    port = int(os.environ["MASTER_PORT"])
    for i, observers in enumerate([[LeaveAfter(3)], []]):
        wait(fork(2, lambda rank, i=i, o=observers: process(rank, port + i, VALUES, data, out / "run", o)))
    wait(fork(2, lambda rank: process(rank, port + 2, STRICT, data, out / "strict", ())))


def named(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    return [row for row in rows if "unreadable" in row]


@pytest.fixture(scope="module")
def two_processes(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(finished[1]), str(folder)],
        env=os.environ | address, timeout=280, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "result.json").exists(), done.stderr
    return folder


def test_images_that_any_process_meets_are_named_once_as_by_one_process(finished, two_processes):
    out, ours = finished[0], two_processes / "run"
    assert named(ours) == named(out)
    assert (ours / "quarantine.jsonl").read_bytes() == (out / "quarantine.jsonl").read_bytes()
    assert json.loads((ours / "result.json").read_text())["unreadable"] == 3


def test_the_budget_is_that_of_all_processes(finished, two_processes, tmp_path):
    with pytest.raises(RuntimeError):
        moco.pretrain(STRICT, data=str(finished[1]), out=tmp_path / "run")
    assert named(two_processes / "strict") == named(tmp_path / "run")
    for rank in 0, 1:
        said = (two_processes / "strict" / f"error-{rank}").read_text()
        assert said.startswith("3 of 40 images cannot be read, more than reading.budget = 0.05")


def test_a_set_without_a_readable_image_is_refused_before_anything_is_written(tmp_path):
    photographs(tmp_path / "x", 20, broken=[f"{i:02d}.png" for i in range(20)])
    values = tiny_recipe(dictionary=QUEUE)
    with pytest.raises(ValueError, match=r"none of the 20 images of .*x that were tried can be read: .*png"):
        moco.pretrain(values, data=str(tmp_path / "x"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_that_vanish_end_the_run_in_a_sentence(tmp_path):
    source = FolderSource(photographs(tmp_path / "x", 20, broken=()))
    for path in (tmp_path / "x").iterdir():
        path.unlink()
    with pytest.raises(
        RuntimeError, match=rf"{ATTEMPTS + 1} images drawn in a row cannot be read, .*No such file"
    ):
        Loader(source, views(), 10).batch(0)


def test_knn_leaves_unreadable_images_out(tmp_path):
    from moco.images import Data, labelled

    for folder, broken in ("a", ("01.png",)), ("b", ("02.png", "05.png")):
        (tmp_path / "x").mkdir(exist_ok=True)
        photographs(tmp_path / "x" / folder, 10, broken)
    source = FolderSource(tmp_path / "x")
    values = tiny_recipe(views=views().augmentation)
    sets = labelled(values, Data(source, None), CPU)
    assert sets is not None
    rows = [len(pixels(part.batches())) for part in sets]
    assert sum(rows) == 17
    assert [len(part.labels) for part in sets] == rows


@pytest.fixture(scope="module")
def labelled_run(tmp_path_factory):
    """A run on class folders of which three files are broken, two of them on its quarantine list."""
    folder = tmp_path_factory.mktemp("labelled")
    data, listed = folder / "images", folder / "listed.jsonl"
    for name in "a", "b":
        (data / name).mkdir(parents=True)
        photographs(data / name, 30, broken=())
    for name in "a/03.png", "a/04.png", "b/11.png":
        (data / name).write_bytes((data / name).read_bytes()[:200])
    listed.write_text('{"file": "a/03.png"}\n{"file": "b/11.png"}\n')
    values = tiny_recipe(reading=Reading(budget=0.1), epochs=1, dictionary=QUEUE, monitor=Monitor(k=90))
    moco.pretrain(values, data=str(data), out=folder / "run", quarantine=listed)
    return folder / "run", data


def words_of(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    shown = capsys.readouterr()
    assert stopped.value.code == 0, shown.err
    return shown


def test_a_run_s_quarantine_holds_wherever_its_own_images_are_used(labelled_run, monkeypatch):
    out, data = labelled_run
    own, other = open_setting(out), open_setting(out, str(data.parent / "images" / "."))
    assert len(own.data.train) == len(other.data.train) == 58
    assert own.lost == ("a/04.png",)
    assert len(own.train.labels) + len(own.test.labels) == 57
    weights = open_weights(out)
    assert len(images_of(weights, None)) == len(images_of(weights, str(data))) == 58
    used = []
    monkeypatch.setattr(assess, "pairs", lambda _, data, *__, **___: used.append(data.train) or list)
    monkeypatch.setattr(assess, "diagnose", lambda *_: {})
    assess.diagnose_run(out)
    monkeypatch.setattr(page, "build_atlas", lambda _, source, **__: used.append(source))
    page.write_report([out], data.parent / "report.html")
    assert [len(source) for source in used] == [58, 58]


def test_the_last_table_and_its_page_tell_the_neighbours_that_voted(labelled_run):
    """Fewer than the recipe asks for, of a small set."""
    out, _ = labelled_run
    values, told = recipe_file.read(out / "recipe.toml")[0], json.loads((out / "result.json").read_text())
    votes = len(open_setting(out).train.labels)
    assert told["knn"]["k"] == votes < values.monitor.k
    text = (out / "report.html").read_text()
    assert f"A vote of the {votes} nearest neighbours" in text
    assert f"(k = {votes}, T = {values.monitor.temperature}, last step" in text


def test_other_images_are_not_quarantined(labelled_run, tmp_path):
    for name in "a", "b":
        (tmp_path / "x" / name).mkdir(parents=True)
        photographs(tmp_path / "x" / name, 15, broken=())
    assert len(open_setting(labelled_run[0], str(tmp_path / "x")).data.train) == 30


@pytest.mark.parametrize(
    "words",
    [
        ("knn",),
        ("linear", "--kind", "logistic"),
        ("linear", "--kind", "paper", "--epochs", "1", "--batch", "8"),
        ("few-labels", "--per-class", "2", "--share", "0.5", "--repeats", "2"),
        ("finetune", "--epochs", "1", "--batch", "8"),
        ("supervised", "--epochs", "1", "--batch", "8"),
        ("verdict", "--repeats", "2", "--no-finetune", "--no-supervised"),
    ],
    ids=lambda words: "-".join(words[:3]),
)
def test_what_measures_with_labels_leaves_unreadable_images_out_and_counts_them(
    labelled_run, tmp_path, capsys, words
):
    command, *flags = words
    flags += ["--out", tmp_path / "out"] if command in ("supervised", "finetune") else []
    said = words_of(capsys, command, labelled_run[0], *flags).err
    assert "1 image could not be read, left out: a/04.png" in said
    assert "Traceback" not in said


def test_knn_says_how_many_neighbours_it_took_and_needs_an_image(labelled_run, tmp_path, capsys):
    for name in "a", "b":
        (tmp_path / "x" / name).mkdir(parents=True)
        photographs(
            tmp_path / "x" / name, 10, broken=[f"{i:02d}.png" for i in range(10)] if name == "b" else []
        )
    shown = words_of(capsys, "knn", labelled_run[0], "--data", tmp_path / "x", "--k", 15, "--json")
    assert json.loads(shown.out)["k"] == 8
    assert "10 images could not be read" in shown.err
    for path in (tmp_path / "x" / "a").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SystemExit, match="2"):
        main(["knn", str(labelled_run[0]), "--data", str(tmp_path / "x")])
    assert "none of the images can be read" in capsys.readouterr().err


def test_an_image_that_vanishes_ends_a_command_in_a_sentence(labelled_run, capsys, monkeypatch):
    def vanish(*_, **__):
        raise Unreadable("a/05.png", "no such file")

    monkeypatch.setattr(assess, "linear", vanish)
    with pytest.raises(SystemExit, match="1"):
        main(["linear", str(labelled_run[0])])
    said = capsys.readouterr().err
    assert "moco: the run failed: cannot decode a/05.png: no such file" in said
    assert "Traceback" not in said


def test_the_hostile_pack_among_good_images(shared_data, tmp_path):
    with zipfile.ZipFile(shared_data / "hostile" / "hostile.zip") as archive:
        archive.extractall(tmp_path)
    photographs(tmp_path / "hostile" / "good", 80, broken=())
    values = tiny_recipe(reading=Reading(budget=0.2), epochs=1)
    result = moco.pretrain(values, data=str(tmp_path / "hostile"), out=tmp_path / "run")
    named = read_quarantine(tmp_path / "run" / "quarantine.jsonl")
    entries = json.loads((shared_data / "hostile" / "manifest.json").read_text())["files"]
    broken = {
        entry["name"]
        for entry in entries
        if (entry.get("pillow_open", "ok"), entry.get("pillow_load", "ok")) != ("ok", "ok")
        or entry["name"].startswith("bomb_")
    } - {"._apple_double.jpg", "Thumbs.db"}  # no images by their names
    assert named <= broken
    assert result.unreadable == len(named) > 10
    assert (tmp_path / "run" / "views.png").exists()


if __name__ == "__main__":
    both(sys.argv[1], Path(sys.argv[2]))


def test_what_cannot_be_read_can_be_told_to_another_process():
    error = pickle.loads(pickle.dumps(Unreadable("a.png", "cut short")))
    assert str(error) == "cannot decode a.png: cut short"
