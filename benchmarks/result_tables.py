"""Tables for the documents, from result rows; `results.py` puts them there."""

import tomllib
from pathlib import Path
from typing import Any

from moco.ablate.table import markdown

ROOT = Path(__file__).parents[1]
DEMO_LOG = {
    1: ("6.957", "31.98"), 2: ("7.250", "33.52"), 3: ("7.290", "34.71"), 5: ("6.862", "37.95"),
    10: ("5.991", "48.03"), 20: ("4.341", "61.38"), 30: ("", "67.05"), 50: ("3.195", "73.30"),
    60: ("", "75.00"), 100: ("2.726", "78.06"), 120: ("", "79.62"), 150: ("2.427", "81.18"),
    180: ("", "82.59"), 200: ("2.272", "82.58"),
}  # fmt: skip
"""Loss and kNN accuracy after epochs of the released CIFAR-10 demo, as its published log tells them."""


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
    if "copies" in values:
        return copies(values)
    if "of_epochs" in values:
        return epochs(values)
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


def verdict(values: dict[str, Any]) -> str:
    """Protocols and few labels of every start, differences from the supervised row in brackets."""
    rows = values["rows"]
    supervised = (row for row in rows if row["name"].startswith("supervised, all labels"))
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
        worked = f"{of['processor_seconds']:.2f}"
        lines.append(f"| {of['mechanism']} | {of['K']} | {of['batch']} | {of['mib']:.0f} | {worked} |")
    about = f"`{values['command']}`, {values['hardware']}; {values['note']}; commit {values['commit']}."
    return "\n".join([*lines, "", about])


def epochs(values: dict[str, Any]) -> str:
    """The first epochs of `cifar` beside those that the released demo's log tells of."""
    lines = [
        "| epoch | loss | in the demo's log | kNN, head output, % | in the demo's log | kNN, trunk, % "
        "| pretext accuracy, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for of in values["of_epochs"]:
        loss, accuracy = DEMO_LOG.get(of["epoch"], ("", ""))
        output, trunk = (f"{of[name]:.2f}" if name in of else "" for name in ("knn_output", "knn_trunk"))
        lines.append(
            f"| {of['epoch']} | {of['loss']:.3f} | {loss} | {output} | {accuracy} | {trunk} "
            f"| {100 * of['accuracy']:.1f} |"
        )
    knn = values["knn"]
    lines.append("")
    lines.append(
        f"`{values['command']}`, the first {len(values['of_epochs'])} of {values['epochs']} epochs, seed "
        f"{values['seed']}: {values['hardware']} ({values['precision']}); k = {knn['k']}, T = "
        f"{knn['temperature']}, {knn['bank']:,} images vote on {knn['queries']:,}; commit {values['commit']}."
    )
    return "\n".join(lines)


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


def copies(values: dict[str, Any]) -> str:
    """Which copies of photographs are found."""
    lines = ["| copy | found, % | pairs that are none |", "|---|---|---|"]
    lines += [f"| {row['kind']} | {row['found']:.1f} | {row['false_pairs']} |" for row in values["copies"]]
    return "\n".join(
        [
            *lines,
            "",
            f"`{values['command']}`: a copy of each of {values['images']:,} photographs, sought among the "
            f"originals, {values['pairs_among_originals']} of whose pairs are alike themselves; "
            f"correlation of {values['threshold']} and more.",
        ]
    )
