"""From a transfer recipe, a start and some data to a run folder: trials, each trained and measured."""

import contextlib
import json
import statistics
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch

from moco import recipe_file
from moco.device import choose_device
from moco.files import write_atomically
from moco.processes import joined
from moco.recipes.transfer import get_transfer
from moco.report.transfer import plot_found
from moco.run_folder import STOPPED, at_work, difference, locked, machine, refuse_foreign
from moco.training.checkpoint import Checkpoints
from moco.training.observer import Audience, Observer
from moco.transfer.norm import measure_precisely
from moco.transfer_build import (
    Sets,
    TransferStart,
    build_loader,
    build_model,
    check_trunk,
    metric_names,
    open_sets,
)
from moco.transfer_loop import Trial, fine_tune
from moco.transfer_measure import Measured, measure, require_tools
from moco.transfer_recipe import TransferRecipe
from moco.transfer_start import absolute, open_start
from moco.world import World


@dataclass(frozen=True)
class TransferResult:
    """What a finished transfer run is worth.

    Attributes:
        out: the run folder.
        task: name of the recipe.
        row: "random", "supervised", "MoCo" or another mechanism.
        trials: percentages of every trial, in order of its seed.
        mean, std: over the trials; the deviation of a single trial is left out.
        headline: the columns of the paper's table for this task.
        seconds: wall time of all trials, less what was lost between a checkpoint and a kill.
    """

    out: str
    task: str
    row: str
    trials: tuple[dict[str, float], ...]
    mean: dict[str, float]
    std: dict[str, float]
    headline: tuple[str, ...]
    seconds: float


def transfer(
    recipe: TransferRecipe | str,
    *,
    init: str,
    data: str | Path,
    out: str | Path,
    trials: int = 1,
    device: str = "auto",
    workers: int = 2,
    observers: Sequence[Observer] = (),
    time_limit: float = 600,
) -> TransferResult:
    """Fine-tune a start on a task, measure it, write a run folder; the same call goes on where it stopped.

    Args:
        recipe: a transfer recipe, or the name of one.
        init: see `moco.transfer_start.open_start`.
        data: folder of the data set in its owners' layout.
        out: the run folder; it must be new, or hold this very run.
        trials: runs with seeds that count on from the recipe's; further ones that are finished count too.
        device: "auto", "cpu", "cuda" or "mps".
        workers: decoding threads.
        observers: told about progress.
        time_limit: seconds a process waits for the others, under torchrun or srun.

    Raises:
        FileExistsError: if the folder holds something else, or a run on data that has changed since; nothing
            is overwritten.
        FileNotFoundError: if a file of the data is missing; it is named.
        ValueError: if recipe, start and data do not fit together.
        FloatingPointError: if the loss stops being finite.
        SystemExit: with code 75, after a checkpoint, if SIGTERM or SIGUSR1 came.
        RuntimeError: if anything else fails after work has begun, such as an image file.
    """
    values = get_transfer(recipe) if isinstance(recipe, str) else recipe
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    out = Path(out)
    refuse_foreign(out)
    init = absolute(init)
    start = open_start(init, values.trunk)
    check_trunk(start.trunk)
    data = str(Path(data).expanduser().resolve())
    values = replace(values, trunk=start.trunk)
    if (out / "recipe.toml").exists():
        _compare(out, values, init, data)
    sets = open_sets(values, data)
    facts = {"images": len(sets.train), "test_images": len(sets.test), "fingerprint": sets.fingerprint()}
    if (out / "recipe.toml").exists() and read_transfer(out)[1].get("fingerprint") != facts["fingerprint"]:
        raise FileExistsError(
            f"{out} was begun on other images or annotations than {data} holds now; choose another --out, or "
            "put those back"
        )
    require_tools(values)
    if len(sets.train) < values.batch:
        raise ValueError(
            f"{sets.train.name} has {len(sets.train)} images to train on, fewer than a batch of "
            f"{values.batch}; lower --batch"
        )
    with joined(time_limit=time_limit) as world:
        where = choose_device(device, world)
        if values.batch % world.size:
            raise ValueError(f"--batch must be a multiple of the {world.size} processes, got {values.batch}")
        shown = [Audience(observers)] if world.rank == 0 else []
        with locked(out) if world.rank == 0 else contextlib.nullcontext():
            if world.rank == 0:
                run = {"init": init, "row": start.row, "data": data, "trials": trials, **facts}
                _write_recipe(out, values, run | machine(where))
                (out / STOPPED).unlink(missing_ok=True)
            with at_work(out, first=world.rank == 0):
                numbers = sorted({*range(trials), *world.first(lambda: _finished(out))})
                done = [
                    _trial(values, trial, start, sets, out, where, workers, shown, world) for trial in numbers
                ]
                return _finish(values, start, out, done, world)


def read_transfer(out: Path) -> tuple[TransferRecipe, dict[str, Any]]:
    """The recipe of a transfer run and what it knows about data, start and machine.

    Raises:
        FileNotFoundError: if the folder holds no run.
        ValueError: if it holds another kind of run.
    """
    path = out / "recipe.toml"
    if not path.is_file():
        raise FileNotFoundError(f"{out} holds no run: there is no {path}")
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    run = values.pop("run", {})
    if "init" not in run:
        raise ValueError(f"{out} holds a pre-training run; moco transfer TASK --init {out} starts from it")
    return recipe_file.from_dict(TransferRecipe, values), run


def resume_transfer(
    out: str | Path,
    *,
    trials: int | None = None,
    device: str = "auto",
    workers: int = 2,
    observers: Sequence[Observer] = (),
    time_limit: float = 600,
) -> TransferResult:
    """Go on with the run in a folder, or add trials to it.

    Raises:
        FileNotFoundError, ValueError: see `transfer`.
    """
    values, run = read_transfer(Path(out))
    return transfer(
        values,
        init=run["init"],
        data=run["data"],
        out=out,
        trials=max(run["trials"], len(list(Path(out).glob("trial-*")))) if trials is None else trials,
        device=device,
        workers=workers,
        observers=observers,
        time_limit=time_limit,
    )


def _compare(out: Path, values: TransferRecipe, init: str, data: str) -> None:
    stored, run = read_transfer(out)
    found = difference(stored, values)
    for name, asked in (("init", init), ("data", data)):
        if not found and run[name] != asked:
            found = f"{name} is {run[name]} there, {asked} here"
    if found:
        raise FileExistsError(
            f"{out} holds another run ({found}); choose another --out, or continue that run with "
            f"moco transfer --resume {out}"
        )


def _write_recipe(out: Path, values: TransferRecipe, run: dict[str, Any]) -> None:
    if not (out / "recipe.toml").exists():
        text = tomli_w.dumps(recipe_file.to_dict(values) | {"run": run})
        write_atomically(out / "recipe.toml", text.encode())


def _trial(
    values: TransferRecipe,
    trial: int,
    start: TransferStart,
    sets: Sets,
    out: Path,
    device: torch.device,
    workers: int,
    observers: Sequence[Observer],
    world: World,
) -> dict[str, Any]:
    """Train and measure one trial, or read what is there."""
    folder, seed = out / f"trial-{trial}", values.seed + trial

    def say(sentence: str) -> None:
        for observer in observers:
            observer.say(sentence)

    if (known := world.first(lambda: _known(folder))) is not None:
        say(f"trial {trial} is finished already")
        return known
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    say(
        f"trial {trial} of {values.name}, seed {seed}, from {start.row} ({start.origin}): "
        f"{len(sets.train):,} images of {len(sets.train.classes)} classes, tested on {len(sets.test):,}"
    )
    model = build_model(values, start, sets.train, world, seed).to(device)
    loader, precise = (
        build_loader(
            values, sets.train, start.pixels, divisor=model.divisor, seed=seed, world=world,
            device=device, workers=workers, purpose=purpose,
        )
        for purpose in ("transfer order", "transfer precise")
    )  # fmt: skip
    checkpoints = Checkpoints(
        folder / "checkpoints", keep=values.keep_checkpoints, say=say, processes=world.size
    )
    run = Trial(values, model, loader, checkpoints, world, seed, began, list(observers))
    last = fine_tune(run, folder)
    if values.precise:
        say(f"measuring batch normalisation over {values.precise} batches")
        measure_precisely(model, precise.stream(0, values.precise), model.losses, world)
    say(f"measuring on {len(sets.test):,} images of {sets.test.name}")
    measured = measure(values, model, sets.test, start.pixels, device, world)
    result = {
        "seed": seed,
        "metrics": {name: round(value, 4) for name, value in measured.table.items()},
        "loss": last.get("loss"),
        "seconds": round(time.perf_counter() - run.began, 1),
    }
    if world.rank == 0:
        _write_trial(folder, measured, sets, result)
    return result


def _finished(out: Path) -> list[int]:
    """Numbers of the trials that are finished."""
    numbers = (path.parent.name.removeprefix("trial-") for path in out.glob("trial-*/result.json"))
    return [int(number) for number in numbers if number.isdecimal()]


def _known(folder: Path) -> dict[str, Any] | None:
    """The result of a finished trial."""
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def _write_trial(folder: Path, measured: Measured, sets: Sets, result: dict[str, Any]) -> None:
    for kind, rows in measured.rows.items():
        write_atomically(folder / f"{kind}.json", json.dumps(rows).encode())
    plot_found(folder / "found.png", sets.test, measured.shown)
    write_atomically(folder / "result.json", json.dumps(result, indent=1).encode())


def _finish(
    values: TransferRecipe, start: TransferStart, out: Path, done: list[dict[str, Any]], world: World
) -> TransferResult:
    tables = tuple(one["metrics"] for one in done)
    names = [name for name in tables[0] if all(name in table for table in tables)]
    columns = {name: [table[name] for table in tables] for name in names}
    result = TransferResult(
        str(out),
        values.name,
        start.row,
        tables,
        {name: round(statistics.mean(column), 4) for name, column in columns.items()},
        {name: round(statistics.stdev(c), 4) for name, c in columns.items()} if len(done) > 1 else {},
        tuple(name for name in metric_names(values) if name in names),
        round(sum(one["seconds"] for one in done), 1),
    )
    if world.rank == 0:
        write_atomically(out / "result.json", json.dumps(asdict(result), indent=1).encode())
    return result
