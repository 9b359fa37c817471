"""That it learns: every combination moves, a fixed run repeats its losses, features beat their baselines."""

import dataclasses
import itertools

import pytest
import torch

from moco import recipe
from moco.build import resolve
from moco.data.augmentation import SMALL, V1, V2, Augmentation
from moco.data.procedural import procedural
from moco.evaluate.features import calibrate, pixels
from moco.evaluate.knn import accuracy, knn
from moco.images import Data, labelled
from moco.recipe import InBatch, MomentumKeys, MomentumQueue, TiedKeys
from moco.training.step import step
from moco.world import Solo
from tiny import CPU, tiny_recipe, tiny_run


def small(views: Augmentation) -> Augmentation:
    return dataclasses.replace(views, size=16, mean=None, std=None)


MECHANISMS = {
    "momentum x queue": (MomentumKeys(0.9), MomentumQueue(40)),
    "momentum x in-batch": (MomentumKeys(0.9), InBatch()),
    "tied x in-batch": (TiedKeys(), InBatch()),
    "query x bank": (recipe.QueryKeys(), recipe.MemoryBank(40)),
}
LOSSES = {"info_nce": recipe.InfoNCE(0.1), "nce": recipe.NCE(0.1), "margin": recipe.Margin(0.5)}


@pytest.mark.parametrize("views", [V1, V2, SMALL], ids=["v1", "v2", "small"])
@pytest.mark.parametrize(("mechanism", "loss"), list(itertools.product(MECHANISMS, LOSSES)))
def test_every_combination_trains_and_keeps_its_promises(mechanism, loss, views):
    keys, dictionary = MECHANISMS[mechanism]
    run = tiny_run(tiny_recipe(keys=keys, dictionary=dictionary, loss=LOSSES[loss], views=small(views)))
    before = [p.detach().clone() for p in run.f_q.parameters()]
    for batch in run.batches(0, 4):
        measures = step(run, batch, run.world)
        assert measures.loss.isfinite()
        assert 0 <= measures.accuracy <= 1
        assert measures.spread > 0
    assert all(not torch.equal(a, b) for a, b in zip(before, run.f_q.parameters(), strict=True))
    state = run.state()
    again = tiny_run(tiny_recipe(keys=keys, dictionary=dictionary, loss=LOSSES[loss], views=small(views)))
    again.restore(state, {name: state["dictionary"][name] for name in run.dictionary.dealt})
    batch = next(run.batches(4, 5))
    assert torch.equal(step(run, batch, run.world).loss, step(again, batch, again.world).loss)


GOLDEN = [0.095, 2.7927, 2.8791, 2.3836, 1.0669, 1.214, 0.7989, 1.253, 1.3471, 1.6528]
GOLDEN += [1.9177, 2.0669, 2.1702, 2.2991, 2.3965, 2.4921, 2.5768, 2.6514, 2.7521, 2.7716]
GOLDEN += [2.8101, 2.8294, 2.8282, 2.8218, 2.8003, 2.8134, 2.8317, 2.8666, 2.8834, 2.8899]


def test_a_fixed_run_repeats_its_losses():
    """A change of these numbers is a change of the method, or of its random draws: say why in the commit."""
    run = tiny_run(tiny_recipe(epochs=5, precision="float32"))
    losses = [step(run, batch, Solo()).loss.item() for batch in run.batches(0, 30)]
    assert losses[:10] == pytest.approx(GOLDEN[:10], rel=1e-2)
    assert losses == pytest.approx(GOLDEN, rel=0.05)


def train(data: Data, **changes) -> tuple[dict[str, float], float]:
    """kNN of a short run, and the pretext accuracy over its last tenth."""
    values = resolve(tiny_recipe(**changes), data, CPU)
    run = tiny_run(values, data)
    run.f_q.train()
    run.keys.train()
    accuracy = []
    for batch in run.batches(0, run.steps):
        for group in run.optimizer.param_groups:
            group["lr"] = run.learning_rate(batch.step)
        accuracy.append(step(run, batch, run.world).accuracy.item())
    sets = labelled(values, data, CPU)
    assert sets is not None
    last = accuracy[-len(accuracy) // 10 :]
    return dict(knn(run.f_q, *sets, k=20)), sum(last) / len(last)


@pytest.mark.slow
def test_features_beat_chance_the_untrained_network_and_raw_pixels():
    data = Data(procedural(1500, size=16), procedural(500, size=16, split="test"))
    views = dataclasses.replace(small(SMALL), hue=0.5, grayscale_probability=0.5, scale=(0.3, 1.0))
    changes = {
        "views": views,
        "encoder": recipe.Encoder("resnet10", width=12, stem="small", dim=64, bn_group=16),
        "keys": MomentumKeys(0.98),
        "dictionary": MomentumQueue(512, mask_own=True),
        "optimizer": recipe.SGD(lr=0.12, weight_decay=5e-4),
        "schedule": recipe.Cosine(warmup=1),
        "batch": 64,
        "epochs": 12,
        "precision": "float32",
    }
    trained, _ = train(data, **changes)
    values = resolve(tiny_recipe(**changes), data, CPU)
    sets = labelled(values, data, CPU)
    assert sets is not None
    bank, queries = sets
    untrained = tiny_run(values, data).f_q
    calibrate(untrained, bank.batches())
    before = dict(knn(untrained, bank, queries, k=20))
    raw = accuracy(pixels(queries.batches()), queries.labels, pixels(bank.batches()), bank.labels, k=20)
    assert trained["knn_trunk"] > before["knn_trunk"] + 6  # measured: 30.4 against 17.0
    assert trained["knn_output"] > before["knn_output"] + 6
    assert trained["knn_trunk"] > raw + 1  # measured: 25.4
    assert trained["knn_trunk"] > 20  # chance is 10
