"""Tables of `speed.py`: whole steps, and whole evaluations."""

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F

import measured
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
from moco.processor import has_fast_bfloat16
from moco.recipes.small import cifar
from moco.training.sgd import SGD
from moco.training.step import step
from moco.world import Solo
from speed_views import small_images, usual_loader

SMALL_STEP = replace(
    cifar(), batch=64, precision="float32", dictionary=recipe.MomentumQueue(4096),
    encoder=recipe.Encoder("resnet18", stem="small", bn_group=8),
)  # fmt: skip
LARGE_STEP = replace(
    cifar(), batch=8, precision="float32", dictionary=recipe.MomentumQueue(65_536),
    encoder=recipe.Encoder("resnet50", bn_group=4), views=replace(cifar().views, size=224),
)  # fmt: skip


def precision() -> tuple[Literal["bfloat16", "float32"], str]:
    """Ours on this machine, as a recipe leaves it open, and what is to be said of it; theirs is float32."""
    if has_fast_bfloat16(torch.device("cpu")):
        return "bfloat16", "ours in bfloat16, which this processor multiplies in hardware; theirs in float32"
    return "float32", "float32 on both sides, for want of bfloat16 in hardware"


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
) -> tuple[Callable[[Batch], float], Callable[[Batch], float], Callable[[int], Batch]]:
    """The released step and ours from the same weights, and batches for them. The released order, in
    which groups of batch normalisation are interleaved, is kept."""
    images = procedural(4 * values.batch, size=values.views.size)
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

    return theirs, ours, batches


def same_losses(values: recipe.Recipe) -> str:
    """How the losses of both compare: two steps in float32, and eight in ours where that is bfloat16."""
    if measured.side is not None:
        return ""
    theirs, ours, batches = both_steps(values)
    batch = batches(0)
    first, second = (abs(theirs(batch) - ours(batch)) for _ in range(2))
    # rounding grows with depth: ResNet-50's first update of random weights makes a thousandfold of it
    assert first < 1e-3, f"losses differ by {first:.4f} at the first step"
    assert second < 0.1, f"losses differ by {second:.4f} at the second step"
    gate = f"losses of the first two steps apart by {first:.0e} and {second:.0e}"
    if precision()[0] == "float32":
        return gate
    theirs, ours, batches = both_steps(replace(values, precision=precision()[0]))
    pairs = [(theirs(batch), ours(batch)) for batch in map(batches, range(8))]
    apart = statistics.mean(a - b for a, b in pairs)
    assert abs(apart) < 0.1, f"losses of eight steps differ by {apart:.4f} on average in bfloat16"
    return f"{gate} in float32, the mean of eight by {abs(apart):.0e} in bfloat16"


def _step(rounds: int, values: recipe.Recipe, what: str, must: float) -> Measured:
    kind, note = precision()
    gate = same_losses(values)
    theirs, ours, batches = both_steps(replace(values, precision=kind))
    batch = batches(0)
    return Measured(what, alternate(lambda: theirs(batch), lambda: ours(batch), rounds), gate, must, note)


step32 = functools.partial(
    _step, values=SMALL_STEP, what="step: ResNet-18 at 32 pixels, batch 64, K = 4,096", must=2.0
)
step224 = functools.partial(
    _step, values=LARGE_STEP, what="step: ResNet-50 at 224 pixels, batch 8, K = 65,536", must=2.2
)


def e2e(rounds: int) -> Measured:
    kind, note = precision()
    gate = same_losses(SMALL_STEP)
    theirs, ours, batches = both_steps(replace(SMALL_STEP, precision=kind))
    torch.set_num_threads(2)
    steps, batch = 6, SMALL_STEP.batch
    loader = usual_loader(small_images(steps * batch), official.transform(SMALL), batch)
    one = batches(0)

    def usual() -> None:
        for views in loader:
            theirs(replace(one, views=tuple(views)))

    times = alternate(usual, lambda: [ours(batches(n % 4)) for n in range(steps)], rounds, time.perf_counter)
    return Measured(
        "six steps with their data: ResNet-18 at 32 pixels, batch 64, K = 4,096", times, gate, 2.3, note,
        wall=True,
    )  # fmt: skip


@torch.no_grad()
def features(rounds: int) -> Measured:
    kind, note = precision()
    bank, queries = 768, 256
    values = replace(SMALL_STEP, precision=kind)
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
    right = [100 * (p() == labels[bank:]).double().mean().item() for p in (usual, ours)]
    assert abs(right[0] - right[1]) <= 1, f"accuracies of {right[0]:.2f} and {right[1]:.2f} %"
    return Measured(
        f"kNN with its features: ResNet-18 at 32 pixels, {bank + queries} images",
        alternate(usual, ours, rounds),
        f"{100 * same:.1f} % equal predictions at {right[0]:.1f} and {right[1]:.1f} % accuracy", 2.4, note,
    )  # fmt: skip
