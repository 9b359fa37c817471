"""`moco transfer`: what features are worth on detection, segmentation, keypoints and dense pose."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from moco.cli.show import FLAGS, RunFolder, RunFolders
from moco.recipes.transfer import TRANSFER_RECIPES, get_transfer
from moco.transfer_recipe import TransferRecipe
from moco.words import some


@dataclass(frozen=True)
class Transfer:
    """Fine-tune a start on a task and measure it; the same command again goes on where it stopped."""

    recipe: Annotated[TransferRecipe, tyro.conf.arg(name="")]
    init: str
    """A pre-training RUN, supervised:FILE, random, or random:RUN (that run's architecture)."""
    data: Path
    """Folder of the data set as its owners ship it."""
    out: Path
    """The run folder. An existing one is continued if it holds this very run, else refused."""
    trials: int = 1
    """Runs with other seeds; the paper's tables on VOC are means of 5."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int = 2
    """Threads of each process that decode image files."""
    time_limit: float = 600
    """Seconds a process waits for the others before it ends the run; under torchrun or srun."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True)
class Resume:
    """Go on with a transfer run, or add trials to it."""

    run: RunFolder
    """The run folder."""
    trials: int | None = None
    """Trials in all; None takes those that were asked for. Finished ones always count."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int = 2
    """Threads of each process that decode image files."""
    time_limit: float = 600
    """Seconds a process waits for the others before it ends the run; under torchrun or srun."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True)
class Table:
    """Finished transfer runs of one task, in the form of the paper's tables."""

    runs: RunFolders
    """The run folders, one for each start."""
    json: bool = False
    """Print the results as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    if words[:1] == ["--resume"]:
        return _resume(words[1:])
    if words[:1] == ["table"]:
        return _table(words[1:])
    if words and not words[0].startswith("-"):
        base, words = get_transfer(words[0]), words[1:]
    elif words and words[0] in ("-h", "--help"):
        base = get_transfer("voc-small")
    else:
        raise ValueError(f"moco transfer takes a task first: {', '.join(TRANSFER_RECIPES)}")
    names = dict.fromkeys(("init", "data", "out"), tyro.MISSING)
    call = tyro.cli(
        Transfer,
        default=Transfer(recipe=base, **names),
        args=words,
        prog=f"moco transfer [{' | '.join(TRANSFER_RECIPES)} | table RUN... | --resume RUN]",
        config=FLAGS,
    )
    from moco.console import Terminal
    from moco.transfer_run import transfer

    with Terminal() as terminal:
        result = transfer(
            call.recipe,
            init=call.init,
            data=call.data,
            out=call.out,
            trials=call.trials,
            device=call.device,
            workers=call.workers,
            observers=[terminal],
            time_limit=call.time_limit,
        )
    _report(result, as_json=call.json)
    return 0


def _resume(words: list[str]) -> int:
    call = tyro.cli(Resume, args=words, prog="moco transfer --resume", config=FLAGS)
    from moco.console import Terminal
    from moco.transfer_run import resume_transfer

    with Terminal() as terminal:
        result = resume_transfer(
            call.run,
            trials=call.trials,
            device=call.device,
            workers=call.workers,
            observers=[terminal],
            time_limit=call.time_limit,
        )
    _report(result, as_json=call.json)
    return 0


def _table(words: list[str]) -> int:
    call = tyro.cli(Table, args=words, prog="moco transfer table", config=FLAGS)
    from moco.transfer_run import read_transfer

    results = []
    for folder in call.runs:
        path = folder / "result.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no finished transfer run: there is no {path}")
        result = json.loads(path.read_text())
        if "headline" not in result:
            raise ValueError(f"{folder} holds another kind of run; the table takes runs of moco transfer")
        results.append(result | {"origin": read_transfer(folder)[1]["init"]})
    notes = [note for other in call.runs[1:] if (note := _another_setting(call.runs[0], other))]
    if call.json:
        print(json.dumps(results))
        print("".join(f"moco: {note}\n" for note in notes), end="", file=sys.stderr)
        return 0
    from moco.report.transfer import transfer_table

    print("\n".join([transfer_table(results), *notes]))
    return 0


def _another_setting(folder: Path, other: Path) -> str:
    """The first value but start and seed in which two runs differ, the network included; "" if their rows may
    be compared."""
    from moco.run_folder import difference
    from moco.transfer_run import read_transfer

    (values, run), (asked, here) = read_transfer(folder), read_transfer(other)
    found = difference(values, dataclasses.replace(asked, seed=values.seed))
    if not found and run.get("fingerprint") != here.get("fingerprint"):
        found = "other images or annotations"
    return f"{folder} and {other} are not of one setting: {found}" if found else ""


def _report(result: Any, *, as_json: bool) -> None:
    from moco.cluster import first_here

    if not first_here():  # one of several processes, which the first speaks for
        return
    if as_json:
        print(json.dumps(dataclasses.asdict(result)))
        return
    print(f"{result.task} from {result.row}: {some(len(result.trials), 'trial')}, {result.seconds:.0f} s")
    for name, value in result.mean.items():
        spread = f" ± {result.std[name]:.1f}" if name in result.std else ""
        print(f"  {name:32}{value:7.1f}{spread}")
    print(f"{result.out}: result.json; in trial-0 ...: found.png, result.json, journal.jsonl")
