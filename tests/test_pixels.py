"""Sets of any depth and number of channels train; groups are masked; statistics go with the weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import moco
from moco.batch import Batch
from moco.data.augmentation import SMALL
from moco.data.encoded import FolderSource
from moco.data.loader import Loader
from moco.data.reading import Reading
from moco.data.source import ArraySource
from moco.data.statistics import fitted, measure
from moco.data.views import Views
from moco.dictionary import InBatch, MemoryBank, MomentumQueue
from moco.export.backbone import backbone_metadata, load_backbone
from moco.recipe import MomentumQueue as QueueValues
from moco.starts import open_setting
from moco.world import Solo
from tiny import tiny_recipe

WORLD = Solo()


def images(dtype, channels, top, count=40, size=20):
    y, x = np.mgrid[0:size, 0:size] / size
    waves = np.stack(
        [
            np.stack(
                [0.5 + 0.5 * np.sin((5 + c) * x + i) * np.cos(4 * y * (1 + i % 3)) for c in range(channels)],
                2,
            )
            for i in range(count)
        ]
    )
    return (waves * top).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "channels", "top", "expected"),
    [
        (np.uint16, 1, 65535, (0, 65535)),
        (np.uint16, 2, 4095, (0, 4095)),
        (np.uint8, 4, 255, (0, 255)),
        (np.uint8, 1, 255, (0, 255)),
        (np.float32, 5, 1, (0, 1)),
        (np.float32, 1, 900, None),
    ],
)
def test_sets_of_every_kind_train_and_their_weights_say_what_they_were(
    tmp_path, dtype, channels, top, expected
):
    array = images(dtype, channels, top)
    np.save(tmp_path / "x.npy", array)
    values = tiny_recipe(epochs=1, dictionary=QueueValues(size=20), views=SMALL_16)
    moco.pretrain(values, data=str(tmp_path / "x.npy"), out=tmp_path / "run")
    about = backbone_metadata(tmp_path / "run" / "backbone.safetensors")
    assert about["channels"] == len(about["mean"]) == len(about["std"]) == channels
    low, high = about["range"]
    assert (low, high) == (expected or (pytest.approx(array.min()), pytest.approx(array.max())))
    unit = (array.astype(np.float64) - low) / (high - low)
    assert about["mean"] == pytest.approx(unit.mean((0, 1, 2)).tolist(), rel=1e-3)
    assert about["std"] == pytest.approx(unit.std((0, 1, 2)).tolist(), rel=1e-3)
    assert (
        load_backbone(tmp_path / "run" / "backbone.safetensors")(torch.zeros(2, channels, 16, 16))
        .isfinite()
        .all()
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)


SMALL_16 = type(SMALL)(size=16, hue=0.1, scale=(0.3, 1.0))


@pytest.mark.parametrize("folder", [True, False])
def test_sixteen_bits_reach_the_network_at_full_range(tmp_path, folder):
    """Views of a 16-bit gradient hold values between any two 8-bit levels, from black to white."""
    gradient = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    calm = type(SMALL)(
        size=64, scale=(1.0, 1.0), ratio=(1.0, 1.0), jitter_probability=0, grayscale_probability=0,
        flip_probability=0, mean=(0.0,), std=(1.0,),
    )  # fmt: skip
    if folder:
        for i in range(4):
            Image.fromarray(gradient).save(tmp_path / f"{i}.png")
        source = FolderSource(tmp_path)
    else:
        source = ArraySource(torch.from_numpy(np.stack([gradient] * 4))[:, None])
    assert (source.dtype, source.channels) == (torch.uint16, 1)
    batch = Loader(source, Views(fitted(calm, source)), 4).batch(0)
    expected = torch.from_numpy(gradient.astype(np.float32) / 65535)
    for view in batch.views:
        torch.testing.assert_close(view[0, 0], expected, atol=1e-6, rtol=0)
    assert len(batch.views[0][0].unique()) > 4000  # 8 bits would leave 256


@pytest.mark.parametrize(
    ("reading", "kind", "top"),
    [(Reading(bits=8), np.uint16, 65535), (Reading(channels=1), np.uint8, 255)],
    ids=["8 bits of 16", "grey of colour"],
)
def test_labelled_images_are_read_as_the_run_read_its_own(tmp_path, reading, kind, top):
    array = images(kind, 3 if reading.channels else 1, top)
    for number, image in enumerate(array):
        place = tmp_path / "x" / f"{number % 2}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(place)
    values = tiny_recipe(epochs=1, dictionary=QueueValues(size=20), views=SMALL_16, reading=reading)
    data, out = str(tmp_path / "x"), tmp_path / "run"
    moco.pretrain(values, data=data, out=out)
    for setting in (
        open_setting(out),
        open_setting(out, data),
        open_setting(out / "backbone.safetensors", data),
    ):
        assert (setting.data.train.dtype, setting.channels) == (torch.uint8, 1)
        seen = torch.cat(list(setting.train.plain(setting.values, setting.device).batches()))
        assert seen.abs().max() < 10  # of images that are normalised


def test_range_is_the_fewest_bits_that_hold_every_value():
    for top, full in (900, 1023), (1024, 4095), (5000, 16383), (60_000, 65535):
        pixels = torch.from_numpy(np.array([[[[0, top]]]], np.uint16))
        assert measure(ArraySource(pixels)).range == (0, full)
    assert measure(ArraySource(torch.tensor([[[[-2.0, 7.0]]]]))).range == (-2, 7)
    assert measure(ArraySource(torch.tensor([[[[0.1, 0.7]]]]))).range == (0, 1)


def batch_of(index, group=None, step=0):
    nothing = torch.zeros(len(index), 1)
    group = None if group is None else torch.as_tensor(group)
    return Batch((nothing, nothing), torch.as_tensor(index), (torch.arange(len(index)),) * 2, step, group)


def test_keys_of_a_group_are_masked_and_their_share_is_told(unit):
    k = unit(4, 8, dtype=torch.float32)
    groups = torch.arange(10) // 3
    queue = MomentumQueue(6, 8, mask_own=True)
    queue.enqueue(k, batch_of([0, 3, 4, 9], groups[[0, 3, 4, 9]]), WORLD)
    batch = batch_of([1, 5, 6, 2], groups[[1, 5, 6, 2]])
    bank = MemoryBank(10, 50, 8, mask_own=True, groups=groups)
    per_query = MemoryBank(10, 50, 8, mask_own=True, groups=groups, per_query=True)
    for table in queue, InBatch(), bank, per_query:
        entries = table.lookup(k, batch, WORLD)
        own = entries.own()
        assert own is not None
        negatives = table.identities(batch, WORLD)
        assert torch.equal(own, negatives == batch.group[:, None])
        assert table.masked(batch, WORLD).item() == pytest.approx(own.float().mean().item())
        assert 0 < own.float().mean() < 1
    assert queue.lookup(k, batch, WORLD).own().tolist()[0] == [True, False, False, False, False, False]
    assert MomentumQueue(6, 8).masked(batch, WORLD) == 0


def test_groups_of_a_set_turn_masking_on_and_the_journal_tells_the_share(tmp_path):
    array = images(np.uint8, 3, 255)
    np.savez(tmp_path / "x.npz", images=array, groups=np.arange(40) // 10)
    values = tiny_recipe(dictionary=QueueValues(size=20), journal_every=1, epochs=4, views=SMALL_16)
    moco.pretrain(values, data=str(tmp_path / "x.npz"), out=tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    shares = [row["masked"] for row in rows if "masked" in row]
    assert "masked" not in rows[0]  # the queue holds no image's key yet
    assert np.mean(shares[2:]) == pytest.approx(0.25, abs=0.06)  # four groups of equal size
    stored = moco.launch.read_run(tmp_path / "run")[0]
    assert stored.dictionary.mask_own


def test_groups_go_with_the_images_that_replace_others():
    source = ArraySource(torch.zeros(30, 3, 8, 8, dtype=torch.uint8), groups=torch.arange(30) % 7)
    batch = Loader(source, Views(SMALL_16), 10).batch(1)
    assert torch.equal(batch.identity, batch.index % 7)


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_a_stem_is_inflated_so_that_equal_channels_give_equal_features(channels):
    from moco import inflate_stem, trunk

    torch.manual_seed(0)
    rgb, _ = trunk("resnet18", width=8, stem="small")
    net, _ = trunk("resnet18", width=8, stem="small", channels=channels)
    net.load_state_dict(inflate_stem(rgb.state_dict(), net))
    grey = torch.rand(2, 1, 16, 16)
    expected = rgb.eval()(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(net.eval()(grey.expand(-1, channels, -1, -1)), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"must be those of the same network, got none for its conv1.weight"):
        inflate_stem({}, net)
