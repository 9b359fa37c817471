"""That it learns: every combination moves, a fixed run repeats its losses, features beat their baselines."""

import dataclasses
import itertools

import pytest
import torch

from moco import recipe
from moco.build import Data, labelled, resolve
from moco.data.augmentation import SMALL, V1, V2, Augmentation
from moco.evaluate.knn import knn
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
    again.restore(state)
    batch = next(run.batches(4, 5))
    assert torch.equal(step(run, batch, run.world).loss, step(again, batch, again.world).loss)


GOLDEN: list[float] = []


def test_a_fixed_run_repeats_its_losses():
    """A change of these numbers is a change of the method, or of its random draws: say why in the commit."""
    run = tiny_run(tiny_recipe(epochs=5))
    losses = [step(run, batch, Solo()).loss.item() for batch in run.batches(0, 30)]
    assert losses[:10] == pytest.approx(GOLDEN[:10], rel=1e-3)
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
