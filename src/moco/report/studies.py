"""Figures of studies: ours and the paper's, in panels of their own unless data and metric are the same."""

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from moco.files import write_atomically
from moco.studies import Published, Study
from moco.words import some

_COLOURS = ("#2563a8", "#c8641b", "#2f855a", "#8b4fa0", "#b0303c", "#5f6b7a", "#a8871b", "#1b8a94")
_GREY = "#8a8f98"
_MARKERS = "os^Dv<>P"
_NAMES = {
    "knn_trunk": "kNN accuracy, trunk, %",
    "knn_output": "kNN accuracy, head output, %",
    "linear": "linear accuracy, %",
    "accuracy": "pretext accuracy, %",
    "loss": "loss, nats",
    "knn": "kNN accuracy, %",
    "linear top-1": "linear top-1, %",
}
Journals = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]


def plot_study(
    path: Path,
    study: Study,
    table: Mapping[str, Any],
    costs: Sequence[Mapping[str, Any]],
    journals: Journals,
    *,
    images: int,
    classes: int,
    data: str,
) -> None:
    """Write a study's figure as PNG and, beside it, as SVG.

    Args:
        path: of the PNG.
        study: its axis, curves and published numbers.
        table: of `moco.ablate.table.gather`.
        costs: of `moco.ablate.table.costs`.
        journals: rows of each seed's run, by cell.
        images, classes, data: of the training images: published numbers of the same images and the same
            metric are drawn beside ours, others in a panel of their own.
    """
    same = [p for p in study.published if _same(p, study, images, classes)]
    other = [p for p in study.published if p not in same]
    curves = [name for name in study.curves if any(_series(runs, name) for runs in journals.values())]
    peaks = _peaks(study, costs) if study.cost else {}
    panels = 1 + len(curves) + bool(peaks) + len(other)
    columns = 2 if panels == 4 else min(panels, 3)
    lines = -(-panels // columns)
    figure = Figure(figsize=(5.0 * columns, 4.0 * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.set_axis_off()
    colours = _colours(study)
    ours = axes.pop(0)
    _ours(ours, study, table, colours)
    for published in same:
        _published(ours, published, study, colours, hollow=True)
    seeds = some(len(table["seeds"]), "seed")
    _label(
        ours, f"ours: {Path(data).name}, {images:,} images, {seeds}", _name(study.metric), study.axis.label
    )
    for name in curves:
        axis = axes.pop(0)
        _over_epochs(axis, study, journals, name, colours)
        _label(axis, "ours: mean of the seeds, band from least to most", _name(name), "epoch")
    if peaks:
        axis = axes.pop(0)
        _memory(axis, study, peaks, colours)
        _label(axis, "ours: memory while training", "MiB", study.axis.label)
    for published in other:
        axis = axes.pop(0)
        _published(axis, published, study, colours)
        over_epochs = published.metric in ("knn", "accuracy")
        title = f"paper ({published.source}):\n{published.data}"
        _label(axis, title, _name(published.metric), "epoch" if over_epochs else study.axis.label)
    figure.suptitle(study.question)
    for suffix in ".png", ".svg":
        buffer = io.BytesIO()
        about = {"Date": None} if suffix == ".svg" else None
        with matplotlib.rc_context({"svg.hashsalt": study.name}):  # the same bytes each time
            figure.savefig(buffer, format=suffix[1:], dpi=120, metadata=about)
        write_atomically(path.with_suffix(suffix), buffer.getvalue())
        figure.set_layout_engine("none")  # it stays as it was laid out


def _same(published: Published, study: Study, images: int, classes: int) -> bool:
    at = (published.images, published.classes)
    return at == (images, classes) and published.metric == study.metric


def _colours(study: Study) -> dict[str, tuple[str, str]]:
    """Colour and marker of each curve; on an axis of words, of each word."""
    names = dict.fromkeys(str(_key(cell.series, cell.x)) for cell in study.cells)
    for published in study.published:
        names |= dict.fromkeys(point.series for point in published.points if point.series)
    names |= dict.fromkeys([""] if any(not cell.series for cell in study.cells) else [])
    return {name: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(names)}


def _key(series: str, x: float | str) -> str:
    return series or str(x)


def _ours(axis: Axes, study: Study, table: Mapping[str, Any], colours) -> None:
    rows = [row for row in table["rows"] if study.metric in row["values"]]
    words = _places(study)
    if study.axis.scale == "words":
        for row in rows:
            value = row["values"][study.metric]
            colour, marker = colours[_key(row["series"], row["x"])]
            axis.errorbar(
                words[str(row["x"])], value["mean"], value.get("std", 0), fmt=marker, color=colour,
                capsize=4, ms=7,
            )  # fmt: skip
    else:
        for series in dict.fromkeys(row["series"] for row in rows):
            own = sorted((row for row in rows if row["series"] == series), key=lambda row: row["x"])
            values = [row["values"][study.metric] for row in own]
            colour, marker = colours[_key(series, "")]
            axis.errorbar(
                [row["x"] for row in own], [v["mean"] for v in values], [v.get("std", 0) for v in values],
                fmt=f"{marker}-", color=colour, capsize=3, ms=6, label=series or None,
            )  # fmt: skip
            if study.axis.scale == "log10":
                for row, value in zip(own, values, strict=True):
                    _note(axis, row["x"], value["mean"], row["cell"], colour)
        if any(row["series"] for row in rows):
            axis.legend(fontsize=8, frameon=False)
    for row in table["rows"]:
        if "ended" in row and not row["n"]:
            at = words.get(str(row["x"]), row["x"])
            _at_the_bottom(axis, at, row["ended"].partition(" ")[2])
    for name, style in ("untrained_trunk", "--"), ("raw_pixels", ":"):
        if name in table["baselines"] and study.metric.startswith("knn"):
            level = table["baselines"][name]["mean"]
            axis.axhline(level, color=_GREY, linestyle=style, linewidth=1)
            axis.annotate(
                name.replace("_trunk", "").replace("_", " "), (1, level), color=_GREY, fontsize=8,
                xycoords=("axes fraction", "data"), ha="right", va="bottom",
            )  # fmt: skip
    _scale(axis, study, [row["x"] for row in table["rows"]])


def _published(axis: Axes, published: Published, study: Study, colours, *, hollow: bool = False) -> None:
    words = _places(study)
    over_epochs = published.metric in ("knn", "accuracy")
    style: dict[str, Any] = {"ms": 7 if hollow else 6, "mfc": "none" if hollow else None}
    for series in dict.fromkeys(point.series for point in published.points):
        points = [p for p in published.points if p.series == series]
        there = [(p, p.value) for p in points if p.value is not None]
        label = f"paper: {published.data}" if hollow else series or None
        if study.axis.scale == "words" and not over_epochs:
            for i, (point, value) in enumerate(there):
                colour, marker = colours.get(_key(series, point.x), (_COLOURS[0], "o"))
                place = words.setdefault(str(point.x), len(words))
                axis.plot(
                    place, value, marker, color=colour, label=label if hollow and not i else None,
                    **style,
                )  # fmt: skip
        else:
            colour, marker = colours.get(series, (_COLOURS[0], "o"))
            line = "" if study.axis.scale == "log10" else "-"
            axis.plot(
                [p.x for p, _ in there], [value for _, value in there], f"{marker}{line}", color=colour,
                label=label, **style,
            )  # fmt: skip
        for point, value in there:
            if point.note and isinstance(point.x, int | float):
                _note(axis, point.x, value, point.note, colour, above=series == "MoCo")
        for point in points:
            if point.value is None:
                _at_the_bottom(axis, words.get(str(point.x), point.x), point.note.partition(":")[0])
    if hollow or any(point.series for point in published.points):
        axis.legend(fontsize=8, frameon=False, loc="lower right" if study.axis.scale == "log10" else "best")
    if not hollow and not over_epochs:
        _scale(axis, study, [point.x for point in published.points])


def _over_epochs(axis: Axes, study: Study, journals: Journals, name: str, colours) -> None:
    """Mean over the seeds, with a band from the least to the most."""
    scale = 100 if name == "accuracy" else 1
    for cell in {cell.name: cell for cell in study.cells}.values():
        by_epoch: dict[float, list[float]] = {}
        for run in journals.get(cell.name, ()):
            for row in run:
                if row.get(name) is not None:
                    by_epoch.setdefault(row["epoch"], []).append(scale * row[name])
        if not by_epoch:
            continue
        epochs = sorted(by_epoch)
        colour, _ = colours[_key(cell.series, cell.x)]
        means = [statistics.mean(by_epoch[epoch]) for epoch in epochs]
        axis.plot(epochs, means, color=colour, label=cell.x if study.axis.scale == "words" else cell.name)
        axis.fill_between(
            epochs, [min(by_epoch[e]) for e in epochs], [max(by_epoch[e]) for e in epochs],
            color=colour, alpha=0.15, linewidth=0,
        )  # fmt: skip
    axis.legend(fontsize=8, frameon=False)


def _memory(axis: Axes, study: Study, peaks: Mapping[str, Mapping[float, float]], colours) -> None:
    for series, at in peaks.items():
        colour, marker = colours[_key(series, "")]
        sizes = sorted(at)
        axis.plot(sizes, [at[size] for size in sizes], f"{marker}-", color=colour, label=series)
    axis.legend(fontsize=8, frameon=False)
    axis.set_ylim(bottom=0)
    _scale(axis, study, [size for at in peaks.values() for size in at])


def _peaks(study: Study, costs: Sequence[Mapping[str, Any]]) -> dict[str, dict[float, float]]:
    """Median peak memory by curve and place, where it was measured."""
    found: dict[str, list[float]] = {}
    for cost in costs:
        if cost.get("peak_mib") is not None:
            found.setdefault(cost["cell"], []).append(cost["peak_mib"])
    peaks: dict[str, dict[float, float]] = {}
    for cell in study.cells:
        if cell.name in found and isinstance(cell.x, int | float):
            peaks.setdefault(cell.series, {})[cell.x] = statistics.median(found[cell.name])
    return peaks


def _series(runs: Sequence[Sequence[Mapping[str, Any]]], name: str) -> bool:
    return any(row.get(name) is not None for run in runs for row in run)


def _places(study: Study) -> dict[str, int]:
    """Where each word of an axis of words stands."""
    if study.axis.scale != "words":
        return {}
    return {word: i for i, word in enumerate(dict.fromkeys(str(cell.x) for cell in study.cells))}


def _scale(axis: Axes, study: Study, places: Sequence[float | str]) -> None:
    if study.axis.scale == "words":
        words = _places(study)
        for place in places:
            words.setdefault(str(place), len(words))
        short = len(words) * max(len(word) for word in words) < 50
        axis.set_xticks(
            list(words.values()), list(words), rotation=0 if short else 20, ha="center" if short else "right"
        )
        axis.set_xlim(-0.5, len(words) - 0.5)
        return
    if study.axis.scale in ("log2", "log10"):
        axis.set_xscale("log", base=2 if study.axis.scale == "log2" else 10)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        ticks = sorted({float(place) for place in places})
        if study.axis.scale == "log2":
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        else:
            round_ones = [factor * 10.0**power for power in range(-3, 4) for factor in (1, 3)]
            low, high = ticks[0] / 1.3, ticks[-1] * 2.2  # names stand to the right
            shown = [tick for tick in round_ones if low <= tick <= high] or ticks
            axis.set_xticks(shown, [f"{tick:g}" for tick in shown])
            axis.set_xlim(low, high)


def _note(axis: Axes, x: float, y: float, text: str, colour: str, *, above: bool = False) -> None:
    """A name at a point: to its right, or above it."""
    axis.annotate(
        text, (x, y), xytext=(0, 6) if above else (5, -3), textcoords="offset points",
        ha="center" if above else "left", fontsize=7, color=colour,
    )  # fmt: skip


def _at_the_bottom(axis: Axes, x: Any, text: str) -> None:
    """A mark for what has no value."""
    axis.plot([x], [0.03], "x", color=_COLOURS[4], ms=8, transform=axis.get_xaxis_transform(), clip_on=False)
    axis.annotate(
        text, (x, 0.06), xycoords=("data", "axes fraction"), ha="center", fontsize=8, color=_COLOURS[4]
    )


def _name(metric: str) -> str:
    return _NAMES.get(metric, metric)


def _label(axis: Axes, title: str, unit: str, along: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_ylabel(unit, fontsize=9)
    axis.set_xlabel(along, fontsize=9)
    axis.grid(alpha=0.25)
    for side in "top", "right":
        axis.spines[side].set_visible(False)
