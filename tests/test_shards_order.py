"""The order of images in shards: windows, processes, resuming, a billion samples."""

import numpy as np
import pytest
from scipy import stats

import moco
from moco.data.loader import Loader
from moco.data.open import open_source
from moco.data.order import WindowedOrder
from moco.data.reading import Reading
from moco.data.shard_table import RECORD, SAMPLES, ShardTable
from moco.data.shards import ShardSource
from moco.recipe import MomentumQueue
from moco.world import Solo
from shard_images import damaged, packed, views  # noqa: F401
from test_run import StopAfter, assert_same_runs
from test_world import Share
from tiny import tiny_recipe

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


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_epoch_takes_every_image_once_over_processes_and_a_change_of_their_number(packed, size, window):  # noqa: F811
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


def test_a_run_over_shards_resumes_in_the_middle_of_an_epoch_to_the_same_bits(packed, tmp_path):  # noqa: F811
    values = tiny_recipe(epochs=1, checkpoint_every=3, window=3, dictionary=MomentumQueue(size=24))
    moco.pretrain(values, data=str(packed), out=tmp_path / "calm")
    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(values, data=str(packed), out=tmp_path / "run", observers=[StopAfter(5)])
    moco.resume(tmp_path / "run")
    assert_same_runs(tmp_path / "calm", tmp_path / "run")


def test_a_run_over_damaged_shards_resumes_to_the_same_bits(damaged, tmp_path):  # noqa: F811
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
