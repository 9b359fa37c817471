import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data import loader
from moco.data.augmentation import SMALL, Augmentation
from moco.data.crop import resize
from moco.data.encoded import FolderSource
from moco.data.loader import Loader, plain_batches
from moco.data.procedural import procedural
from moco.data.source import ArraySource
from moco.data.statistics import measure
from moco.data.views import Views
from tiny import tiny_data

VIEWS = Views(dataclasses.replace(SMALL, size=16))


@pytest.fixture
def folder(tmp_path):
    source = procedural(30, size=24)
    for i in range(30):
        array = source.pixels[i].permute(1, 2, 0).numpy()
        Image.fromarray(array[: 18 + i % 7]).save(tmp_path / f"{i:03d}.png")
    return FolderSource(tmp_path)


def same(a, b):
    return (
        all(torch.equal(x, y) for x, y in zip(a.views + a.orders, b.views + b.orders, strict=True))
        and torch.equal(a.index, b.index)
        and a.step == b.step
    )


def test_a_batch_is_a_function_of_its_step(folder):
    for source in (tiny_data().train, folder):
        first = list(Loader(source, VIEWS, 10, seed=1).stream(0, 7))
        again = Loader(source, VIEWS, 10, seed=1, workers=3)
        assert same(again.batch(5), first[5])
        assert all(same(a, b) for a, b in zip(again.stream(2, 7), first[2:], strict=True))
        assert not same(Loader(source, VIEWS, 10, seed=2).batch(5), first[5])


def test_every_image_comes_once_an_epoch_and_the_incomplete_batch_is_dropped():
    loader = Loader(procedural(35, size=16), VIEWS, 10)
    assert loader.steps_per_epoch == 3
    epochs = [np.concatenate([loader.index(e * 3 + s) for s in range(3)]) for e in range(12)]
    for epoch in epochs:
        assert len(set(epoch)) == 30
    assert not np.array_equal(epochs[0], epochs[1])
    assert set(np.concatenate(epochs)) == set(range(35))  # other images are left out in other epochs


def test_files_and_arrays_give_the_same_views(tmp_path):
    array = procedural(20, size=24)
    for i in range(20):
        Image.fromarray(array.pixels[i].permute(1, 2, 0).numpy()).save(tmp_path / f"{i:03d}.png")
    a = Loader(array, VIEWS, 10).batch(1)
    b = Loader(FolderSource(tmp_path), VIEWS, 10).batch(1)
    assert torch.equal(a.index, b.index)
    for x, y in zip(a.views, b.views, strict=True):
        assert (x - y).abs().mean() < 0.02  # crops of files are rounded to 8 bits
        assert (x - y).abs().quantile(0.999) < 0.2


def test_crops_of_images_decoded_small_lie_where_those_of_whole_ones_do(tmp_path):
    """A JPEG of 131 pixels has 17 at an eighth of its size, the last of which stands for three."""
    ramp = np.broadcast_to(np.arange(131, dtype=np.uint8)[:, None, None], (131, 131, 3))
    for kind in "jpg", "png":
        (tmp_path / kind).mkdir()
        for i in range(100):
            Image.fromarray(ramp).save(tmp_path / kind / f"{i:02}.{kind}", quality=100)
    plain = Augmentation(
        size=4, scale=(0.1, 0.4), ratio=(1.0, 1.0), jitter_probability=0, grayscale_probability=0,
        mean=(0.0,) * 3, std=(1 / 255,) * 3,
    )  # fmt: skip
    small, whole = (
        torch.cat(Loader(FolderSource(tmp_path / kind), Views(plain), 100).batch(0).views).mean((1, 2, 3))
        for kind in ("jpg", "png")
    )
    assert (small - whole).abs().max() <= 4.5  # half a pixel of the small image, and rounding
    assert abs(float((small - whole).mean())) < 1


def test_orders_are_permutations_of_the_batch_that_change_with_view_and_step():
    loader = Loader(procedural(60, size=16), VIEWS, 20)
    orders = [order for step in range(3) for order in loader.batch(step).orders]
    assert all(sorted(order.tolist()) == list(range(20)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 6


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="has 30 images, fewer than a batch of 64; use a smaller --batch"):
        Loader(procedural(30, size=16), VIEWS, 64)


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="workers must be at least 1 thread, got 0"):
        Loader(procedural(30, size=16), VIEWS, 10, workers=0)


def test_plain_batches_keep_order_and_sizes(folder):
    indices = torch.tensor([7, 3, 11, 5])
    batches = list(plain_batches(folder, VIEWS, indices, batch=3, device=torch.device("cpu")))
    assert [b.shape for b in batches] == [(3, 3, 16, 16), (1, 3, 16, 16)]
    alone = next(iter(plain_batches(folder, VIEWS, torch.tensor([3]), device=torch.device("cpu"))))
    assert torch.equal(batches[0][1], alone[0])


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.float32])
def test_plain_batches_of_an_array_are_its_images(kind):
    size = VIEWS.augmentation.size
    pixels = torch.randint(0, 256, (7, 3, size, size)).to(kind)
    source, indices = ArraySource(pixels), torch.tensor([5, 0, 0, 6])
    batches = list(plain_batches(source, VIEWS, indices, batch=3, device=torch.device("cpu")))
    assert [len(batch) for batch in batches] == [3, 1]
    alone = [VIEWS.normalise(VIEWS.unit(source.read(i)[None])) for i in indices.tolist()]
    assert torch.equal(torch.cat(batches), torch.cat(alone))


def test_plain_batches_leave_images_of_the_right_size_alone():
    source = procedural(4, size=16)
    (batch,) = plain_batches(source, VIEWS, torch.arange(4), device=torch.device("cpu"))
    assert torch.equal(batch, VIEWS.normalise(source.pixels.float().mul(1 / 255)))


def test_measured_statistics_are_the_images():
    pixels = torch.randint(0, 256, (50, 2, 6, 6), dtype=torch.uint8)
    found = measure(ArraySource(pixels))
    values = pixels.double().transpose(0, 1).flatten(1) / 255
    assert found.range == (0, 255)
    assert found.mean == pytest.approx(values.mean(1).tolist(), abs=1e-4)
    assert found.std == pytest.approx(values.std(1, correction=0).tolist(), abs=1e-4)
    constant = measure(ArraySource(torch.full((3, 1, 4, 4), 9, dtype=torch.uint8)))
    assert constant.std[0] > 0


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (30, 2000), (2000, 30)])
def test_a_very_long_image_is_measured_by_its_middle_without_being_enlarged_whole(shape, monkeypatch):
    made = []
    monkeypatch.setattr(loader, "resize", lambda image, *size: made.append(size) or resize(image, *size))
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    long = shape.index(max(shape)) + 1
    image.narrow(long, max(shape) // 2 - 2 * min(shape), 4 * min(shape)).fill_(200)  # the middle
    middle = loader._central(image, 64)
    assert middle.shape == (3, 64, 64)
    assert middle.unique().tolist() == [200]
    assert max(made[0]) <= 4 * 73
