"""Accuracy against labels, with intervals."""

from collections.abc import Iterable
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

from moco.report.plots import label_axis, save_figure

_COLOURS = ("#2563a8", "#8a8f98", "#c8641b", "#2f855a", "#7a4fa3", "#b0305c")


def plot_few_labels(path: Path, rows: Iterable[Any], title: str) -> None:
    """Test accuracy over the number of labels on a logarithmic axis; bars are 95 % intervals over the splits.

    Args:
        path: of the PNG.
        rows: each with name, linear (all labels), curve and trained (points of few labels).
        title: the sentence the figure supports.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axis = figure.subplots()
    for row, colour in zip(rows, _COLOURS * 3, strict=False):
        name = row.name.replace("$", r"\$")  # of a file, and no mathematics
        for curve, style, way in (row.curve, "-", ""), (row.trained, "--", ", fine-tuned"):
            if not curve:
                continue
            means = [point.top1.mean for point in curve]
            bars = [
                [max(0.0, point.top1.mean - point.top1.low) for point in curve],
                [max(0.0, point.top1.high - point.top1.mean) for point in curve],
            ]
            axis.errorbar(
                [point.labels for point in curve], means, yerr=bars, fmt=f"o{style}", ms=4, capsize=3,
                color=colour, label=name + way,
            )  # fmt: skip
        if not row.curve:
            axis.axhline(row.linear, color=colour, linestyle=":", label=f"{name}, linear")
    axis.set_xscale("log")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    label_axis(axis, fill(title, 88), "top-1 accuracy, %", x="labelled images")
    axis.title.set_fontsize(9)
    save_figure(figure, path)
