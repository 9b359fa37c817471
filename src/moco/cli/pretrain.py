"""`moco pretrain`: train on unlabelled images, or go on with a run."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from moco.cli.show import FLAGS, RunFolder, print_table
from moco.recipe import Recipe, trained_by
from moco.recipe_file import read
from moco.recipes import RECIPES, get
from moco.words import some


@dataclass(frozen=True)
class Pretrain:
    """Pre-train on unlabelled images; the same command again goes on where it stopped."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    data: str
    """A folder of images or shards, a .zip or .tar of one, a list or table of paths (.txt, .csv, .parquet),
    an .npz or .npy file, a folder with CIFAR, hf:NAME, torchvision:NAME:FOLDER, procedural or digits."""
    out: Path
    """The run folder. An existing one is continued if it holds this very run, else refused."""
    quarantine: Path | None = None
    """A list of files to leave out: quarantine.jsonl of moco doctor or of an earlier run."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int = 2
    """Threads of each process that decode image files."""
    time_limit: float = 600
    """Seconds a process waits for the others before it ends the run; under torchrun or srun."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run folder (needs the extra "tensorboard")."""
    wandb: bool = False
    """Also keep a Weights & Biases record in the run folder, offline unless WANDB_MODE says otherwise
    (needs the extra "wandb")."""
    mlflow: bool = False
    """Also keep an MLflow record in the run folder, or where MLFLOW_TRACKING_URI says (needs the extra
    "mlflow")."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True)
class Resume:
    """Go on with a run, from its newest whole checkpoint; the run's own command does so too."""

    run: RunFolder
    """The run folder."""
    data: str | None = None
    """Where its images are now, if they were moved; others are refused."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int = 2
    """Threads of each process that decode image files."""
    time_limit: float = 600
    """Seconds a process waits for the others before it ends the run; under torchrun or srun."""
    json: bool = False
    """Print the result as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    if words[:1] == ["--resume"]:
        return _resume(words[1:])
    embedded: dict[str, Any] = {}
    if words[:1] == ["--from"]:
        if len(words) < 2:
            raise ValueError("--from takes a run, or a recipe.toml")
        source, words = Path(words[1]), words[2:]
        source = source / "recipe.toml" if source.is_dir() else source
        base, run = read(source)
        embedded = {"data": run["data"]} if "data" in run else {}
        if run.get("quarantine"):
            from moco.run_folder import own_list

            copy = Path(own_list(source.parent, run))
            embedded["quarantine"] = copy if copy.exists() else Path(run["quarantine"])
    elif words and not words[0].startswith("-"):
        base, words = get(words[0]), words[1:]
    else:
        base = get("cpu")
    if base.name == "demo":
        embedded.setdefault("data", "procedural")
    default = Pretrain(recipe=base, **({"data": tyro.MISSING, "out": tyro.MISSING} | embedded))
    call = tyro.cli(
        Pretrain,
        default=default,
        args=words,
        prog=f"moco pretrain [{' | '.join(RECIPES)} | --from TOML | --resume RUN]",
        config=FLAGS,
    )
    from moco.console import Terminal
    from moco.data.open import locate
    from moco.launch import pretrain

    quarantine = call.quarantine
    if "quarantine" in embedded and not any(word.split("=")[0] == "--quarantine" for word in words):
        quarantine = quarantine if locate(call.data) == locate(embedded["data"]) else None  # of other images
    with Terminal() as terminal, contextlib.ExitStack() as records:
        observers = _records(call)
        for record in observers:
            records.push(_closing(record.__enter__(), terminal.say))
        result = pretrain(
            call.recipe,
            data=call.data,
            out=call.out,
            quarantine=quarantine,
            device=call.device,
            workers=call.workers,
            observers=[terminal, *observers],
            time_limit=call.time_limit,
        )
    _report(result, as_json=call.json)
    return 0


def _resume(words: list[str]) -> int:
    call = tyro.cli(Resume, args=words, prog="moco pretrain --resume", config=FLAGS)
    from moco.console import Terminal
    from moco.launch import resume

    with Terminal() as terminal:
        result = resume(
            call.run,
            data=call.data,
            device=call.device,
            workers=call.workers,
            observers=[terminal],
            time_limit=call.time_limit,
        )
    _report(result, as_json=call.json)
    return 0


def _report(result: Any, *, as_json: bool) -> None:
    from moco.cluster import first_here

    if not first_here():  # one of several processes, which the first speaks for
        return
    if as_json:
        print(json.dumps(dataclasses.asdict(result)))
        return
    steps = some(result.steps, "step")
    print(f"{steps}, loss {result.loss:.3f}, pretext accuracy {100 * result.accuracy:.1f} %; "
          f"this call took {result.seconds:.0f} s")  # fmt: skip
    if result.knn:
        print(
            f"kNN accuracy, % (k = {result.knn['k']}, T = {result.knn['temperature']}, last step; on the "
            "test images, or on every fifth image where there are none):"
        )
        print_table(result.knn, f"trained by {trained_by(read(Path(result.out) / 'recipe.toml')[0])}")
    if result.unreadable:
        print(f"{result.unreadable:,} images could not be read: quarantine.jsonl names them")
    print(
        f"{result.out}: report.html to look at; backbone.safetensors, curves.png, views.png, journal.jsonl, "
        "recipe.toml"
    )


def _closing(record: Any, say: Callable[[str], None]) -> Callable[..., None]:
    """The end of a record; one that cannot be ended does not change how the run did."""

    def close(*raised: Any) -> None:
        try:
            record.__exit__(*raised)
        except Exception as error:
            say(f"{type(record).__name__} could not be ended: {error}")

    return close


def _records(call: Pretrain) -> list[Any]:
    """Where the journal goes besides its file."""
    found: list[Any] = []
    if call.tensorboard:
        from moco.tensorboard import TensorBoard

        found.append(TensorBoard(call.out))
    if call.wandb or call.mlflow:
        from moco.loggers import MLflow, WandB

        found += [
            kind(call.out, call.recipe) for kind, on in ((WandB, call.wandb), (MLflow, call.mlflow)) if on
        ]
    return found
