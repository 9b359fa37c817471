"""A study as a result row: the table, and on what it was measured, as TOML."""

import json
import statistics
from pathlib import Path
from typing import Any

import tomli_w

from moco.files import write_atomically


def write_row(path: Path, table: dict[str, Any], out: Path, *, command: str, source: str) -> None:
    """Write a study's row for the documents.

    Args:
        path: of the TOML file.
        table: of `moco.ablate.table.gather`.
        out: the study's folder, for what its cells cost.
        command: that made it.
        source: the data as the user named them.
    """
    told = json.loads((out / "cost.json").read_text())
    seconds = [cost["seconds"] for cost in told if cost.get("seconds") is not None]

    def all_of(name: str) -> list[Any]:
        return sorted({cost[name] for cost in told if cost.get(name) is not None})

    row = {
        **table,
        "data": Path(source).name,
        "command": command,
        "runs": sum(cost["status"] == "finished" for cost in told),
        "hardware": all_of("hardware"),
        "threads": all_of("threads"),
        "commit": all_of("commit"),
    }
    if seconds:
        row["seconds"] = {
            "total": round(sum(seconds), 1),
            "median": round(statistics.median(seconds), 1),
        }
    if peaks := _peaks(told):
        row["peak_mib"] = peaks
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, tomli_w.dumps(row).encode())


def _peaks(told: list[dict[str, Any]]) -> dict[str, float]:
    """Median peak memory of each cell, MiB."""
    found: dict[str, list[float]] = {}
    for cost in told:
        if cost.get("peak_mib") is not None:
            found.setdefault(cost["cell"], []).append(cost["peak_mib"])
    return {cell: round(statistics.median(values), 1) for cell, values in found.items()}
