"""Recipes as TOML files, which say everything needed to run them again."""

import dataclasses
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

import tomli_w

from moco.recipe import Recipe


def to_dict(values: Any) -> dict[str, Any]:
    """A recipe as nested plain values for TOML; absent values are left out, classes named as `kind`."""
    result: dict[str, Any] = {}
    for f in dataclasses.fields(values):
        value = getattr(values, f.name)
        if dataclasses.is_dataclass(value):
            result[f.name] = {"kind": type(value).__name__, **to_dict(value)}
        elif value is not None:
            result[f.name] = list(value) if isinstance(value, tuple) else value
        else:
            result[f.name] = "none"
    return result


def flat(values: Any, where: str = "") -> dict[str, Any]:
    """A recipe as one table: keys.momentum, loss.temperature, ..."""
    table = values if isinstance(values, dict) else to_dict(values)
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= flat(value, f"{where}{name}.") if isinstance(value, dict) else {f"{where}{name}": value}
    return found


def from_dict(cls: type, values: dict[str, Any], where: str = "") -> Any:
    """The inverse of `to_dict`; absent fields take their defaults.

    Raises:
        ValueError: on a field or kind the class does not have, or a value out of its range.
    """
    hints = typing.get_type_hints(cls)
    if unknown := set(values) - set(hints):
        raise ValueError(f"unknown recipe field {where}{sorted(unknown)[0]}; there are {', '.join(hints)}")
    arguments = {}
    for name, value in values.items():
        if isinstance(value, dict):
            kinds = {c.__name__: c for c in _members(hints[name])}
            kind = value.get("kind", next(iter(kinds)))
            if kind not in kinds:
                raise ValueError(f"{where}{name}.kind must be one of {', '.join(kinds)}, got {kind!r}")
            fields = {k: v for k, v in value.items() if k != "kind"}
            value = from_dict(kinds[kind], fields, f"{where}{name}.")
        arguments[name] = tuple(value) if isinstance(value, list) else None if value == "none" else value
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"a value of {where or 'the recipe'} is of the wrong kind: {error}") from None


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def text(recipe: Recipe, run: dict[str, Any] | None = None) -> str:
    """A recipe and, under [run], what a run found out (data, hardware, versions) as TOML.

    Paths may be of bytes that are no UTF-8: encode it with errors="surrogateescape", as `read` decodes it.
    """
    return tomli_w.dumps(to_dict(recipe) | ({"run": run} if run is not None else {}))


def read(path: Path) -> tuple[Recipe, dict[str, Any]]:
    """A recipe and the [run] table of a TOML file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no recipe.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from None
    run = values.pop("run", {})
    return from_dict(Recipe, values), run
