"""How long a study will take, measured before it starts; the same pass refuses what cannot run."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from moco.ablate.cell import is_shortage
from moco.ablate.plan import Plan
from moco.build import build, resolve
from moco.device import wait
from moco.encoder import trunk
from moco.evaluate.features import extract
from moco.evaluate.knn import accuracy
from moco.finish import MEASURED_IMAGES
from moco.images import Data, labelled
from moco.recipe import Recipe
from moco.training.checkpoint import Checkpoints
from moco.training.step import step
from moco.training.trainer import Run
from moco.world import Solo

_TIMED = 3  # steps, after one that warms up
_IMAGES = 256  # through the encoder in evaluation mode
_START = 6.0  # seconds until a new process trains
_PIXELS = 3072  # numbers of raw pixels at 32 x 32


def survey(
    plan: Plan, data: Data, device: torch.device, *, timed: bool = True, apart: bool = True
) -> dict[str, float]:
    """Build every open cell once, so that a wrong call ends here, and time a few of its steps.

    Args:
        plan: the study.
        data: its images.
        device: where the cells run.
        timed: also measure.
        apart: each cell starts a process of its own.

    Returns:
        Seconds that each open job will take, by its name: its steps, and encoding and voting for
        the kNN measurements. What does not fit into memory is left out. Checkpoints, and reading
        files that is slower than training, are not counted.

    Raises:
        ValueError: if a cell and the images do not fit together; the cell is named.
        MemoryError: if a memory bank does not fit.
    """
    seconds: dict[str, float] = {}
    known: dict[str, tuple[float, float]] = {}
    pixels = _pixel_seconds(data) if timed else 0.0
    statistics: tuple | None = None
    for name, recipe in plan.study.recipes().items():
        open_jobs = [job for job in plan.of(name) if not job.settled]
        if not open_jobs:
            continue
        try:
            if recipe.views.mean is None and statistics is not None:
                mean, std = statistics
                recipe = replace(recipe, views=replace(recipe.views, mean=mean, std=std))
            values = resolve(recipe, data, device)
            statistics = values.views.mean, values.views.std
            run = build(values, data, Solo(), device=device, checkpoints=Checkpoints(Path("unused")))
            if not timed:
                continue
            alike = repr(replace(values, name="", seed=0, epochs=1, iterations=None))
            if alike not in known:
                known[alike] = _per_step(run, device), _per_image(run, values, data, device)
        except (ValueError, MemoryError) as error:
            raise type(error)(f"cell {name}: {error}") from None
        except RuntimeError as error:
            if not is_shortage(error):
                raise
            continue
        per_step, per_image = known[alike]
        whole = run.steps * per_step
        if data.train.labels is not None:
            rounds = (values.epochs or 1) // values.monitor.every if values.monitor.every else 0
            images = len(data.train) + (len(data.test) if data.test is not None else 0)
            whole += (
                per_image * (rounds * (values.monitor.bank + values.monitor.queries) + 2 * images) + pixels
            )
        for job in open_jobs:
            seconds[job.name] = whole + (_START if apart else 0)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the cells' processes need it
    return seconds


def parameters(recipe: Recipe, channels: int) -> float:
    """Millions of parameters of the trunk, without the head."""
    e = recipe.encoder
    net, _ = trunk(e.arch, width=e.width, stem=e.stem, channels=channels, bn_group=e.bn_group)
    return round(sum(p.numel() for p in net.parameters()) / 1e6, 3)


def _per_step(run: Run, device: torch.device) -> float:
    """Seconds of a step with its batch."""
    run.f_q.train()
    run.keys.train()
    for group in run.optimizer.param_groups:
        group["lr"] = run.learning_rate(0)
    times, last = [], time.perf_counter()
    for batch in run.batches(0, min(_TIMED + 1, run.steps)):
        step(run, batch, run.world)
        wait(device)
        now = time.perf_counter()
        times.append(now - last)
        last = now
    return min(times[1:] or times)


def _per_image(run: Run, values: Recipe, data: Data, device: torch.device) -> float:
    """Seconds of an image in evaluation mode."""
    if (found := labelled(values, data, device, bank=_IMAGES, queries=1)) is None:
        return 0.0
    start = time.perf_counter()
    extract(run.f_q, found[0].batches())
    return (time.perf_counter() - start) / len(found[0].labels)


def _pixel_seconds(data: Data) -> float:
    """Seconds of kNN on raw pixels, from a small part of it."""
    bank, queries = min(1000, len(data.train)), 100
    some, classes = torch.rand(bank, _PIXELS), torch.zeros(bank, dtype=torch.long)
    start = time.perf_counter()
    accuracy(some[:queries], classes[:queries], some, classes)
    once = time.perf_counter() - start
    tests = len(data.test) if data.test is not None else len(data.train) // 5
    return once * (min(tests, MEASURED_IMAGES) / queries) * (min(len(data.train), MEASURED_IMAGES) / bank)
