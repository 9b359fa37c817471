"""The command that a recipe is: what to type to run it again."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from moco.recipe import Recipe
from moco.recipes import RECIPES, get
from moco.run_folder import own_list


def command(values: Recipe, run: dict[str, Any], out: Path) -> str:
    """The `moco pretrain` command of a run: its recipe's name and a flag for every other value.

    A recipe whose kinds are no named recipe's cannot be written in flags; it is given by its file.

    Args:
        values: the resolved recipe.
        run: what the run knows about its images.
        out: the run folder.
    """
    words = ["moco", "pretrain"]
    flags = list(_flags(values, get(values.name))) if values.name in RECIPES else None
    if flags is None or None in flags:
        words += ["--from", str(out / "recipe.toml")]
    else:
        words += [values.name, *(word for word in flags if word is not None)]
    words += ["--data", run["data"]]
    if run.get("quarantine"):
        words += ["--quarantine", own_list(out, run)]
    return shlex.join([*words, "--out", str(out)])


def _flags(values: Any, named: Any, where: str = "") -> list[str | None]:
    """Flags that turn one set of values into the other; None among them where none can."""
    if type(values) is not type(named):
        return [None]
    words: list[str | None] = []
    for field in dataclasses.fields(values):
        mine, theirs = getattr(values, field.name), getattr(named, field.name)
        flag = f"{where}{field.name}".replace("_", "-")
        if dataclasses.is_dataclass(mine) or dataclasses.is_dataclass(theirs):
            words += _flags(mine, theirs, f"{flag}.")
        elif mine != theirs and not _measured(flag, mine, theirs):
            words += _flag(flag, mine)
    return words


def _measured(flag: str, mine: Any, named: Any) -> bool:
    """Whether the named recipe leaves the value to be found out from images and machine."""
    if flag == "views.range":  # another one may have been asked for
        return named is None and mine == (0.0, 255.0)
    return (flag in ("views.mean", "views.std") and named is None) or (
        flag == "precision" and named == "auto"
    )


def _flag(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        head, dot, tail = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{head}{dot}no-{tail}"]
    if isinstance(value, tuple):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}", str(value)]
