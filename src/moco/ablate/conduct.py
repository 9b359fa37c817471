"""From a study to its table and figure: check, estimate, run what is open, gather."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moco.ablate.board import Board
from moco.ablate.estimate import parameters, survey
from moco.ablate.execute import Machine, execute
from moco.ablate.plan import Plan
from moco.ablate.table import costs, write
from moco.console import clock
from moco.data.open import locate
from moco.device import choose_device
from moco.images import Data, open_data
from moco.processor import Precision, settled
from moco.recipe import Recipe
from moco.report.studies import plot_study
from moco.studies import STUDIES, Cell, Study
from moco.training.journal import read
from moco.words import some

PARAMETERS = "parameters, millions"
"""The axis label on which a cell stands at the size of its trunk."""


@contextmanager
def _own_threads() -> Iterator[None]:
    """A study's number of threads is its own: the process that called it goes on with what it had."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_own_threads()
def run_study(
    study: Study,
    *,
    data: str,
    out: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    machine: Machine | None = None,
    estimate: bool = True,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run every cell of a study that is not finished, and write its table and figure.

    The same call again goes on where it stopped; cells that are finished are kept, and one that
    was killed resumes from its last checkpoint. The table of a study that was killed anywhere is
    that of one that was not, to the byte, on a CPU with the threads it was begun with.

    Args:
        study: what to compare, from `moco.studies` or your own.
        data: images, as for `moco.pretrain`; labels are needed for the kNN columns.
        out: the study's folder.
        seeds: each cell is run with each.
        machine: processes, devices, threads and memory; a study keeps the threads it began with.
        estimate: time a few steps of every cell first.
        say: takes sentences about progress; standard error when None.

    Returns:
        The table, as in `table.json`.

    Raises:
        FileExistsError: if the folder holds something else.
        ValueError: if a cell and the images do not fit together.
        RuntimeError: if a cell failed.
    """
    plan, machine, images, seconds = _prepare(study, data, out, seeds, machine or Machine(), timed=estimate)
    study = plan.study
    slots = max(1, machine.jobs) * len(machine.devices)
    plan.begin(machine.threads, fingerprint=_fingerprint(images), precision=_precision(plan, machine))
    with Board(plan, seconds, slots, say) as board:
        board.say(_opening(plan, images, board, bool(seconds)))
        try:
            execute(plan, machine, board)
        finally:
            table = write(plan)
    plot_study(
        plan.out / "figure.png",
        study,
        table,
        costs(plan),
        {cell: [read(job.folder / "journal.jsonl") for job in plan.of(cell)] for cell in study.recipes()},
        images=len(images.train),
        classes=len(images.train.classes),
        data=images.train.name,
    )
    return table


@_own_threads()
def forecast(
    study: Study,
    *,
    data: str,
    out: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    machine: Machine | None = None,
) -> str:
    """What `run_study` would do and how long it would take, in a sentence for each cell; nothing is written.

    Raises:
        FileExistsError, ValueError: as `run_study`.
    """
    plan, machine, images, seconds = _prepare(study, data, out, seeds, machine or Machine(), timed=True)
    slots = max(1, machine.jobs) * len(machine.devices)
    lines = [_opening(plan, images, Board(plan, seconds, slots), bool(seconds))]
    for name in plan.study.recipes():
        of_cell = [seconds[job.name] for job in plan.of(name) if job.name in seconds]
        settled = sum(job.settled for job in plan.of(name))
        each = f"{clock(of_cell[0])} each" if of_cell else "settled" if settled else "does not fit"
        lines.append(f"  {name}: {each}" + (f", {settled} settled" if settled and of_cell else ""))
    return "\n".join(lines)


def _prepare(
    study: Study, data: str, out: str | Path, seeds: Sequence[int], machine: Machine, *, timed: bool
) -> tuple[Plan, Machine, Data, dict[str, float]]:
    """Everything that can be wrong with a call is found here, before anything is written."""
    data = locate(data)
    device, *_ = [choose_device(name) for name in machine.devices]
    plan = Plan(study, data, tuple(seeds), Path(out).expanduser())
    images = open_data(data, study.cells[0].recipe.reading)
    machine = replace(machine, threads=plan.about().get("threads", machine.threads))
    plan = replace(plan, study=_in_precision(study, _precision(plan, machine)))
    if plan.about().get("fingerprint", known := _fingerprint(images)) != known:
        raise FileExistsError(f"{out} was begun on other images than {data} holds now; choose another --out")
    if study.axis.label == PARAMETERS:
        plan = replace(plan, study=_by_parameters(plan.study, images.train.channels))
    torch.set_num_threads(machine.threads)
    seconds = survey(plan, images, device, timed=timed, apart=machine.jobs > 0)
    return plan, machine, images, seconds


def _opening(plan: Plan, images: Data, board: Board, timed: bool) -> str:
    left = sum(not job.settled for job in plan.jobs)
    about = f", about {clock(board.left())} with {board.slots} at a time" if timed and left else ""
    return (
        f"{plan.study.name}: {some(len(plan.study.recipes()), 'cell')} x {some(len(plan.seeds), 'seed')} on "
        f"{images.train.name}, {left} of {some(len(plan.jobs), 'run')} to do{about}"
    )


def open_study(name: str, base: Recipe, values: Sequence[float] = ()) -> Study:
    """A study by name, or one's own from a Python file with a function `study(base)` (or `(base, values)`).

    Raises:
        FileNotFoundError: if it is neither.
        ValueError: if the file has no such function or it returns something else.
    """
    build: Callable[..., Study]
    if name in STUDIES:
        build = STUDIES[name]
    elif name.endswith(".py"):
        if not Path(name).is_file():
            raise FileNotFoundError(f"there is no file {name}")
        build = _function_of(Path(name))
    else:
        raise ValueError(f"there is no study {name!r}; there are {', '.join(STUDIES)}, or a file of yours.py")
    takes = len(inspect.signature(build).parameters)
    if values and takes < 2:
        raise ValueError(f"the study of {name} takes no values; its function has no second argument")
    made = build(base, tuple(values)) if values else build(base)
    if not isinstance(made, Study):
        raise ValueError(f"study() of {name} must return a moco.studies.Study, got {type(made).__name__}")
    return made


def _function_of(path: Path) -> Callable[..., Study]:
    """The function `study` of a file."""
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses in it look themselves up
    spec.loader.exec_module(module)
    found = getattr(module, "study", None)
    if not callable(found):
        raise ValueError(f"{path} has no function study(base) that returns a moco.studies.Study")
    return found


def _precision(plan: Plan, machine: Machine) -> Precision:
    """What "auto" stands for in a study's recipes, on whatever machine its cells run."""
    return plan.about().get("precision") or settled("auto", choose_device(machine.devices[0]))


def _in_precision(study: Study, precision: Precision) -> Study:
    """The study with the precision of every cell settled."""

    def settle(cell: Cell) -> Cell:
        own = cell.recipe.precision
        return replace(cell, recipe=replace(cell.recipe, precision=precision if own == "auto" else own))

    return replace(study, cells=tuple(map(settle, study.cells)))


def _fingerprint(images: Data) -> str:
    """A digest of all images of a study."""
    sources = (images.train, images.test)
    return " ".join(source.fingerprint() for source in sources if source is not None)


def _by_parameters(study: Study, channels: int) -> Study:
    """The study with every cell at the size of its trunk."""
    sizes = {name: parameters(recipe, channels) for name, recipe in study.recipes().items()}
    return replace(study, cells=tuple(replace(cell, x=sizes[cell.name]) for cell in study.cells))
