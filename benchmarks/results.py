"""Result rows from finished runs, and the tables in the documents from result rows.

    python benchmarks/results.py add RUN [RUN ...]    one row from runs of one recipe, one seed each
    python benchmarks/results.py verdict RUN NAME     one row from a run's verdict.json
    python benchmarks/results.py tables [--check]     write (or only compare) the tables in the documents

A row is `results/NAME.toml`; those of studies are written by `moco ablate --row`. Tables stand between
`<!-- NAME -->` and `<!-- /NAME -->` in README.md and docs/; a test compares them.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from moco.ablate.table import markdown
from moco.run_folder import read_run

ROOT = Path(__file__).parents[1]
METRICS = {
    "trained_trunk": "trained, trunk",
    "trained_output": "trained, head output",
    "untrained_trunk": "untrained, trunk",
    "untrained_output": "untrained, head output",
    "raw_pixels": "raw pixels",
}


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


def table(name: str) -> str:
    """A row of results as a Markdown table."""
    values = tomllib.loads((ROOT / "results" / f"{name}.toml").read_text())
    if "study" in values:
        return study(values)
    if "sentence" in values:
        return verdict(values)
    if "single_steps" in values:
        return steps(values)
    if "row" in values:
        return planned(values)
    if "protocols" in values:
        return protocols(values)
    if "label_rounds" in values:
        return labelling(values)
    knn, count = values["knn"], len(values["seeds"])

    def cell(metric: str) -> str:
        value = knn[metric]
        return f"{value['mean']:.1f}" + (f" ± {value['std']:.1f}" if "std" in value else "")

    lines = [f"| {'kNN top-1, %'} | trunk | head output |", "|---|---|---|"]
    lines.append(f"| trained by momentum contrast | {cell('trained_trunk')} | {cell('trained_output')} |")
    lines.append(f"| same network, untrained | {cell('untrained_trunk')} | {cell('untrained_output')} |")
    lines.append(f"| raw pixels | {cell('raw_pixels')} | |")
    lines.append("")
    lines.append(
        f"`{values['command']}`: {values['images']:,} unlabelled images, {values['epochs']} epochs, "
        f"{values['seconds']['mean'] / 60:.1f} minutes in all on {values['hardware']} "
        f"({values['precision']}); "
        f"k = {knn['k']}, T = {knn['temperature']}, all test images, last step, "
        f"{count} seed{'s' if count > 1 else ''}; commit {values['commit']}."
    )
    return "\n".join(lines)


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


def verdict(values: dict[str, Any]) -> str:
    """Protocols and few labels of every start, differences from the supervised row in brackets."""
    rows = values["rows"]
    supervised = (row for row in rows if row["name"].startswith("supervised"))
    reference: dict[str, Any] = next(supervised, {})

    def cell(row: dict[str, Any], name: str) -> str:
        if name not in row:
            return "-"
        if row is reference or name not in reference:
            return f"{row[name]:.1f}"
        gap = row[name] - reference[name]
        return f"{row[name]:.1f} ({gap:+.1f}){'*' if gap >= 0.5 else ''}"

    lines = ["| top-1, % | kNN, trunk | kNN, head output | linear, all labels |", "|---|---|---|---|"]
    for row in rows:
        cells = " | ".join(cell(row, name) for name in ("knn_trunk", "knn_output", "linear"))
        lines.append(f"| {row['name']} | {cells} |")
    for kind, title in ("few_labels", "frozen"), ("few_labels_fine_tuned", "fine-tuned"):
        curves = [row for row in rows if row[kind]]
        if not curves:
            continue
        points = curves[0][kind]
        lines += ["", f"| few labels, {title} | " + " | ".join(p["amount"] for p in points) + " |"]
        lines.append("|---" * (len(points) + 1) + "|")
        for row in curves:
            cells = " | ".join(f"{p['mean']:.1f} ± {p['high'] - p['mean']:.1f}" for p in row[kind])
            lines.append(f"| {row['name']} | {cells} |")
    lines += ["", f"> {values['sentence']}", ""]
    lines.append(
        f"`{values['command']}` after recipe `{values['recipe']}`, {values['epochs']} epochs, seed "
        f"{values['seed']}: {values['images']:,} training and {values['test_images']:,} test images, "
        f"{values['classes']} classes; linear is logistic regression on cached features; ± is the 95 % "
        f"interval over {values['repeats']} splits (3 where fine-tuned); k = {values['knn']['k']}, "
        f"T = {values['knn']['temperature']}; {values['seconds'] / 60:.0f} minutes on {values['hardware']}."
    )
    return "\n".join(lines)


def study(values: dict[str, Any]) -> str:
    """The table of a study, with what it was measured on."""
    minutes = values["seconds"]["total"] / 60
    return (
        markdown(values)
        + f"\n`{values['command']}`: {values['runs']} runs, {minutes:.0f} minutes of "
        + f"{', '.join(values['hardware'])}, {' or '.join(map(str, values['threads']))} thread per run; "
        + f"commit {', '.join(values['commit'])}."
    )


def steps(values: dict[str, Any]) -> str:
    """Memory and time of single steps."""
    lines = [
        "| mechanism | K | batch | peak memory, MiB | processor seconds per step |",
        "|---|---|---|---|---|",
    ]
    for of in values["single_steps"]:
        worked = f"{of['processor_seconds']:.2f}" if "processor_seconds" in of else "not measured"
        lines.append(f"| {of['mechanism']} | {of['K']} | {of['batch']} | {of['mib']:.0f} | {worked} |")
    return "\n".join([*lines, "", f"`{values['command']}`, {values['hardware']}; {values['note']}."])


def protocols(values: dict[str, Any]) -> str:
    """Linear classification of one run's features by each protocol."""
    lines = ["| linear classification | top-1, % | top-5, % |", "|---|---|---|"]
    for row in values["protocols"]:
        top5 = f"{row['top5']:.1f}" if "top5" in row else ""
        lines.append(f"| {row['name']} | {row['top1']:.1f} | {top5} |")
    lines.append("")
    lines.append(
        f"`{values['command']}` after recipe `{values['recipe']}`, {values['epochs']} epochs, seed 0: "
        f"{values['images']:,} training and {values['test_images']:,} test images; {values['hardware']}."
    )
    return "\n".join(lines)


def planned(values: dict[str, Any]) -> str:
    """What planned recipes and v2's values gave, by the number of images."""
    lines = ["| CIFAR-10 images | planned | v2's values | untrained | raw pixels |", "|---|---|---|---|---|"]
    for row in values["row"]:
        cells = " | ".join(f"{row[name]:.1f}" for name in ("planned", "v2", "untrained", "raw_pixels"))
        lines.append(f"| {row['images']:,} | {cells} |")
    return "\n".join([*lines, "", f"{values['what']}; {values['row'][0]['seen']:,} images seen by each."])


def labelling(values: dict[str, Any]) -> str:
    """Labels that were asked for beside random ones, and by how much confidences are too high."""

    def cell(row: dict[str, Any], name: str) -> str:
        mean, _, high = row[name]
        return f"{mean:.1f} ± {high - mean:.1f} ({row[f'{name}_overconfidence']:+.1f})"

    lines = [
        "| labels | % right, images `moco fit` asked for | % right, random images | gain |",
        "|---|---|---|---|",
    ]
    for row in values["label_rounds"]:
        mean, low, high = row["gain"]
        gain = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})" if mean else ""
        lines.append(f"| {row['labels']} | {cell(row, 'asked')} | {cell(row, 'random')} | {gain} |")
    return "\n".join(
        [
            *lines,
            "",
            f"`{values['command']}` after recipe `{values['recipe']}`, {values['epochs']} epochs: percent of "
            f"{values['test_images']:,} test images right, mean and 95 % interval over {values['repeats']} "
            "trials that begin with one random image of each class; in brackets confidence less accuracy; "
            f"{values['images']:,} images to choose from.",
        ]
    )


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
    commands.add_parser("tables").add_argument("--check", action="store_true")
    call = parser.parse_args()
    if call.command == "add":
        values = row(call.runs)
        (ROOT / "results" / f"{values['recipe']}.toml").write_text(tomli_w.dumps(values))
        return
    if call.command == "verdict":
        (ROOT / "results" / f"{call.name}.toml").write_text(tomli_w.dumps(verdict_row(call.run)))
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
