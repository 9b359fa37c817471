"""`moco ablate`: a study of recipes, resumed cell by cell, with a table and a figure at its end."""

import inspect
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from moco.cli.show import FLAGS
from moco.studies import BASES, STUDIES
from moco.words import some


@dataclass(frozen=True)
class Ablate:
    """Compare recipes: every cell of a study, with every seed. The same command again goes on."""

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY")]
    """A study's name (`moco ablate` alone lists them), or a Python file with a function study(base) that
    returns a Study."""
    data: str
    """Images, as for pretrain; their labels serve to measure kNN."""
    out: Path
    """The study's folder: run folders in cells/, and the table and the figure."""
    base: str = "cores"
    """The recipe from which the cells differ: cores (minutes on one processor core), or any recipe's
    name; cifar is the released CIFAR-10 demo, v1 the paper."""
    epochs: int | None = None
    """Epochs of the base, its milestones at the same shares of them; None keeps its own."""
    values: tuple[float, ...] = ()
    """What to vary over, such as K or m; none takes the study's own."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each cell is run with each."""
    images: int | None = None
    """Train on so many images, drawn once by a fixed key and kept in the study's folder; of arrays and CIFAR
    only, not of folders of files."""
    test_images: int | None = None
    """Classify so many test images, drawn likewise."""
    jobs: int = 1
    """Cells at a time on each device; 0 runs them in this process."""
    device: tuple[str, ...] = ("auto",)
    """auto, cpu, cuda or mps; several, such as cuda:0 cuda:1, share the cells."""
    threads: int | None = None
    """Threads of each cell; None divides this machine's among the jobs. A study keeps its first choice."""
    workers: int = 2
    """Decoding threads of each cell."""
    memory: float | None = None
    """GiB that each cell may take; what needs more is noted in the table as not fitting."""
    launcher: str = ""
    """A command that starts each cell, such as "torchrun --standalone --nproc-per-node 8"."""
    most: int | None = None
    """Start at most so many cells in this call; it ends with code 75 while others are left."""
    minutes: float | None = None
    """Stop after so many minutes, with code 75; stopped cells go on in the next call."""
    estimate: bool = True
    """Time a few steps of every cell first, and say how long the study will take."""
    dry_run: bool = False
    """Stop after the estimate."""
    row: Path | None = None
    """Also write the table, with commit and hardware, as a TOML result row."""
    json: bool = False
    """Print the table as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    if not words or words == ["--list"]:
        for name, build in STUDIES.items():
            print(f"{name:16} {(inspect.getdoc(build) or '').splitlines()[0]}")
        return 0
    call = tyro.cli(Ablate, args=words, prog="moco ablate", config=FLAGS)
    if call.base not in BASES:
        raise ValueError(f"there is no base {call.base!r}; there are {', '.join(BASES)}")
    from moco.ablate.conduct import forecast, open_study, run_study
    from moco.ablate.execute import Machine
    from moco.ablate.plan import refuse_foreign
    from moco.ablate.row import write_row
    from moco.ablate.subset import subset
    from moco.ablate.table import markdown
    from moco.studies.variants import of_length
    from moco.training.interruption import EXIT_CODE

    base = BASES[call.base]()
    if call.epochs is not None:
        base = of_length(base, call.epochs)
    study = open_study(call.study, base, call.values)
    at_once = max(1, call.jobs) * len(call.device)
    machine = Machine(
        jobs=call.jobs,
        devices=call.device,
        threads=call.threads or max(1, (os.cpu_count() or 1) // at_once),
        workers=call.workers,
        memory=call.memory,
        launcher=call.launcher,
        most=call.most,
        minutes=call.minutes,
    )
    data = call.data
    refuse_foreign(call.out)
    with tempfile.TemporaryDirectory() as nowhere:
        if call.images is not None or call.test_images is not None:
            begun = not call.dry_run or (call.out / "images.npz").exists()
            folder = call.out if begun else Path(nowhere)
            data = subset(data, folder, images=call.images, test_images=call.test_images)
        if call.dry_run:
            print(forecast(study, data=data, out=call.out, seeds=call.seeds, machine=machine))
            return 0
    table = run_study(
        study, data=data, out=call.out, seeds=call.seeds, machine=machine, estimate=call.estimate
    )
    if call.row is not None:
        write_row(call.row, table, call.out, command=_command(words), source=call.data)
    if table["open"]:
        print(f"{some(table['open'], 'run')} left; the same command goes on", file=sys.stderr)
    if call.json:
        print(json.dumps(table))
    else:
        print(markdown(table))
        print(f"{call.out}: table.md, table.json, cost.json, figure.png, figure.svg, cells/")
    return EXIT_CODE if table["open"] else 0


def _command(words: list[str]) -> str:
    """The call without this machine's folders."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in ("--out", "--row", "--jobs", "--most", "--minutes", "--workers"):
            skip = True
        elif word not in ("--no-estimate", "--estimate", "--json"):
            kept.append(Path(word).name if os.sep in word else word)
    return "moco ablate " + " ".join(kept)
