"""Result rows from finished transfer runs, and the tables in docs/transfer.md from result rows.

    python benchmarks/transfer.py add NAME TITLE RUN...    one file from runs of one task, one start each
    python benchmarks/transfer.py tables [--check]         write (or only compare) the tables

A file is `results/transfer-NAME.toml`; all stand between `<!-- transfer -->` and `<!-- /transfer -->`.
"""

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from moco.report.transfer import transfer_table
from moco.transfer_run import read_transfer

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "transfer.md"


def row(title: str, runs: list[Path]) -> dict[str, Any]:
    """What runs of one task from several starts say together."""
    starts = []
    for folder in runs:
        result, (values, about) = json.loads((folder / "result.json").read_text()), read_transfer(folder)
        starts.append(
            {
                "row": result["row"],
                "seconds": result["seconds"],
                "seeds": [values.seed + trial for trial in range(len(result["trials"]))],
                "trials": [{name: trial[name] for name in result["headline"]} for trial in result["trials"]],
                "mean": {name: result["mean"][name] for name in result["headline"]},
                "std": {name: result["std"][name] for name in result["headline"] if name in result["std"]},
            }
        )
    return {
        "title": title,
        "task": values.name,
        "headline": list(result["headline"]),
        "iterations": values.iterations,
        "batch": values.batch,
        "images": about["images"],
        "test_images": about["test_images"],
        "arch": values.trunk.arch,
        "hardware": f"{about['hardware']}, {about['threads']} threads",
        "torch": about["torch"],
        "commit": about["commit"],
        "starts": starts,
    }


def table(path: Path) -> str:
    """A file of results as Markdown."""
    values = tomllib.loads(path.read_text())
    results = [start | {"task": values["task"], "headline": values["headline"]} for start in values["starts"]]
    seconds = sum(start["seconds"] for start in values["starts"]) / sum(
        len(start["trials"]) for start in values["starts"]
    )
    return (
        f"{values['title']}\n\n{transfer_table(results)} {values['images']} training and "
        f"{values['test_images']} test images, {values['iterations']} steps of {values['batch']}, "
        f"{seconds / 60:.1f} minutes a trial on {values['hardware']}; commit {values['commit']}."
    )


def filled(text: str) -> str:
    """The document with its tables made anew."""
    tables = [table(path) for path in sorted((ROOT / "results").glob("transfer-*.toml"))]
    start, end = "<!-- transfer -->", "<!-- /transfer -->"
    head, _, rest = text.partition(start)
    return "\n".join([head + start, "\n\n".join(tables) or "Nothing yet.", end + rest.partition(end)[2]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add")
    add.add_argument("name")
    add.add_argument("title")
    add.add_argument("runs", nargs="+", type=Path)
    commands.add_parser("tables").add_argument("--check", action="store_true")
    call = parser.parse_args()
    if call.command == "add":
        text = tomli_w.dumps(row(call.title, call.runs))
        (ROOT / "results" / f"transfer-{call.name}.toml").write_text(text)
        return
    made = filled(DOCUMENT.read_text())
    if call.check and made != DOCUMENT.read_text():
        sys.exit(f"the tables in {DOCUMENT.name} are not current; run python benchmarks/transfer.py tables")
    DOCUMENT.write_text(made)


if __name__ == "__main__":
    main()
