"""What was found in test images, beside what is annotated, and tables in the paper's form."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from moco.report.plots import save_figure
from moco.transfer.example import IGNORED_PIXEL, Detections, Example, Examples
from moco.transfer.transforms import label_image
from moco.transfer_build import read_image

_LEAST_SCORE, _MOST = 0.3, 12
_MARKED = 0.5  # a gain the paper's tables mark


def plot_found(path: Path, examples: Examples, shown: Sequence[tuple[Example, Any]]) -> None:
    """Test images in two rows: annotated above, found below.

    Args:
        path: of the PNG.
        examples: the split, which knows the names of the classes.
        shown: images, each with the `Detections` in it or with the class of each pixel.
    """
    figure = Figure(figsize=(3.0 * len(shown), 6.2))
    axes = figure.subplots(2, len(shown), squeeze=False)
    figure.subplots_adjust(0.02, 0.04, 0.995, 0.96, wspace=0.05, hspace=0.08)
    for column, (example, found) in enumerate(shown):
        image = read_image(example.path).permute(1, 2, 0).numpy()
        for row, axis in enumerate(axes[:, column]):
            axis.imshow(image)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(str(example.image_id), fontsize=7, parse_math=False) if row else None
        if isinstance(found, Detections):
            _draw_annotated(axes[0][column], example, examples)
            _draw_found(axes[1][column], found, examples)
        else:
            _draw_classes(axes[0][column], label_image(example, examples), examples)
            _draw_classes(axes[1][column], found, examples)
        for axis in axes[:, column]:
            axis.set_xlim(0, image.shape[1])
            axis.set_ylim(image.shape[0], 0)
    for axis, name in zip(axes[:, 0], ("annotated", "found"), strict=True):
        axis.set_ylabel(name)
    save_figure(figure, path)


def _draw_annotated(axis: Axes, example: Example, examples: Examples) -> None:
    objects = example.objects
    assert objects is not None
    for number, (box, label) in enumerate(zip(objects.boxes.tolist(), objects.labels.tolist(), strict=True)):
        faint = bool(objects.skipped[number] or objects.difficult[number])
        _box(axis, box, examples.classes[label], label, "--" if faint else "-")
        if objects.keypoints is not None:
            joints = objects.keypoints[number]
            _dots(axis, joints[joints[:, 2] > 0], label)


def _draw_found(axis: Axes, found: Detections, examples: Examples) -> None:
    best = [n for n in range(min(len(found), _MOST)) if float(found.scores[n]) >= _LEAST_SCORE]
    for number in best:
        label = int(found.labels[number])
        text = f"{examples.classes[label]} {float(found.scores[number]):.2f}"
        _box(axis, found.boxes[number].tolist(), text, label, "-")
        if found.masks is not None:
            mask = found.masks[number].cpu().numpy()
            axis.imshow(np.dstack([np.ones((*mask.shape, 3)) * _colour(label)[:3], 0.45 * mask]))
        if found.keypoints is not None:
            _dots(axis, found.keypoints[number], label)
        if found.surfaces:
            surface = found.surfaces[number]
            parts = surface.parts.cpu().numpy()
            corner = surface.left, surface.left + parts.shape[1], surface.top + parts.shape[0], surface.top
            shown = np.ma.masked_equal(parts, 0)
            axis.imshow(shown, extent=corner, alpha=0.6, cmap="nipy_spectral", vmin=0, vmax=24)
    if not best:
        axis.set_title(f"nothing above {_LEAST_SCORE}", fontsize=7)


def _dots(axis: Axes, joints: Tensor, label: int) -> None:
    axis.scatter(joints[:, 0].tolist(), joints[:, 1].tolist(), s=4, color=_colour(label))


def _draw_classes(axis: Axes, labels: Tensor, examples: Examples) -> None:
    masked = np.ma.masked_equal(labels.numpy(), IGNORED_PIXEL)
    axis.imshow(masked, cmap="tab20", alpha=0.65, vmin=0, vmax=max(len(examples.classes) - 1, 1))


def _box(axis: Axes, box: Sequence[float], text: str, label: int, style: str) -> None:
    left, top, right, bottom = box
    axis.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, ec=_colour(label), lw=1.2, ls=style)
    )
    patch = {"pad": 0.5, "color": _colour(label), "lw": 0}
    side = "bottom" if top > 0.06 * axis.get_ylim()[0] else "top"  # inside where there is no room above
    axis.text(
        left, top, text, fontsize=6, color="white", va=side, clip_on=True, bbox=patch, parse_math=False,
    )  # fmt: skip


def _colour(label: int) -> tuple[float, float, float, float]:
    return colormaps["tab20"](label % 20)


def transfer_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Rows of starts, columns of metrics, as Markdown: mean ± deviation, and the gain over supervised.

    Args:
        results: `result.json` of runs of one task, each another start; with its origin where names repeat.

    Returns:
        The paper's form: gains over the supervised row in brackets, marked ▲ from +0.5. Where there is no
        supervised row, gains are over the random one; where there are several, over the first. Rows of one
        name are told apart by their origin.

    Raises:
        ValueError: if the runs are of different tasks.
    """
    if len(tasks := {result["task"] for result in results}) != 1:
        raise ValueError(f"a table shows one task, got runs of {', '.join(sorted(tasks))}")
    order = ["random", "supervised"]
    ranked = sorted(results, key=lambda r: (order.index(r["row"]) if r["row"] in order else 2, r["row"]))
    names = [result["row"] for result in ranked]
    starts = [
        f"{name} ({result['origin']})" if names.count(name) > 1 and "origin" in result else name
        for name, result in zip(names, ranked, strict=True)
    ]
    base = next((names.index(name) for name in ("supervised", "random") if name in names), None)
    against = None if base is None else ranked[base]
    columns = list(ranked[0]["headline"])
    lines = [f"| start | {' | '.join(columns)} | trials |", "|---|" + "---|" * (len(columns) + 1)]
    for start, result in zip(starts, ranked, strict=True):
        cells = [_cell(result, name, against) for name in columns]
        lines.append(f"| {start} | {' | '.join(cells)} | {len(result['trials'])} |")
    note = "" if base is None else f"; gains over {starts[base]} in brackets, ▲ from +{_MARKED}"
    lines.append(f"\n{ranked[0]['task']}: percent, mean ± standard deviation over trials{note}.")
    return "\n".join(lines)


def _cell(result: Mapping[str, Any], name: str, against: Mapping[str, Any] | None) -> str:
    if name not in result["mean"]:
        return "not measured"
    text = f"{result['mean'][name]:.1f}"
    if name in result["std"]:
        text += f" ± {result['std'][name]:.1f}"
    if against is not None and against is not result and name in against["mean"]:
        gain = result["mean"][name] - against["mean"][name]
        text += f" ({gain:+.1f}){' ▲' if round(gain, 1) >= _MARKED else ''}"
    return text
