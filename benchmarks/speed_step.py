"""Tables of `speed.py`: whole steps, and whole evaluations."""

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

import official
from measured import Measured, alternate
from moco import recipe
from moco.batch import Batch
from moco.build import build_dictionary, build_encoder, build_keys
from moco.data.augmentation import SMALL
from moco.data.loader import Loader
from moco.data.procedural import procedural
from moco.data.views import Views
from moco.evaluate.features import extract
from moco.evaluate.knn import knn_predict
from moco.loss import info_nce
from moco.recipes.small import cifar
from moco.training.sgd import SGD
from moco.training.step import step
from moco.world import Solo
from speed_views import small_images, usual_loader

_PRECISION = "float32 on both sides, for want of bfloat16 in hardware"
SMALL_STEP = replace(
    cifar(), batch=64, precision="float32", dictionary=recipe.MomentumQueue(4096),
    encoder=recipe.Encoder("resnet18", stem="small", bn_group=8),
)  # fmt: skip
LARGE_STEP = replace(
    cifar(), batch=8, precision="float32", dictionary=recipe.MomentumQueue(65_536),
    encoder=recipe.Encoder("resnet50", bn_group=4), views=replace(cifar().views, size=224),
)  # fmt: skip


class Ours:
    """What a step works on, from the weights of a recipe."""

    symmetric, accumulate = False, 1

    def __init__(self, values: recipe.Recipe):
        self.f_q = build_encoder(values, 3)
        self.keys = build_keys(values, self.f_q).train()
        self.dictionary = build_dictionary(values, 10**6)
        self.f_q.train()
        self.optimizer = SGD(
            self.f_q.parameters(), values.optimizer.lr * values.batch / 256, momentum=0.9,
            weight_decay=values.optimizer.weight_decay,
        )  # fmt: skip

    def loss(self, q: Any, entries: Any) -> Any:
        return info_nce(q, entries, 0.1)


def both_steps(
    values: recipe.Recipe,
) -> tuple[Callable[[Batch], float], Callable[[Batch], float], Callable[[int], Batch], str]:
    """The released step and ours from the same weights, both in float32; batches for them; and how their
    losses compare. The released order, in which groups of batch normalisation are interleaved, is kept."""
    images = procedural(2 * values.batch, size=values.views.size)
    views = Views(replace(values.views, mean=SMALL.mean, std=SMALL.std))
    batches = Loader(images, views, values.batch).batch
    run: Any = Ours(values)
    group = values.encoder.bn_group or values.batch
    official.SplitNorm.splits = values.batch // group
    net = official.resnet(values.encoder.arch, small=values.encoder.stem == "small")
    head = {f"fc.{n}": v for n, v in run.f_q.head.state_dict().items()}
    net.load_state_dict({**run.f_q.trunk.state_dict(), **head})
    o = run.optimizer.param_groups[0]
    plain = official.Official(
        net, run.dictionary.get_buffer("keys").clone(), m=0.99, temperature=0.1, lr=o["lr"],
        decay=o["weight_decay"],
    )  # fmt: skip
    mixed = torch.arange(values.batch).view(-1, group).T.flatten()

    def theirs(batch: Batch) -> float:
        first, second = (view.contiguous()[mixed] for view in batch.views)
        return plain.step(first, second, torch.argsort(mixed)[batch.orders[1][mixed]]).item()

    def ours(batch: Batch) -> float:
        return step(run, batch, Solo()).loss.item()

    batch = batches(0)
    first, second = (abs(theirs(batch) - ours(batch)) for _ in range(2))
    # rounding grows with depth: ResNet-50's first update of random weights makes a thousandfold of it
    assert first < 1e-3, f"losses differ by {first:.4f} at the first step"
    assert second < 0.1, f"losses differ by {second:.4f} at the second step"
    return theirs, ours, batches, f"losses of the first two steps apart by {first:.0e} and {second:.0e}"


def _step(rounds: int, values: recipe.Recipe, what: str, must: float) -> Measured:
    theirs, ours, batches, gate = both_steps(values)
    batch = batches(0)
    times = alternate(lambda: theirs(batch), lambda: ours(batch), rounds)
    return Measured(what, times, gate, must, _PRECISION)


step32 = functools.partial(
    _step, values=SMALL_STEP, what="step: ResNet-18 at 32 pixels, batch 64, K = 4,096", must=2.0
)
step224 = functools.partial(
    _step, values=LARGE_STEP, what="step: ResNet-50 at 224 pixels, batch 8, K = 65,536", must=2.2
)


def e2e(rounds: int) -> Measured:
    theirs, ours, batches, gate = both_steps(SMALL_STEP)
    torch.set_num_threads(2)
    steps, batch = 3, SMALL_STEP.batch
    loader = usual_loader(small_images(steps * batch), official.transform(SMALL), batch)
    order = batches(0).orders

    def usual() -> None:
        for views in loader:
            theirs(replace(batches(0), views=tuple(views), orders=order))

    times = alternate(usual, lambda: [ours(batches(n % 2)) for n in range(steps)], rounds, time.perf_counter)
    return Measured(
        "three steps with their data: ResNet-18 at 32 pixels, batch 64, K = 4,096", times, gate, 2.3,
        _PRECISION, wall=True,
    )  # fmt: skip


@torch.no_grad()
def features(rounds: int) -> Measured:
    bank, queries = 768, 128
    values = SMALL_STEP
    f_q = build_encoder(values, 3).eval()
    net = official.resnet(values.encoder.arch, small=True)
    head = {f"fc.{n}": v for n, v in f_q.head.state_dict().items()}
    net.load_state_dict({**f_q.trunk.state_dict(), **head})
    net.eval()
    source = procedural(bank + queries, size=32)
    labels = source.labels
    assert labels is not None
    images = Views(SMALL).unit(source.pixels)

    def usual() -> torch.Tensor:
        x = torch.cat([F.normalize(net(part), dim=1) for part in images.split(512)])
        return official.knn_predict(x[bank:], x[:bank], labels[None, :bank], 10, k=200, temperature=0.1)

    def ours() -> torch.Tensor:
        x = extract(f_q, images.split(512)).output
        return knn_predict(x[bank:], x[:bank], labels[:bank])

    same = (usual() == ours()).double().mean().item()
    assert same >= 0.99, f"{100 * same:.2f} % equal predictions"
    return Measured(
        f"kNN with its features: ResNet-18 at 32 pixels, {bank + queries} images",
        alternate(usual, ours, rounds), f"{100 * same:.1f} % equal predictions", 2.4, _PRECISION,
    )  # fmt: skip
