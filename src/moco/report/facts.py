"""What a run folder says about its run, read again: for pages that show it."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco.build import build_interpreter
from moco.recipe import Recipe
from moco.report.charts import Chart, Line
from moco.run_folder import read_run
from moco.training.interpreter import SPREAD_ALARM, Interpreter
from moco.training.journal import read

FIGURE_BYTES = 600_000  # larger figures would make a page slow to open
_OWN_FIGURES = ("curves.png", "views.png")
_KNOWN = {
    "spread": ("spread of the queries", "share of an even spread", "1 is even, near 0 is collapse"),
    "alignment": ("alignment", "mean squared distance", "of two views of an image; lower is better"),
    "uniformity": ("uniformity", "log of the mean Gaussian potential", "lower is more even"),
    "rankme": ("RankMe", "directions in use", "effective rank of the features; low is collapse"),
    "effective_rank": ("effective rank", "directions in use", "of the features' covariance; low is collapse"),
    "retrieval": ("two-view retrieval", "% of images", "whose other view is the nearest of all"),
    "deviation": ("deviation of the output", "share of an even spread", "1 is even, 0 is one point"),
    "masked": ("masked negatives", "share of all", "of the query's own image, and of those in its group"),
}


@dataclass(frozen=True)
class RunFacts:
    """One run.

    Attributes:
        out: its folder.
        name: what to call it.
        values: its recipe.
        run: data, hardware and versions.
        rows, timing: of its journals.
        result: what it was worth; empty if it has not ended.
        verdict: the content of verdict.json; empty without one.
        figures: further figures of the folder by name, as data addresses.
        views: the contact sheet, likewise; "" without one.
    """

    out: Path
    name: str
    values: Recipe
    run: dict[str, Any]
    rows: list[dict[str, Any]]
    timing: list[dict[str, Any]]
    result: dict[str, Any]
    verdict: dict[str, Any]
    figures: dict[str, str]
    views: str

    @property
    def interpreter(self) -> Interpreter:
        """What tells the meaning of its loss."""
        return build_interpreter(self.values, max(1, self.run["images"] // self.values.batch))

    def column(self, name: str) -> list[tuple[float, float]]:
        """(epoch, value) of every row of the journal that has a value of this name."""
        rows = (row for row in self.rows if "epoch" in row)  # those of unreadable images have none
        return [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]

    def notes(self) -> list[str]:
        """What the loss means, as it was said while training."""
        interpreter = self.interpreter
        said = interpreter.introduction()
        for row in self.rows:
            said += [f"step {row['step']:,}: {sentence}" for sentence in interpreter.read(row)]
        return said

    def speed(self) -> float | None:
        """Median images per second of training."""
        speeds = sorted(row["images_per_second"] for row in self.timing)
        return speeds[len(speeds) // 2] if speeds else None


def read_facts(out: Path, name: str | None = None) -> RunFacts:
    """Everything a run folder says.

    Raises:
        FileNotFoundError: if the folder holds no run.
    """
    values, run = read_run(out)
    figures = {
        path.stem.replace("_", " ").replace("-", " "): picture(path)
        for path in sorted(out.glob("*.png"))
        if path.name not in _OWN_FIGURES and path.stat().st_size <= FIGURE_BYTES
    }
    views = out / "views.png"
    return RunFacts(
        out=out,
        name=name or out.resolve().name,
        values=values,
        run=run,
        rows=read(out / "journal.jsonl"),
        timing=read(out / "timing.jsonl"),
        result=_json(out / "result.json"),
        verdict=_json(out / "verdict.json"),
        figures=figures,
        views=picture(views) if views.exists() else "",
    )


def charts(runs: list[RunFacts]) -> list[Chart]:
    """Every number of the journals as a chart, runs in one chart where there are several."""
    first, alone = runs[0], len(runs) == 1
    found = []

    def label(run: RunFacts, what: str) -> str:
        return what if alone else run.name

    def add(name: str, columns: list[str], unit: str, note: str, scale: float = 1, **more: Any) -> None:
        lines = []
        for number, run in enumerate(runs):
            for place, column in enumerate(columns):
                points = [(x, scale * y) for x, y in run.column(column)]
                if points:
                    what = f"{label(run, column.removeprefix('knn_'))}"
                    if not alone and len(columns) > 1:
                        what += f", {column.removeprefix('knn_')}"
                    colour = place if alone else number
                    lines.append(Line(what, points, colour, dashed=not alone and place > 0))
        if lines:
            found.append(Chart(name, unit, note, lines, **more))

    levels = {run.interpreter.guessing: run.interpreter.negatives for run in runs}
    guessing = [(f"guessing: ln(1 + {k:,})", value) for value, k in levels.items() if value is not None and k]
    add("loss", ["loss"], "nats", "may rise while the queue fills with real keys",
        levels=guessing, moments=_filled(first) if alone else ())  # fmt: skip
    add("pretext accuracy", ["accuracy"], "%", "of queries that find their key among K others", 100)
    table = first.result.get("knn", {}) if alone else {}
    known = [("untrained network", "untrained_trunk"), ("raw pixels", "raw_pixels")]
    baselines = [(what, table[key]) for what, key in known if key in table]
    add(
        "kNN accuracy",
        ["knn_trunk", "knn_output"],
        "%",
        "on part of the images, while training",
        levels=baselines,
    )
    plain = {"step", "epoch", "loss", "accuracy", "lr", "knn_trunk", "knn_output"}
    names = dict.fromkeys(name for run in runs for row in run.rows for name in row)
    for name in names:
        if name in plain or not all(isinstance(y, int | float) for _, y in first.column(name)):
            continue
        title, unit, note = _KNOWN.get(name, (name.replace("_", " "), "value", ""))
        alarm = [("collapse below", SPREAD_ALARM)] if name == "spread" else []
        add(title, [name], unit, note, levels=alarm, span=(0, 1) if name == "spread" else None)
    add("learning rate", ["lr"], "per step", "")
    speeds = [
        Line(label(run, "images"), speed, 0 if alone else number)
        for number, run in enumerate(runs)
        if (speed := _speeds(run))
    ]
    if speeds:
        found.append(Chart("speed", "images per second", "", speeds, span=(0, 0)))
    return found


def picture(path: Path) -> str:
    """A PNG as a data address, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _filled(run: RunFacts) -> list[tuple[str, float]]:
    """The epoch from which on every key of the queue is real."""
    filled = run.interpreter.filled_at
    last = next((row for row in reversed(run.rows) if "epoch" in row), None)
    if filled is None or last is None or filled > last["step"]:
        return []
    return [("queue filled", filled * last["epoch"] / last["step"])]


def _speeds(run: RunFacts) -> list[tuple[float, float]]:
    epochs = {row["step"]: row["epoch"] for row in run.rows if "epoch" in row}
    return [(epochs[r["step"]], r["images_per_second"]) for r in run.timing if r["step"] in epochs]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
