"""The command `moco`: thin, and without torch until a command needs it.

Results go to standard output, progress to standard error. Exit codes: 0 done, 1 the run failed,
2 the call was wrong and nothing was begun, 130 interrupted.
"""

import dataclasses
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro

from moco import __version__
from moco.recipe import Recipe
from moco.recipe_file import read, text
from moco.recipes import RECIPES, get

_FLAGS = (tyro.conf.AvoidSubcommands,)


@dataclass(frozen=True)
class Pretrain:
    """Pre-train on unlabelled images; the same command again goes on where it stopped."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    data: str
    """A folder of images, an .npz or .npy file, a folder with CIFAR, torchvision:NAME:FOLDER,
    procedural or digits."""
    out: Path
    """The run folder. An existing one is continued if it holds this very run, else refused."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int = 2
    """Threads that decode image files."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run folder (needs the extra "tensorboard")."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True)
class Knn:
    """kNN accuracy of a run's features on labelled images."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    data: str | None = None
    """Labelled images, as for pretrain; None takes those the run was trained on."""
    k: int | None = None
    """Neighbours that vote; None takes the run's own number."""
    temperature: float | None = None
    """Votes weigh exp(similarity / temperature); None takes the run's own."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print the result as JSON."""


@dataclass(frozen=True)
class Recipes:
    """The recipes there are, or every value of one."""

    name: tyro.conf.Positional[str | None] = None
    """Show this recipe whole."""
    json: bool = False
    """Print as JSON."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "pretrain": _pretrain,
        "knn": _knn,
        "recipes": _recipes,
    }
    if words[:1] in (["--version"], ["-V"]):
        print(f"moco {__version__}")
        sys.exit(0)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        sys.exit(0)
    if words[0] not in commands:
        _refuse(f"there is no command {words[0]!r}; there are {', '.join(commands)}")
    try:
        sys.exit(commands[words[0]](words[1:]))
    except (ValueError, FileNotFoundError, FileExistsError, MemoryError, ModuleNotFoundError) as error:
        _refuse(str(error))
    except FloatingPointError as error:
        print(f"moco: the run failed: {error}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        traceback.print_exc()
        print(f"moco: the run failed: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("moco: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _pretrain(words: list[str]) -> int:
    if words[:1] == ["--resume"]:
        return _resume(words[1:])
    embedded: dict[str, Any] = {}
    if words[:1] == ["--from"]:
        if len(words) < 2:
            raise ValueError("--from takes the recipe.toml of a run")
        (base, run), words = read(Path(words[1])), words[2:]
        embedded = {"data": run["data"]} if "data" in run else {}
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
        config=_FLAGS,
    )
    from moco.launch import pretrain

    observers = _tensorboard(call.out) if call.tensorboard else []
    with _terminal() as terminal:
        result = pretrain(
            call.recipe,
            data=call.data,
            out=call.out,
            device=call.device,
            workers=call.workers,
            observers=[terminal, *observers],
        )
    _report(result, as_json=call.json)
    return 0


@dataclass(frozen=True)
class Resume:
    """Go on with a run, from its newest whole checkpoint."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int = 2
    """Threads that decode image files."""
    json: bool = False
    """Print the result as JSON."""


def _resume(words: list[str]) -> int:
    call = tyro.cli(Resume, args=words, prog="moco pretrain --resume", config=_FLAGS)
    from moco.launch import resume

    with _terminal() as terminal:
        result = resume(call.run, device=call.device, workers=call.workers, observers=[terminal])
    _report(result, as_json=call.json)
    return 0


def _knn(words: list[str]) -> int:
    call = tyro.cli(Knn, args=words, prog="moco knn", config=_FLAGS)
    from moco.launch import measure_knn

    values = measure_knn(call.run, data=call.data, k=call.k, temperature=call.temperature, device=call.device)
    if call.json:
        print(json.dumps(values))
    else:
        print(f"kNN accuracy, k = {values['k']}, T = {values['temperature']}, last checkpoint")
        _print_table({name.replace("knn", "trained"): value for name, value in values.items()})
    return 0


def _recipes(words: list[str]) -> int:
    call = tyro.cli(Recipes, args=words, prog="moco recipes", config=_FLAGS)
    if call.name is not None:
        values = get(call.name)
        if call.json:
            print(json.dumps(dataclasses.asdict(values)))
        else:
            print(f"{inspect.getdoc(RECIPES[call.name])}\n\n{text(values)}", end="")
    elif call.json:
        print(json.dumps({name: dataclasses.asdict(recipe()) for name, recipe in RECIPES.items()}))
    else:
        for name, recipe in RECIPES.items():
            print(f"{name:16} {(inspect.getdoc(recipe) or '').splitlines()[0]}")
    return 0


def _report(result: Any, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(result)))
        return
    print(f"{result.steps:,} steps, {result.seconds:.0f} s: loss {result.loss:.3f}, "
          f"pretext accuracy {100 * result.accuracy:.1f} %")  # fmt: skip
    if result.knn:
        print(
            f"kNN accuracy, % (k = {result.knn['k']}, T = {result.knn['temperature']}, last step; on the "
            "test images, or on every fifth image where there are none):"
        )
        _print_table(result.knn)
    print(f"{result.out}: backbone.safetensors, curves.png, views.png, journal.jsonl, recipe.toml")


def _print_table(values: dict[str, float]) -> None:
    """Rows of features, columns of layers."""
    names = {
        "trained": "trained by momentum contrast",
        "untrained": "same network, untrained",
        "raw_pixels": "raw pixels",
    }
    print(f"  {'':30}{'trunk':>8}{'head output':>14}")
    for row, label in names.items():
        if row in values:
            print(f"  {label:30}{values[row]:8.2f}")
        elif f"{row}_trunk" in values:
            print(f"  {label:30}{values[f'{row}_trunk']:8.2f}{values[f'{row}_output']:14.2f}")


def _terminal() -> Any:
    from moco.console import Terminal

    return Terminal()


def _tensorboard(out: Path) -> list[Any]:
    from moco.tensorboard import TensorBoard

    return [TensorBoard(out)]


def _help() -> str:
    return (
        "moco: Momentum Contrast for unsupervised visual representation learning\n\n"
        "  moco pretrain [RECIPE] --data IMAGES --out RUN   pre-train on unlabelled images\n"
        "  moco pretrain --resume RUN                       go on with a run, to the same bits\n"
        "  moco knn RUN [--data IMAGES]                     kNN accuracy of a run's features\n"
        "  moco recipes [NAME]                              recipes and their values\n\n"
        "Each command has --help and --json. A first run needs no images:\n\n"
        "  moco pretrain demo --out runs/demo"
    )


def _refuse(message: str) -> NoReturn:
    print(f"moco: {message}", file=sys.stderr)
    sys.exit(2)
