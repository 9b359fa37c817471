"""Result rows from finished runs, and the tables in the documents from result rows.

    python benchmarks/results.py add RUN [RUN ...]    one row from runs of one recipe, one seed each
    python benchmarks/results.py verdict RUN NAME     one row from a run's verdict.json
    python benchmarks/results.py journal RUN NAME     one row from the epochs of a run, finished or not
    python benchmarks/results.py tables [--check]     write (or only compare) the tables in the documents

A row is `results/NAME.toml`; those of studies are written by `moco ablate --row`. Tables stand between
`<!-- NAME -->` and `<!-- /NAME -->` in README.md and docs/; a test compares them.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import tomli_w

from moco.run_folder import read_run
from result_tables import ROOT, table

METRICS = {
    "trained_trunk": "trained, trunk",
    "trained_output": "trained, head output",
    "untrained_trunk": "untrained, trunk",
    "untrained_output": "untrained, head output",
    "raw_pixels": "raw pixels",
}
_OF_EPOCHS = ("loss", "accuracy", "knn_trunk", "knn_output")


def row(runs: list[Path]) -> dict[str, Any]:
    """What the runs, equal but for the seed, say together."""
    read = [(*read_run(run), json.loads((run / "result.json").read_text())) for run in runs]
    values, about, _ = read[0]
    for other, _, _ in read[1:]:
        if dataclasses.replace(other, seed=values.seed) != values:
            raise SystemExit("the runs differ in more than the seed")
    results = [result for _, _, result in read]

    def spread(numbers: list[float]) -> dict[str, Any]:
        result: dict[str, Any] = {"mean": round(statistics.mean(numbers), 3)}
        if len(numbers) > 1:
            result["std"] = round(statistics.stdev(numbers), 3)
        return result

    return {
        "recipe": values.name,
        "command": f"moco pretrain {values.name} --data {Path(about['data']).name}",
        "images": about["images"],
        "steps": results[0]["steps"],
        "epochs": values.epochs,
        "seeds": [recipe.seed for recipe, _, _ in read],
        "hardware": f"{about['hardware']}, {about['threads']} threads",
        "precision": values.precision,
        "torch": about["torch"],
        "commit": about["commit"],
        "seconds": spread([result["seconds"] for result in results]),
        "knn": {"k": values.monitor.k, "temperature": values.monitor.temperature}
        | {name: spread([result["knn"][name] for result in results]) for name in METRICS},
    }


def verdict_row(run: Path) -> dict[str, Any]:
    """What `moco verdict` found, with what the run was."""
    values, about = read_run(run)
    found = json.loads((run / "verdict.json").read_text())
    keep = ("sentence", "outcome", "images", "test_images", "classes", "repeats", "seconds", "knn")
    result = {name: found[name] for name in keep} | {
        "command": f"moco verdict RUN --data {Path(found['data']).name}",
        "recipe": values.name,
        "epochs": values.epochs,
        "seed": values.seed,
        "hardware": f"{about['hardware']}",
        "torch": about["torch"],
        "diagnostics": found["diagnostics"],
    }
    if found["supervised_top1"] is not None:
        result["supervised_top1"] = found["supervised_top1"]
    result["rows"] = [_finite(row) for row in found["rows"]]
    return result


def journal_row(run: Path) -> dict[str, Any]:
    """The epochs of a run, as far as it has come."""
    values, about = read_run(run)
    epochs: dict[int, dict[str, Any]] = {}
    for line in (run / "journal.jsonl").read_text().splitlines():
        found = json.loads(line)
        if "epoch" in found and found["epoch"] == int(found["epoch"]):
            kept = {name: found[name] for name in _OF_EPOCHS if name in found}
            epochs.setdefault(int(found["epoch"]), {"epoch": int(found["epoch"])}).update(kept)
    return {
        "command": f"moco pretrain {values.name} --data {Path(about['data']).name}",
        "images": about["images"],
        "epochs": values.epochs,
        "seed": values.seed,
        "hardware": f"{about['hardware']}, {about['threads']} threads",
        "precision": values.precision,
        "torch": about["torch"],
        "commit": about["commit"],
        "knn": {name: getattr(values.monitor, name) for name in ("k", "temperature", "bank", "queries")},
        "of_epochs": [row for _, row in sorted(epochs.items())],
    }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what TOML cannot say, and without the value of every split."""
    curves = {
        name: [
            {k: round(v, 2) if isinstance(v, float) else v for k, v in p.items() if k != "values"}
            for p in points
        ]
        for name, points in row.items()
        if isinstance(points, list)
    }
    return {name: value for name, value in row.items() if value is not None} | curves


def filled(text: str) -> str:
    """A document with its tables made anew."""
    for path in sorted((ROOT / "results").glob("*.toml")):
        start, end = f"<!-- {path.stem} -->", f"<!-- /{path.stem} -->"
        if start in text:
            head, _, rest = text.partition(start)
            _, _, tail = rest.partition(end)
            text = f"{head}{start}\n{table(path.stem)}\n{end}{tail}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add")
    add.add_argument("runs", nargs="+", type=Path)
    judged = commands.add_parser("verdict")
    judged.add_argument("run", type=Path)
    judged.add_argument("name")
    told = commands.add_parser("journal")
    told.add_argument("run", type=Path)
    told.add_argument("name")
    commands.add_parser("tables").add_argument("--check", action="store_true")
    call = parser.parse_args()
    if call.command == "add":
        values = row(call.runs)
        (ROOT / "results" / f"{values['recipe']}.toml").write_text(tomli_w.dumps(values))
        return
    if call.command == "verdict":
        (ROOT / "results" / f"{call.name}.toml").write_text(tomli_w.dumps(verdict_row(call.run)))
        return
    if call.command == "journal":
        (ROOT / "results" / f"{call.name}.toml").write_text(tomli_w.dumps(journal_row(call.run)))
        return
    for path in ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")):
        made = filled(path.read_text())
        if made == path.read_text():
            continue
        if call.check:
            sys.exit(
                f"the tables in {path.name} are not those of results/; "
                "run python benchmarks/results.py tables"
            )
        path.write_text(made)


if __name__ == "__main__":
    main()
