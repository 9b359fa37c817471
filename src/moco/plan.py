"""A recipe from the images, the machine and the time there is; each value with its reason."""

import dataclasses
import math
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moco import recipe_file
from moco.build import build, resolve
from moco.data.open import locate, open_source
from moco.data.reading import Reading
from moco.data.source import Source
from moco.data.unreadable import Unreadable
from moco.device import wait
from moco.evaluate.knn import neighbours
from moco.files import write_atomically
from moco.images import Data
from moco.recipe import Constant, Cosine, InfoNCE, MomentumKeys, MomentumQueue, Monitor, Recipe
from moco.recipes import get
from moco.training.checkpoint import Checkpoints
from moco.training.step import step
from moco.words import duration, some
from moco.world import Solo

SAMPLED, WARM_UP, TIMED = 200, 2, 8
_RESERVE = 0.15  # of the time, for measurements and what else the machine does
_DEFAULT_HOURS = {"cpu": 1 / 3, "cuda": 6.0, "mps": 2.0}


@dataclass(frozen=True)
class Look:
    """What some images of a source are like.

    Attributes:
        images: how many there are in all.
        channels: of every image.
        short_side: median, pixels.
        least_side: of the images looked at, pixels.
        grey: share of them without colour.
    """

    images: int
    channels: int
    short_side: int
    least_side: int
    grey: float


@dataclass(frozen=True)
class Advice:
    """One value of a recipe, why it is so, and who says so."""

    name: str
    value: Any
    reason: str
    source: str


@dataclass
class Plan:
    """A recipe with reasons.

    Attributes:
        data: what `open_source` takes.
        look: what the images are like.
        recipe: every value.
        advice: the values that were chosen, with reasons.
        speed: measured training speed, images per second.
        seconds: predicted time of training.
        memory: most that was held while measuring, bytes; of the process on a CPU.
    """

    data: str
    look: Look
    recipe: Recipe
    advice: list[Advice] = field(default_factory=list)
    speed: float = 0.0
    seconds: float = 0.0
    memory: int = 0

    def write(self, path: Path) -> None:
        """The recipe as a TOML file for `moco pretrain --from`, with the reasons as comments."""
        lines = [f"# {a.name} = {a.value}: {a.reason} ({a.source})\n" for a in self.advice]
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(lines) + recipe_file.text(self.recipe, {"data": locate(self.data)})
        write_atomically(path, text.encode(errors="surrogateescape"))


def look_at(source: Source, count: int = SAMPLED) -> Look:
    """What evenly spaced images of a source are like; those that cannot be read are passed over.

    Raises:
        ValueError: if none of them can be read.
    """
    chosen = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int))
    sides, grey = [], 0
    for i in chosen:
        try:
            image = source.read(int(i))
        except Unreadable:
            continue
        sides.append(min(image.shape[1:]))
        small = image[:, ::4, ::4].float() if min(image.shape[1:]) > 64 else image.float()
        full = 255.0 if image.dtype == torch.uint8 else float(small.max())
        grey += bool((small - small[:1]).abs().max() <= 2 / 255 * full)
    if not sides:
        raise ValueError(f"none of {len(chosen)} images of {source.name} can be read; see moco doctor")
    share = grey / len(sides) if source.channels > 1 else 1.0
    return Look(len(source), source.channels, int(np.median(sides)), min(sides), share)


def plan(
    data: str,
    device: torch.device,
    *,
    budget: float | None = None,
    reading: Reading = Reading(),  # noqa: B008
    workers: int = 2,
) -> Plan:
    """A recipe for these images on this device within this time.

    Args:
        data: what `open_source` takes.
        device: where it will train; a few steps are measured there.
        budget: seconds for training; None takes 20 minutes on a CPU, 6 hours on a GPU.
        reading: how files become pixels, now and in the recipe.
        workers: decoding threads.

    Raises:
        FileNotFoundError: if there are no images.
        ValueError: if there are fewer than 64, or the budget does not suffice for 20 steps.
    """
    source = open_source(data, "train", reading=reading)
    assert source is not None
    found = Plan(data, look_at(source), get("cpu"))
    if found.look.images < 64:
        raise ValueError(f"{source.name} has {found.look.images} images; a plan takes at least 64")
    seconds = budget if budget is not None else 3600 * _DEFAULT_HOURS[device.type]
    _network_and_views(found, device)
    found.recipe = dataclasses.replace(found.recipe, reading=reading)
    _batch_and_dictionary(found)
    _measure(found, Data(source, None), device, workers)
    _length(found, seconds, budget is not None)
    if source.labels is not None and (k := neighbours(source.labels)) < found.recipe.monitor.k:
        _set(found, "monitor.k", k, "a third of a class votes, not more than there are of it", "docs/log.md")
    return found


def _set(found: Plan, name: str, value: Any, reason: str, source: str) -> None:
    """Put a value into the recipe, by the name of its flag, and keep the reason."""
    part, _, inner = name.rpartition(".")
    changes = {inner or name: value}
    if part:
        changes = {part: dataclasses.replace(getattr(found.recipe, part), **changes)}
    found.recipe = dataclasses.replace(found.recipe, **changes)
    _note(found, name, value, reason, source)


def _note(found: Plan, name: str, value: Any, reason: str, source: str) -> None:
    """Keep the reason of a value that is in the recipe."""
    found.advice.append(Advice(name, value, reason, source))


def _network_and_views(found: Plan, device: torch.device) -> None:
    """What is encoded by what: from the size and colour of the images, and the device."""
    look, small = found.look, found.look.short_side <= 48
    base = {True: "cpu" if device.type == "cpu" else "cifar", False: "photos"}[small]
    found.recipe = dataclasses.replace(get(base), name="planned", keys=MomentumKeys(0.99))
    kind = f"images of about {look.short_side} pixels on {device.type}"
    _note(found, "recipe", base, f"the nearest recipe for {kind}", f"moco recipes {base}")
    if small:
        size = 8 * max(1, round(look.short_side / 8))
        view = round(size * 0.75) if device.type == "cpu" else size
        why = "crops look larger than whole images; small views cost less" if view < size else "their size"
        _set(found, "views.size", view, why, "docs/log.md" if view < size else "released CIFAR-10 demo")
        _set(found, "views.eval_size", size, "the size of the images", "the images")
    elif device.type == "cpu":
        _set(found, "views.size", 64, "a CPU does not train larger views in hours", "measured speed")
        arch = dataclasses.replace(get("cpu").encoder, stem="small2")
        found.recipe = dataclasses.replace(found.recipe, encoder=arch)
        _note(found, "encoder.arch", "resnet10", "narrow and shallow, for a CPU", "docs/log.md")
    if look.short_side > 48:
        least = 0.2 if look.short_side >= 100 else 0.3
        _set(found, "views.scale", (least, 1.0), "least share of an image in a view", "MoCo v1 and v2")
    if look.grey > 0.95:
        share = f"{100 * look.grey:.0f} % of the images are grey"
        for name in "hue", "saturation", "grayscale_probability":
            _set(found, f"views.{name}", 0.0, f"{share}: there is no colour to change", "the images")
    views = dataclasses.replace(found.recipe.views, mean=None, std=None)
    found.recipe = dataclasses.replace(found.recipe, views=views)


def _batch_and_dictionary(found: Plan) -> None:
    """How many images and keys at a time: from how many images there are."""
    n, small = found.look.images, found.look.short_side <= 48
    batch = min(found.recipe.batch, 256, max(32, 2 ** int(math.log2(n / 8))))
    group = min(32, batch // 2)
    encoder = dataclasses.replace(found.recipe.encoder, bn_group=group)
    found.recipe = dataclasses.replace(found.recipe, encoder=encoder, batch=batch)
    _note(found, "batch", batch, f"{n // batch} steps per epoch of {n:,} images", "MoCo uses 256")
    why = "images per GPU of the paper" if group == 32 else "half of the batch, so that keys can be shuffled"
    _note(found, "encoder.bn_group", group, why, "MoCo, Section 3.3")
    most = 4096 if small else 65_536
    size = min(most, 2 ** int(math.log2(n / 2)))
    reason = f"at most half of the {n:,} images, and no more than helps at this size"
    queue = MomentumQueue(size, mask_own=size > n / 16)
    found.recipe = dataclasses.replace(found.recipe, dictionary=queue)
    _note(found, "dictionary.size", size, reason, "MoCo, Figure 3; CIFAR-10 demo")
    if queue.mask_own:
        why = f"the queue holds keys of {100 * size / n:.0f} % of the images, some of them the query's own"
        _note(found, "dictionary.mask_own", True, why, "docs/data.md")


def _measure(found: Plan, data: Data, device: torch.device, workers: int) -> None:
    """Train a few steps as the run will, and take the time."""
    values = dataclasses.replace(found.recipe, epochs=None, iterations=WARM_UP + TIMED)
    values = dataclasses.replace(values, schedule=Constant(), monitor=Monitor(every=0, bank=1, queries=1))
    values = resolve(values, data, device)
    nowhere = Checkpoints(Path("checkpoints"))
    run = build(values, data, Solo(), device=device, checkpoints=nowhere, workers=workers)
    run.f_q.train()
    run.keys.train()
    started = 0.0
    for batch in run.batches(0, run.steps):
        for group in run.optimizer.param_groups:
            group["lr"] = 1e-4
        step(run, batch, run.world)
        wait(device)
        if batch.step < WARM_UP:
            started = time.perf_counter()
    found.speed = TIMED * values.batch / (time.perf_counter() - started)
    found.memory = _held(device)
    found.recipe = dataclasses.replace(found.recipe, views=values.views, precision=values.precision)


def _length(found: Plan, seconds: float, said: bool) -> None:
    """How long, and what depends on it: the momentum, the head, the temperature, the warm-up."""
    batch, n = found.recipe.batch, found.look.images
    per_epoch = n // batch
    steps = int((1 - _RESERVE) * seconds * found.speed / batch)
    if steps < 20:
        raise ValueError(
            f"{seconds:.0f} s suffice for {steps} steps at {found.speed:.0f} images/s; give a larger --budget"
        )
    reason = f"{'your' if said else 'the default'} budget of {duration(seconds)} less 15 % for measurements"
    if steps > 800 * per_epoch:
        steps, reason = 800 * per_epoch, "the longest schedule that is known to go on helping"
    if steps >= 2 * per_epoch:
        found.recipe = dataclasses.replace(found.recipe, epochs=steps // per_epoch, iterations=None)
        steps = steps // per_epoch * per_epoch
        _note(found, "epochs", found.recipe.epochs, reason, f"{found.speed:.0f} images/s, measured")
    else:
        found.recipe = dataclasses.replace(found.recipe, epochs=None, iterations=steps)
        _note(found, "iterations", steps, reason, f"{found.speed:.0f} images/s, measured")
    momentum = round(min(0.999, max(0.99, 1 - 14 / steps)), 4)
    last = round(1 / (1 - momentum))
    why = f"a key encoder of the last {last:,} of {steps:,} steps"
    if last >= steps:
        why = f"the least that is advised; it suits longer runs than these {steps:,} steps"
    _set(found, "keys.momentum", momentum, why, "MoCo, Section 4.1; docs/log.md")
    long = steps >= 20_000 and found.look.short_side > 48
    temperature = 0.2 if long else 0.1
    head = dataclasses.replace(found.recipe.encoder, head="mlp" if long else "linear")
    found.recipe = dataclasses.replace(found.recipe, encoder=head, loss=InfoNCE(temperature))
    why = "pays in long runs on photographs" if long else "better in short runs and on small images"
    _note(found, "encoder.head", head.head, why, "MoCo v2, Table 1; docs/log.md")
    _note(found, "loss.temperature", temperature, f"goes with the {head.head} head", "MoCo v2, Section 3")
    warmup = round(min(1.0, 0.1 * steps / per_epoch), 2)
    _note(found, "schedule", f"Cosine, {some(warmup, 'epoch')} of warm-up", "zero at the end", "MoCo v2")
    found.recipe = dataclasses.replace(
        found.recipe,
        schedule=Cosine(warmup=warmup),
        monitor=Monitor(every=max(1, math.ceil(steps / per_epoch / 10))),
        journal_every=max(1, min(50, steps // 40)),
        checkpoint_every=max(20, min(1000, steps // 10)),
    )
    found.seconds = steps * batch / found.speed


def _held(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
