"""Tables of transfer, and the starts that they compare."""

import json
from dataclasses import replace

import torch
from safetensors.torch import load_file, save_file

from commands import call
from moco import recipe_file
from moco.report.transfer import transfer_table
from moco.transfer_recipe import Schedule
from moco.transfer_run import transfer
from transfers import COMMON, HEADS, TINY, voc_data


def test_a_table_of_two_settings_says_in_what_they_differ(start, tmp_path, capsys):
    data = voc_data(tmp_path / "data")
    values = replace(TINY, iterations=2, schedule=Schedule(warmup=1), precise=0)
    for name, changed in (
        ("a", values), ("b", replace(values, seed=5)), ("c", replace(values, lr=0.01)),
    ):  # fmt: skip
        init = "random" if name == "a" else str(start)
        trunk = replace(values.trunk, arch="resnet10", width=4)
        transfer(replace(changed, trunk=trunk), init=init, data=data, out=tmp_path / name, device="cpu")
    call("transfer", "table", tmp_path / "a", tmp_path / "b")
    assert "not of one setting" not in capsys.readouterr().out
    call("transfer", "table", *(tmp_path / name for name in "abc"))
    last = capsys.readouterr().out.splitlines()[-1]
    assert (
        last == f"{tmp_path / 'a'} and {tmp_path / 'c'} are not of one setting: lr is 0.02 there, 0.01 here"
    )
    wider = replace(values, trunk=replace(values.trunk, arch="resnet10", width=8))
    transfer(wider, init="random", data=data, out=tmp_path / "wide", device="cpu")
    call("transfer", "table", tmp_path / "a", tmp_path / "wide")
    assert "not of one setting: trunk.width is 4 there, 8 here" in capsys.readouterr().out
    call("transfer", "table", tmp_path / "a", tmp_path / "c", "--json")
    assert "lr is 0.02 there, 0.01 here" in capsys.readouterr().err


def test_a_start_is_what_is_trained_from(transferred, start):
    root, _, result = transferred
    assert result.row == "MoCo"
    stored = recipe_file.from_dict  # the recipe of the run says what the trunk is
    assert stored is not None
    first = torch.load(root / "run/trial-0/checkpoints/step-000000002.pt", weights_only=True)["model"]
    weights = load_file(str(start / "backbone.safetensors"))
    moved = (first["backbone.body.stem.0.weight"] - weights["conv1.weight"]).abs().max()
    assert 0 < float(moved) < 0.05  # two warm-up steps away


def test_supervised_and_random_starts(transferred, start, tmp_path, capsys):
    root, data, _ = transferred
    weights = load_file(str(start / "backbone.safetensors")) | {"fc.weight": torch.zeros(2, 2)}
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    save_file(weights, tmp_path / "weights.safetensors")
    flags = [*COMMON.split(), *HEADS.split(), "--train", "VOC2007:trainval", "--data", data]
    rows = {}
    for name, init in {
        "one": f"supervised:{tmp_path / 'weights.pth'}",
        "two": f"supervised:{tmp_path / 'weights.safetensors'}",
        "three": f"random:{start}",
    }.items():
        call("transfer", "voc-c4", "--init", init, "--out", tmp_path / name, *flags)
        rows[name] = json.loads((tmp_path / name / "result.json").read_text())
    assert [row["row"] for row in rows.values()] == ["supervised", "supervised", "random"]
    assert rows["one"]["trials"] == rows["two"]["trials"]
    capsys.readouterr()
    call("transfer", "table", *(tmp_path / name for name in ("one", "three")))
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "| start | AP50 | AP | AP75 | trials |"
    assert "| random |" in shown
    call("transfer", "table", tmp_path / "one", "--json")
    assert json.loads(capsys.readouterr().out)[0]["row"] == "supervised"
    call("transfer", "table", tmp_path / "one", root / "run", expect=2)
    assert "a table shows one task, got runs of tiny, voc-c4" in capsys.readouterr().err
    call("transfer", "--resume", tmp_path / "three", "--device", "cpu")
    assert "voc-c4 from random: 1 trial" in capsys.readouterr().out


def test_starts_of_one_name_are_told_apart(transferred, capsys):
    def row(name, value, origin):
        return {"task": "voc-c4", "row": name, "headline": ["AP"], "trials": [{}], "mean": {"AP": value},
                "std": {}, "origin": origin}  # fmt: skip

    rows = [row("MoCo", 50.0, "/a"), row("supervised", 52.0, "/x"), row("MoCo", 51.0, "/b"),
            row("supervised", 58.0, "/y")]  # fmt: skip
    lines = transfer_table(rows).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:6]] == [
        "| supervised (/x)", "| supervised (/y)", "| MoCo (/a)", "| MoCo (/b)"
    ]  # fmt: skip
    assert lines[4].split(" | ")[1] == "50.0 (-2.0)"
    assert "gains over supervised (/x) in brackets" in lines[-1]
    root, _, _ = transferred
    call("transfer", "table", root / "run", "--json")
    assert json.loads(capsys.readouterr().out)[0]["origin"].rpartition("/")[2].startswith("pretrained")


def test_the_table_is_the_papers():
    def row(name, value, std):
        return {"task": "voc-c4", "row": name, "headline": ["AP50", "AP"], "trials": [{}] * 5,
                "mean": {"AP50": value}, "std": {"AP50": std}}  # fmt: skip

    text = transfer_table([row("MoCo", 81.5, 0.2), row("supervised", 81.0, 0.1), row("random", 60.2, 0.3)])
    lines = text.splitlines()
    assert lines[2] == "| random | 60.2 ± 0.3 (-20.8) | not measured | 5 |"
    assert lines[3] == "| supervised | 81.0 ± 0.1 | not measured | 5 |"
    assert lines[4] == "| MoCo | 81.5 ± 0.2 (+0.5) ▲ | not measured | 5 |"
    assert "gains over supervised in brackets" in lines[-1]
