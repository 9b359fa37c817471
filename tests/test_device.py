"""A device that is not the CPU: nothing mixes the two, results are the same, and no step waits for it."""

import dataclasses
import importlib
import json
import sys

import pytest
import torch

from commands import TINY, call
from moco import device as devices
from moco import recipe
from moco.build import build, resolve
from moco.data.source import ArraySource
from moco.evaluate.features import extract
from moco.evaluate.knn import knn_predict, nearest
from moco.images import Data, open_data
from moco.training.checkpoint import Checkpoints
from moco.training.step import step
from moco.transfer_run import transfer
from moco.world import Solo
from shard_images import image
from simulated import available, simulated, waits
from tiny import CPU, save_arrays, tiny_data, tiny_encoder, tiny_recipe
from transfers import TINY as TRANSFER
from transfers import voc_data

pytestmark = pytest.mark.skipif(
    not available(), reason="there is a GPU, or this torch knows no devices in Python"
)


@pytest.fixture
def there(monkeypatch):
    with simulated(monkeypatch) as device:
        yield device


def test_the_device_refuses_what_a_gpu_refuses(there):
    x = torch.randn(4, 3).to(there)
    with pytest.raises(RuntimeError, match="two devices"):
        x + torch.ones(4, 3)
    assert (x + torch.ones(())).device == there
    with pytest.raises(RuntimeError):
        x.numpy()
    assert waits == ["to simulated of (4, 3)"]
    devices.send(torch.ones(2), there)
    assert len(waits) == 1
    for act in (
        lambda: x.to("cpu", non_blocking=True),
        lambda: x[torch.tensor([0, 1])],
        lambda: x[x[:, 0] > 0],
        lambda: x.sum().item(),
        lambda: x.copy_(torch.ones(4, 3)),
    ):
        waits.clear()
        act()
        assert len(waits) == 1


def losses(values, data, device, steps=4):
    """Losses of the first steps, and what they waited for."""
    values = resolve(values, data, device)
    run = build(values, data, Solo(), device=device, checkpoints=Checkpoints("nowhere"))
    found, waited = [], []
    waits.clear()
    for batch in run.batches(0, steps):
        found.append(step(run, batch, run.world).loss)
        waited += waits if batch.step else []  # the first may bring constants
        waits.clear()
    return [loss.item() for loss in found], waited


VIEWS = tiny_recipe().views
BLURRED = dataclasses.replace(VIEWS, blur_probability=0.5, blur_sigma=(0.1, 2.0))
V3_PARTS = {
    "encoder": dataclasses.replace(
        tiny_recipe().encoder, head="mlp", head_norm="all", hidden=24, predictor=True, bn_group=None
    ),
    "keys": recipe.MomentumKeys(momentum=0.9, rising=True, shuffle=False),
    "dictionary": recipe.InBatch(),
    "views": dataclasses.replace(BLURRED, second_blur_probability=0.1, second_solarize_probability=0.2),
    "optimizer": recipe.LARS(lr=0.3),
    "symmetric": True,
}
END_TO_END = {"keys": recipe.TiedKeys(), "dictionary": recipe.InBatch()}
BANK = {"keys": recipe.QueryKeys(), "dictionary": recipe.MemoryBank(size=30)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"symmetric": True},
        {"accumulate": 2, "dictionary": recipe.MomentumQueue(size=40, mask_own=True)},
        {"views": BLURRED},
        {"views": dataclasses.replace(BLURRED, grayscale_first=True)},
        {"encoder": dataclasses.replace(tiny_recipe().encoder, head="mlp", bn_group=8)},
        V3_PARTS,
        V3_PARTS | {"optimizer": recipe.AdamW(lr=1e-3)},
        END_TO_END,
        BANK,
        BANK | {"dictionary": recipe.MemoryBank(size=30, mask_own=True)},
        BANK | {"loss": recipe.NCE(temperature=0.1)},
        {"loss": recipe.Margin()},
    ],
)
def test_steps_equal_the_cpu_s_and_none_waits(there, changes):
    values, data = tiny_recipe(**changes), tiny_data()
    found, waited = losses(values, data, there)
    expected = losses(values, data, CPU)[0]
    if isinstance(values.optimizer, recipe.AdamW):  # fused on CPUs
        expected = pytest.approx(expected, rel=1e-6)
    assert found == expected
    assert not waited


def test_features_wait_once_for_many_images(there, monkeypatch):
    encoder, images = tiny_encoder(dtype=torch.float32), torch.randn(30, 3, 16, 16)
    expected = extract(encoder, images.split(10))
    batches, encoder = [part.to(there) for part in images.split(10)], encoder.to(there)
    happened = []

    def then():
        for batch in batches:
            happened.append(len(waits))
            yield batch
        happened.append(len(waits))

    for held, fetched in (2**28, 0), (1, 4):  # both tensors of two batches are fetched before the third
        monkeypatch.setattr("moco.evaluate.features._HELD", held)
        waits.clear(), happened.clear()
        found = extract(encoder, then())
        assert happened[2] == fetched
        for ours, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, wanted)


def test_neighbours_are_found_there(there, unit):
    queries, bank = unit(40, 8, dtype=torch.float32), unit(300, 8, seed=1, dtype=torch.float32)
    waits.clear()
    found = nearest(queries, bank, 20, there)
    assert len(waits) == 2  # for similarities and rows of the one part there is, at the end
    assert [x.device for x in found] == [CPU, CPU]
    for ours, expected in zip(found, nearest(queries, bank, 20), strict=True):
        torch.testing.assert_close(ours, expected)
    labels = torch.randint(4, (300,))
    expected = knn_predict(queries, bank, labels, k=20)
    assert torch.equal(knn_predict(queries.to(there), bank, labels.to(there), k=20), expected)


@pytest.mark.parametrize("kind", ["uint16", "float32", "grey", "grouped", "files"])
def test_images_of_every_kind_get_there(there, tmp_path, kind):
    if kind == "files":
        for number in range(60):
            (tmp_path / f"{number}.png").write_bytes(image(number))
        data = open_data(str(tmp_path))
    else:
        made = torch.rand(60, 1 if kind == "grey" else 3, 20, 20)
        groups = torch.arange(60) // 3 if kind == "grouped" else None
        pixels = (
            made if kind == "float32" else (made * 255).to(torch.uint16 if kind == "uint16" else torch.uint8)
        )
        data = Data(ArraySource(pixels, name=kind, groups=groups), None)
    values = tiny_recipe(dictionary=recipe.MomentumQueue(size=40, mask_own=True))
    found, waited = losses(values, data, there)
    assert found == losses(values, data, CPU)[0]
    assert not waited


def test_commands_work_there(there, tmp_path, monkeypatch, capsys):
    choose = devices.choose_device
    for name in "launch", "starts", "assess", "transfer_run":
        importlib.import_module(f"moco.{name}")
    for module in [m for name, m in sys.modules.items() if name.startswith("moco.")]:
        if getattr(module, "choose_device", None) is choose:
            monkeypatch.setattr(module, "choose_device", lambda *_: there)
    data, out = save_arrays(tmp_path), tmp_path / "run"
    call("pretrain", "demo", *TINY, "--data", data, "--out", out)
    capsys.readouterr()
    call("knn", out, "--json")
    measured = json.loads(capsys.readouterr().out)
    assert measured["knn_trunk"] == json.loads((out / "result.json").read_text())["knn"]["trained_trunk"]
    for words in (
        ("linear", out, "--epochs", 1),
        ("few-labels", out, "--per-class", 1, 3, "--share", 0.5, "--repeats", 2),
        ("finetune", out, "--batch", 16, "--epochs", 1, "--schedule", "cosine", "--lr", 0.1),
        ("diagnose", out),
        ("embed", out, "--data", data, "--out", tmp_path / "features.npz"),
    ):
        call(*words)
    transfer(TRANSFER, init=str(out), data=voc_data(tmp_path / "voc"), out=tmp_path / "transfer")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="'cuda:2' here; there are 2 GPUs"):
        devices.choose_device("cuda:2")
