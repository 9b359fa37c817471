"""Curves and contact sheets as PNG."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moco.data.loader import Loader
from moco.files import write_atomically
from moco.training.interpreter import Interpreter

_BLUE, _ORANGE, _GREEN, _GREY = "#2563a8", "#c8641b", "#2f855a", "#8a8f98"


def plot_curves(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    interpreter: Interpreter,
    *,
    baselines: Mapping[str, float],
    title: str,
) -> None:
    """Loss with its ln(1 + K) line, pretext accuracy, and kNN with its baselines, over epochs.

    Args:
        path: of the PNG.
        rows: of the journal.
        interpreter: knows ln(1 + K) and when the queue was filled.
        baselines: kNN in percent of the untrained network and of raw pixels, if measured.
        title: of the figure.
    """
    steps = [row for row in rows if "loss" in row]
    measured = [row for row in rows if "knn_trunk" in row]
    panels = 3 if measured else 2
    figure = Figure(figsize=(4.2 * panels, 3.4), layout="constrained")
    axes = list(figure.subplots(1, panels))
    epochs = [row["epoch"] for row in steps]

    marker = "o" if len(steps) == 1 else ""
    axes[0].plot(epochs, [row["loss"] for row in steps], marker=marker, color=_BLUE)
    if interpreter.guessing is not None:
        axes[0].axhline(interpreter.guessing, color=_GREY, linestyle="--", linewidth=1)
        axes[0].annotate(
            f"guessing: ln(1 + {interpreter.negatives:,})", (1, interpreter.guessing),
            xycoords=("axes fraction", "data"), ha="right", va="bottom", color=_GREY, fontsize=8,
        )  # fmt: skip
    per_epoch = steps[-1]["step"] / steps[-1]["epoch"]
    if interpreter.filled_at is not None and interpreter.filled_at <= steps[-1]["step"]:
        axes[0].axvline(interpreter.filled_at / per_epoch, color=_GREY, linestyle=":", linewidth=1)
        axes[0].annotate(
            " queue filled", (interpreter.filled_at / per_epoch, 0.02),
            xycoords=("data", "axes fraction"), color=_GREY, fontsize=8,
        )  # fmt: skip
    label_axis(axes[0], "loss", "nats")
    axes[1].plot(epochs, [100 * row["accuracy"] for row in steps], marker=marker, color=_ORANGE)
    axes[1].set_ylim(0, 100)
    label_axis(axes[1], "pretext accuracy", "% of queries that find their key")
    if measured:
        at = [row["epoch"] for row in measured]
        for layer, colour in ("trunk", _GREEN), ("output", _ORANGE):
            values = [row[f"knn_{layer}"] for row in measured]
            axes[2].plot(at, values, "o-", ms=4, color=colour, label=f"{layer}, part of the images")
            if f"trained_{layer}" in baselines:
                end = baselines[f"trained_{layer}"]
                axes[2].plot(at[-1], end, "*", ms=11, color=colour, label=f"{layer}, all images")
        for name, style in ("untrained_trunk", "--"), ("raw_pixels", ":"):
            if name in baselines:
                axes[2].axhline(baselines[name], color=_GREY, linestyle=style, label=name.replace("_", " "))
        axes[2].legend(fontsize=8, frameon=False)
        label_axis(axes[2], "kNN accuracy", "%")
    figure.suptitle(title, parse_math=False)
    save_figure(figure, path)


def plot_views(path: Path, loader: Loader, *, count: int = 12) -> None:
    """The two views of the first images, as the network sees them: queries above, keys below."""
    views = loader.contact_sheet(count)
    shown = len(views[0])
    figure = Figure(figsize=(shown, 2.3), layout="constrained")
    axes = figure.subplots(2, shown, squeeze=False)
    for row, (view, name) in enumerate(zip(views, ("query", "key"), strict=True)):
        for column in range(shown):
            axis = axes[row][column]
            pixels = view[column].permute(1, 2, 0).numpy()
            grey = pixels.shape[2] != 3
            axis.imshow(pixels[..., 0] if grey else pixels, cmap="gray" if grey else None, vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(name)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())


def label_axis(axis: Axes, title: str, unit: str, *, x: str = "epoch") -> None:
    """Title, units and a light grid."""
    axis.set_title(title, fontsize=11)
    axis.set_xlabel(x)
    axis.set_ylabel(unit)
    axis.grid(alpha=0.25)
    for side in "top", "right":
        axis.spines[side].set_visible(False)
