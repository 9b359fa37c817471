"""From a recipe and some images to a run folder: check, build, train, and write what the run leaves."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from moco import processes, recipe_file
from moco.build import build, resolve
from moco.data.colour import opencv_for
from moco.data.loader import Loader
from moco.data.open import locate
from moco.data.quarantine import read_quarantine
from moco.data.reading import Reading
from moco.data.views import Views
from moco.device import choose_device
from moco.finish import Result, finish, page
from moco.images import Data, open_data
from moco.processor import has_fast_bfloat16
from moco.recipe import Recipe
from moco.recipes import get
from moco.report.plots import plot_views
from moco.run_folder import (
    LEFT_OUT,
    STOPPED,
    at_work,
    difference,
    locked,
    own_list,
    provenance,
    read_run,
    refuse_foreign,
    write_recipe,
)
from moco.training.checkpoint import Checkpoints
from moco.training.observer import Audience, Observer
from moco.training.trainer import train
from moco.words import some
from moco.world import World

__all__ = ["Result", "pretrain", "resume"]


def pretrain(
    recipe: Recipe | str = "cpu",
    *,
    data: str,
    out: str | Path,
    quarantine: str | Path | None = None,
    device: str = "auto",
    workers: int = 2,
    observers: Sequence[Observer] = (),
    time_limit: float = 600,
) -> Result:
    """Pre-train on a folder of images and write a run folder; the same call again goes on where it stopped.

    Args:
        recipe: a recipe, or the name of one.
        data: what `open_source` takes.
        out: the run folder; it must be new, or hold this very run.
        quarantine: a list of files to leave out, of `moco doctor` or of an earlier run.
        device: "auto", "cpu", "cuda" or "mps".
        workers: decoding threads of each process.
        observers: told about progress, by the first process.
        time_limit: seconds a process waits for the others before it ends the run.

    Returns:
        The result; processes other than the first leave after the last step, without measurements.

    Raises:
        FileExistsError: if the folder holds something else; nothing is overwritten.
        FileNotFoundError: if there are no images.
        ValueError: if recipe, images and number of processes do not fit together.
        FloatingPointError: if the loss stops being finite.
        ConnectionError, TimeoutError: if another process is lost, or does not come within the limit.
        SystemExit: with code 75, after a checkpoint, if SIGTERM or SIGUSR1 came.
        RuntimeError: if anything else fails after work has begun, such as an image file.
    """
    recipe = get(recipe) if isinstance(recipe, str) else recipe
    spec = locate(data), str(Path(quarantine).resolve()) if quarantine else ""
    out = Path(out).expanduser()
    with processes.joined(time_limit=time_limit) as world:
        where = choose_device(device, world)
        world.first(lambda: refuse_foreign(out))
        images = _open_once(spec, recipe.reading, world)
        values = world.first(lambda: resolve(_as_begun(out, recipe), images, where))
        world.first(lambda: _refuse_another(out, values, spec))
        return _run(values, spec, images, out, where, workers, observers, world)


def resume(
    out: str | Path,
    *,
    data: str | None = None,
    device: str = "auto",
    workers: int = 2,
    observers: Sequence[Observer] = (),
    time_limit: float = 600,
) -> Result:
    """Go on with the run in a folder, from its newest whole checkpoint.

    The end is that of an undisturbed run, to the bit, on CPUs with the same processes, threads and
    torch; on another number of processes, up to rounding. Arguments are those of `pretrain`; data, where
    the images are now, if they were moved.

    Raises:
        FileNotFoundError: if the folder holds no run or the images are gone.
        ValueError: if the images have changed.
    """
    out = Path(out).expanduser()
    with processes.joined(time_limit=time_limit) as world:
        values, run = world.first(lambda: read_run(out))
        spec = run["data"] if data is None else locate(data), own_list(out, run)
        images = _open_once(spec, values.reading, world)
        return _run(values, spec, images, out, choose_device(device, world), workers, observers, world)


def _open_once(spec: tuple[str, str], reading: Reading, world: World) -> Data:
    """The images; the first process opens them before the others, and writes what is kept for them."""
    listed = world.first(lambda: read_quarantine(spec[1]) if spec[1] else frozenset[str]())
    opened: list[Data] = []
    world.first(lambda: opened.append(open_data(spec[0], reading, listed)))
    return opened[0] if opened else open_data(spec[0], reading, listed)


def _as_begun(out: Path, values: Recipe) -> Recipe:
    """A recipe as the run in a folder was begun with it: "auto" does not change with the machine."""
    if values.precision != "auto" or not (out / "recipe.toml").exists():
        return values
    return replace(values, precision=recipe_file.read(out / "recipe.toml")[0].precision)


def _refuse_another(out: Path, values: Recipe, spec: tuple[str, str]) -> None:
    if not (out / "recipe.toml").exists():
        return
    stored, run = recipe_file.read(out / "recipe.toml")
    known, asked = (read_quarantine(path) if path else None for path in (own_list(out, run), spec[1]))
    if stored != values or run["data"] != spec[0] or known != asked:
        other = difference(stored, values) or f"data {run['data']} {run['quarantine']}".rstrip()
        raise FileExistsError(
            f"{out} holds another run ({other}); "
            f"choose another --out, or continue that run with moco pretrain --resume {out} (with --data if "
            "its images were moved)"
        )


def _run(
    values: Recipe,
    spec: tuple[str, str],
    data: Data,
    out: Path,
    device: torch.device,
    workers: int,
    observers: Sequence[Observer],
    world: World,
) -> Result:
    started = time.perf_counter()
    audience = Audience(observers if world.rank == 0 else ())
    say = audience.say
    channels = data.train.channels
    checkpoints = Checkpoints(
        out / "checkpoints", keep=values.keep_checkpoints, say=say, processes=world.size,
        opencv=opencv_for(device.type, channels, channels * values.views.size**2),
    )  # fmt: skip
    run = build(values, data, world, device=device, checkpoints=checkpoints, workers=workers)
    run.observers = [audience]
    if world.rank:
        for note in data.train.notes:  # other files may be missing here than where the first process is
            print(f"process {world.rank}: {note}", file=sys.stderr)
    fingerprint = data.train.fingerprint()
    if world.first(lambda: fingerprint) != fingerprint:
        raise ValueError(f"process {world.rank} finds other images in {spec[0]} than the first process does")
    with contextlib.ExitStack() as held:  # by the first process: the folder
        finished = world.first(lambda: _begin(held, values, spec, data, out, fingerprint, device, world, say))
        if finished is not None:
            return finished
        with at_work(out, first=world.rank == 0):
            journal = train(run, out)
            if world.rank:
                return Result(str(out), run.steps, float("nan"), float("nan"), {}, 0.0)
            return finish(run, values, data, out, device, journal.rows, started, say)


def _begin(
    held: contextlib.ExitStack,
    values: Recipe,
    spec: tuple[str, str],
    data: Data,
    out: Path,
    fingerprint: str,
    device: torch.device,
    world: World,
    say: Callable[[str], None],
) -> Result | None:
    """Take the folder and say what is in it; the result, if the run is finished already."""
    held.enter_context(locked(out))
    (out / STOPPED).unlink(missing_ok=True)
    if (out / "recipe.toml").exists():
        known = read_run(out)[1]
        if known["fingerprint"] != fingerprint:
            raise ValueError(f"the images of {spec[0]} are not those the run in {out} was begun with")
        if known["data"] != spec[0]:  # they were moved
            write_recipe(out, values, known | {"data": spec[0]})
    else:
        if spec[1]:
            (out / LEFT_OUT).write_bytes(Path(spec[1]).read_bytes())
        about = provenance(*spec, data, fingerprint, device) | {"processes": world.size}
        write_recipe(out, values, about)
    classes = f", {len(data.train.classes)} classes for kNN" if data.train.classes else ""
    say(f"{data.train.name}: {len(data.train):,} images of {some(data.train.channels, 'channel')}{classes}")
    for note in data.train.notes:
        say(note)
    if world.size > 1:
        share = values.batch // world.size
        say(f"{world.size} processes, {share} images each of every batch of {values.batch}")
    if values.precision == "bfloat16" and device.type != "mps" and not has_fast_bfloat16(device):
        say("the run computes in bfloat16, which this processor has to emulate, slowly")
    if (out / "result.json").exists():
        say(f"the run in {out} is finished already")
        if not (out / "report.html").exists():  # it was ended while it wrote that
            page(out, device, say)
        return Result(**json.loads((out / "result.json").read_text()) | {"out": str(out)})
    if not (out / "views.png").exists():
        whole = Loader(data.train, Views(values.views), values.batch, seed=values.seed, window=values.window)
        plot_views(out / "views.png", whole)
    return None
