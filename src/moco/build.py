"""From values to objects: the one place that knows which class a recipe's kinds stand for."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from moco import chance, dictionary, encoder, kernels, keys, loss, recipe, resnet, vit
from moco.batch import Batch
from moco.data.loader import Loader
from moco.data.statistics import fitted
from moco.data.views import Views
from moco.descent import build_optimizer, learning_rate, momentum
from moco.evaluate.diagnostics import PAIRS, diagnose, trend
from moco.evaluate.knn import knn
from moco.images import Data, labelled, pairs
from moco.norm import synchronise
from moco.processor import settled
from moco.training.checkpoint import Checkpoints
from moco.training.compiled import compile_passes, one_step_each
from moco.training.interpreter import Interpreter
from moco.training.trainer import Run
from moco.world import World

if TYPE_CHECKING:
    from moco.data.fused import FusedViews


def resolve(values: recipe.Recipe, data: Data, device: torch.device) -> recipe.Recipe:
    """The recipe with what it leaves open filled in from the images and the device.

    Images of other than three channels have their statistics measured where the recipe has those of
    photographs, and where images come in groups their keys are masked.

    Raises:
        ValueError: if the recipe's mean is not that of images with so many channels.
    """
    views, table = fitted(values.views, data.train), values.dictionary
    if data.train.groups is not None and isinstance(table, recipe.MomentumQueue | recipe.MemoryBank):
        table = dataclasses.replace(table, mask_own=True)
    precision = settled(values.precision, device)
    return dataclasses.replace(values, views=views, dictionary=table, precision=precision)


def build_encoder(values: recipe.Recipe, channels: int) -> encoder.Encoder:
    """f_q with the recipe's initial weights, on the CPU."""
    e = values.encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chance.generator(values.seed, "weights").initial_seed())
        trunk, features = encoder.trunk(
            e.arch, width=e.width, stem=e.stem, channels=channels, bn_group=e.bn_group
        )
        hidden, group = e.hidden or features, e.bn_group
        head = encoder.head(
            e.head, features, e.dim, hidden=hidden, layers=e.head_layers, norm=e.head_norm, bn_group=group
        )
        predictor = None
        if e.predictor:
            predictor = encoder.head(
                "mlp", e.dim, e.dim, hidden=hidden, norm=e.predictor_norm, bn_group=group
            )
        if e.random_patches:
            vit.start_as_v3(trunk)
    if e.zero_residual:
        resnet.zero_residual(trunk)
    autocast = torch.bfloat16 if values.precision == "bfloat16" else None
    net = encoder.Encoder(trunk, head, predictor, autocast=autocast)
    return net.to(memory_format=torch.channels_last)


def build_keys(values: recipe.Recipe, f_q: encoder.Encoder) -> keys.KeyEncoder:
    """The recipe's key encoder for a query encoder."""
    match values.keys:
        case recipe.MomentumKeys(m, shuffle=shuffle):
            return keys.MomentumKeys(f_q, m, shuffle=shuffle)
        case recipe.TiedKeys(shuffle):
            return keys.TiedKeys(f_q, shuffle=shuffle)
        case recipe.QueryKeys():
            return keys.QueryKeys()


def build_dictionary(
    values: recipe.Recipe, images: int, world: World | None = None, groups: Tensor | None = None
) -> dictionary.Dictionary:
    """The recipe's dictionary for a number of images, which may come in groups.

    Raises:
        ValueError: if a queue without masking is as large as the data set.
        MemoryError: if a memory bank does not fit.
    """
    match values.dictionary:
        case recipe.MomentumQueue(size, mask_own):
            if size >= images and not mask_own:
                raise ValueError(
                    f"dictionary.size must be below the {images:,} images unless own keys are masked, got "
                    f"{size:,}: every query would find keys of its own image among the negatives; "
                    f"use --dictionary.size {max(1, images // 2)} or --dictionary.mask-own"
                )
            return dictionary.MomentumQueue(size, values.encoder.dim, mask_own=mask_own, seed=values.seed)
        case recipe.InBatch():
            return dictionary.InBatch()
        case recipe.MemoryBank(size, share, per_query, mask_own):
            return dictionary.MemoryBank(
                images,
                size,
                values.encoder.dim,
                momentum=share,
                per_query=per_query,
                mask_own=mask_own,
                groups=groups,
                seed=values.seed,
                world=world,
            )


def build_loss(
    values: recipe.Recipe, images: int, world: World | None = None
) -> Callable[[Tensor, loss.Entries], loss.Contrast]:
    """The recipe's loss, as a function of queries and entries."""
    match values.loss:
        case recipe.InfoNCE(temperature):
            if values.kernels == "triton":
                from moco.kernels.info_nce import info_nce

                return functools.partial(info_nce, temperature=temperature)
            return functools.partial(loss.info_nce, temperature=temperature)
        case recipe.NCE(temperature):
            return loss.NCE(temperature, images, world)
        case recipe.Margin(margin):
            return functools.partial(loss.margin, margin=margin, world=world)


def build(
    values: recipe.Recipe,
    data: Data,
    world: World,
    *,
    device: torch.device,
    checkpoints: Checkpoints,
    workers: int = 2,
) -> Run:
    """Everything a run works on.

    Args:
        values: a resolved recipe.
        data: the images.
        world: the processes that train together.
        device: where to train.
        checkpoints: where the run saves itself.
        workers: decoding threads.

    Raises:
        ValueError: if recipe and images do not fit together, or its kernels and the device; nothing has
            been written then.
        MemoryError: if the dictionary does not fit.
    """
    world.share(values.batch, values.encoder.bn_group, values.accumulate)
    if values.kernels == "triton":
        if (reason := kernels.why_not(device)) is not None:
            raise ValueError(f"kernels triton cannot be used: {reason}; use --kernels torch")
        if device.index is not None:
            torch.cuda.set_device(device)  # Triton launches on the current device
    views = Views(values.views)
    loader = Loader(
        data.train, views, values.batch, seed=values.seed, device=device, workers=workers, world=world,
        window=values.window, fused=_fused_views(values, views, data.train.channels),
    )  # fmt: skip
    steps = values.iterations or (values.epochs or 0) * loader.steps_per_epoch
    f_q = build_encoder(values, data.train.channels).to(device)
    alone = world.size == 1 or values.encoder.bn_group is not None  # statistics stay within the process
    if values.kernels == "triton" and values.compile == "off" and alone:  # torch.compile fuses the same
        from moco.kernels.norm import fuse

        fuse(f_q.trunk)
    table = build_dictionary(values, len(data.train), world, data.train.groups).to(device)
    criterion = build_loss(values, len(data.train), world)
    if isinstance(criterion, nn.Module):
        criterion.to(device)
    optimizer = build_optimizer(values, f_q.parameters(), device)
    rate = learning_rate(values, steps, loader.steps_per_epoch)
    if not rate(0) > 0:
        raise ValueError(
            f"the learning rate of the first step is {rate(0)}; give more epochs or another schedule"
        )
    _try_out(f_q, values, data.train.channels, device)
    key_encoder = build_keys(values, f_q)
    synchronise((f_q, key_encoder), world)
    batches: Callable[[int, int], Iterator[Batch]] = loader.stream
    if values.compile != "off":
        own = [net for net in key_encoder.children() if isinstance(net, encoder.Encoder)]
        compile_passes([f_q, *own], values.compile)
        batches = one_step_each(batches)
    monitor = values.monitor
    knn_data = labelled(values, data, device, bank=monitor.bank, queries=monitor.queries)

    views_of_held_out = pairs(values, data, device, count=min(monitor.queries, PAIRS))

    def measure_features(net: encoder.Encoder) -> Iterator[tuple[str, float]]:
        if knn_data is not None:
            yield from knn(net, *knn_data, k=monitor.k, temperature=monitor.temperature)
        yield from diagnose(net, views_of_held_out())

    return Run(
        f_q=f_q,
        keys=key_encoder,
        dictionary=table,
        loss=criterion,
        optimizer=optimizer,
        symmetric=values.symmetric,
        accumulate=values.accumulate,
        loss_weight=getattr(values.loss, "weight", 1.0),
        world=world,
        batches=batches,
        learning_rate=rate,
        momentum=momentum(values, steps),
        steps=steps,
        steps_per_epoch=loader.steps_per_epoch,
        batch_size=values.batch,
        images=len(data.train),
        unreadable_budget=values.reading.budget,
        measure=measure_features,
        measure_every=values.monitor.every,
        interpreter=build_interpreter(values, loader.steps_per_epoch),
        checkpoints=checkpoints,
        journal_every=values.journal_every,
        checkpoint_every=values.checkpoint_every,
        seed=values.seed,
        name=values.name,
    )


def _fused_views(values: recipe.Recipe, views: Views, channels: int) -> "FusedViews | None":
    """What makes the views on the device in one or two launches, if the recipe asks for it."""
    if values.kernels != "triton" or channels != 3:
        return None
    from moco.data.fused import FusedViews

    return FusedViews(views, torch.bfloat16 if values.precision == "bfloat16" else torch.float32)


def _try_out(net: encoder.Encoder, values: recipe.Recipe, channels: int, device: torch.device) -> None:
    """Two blank views through the encoder, so that an architecture that cannot take them is refused."""
    size = values.views.size
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(2, channels, size, size, device=device))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"{values.encoder.arch} does not take views of {size} pixels: {error}") from error


def build_interpreter(values: recipe.Recipe, steps_per_epoch: int) -> Interpreter:
    """What tells the meaning of the recipe's loss, and which milestones the run never reaches."""
    match values.dictionary:
        case recipe.MomentumQueue(size):
            negatives = size
            filled: int | None = -(-size // (values.batch * (2 if values.symmetric else 1)))
        case recipe.InBatch():
            negatives, filled = values.batch - 1, None
        case recipe.MemoryBank(size):
            negatives, filled = size, None
    guessing = negatives if isinstance(values.loss, recipe.InfoNCE) else None
    remarks = _unreached(values, steps_per_epoch)
    if values.compile != "off":
        remarks.append("torch.compile: the first step may take minutes, in a later run less")
    steps = values.iterations or (values.epochs or 0) * steps_per_epoch
    return Interpreter(guessing, filled, trend, remarks, steps)


def _unreached(values: recipe.Recipe, steps_per_epoch: int) -> list[str]:
    """A sentence when the run ends before a milestone of its schedule."""
    if not isinstance(values.schedule, recipe.Step):
        return []
    epochs = values.epochs or math.ceil((values.iterations or 0) / steps_per_epoch)
    missed = [str(milestone) for milestone in values.schedule.milestones if milestone >= epochs]
    if not missed:
        return []
    return [
        f"the learning rate never drops at epoch {' and '.join(missed)}: the run ends after {epochs}; "
        "the paper's milestones lie at 60 and 80 % of the run, here --schedule.milestones "
        f"{round(0.6 * epochs)} {round(0.8 * epochs)}"
    ]
