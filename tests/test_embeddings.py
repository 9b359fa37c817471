"""Features as tables: equal to what the encoder gives, whole or not there, and searchable."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import moco
from moco.assess import measure_knn
from moco.cli import main
from moco.data.loader import plain_batches
from moco.data.open import open_source
from moco.embedding_files import WRITERS, holds_embeddings, read_embeddings
from moco.embeddings import Embeddings, embed, joined
from moco.weights import images_of, open_weights
from test_run import finished  # noqa: F401


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_is_read_again_to_the_bit(kind, grouped, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    torch.manual_seed(0)
    parts = [
        Embeddings(
            [f"a/{i},{n}.png" for i in range(n)],
            ["ä"] * n,
            torch.randn(n, 5) * 1e-3,
            torch.arange(n) // 2 if grouped else None,
            "0123",
        )
        for n in (4, 3)
    ]
    with WRITERS[kind](tmp_path / f"e.{kind}", 7) as writer:
        for part in parts:
            writer.write(part)
    read, whole = read_embeddings(tmp_path / f"e.{kind}"), joined(iter(parts))
    assert (read.names, read.labels, read.weights) == (whole.names, whole.labels, "0123")
    assert torch.equal(read.features, whole.features)
    assert holds_embeddings(tmp_path / f"e.{kind}")
    assert (None if read.groups is None else read.groups.tolist()) == (
        [0, 0, 1, 1, 0, 0, 1] if grouped else None
    )
    assert not list(tmp_path.glob("*.tmp"))
    assert repr(read) == "Embeddings(7 images, 5 features each)"


@pytest.mark.parametrize("kind", WRITERS)
def test_a_failure_leaves_no_file(kind, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow")

    def fail():
        with WRITERS[kind](tmp_path / f"e.{kind}", 7) as writer:
            writer.write(Embeddings(["a"], [""], torch.zeros(1, 2)))
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_found_at_the_end_leaves_no_file(kind, tmp_path, monkeypatch):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    finish = WRITERS[kind].close

    def close(writer):
        finish(writer)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WRITERS[kind], "close", close)

    def write():
        with WRITERS[kind](tmp_path / f"e.{kind}", 1) as writer:
            writer.write(Embeddings(["a"], [""], torch.zeros(1, 2)))

    with pytest.raises(OSError, match="No space left"):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_holds_features_of_one_network(kind, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    with WRITERS[kind](tmp_path / f"e.{kind}", 2) as writer:
        for whose in "1111", "2222":
            writer.write(Embeddings(["a"], [""], torch.zeros(1, 2), weights=whose))
    with pytest.raises(ValueError, match="features of 2 different weights are in one file: 1111, 2222"):
        read_embeddings(tmp_path / f"e.{kind}")


@pytest.mark.parametrize("kind", WRITERS)
def test_names_that_are_no_text_are_written(kind, tmp_path):
    """On Linux a name is bytes. Parquet holds text only."""
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    name = os.fsdecode(b"caf\xe9.png")
    with WRITERS[kind](tmp_path / f"e.{kind}", 1) as writer:
        writer.write(Embeddings([name], [name], torch.zeros(1, 2)))
    read = read_embeddings(tmp_path / f"e.{kind}")
    assert read.names == read.labels == [name if kind != "parquet" else r"caf\udce9.png"]


def test_embeddings_are_the_encoders(finished):  # noqa: F811
    out, data = finished
    weights, source = open_weights(out), open_source(data)
    got = joined(embed(weights, source, batch=30))
    batches = list(plain_batches(source, weights.views, torch.arange(100), device=torch.device("cpu")))
    expected = weights.encoder.features(torch.cat(batches)).detach().float()
    torch.testing.assert_close(got.features, expected)
    assert got.names == [str(i) for i in range(100)]
    assert got.labels == [str(label) for label in source.labels.tolist()]
    output = joined(embed(weights, source, layer="output", indices=torch.tensor([3, 1])))
    torch.testing.assert_close(output.features, weights.encoder(torch.cat(batches)[[3, 1]]).detach())
    trunk_only = open_weights(out / "backbone.safetensors")
    torch.testing.assert_close(joined(embed(trunk_only, source)).features, expected)
    with pytest.raises(ValueError, match="holds no head"):
        next(embed(trunk_only, source, layer="output"))
    with pytest.raises(ValueError, match="must be one of trunk, output, got 'fc'"):
        next(embed(weights, source, layer="fc"))
    with pytest.raises(ValueError, match="does not say on which images"):
        images_of(trunk_only, None)


def test_things_show_themselves_in_a_notebook(finished):  # noqa: F811
    out, _ = finished
    result = moco.resume(out)
    assert "<th>raw pixels</th>" in result._repr_html_()
    assert "report.html" in result._repr_html_()
    assert (
        repr(open_weights(out)) == f"Weights({out}: resnet18, width 8, small2 stem, 3 x 16 x 16, with head)"
    )


def test_knn_of_a_file_without_a_head_is_printed(finished, capsys):  # noqa: F811
    out, data = finished
    call("knn", out / "backbone.safetensors", "--data", data, "--k", 10)
    assert capsys.readouterr().out.split()[-1] == "-"


def test_knn_of_a_run_and_of_its_backbone_agree(finished):  # noqa: F811
    out, data = finished
    of_run = measure_knn(out, k=5)
    of_file = measure_knn(out / "backbone.safetensors", data=data, k=5, temperature=0.1)
    assert of_file["knn_trunk"] == of_run["knn_trunk"]
    assert "knn_output" not in of_file


def call(*words, expect=0):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == expect


def test_search_finds_the_image_itself(finished, tmp_path, capsys):  # noqa: F811
    out, data = finished
    pixels = np.load(data)["images"]
    Image.fromarray(pixels[42]).save(tmp_path / "query.png")
    call("search", out, tmp_path / "query.png", "--k", 3, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found[0] == {"name": "42", "label": str(np.load(data)["labels"][42]), "similarity": 1.0}
    assert [f["similarity"] for f in found] == sorted((f["similarity"] for f in found), reverse=True)
    call("embed", out, "--out", tmp_path / "e.npy")
    assert "100 images of" in capsys.readouterr().out
    call("search", out, tmp_path / "query.png", "--k", 3, "--data", tmp_path / "e.npy", "--json")
    assert json.loads(capsys.readouterr().out) == found
    call("search", out, tmp_path / "query.png", "--k", 1)
    assert capsys.readouterr().out.split()[:2] == ["1.0000", "42"]
    call("embed", out, "--out", f"{tmp_path / 'made'}/")
    assert "made/embeddings.npy: " in capsys.readouterr().out
    call("embed", out, "--to", "csv", "--split", "test", "--out", tmp_path / "e.csv", "--json")
    assert json.loads(capsys.readouterr().out)["images"] == 40
    call("embed", out, "--out", tmp_path / "e.csv", "--json")  # the ending says which kind
    assert len(read_embeddings(tmp_path / "e.csv").names) == 100
    call("embed", out, "--to", "csv", "--split", "test", "--out", tmp_path / "e.csv", "--json")
    features = read_embeddings(tmp_path / "e.csv").features
    assert F.normalize(features, dim=1).shape == (40, 64)


def test_features_of_other_weights_are_refused(finished, tmp_path, capsys):  # noqa: F811
    out, data = finished
    Image.fromarray(np.load(data)["images"][7]).save(tmp_path / "query.png")
    (tmp_path / "few.csv").write_text("name,label\n1,a\n2,a\n3,b\n4,b\n")
    other = shutil.copytree(out, tmp_path / "other")
    shutil.rmtree(other / "checkpoints")
    tensors = load_file(other / "backbone.safetensors")
    with safe_open(other / "backbone.safetensors", "pt") as file:
        about = file.metadata()
    save_file({n: t * 2 for n, t in tensors.items()}, other / "backbone.safetensors", metadata=about)
    for layer in "trunk", "output":  # of the same length in narrow networks
        call("embed", out, "--layer", layer, "--out", tmp_path / f"{layer}.csv")
        words = [tmp_path / "query.png", "--k", 1, "--data", tmp_path / f"{layer}.csv", "--json"]
        capsys.readouterr()
        call("search", out, *words)
        (found,) = json.loads(capsys.readouterr().out)
        assert (found["name"], found["similarity"]) == ("7", 1.0)
        call("search", other, *words, expect=2)
        assert "features are of other weights" in capsys.readouterr().err
        fitted = ["fit", other, tmp_path / "few.csv", "--data", tmp_path / f"{layer}.csv"]
        call(*fitted, expect=2)
        assert "features are of other weights" in capsys.readouterr().err
    call("search", out / "backbone.safetensors", *words[:4], tmp_path / "trunk.csv")


def test_images_that_cannot_be_read_are_left_out_and_named(finished, tmp_path, capsys):  # noqa: F811
    out, _ = finished
    for i in range(5):
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    for name in "1.png", "3.png":
        (tmp_path / name).write_bytes(b"no image")
    table = tmp_path / "e.csv"
    with pytest.raises(SystemExit, match="0"):
        main(["embed", str(out), "--data", str(tmp_path), "--to", "csv", "--out", str(table)])
    said = capsys.readouterr()
    assert "3 images of" in said.out
    assert "2 images could not be read, left out: 1.png, 3.png" in said.err
    assert read_embeddings(table).names == ["0.png", "2.png", "4.png"]
    with pytest.raises(SystemExit, match="0"):
        main(["search", str(out), str(tmp_path / "0.png"), "--data", str(tmp_path), "--k", "1"])
    assert "2 images could not be read" in capsys.readouterr().err


def test_a_part_of_which_nothing_can_be_read_is_left_out(finished, tmp_path):  # noqa: F811
    out, _ = finished
    for i in range(5):
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    for name in "2.png", "3.png":
        (tmp_path / name).write_bytes(b"no image")
    weights, lost = open_weights(out), []
    source = open_source(str(tmp_path))
    found = joined(embed(weights, source, batch=2, lost=lost))
    assert (found.names, lost) == (["0.png", "1.png", "4.png"], ["2.png", "3.png"])
    with pytest.raises(ValueError, match=r"none of the 2 images of .* can be read"):
        joined(embed(weights, source, batch=2, indices=torch.tensor([2, 3])))


@pytest.mark.parametrize("kind", ["csv", "npy", "parquet"])
def test_tables_and_arrays_of_images_are_no_embeddings(kind, finished, tmp_path, capsys):  # noqa: F811
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet")
    out, data = finished
    images = np.load(data)["images"][:4]
    names = [f"{i}.png" for i in range(4)]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    spec = tmp_path / f"images.{kind}"
    if kind == "csv":
        spec.write_text("path,label\n" + "".join(f"{name},x\n" for name in names))
    elif kind == "npy":
        np.save(spec, images)
    else:
        pyarrow.parquet.write_table(pyarrow.table({"path": names, "label": ["x"] * 4}), spec)
    call("search", out, tmp_path / "2.png", "--k", 1, "--data", spec, "--json")
    assert json.loads(capsys.readouterr().out)[0]["name"] == ("2" if kind == "npy" else "2.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("search {run} {tmp}/none.png", "there is no file {tmp}/none.png"),
        ("search {run} {query} --k 0", "k must be between 1 and the 100 images searched, got 0"),
        ("search {run} {query} --data {tmp}/other.csv", "features are of other weights (not said which)"),
        ("embed {tmp}/none", "holds no run"),
        ("embed {run} --to csv --out {tmp}/e.npy", "is no file of --to csv"),
        ("embed {run}/backbone.safetensors", "give --data"),
        ("embed {run} --data {tmp}/grey.npy", "has images of 1 channel"),
    ],
)
def test_wrong_calls(finished, tmp_path, capsys, words, message):  # noqa: F811
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "query.png")
    np.save(tmp_path / "grey.npy", np.zeros((3, 16, 16), np.uint8))
    (tmp_path / "other.csv").write_text("name,label,f0,f1\na,,1,2\n")
    places = {"run": finished[0], "tmp": tmp_path, "query": tmp_path / "query.png"}
    before = set(finished[0].iterdir())
    call(*words.format(**places).split(), expect=2)
    shown = capsys.readouterr()
    assert message.format(**places) in shown.err
    assert "Traceback" not in shown.err
    assert set(finished[0].iterdir()) == before
