"""`moco recipes`: the settings there are."""

import dataclasses
import inspect
import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from moco.cli.show import FLAGS
from moco.recipe_file import text
from moco.recipes import RECIPES, get


@dataclass(frozen=True)
class Recipes:
    """The recipes there are, or every value of one."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    """Show this recipe whole."""
    json: bool = False
    """Print as JSON."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Recipes, args=words, prog="moco recipes", config=FLAGS)
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
