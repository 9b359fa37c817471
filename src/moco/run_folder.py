"""A run's folder: what it was begun with, who holds it, and whether another recipe is meant."""

import contextlib
import datetime
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from moco import __version__, recipe_file
from moco.data.open import locate
from moco.data.source import ArraySource, Source
from moco.files import ASIDE, held, write_atomically
from moco.images import Data
from moco.processor import cpu_info
from moco.recipe import Recipe
from moco.training.interruption import EXIT_CODE, obeyed

LEFT_OUT = "left-out.jsonl"
"""The list of images that a run was told to leave out, as it was when the run began."""
STOPPED = "stopped"
"""A file that is there while a run waits to be continued because a signal ended it."""


@contextlib.contextmanager
def at_work(out: Path, *, first: bool) -> Iterator[None]:
    """Work in a run folder: a signal ends it, with a note there that the run waits to be continued.

    Args:
        out: the run folder.
        first: whether this process is the one that writes.

    Raises:
        SystemExit: with `EXIT_CODE`, if a signal asked this process to leave.
        RuntimeError: in place of errors that would tell of a wrong call; work had begun.
    """
    try:
        with obeyed():
            yield
    except SystemExit as left:
        if first:
            leave_note(out, left)
        raise
    except (ConnectionError, TimeoutError):
        raise
    except (ValueError, OSError, MemoryError) as error:
        raise RuntimeError(str(error)) from error


def leave_note(out: Path, left: SystemExit) -> None:
    """Say in a run folder that the run waits to be continued, if it was asked to leave."""
    if left.code == EXIT_CODE:
        with contextlib.suppress(OSError):  # a full disk; the exit code says it too
            (out / STOPPED).write_text(f"asked to leave; exit code {left.code}; to be continued\n")


def read_run(out: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a run folder and what it knows about data and machine.

    Raises:
        FileNotFoundError: if the folder holds no run.
    """
    if not (out / "recipe.toml").exists():
        raise FileNotFoundError(f"{out} holds no run: there is no {out / 'recipe.toml'}")
    return recipe_file.read(out / "recipe.toml")


def write_recipe(out: Path, values: Recipe, run: dict[str, Any]) -> None:
    """Write a run's recipe, and what it knows of data and machine; the file is whole or not there."""
    write_atomically(out / "recipe.toml", recipe_file.text(values, run).encode(errors="surrogateescape"))


def chosen_images(out: Path, run: dict[str, Any], data: str | None) -> tuple[str, str]:
    """Which images are meant, and the list of those to leave out: a run's list goes with its own images only.

    Args:
        out: what is called so in messages.
        run: what it knows of its images; empty for a file.
        data: what was asked for; None takes the run's own.

    Raises:
        ValueError: if it is not known which images.
    """
    own = run.get("data")
    spec = own if data is None else data
    if spec is None:
        raise ValueError(f"{out} does not say on which images it was trained; give --data")
    return spec, own_list(out, run) if locate(spec) == own else ""


def own_list(out: Path, run: dict[str, Any]) -> str:
    """The list of images that a run leaves out: the copy in its folder, which moves with it; "" for none."""
    return str(out / LEFT_OUT) if run.get("quarantine") else ""


def is_free(out: Path) -> bool:
    """Whether work may begin in a folder: it is not there, empty, or holds what a kill left at once."""
    if not out.exists():
        return True
    return out.is_dir() and all(
        path.name in (".lock", LEFT_OUT) or path.suffix == ASIDE for path in out.iterdir()
    )


def refuse_foreign(out: Path) -> None:
    """Raise a FileExistsError if a folder holds something that is no run."""
    if not (out / "recipe.toml").exists() and not is_free(out):
        raise FileExistsError(
            f"{out} exists and is no run of moco; choose another --out, nothing was overwritten"
        )


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the run folder; the lock goes with the process, however it ends (see `held`)."""
    with held(out / ".lock") as mine:
        if mine is None:
            raise FileExistsError(f"another process is training in {out}")
        yield


def provenance(
    spec: str, quarantine: str, data: Data, fingerprint: str, device: torch.device
) -> dict[str, Any]:
    """What reproducing a run needs besides its recipe."""
    images = image_facts(data.train, fingerprint)
    return {"data": spec, "quarantine": quarantine, **images, **machine(device)}


def image_facts(source: Source, fingerprint: str) -> dict[str, Any]:
    """What a network must know of the images it was trained on, to be used on others."""
    facts = {
        "fingerprint": fingerprint,
        "images": len(source),
        "channels": source.channels,
        "pixels": str(source.dtype).removeprefix("torch."),
    }
    return facts | ({"image_size": list(source.pixels.shape[2:])} if isinstance(source, ArraySource) else {})


def machine(device: torch.device) -> dict[str, Any]:
    """What a run's figures depend on besides its recipe and its data."""
    return {
        "device": str(device),
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "moco": __version__,
        "commit": _commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    """The commit this package was checked out at, marked when its source differs from it."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False)

    try:
        if git("ls-files", "--error-unmatch", Path(__file__).name).returncode:
            return "unknown"  # installed, or inside somebody else's repository
        commit = git("rev-parse", "--short", "HEAD").stdout.strip()
        return commit + ("-changed" if git("diff", "--quiet", "HEAD", "--", ".").returncode else "")
    except OSError:  # there is no git
        return "unknown"


def _processor() -> str:
    for line in cpu_info().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def difference(stored: Any, asked: Any, where: str = "") -> str:
    """The first value in which two recipes differ."""
    if type(stored) is not type(asked):
        return f"{where.rstrip('.')} is {type(stored).__name__} there, {type(asked).__name__} here"
    for name in stored.__dataclass_fields__:
        old, new = getattr(stored, name), getattr(asked, name)
        if hasattr(old, "__dataclass_fields__"):
            if found := difference(old, new, f"{where}{name}."):
                return found
        elif old != new:
            return f"{where}{name} is {old} there, {new} here"
    return ""
