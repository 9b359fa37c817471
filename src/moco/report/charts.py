"""Line charts as SVG that reads without a script; hovering is the page's business."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from moco.words import some

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 12, 34
POINTS = 400  # of one line; more cannot be told apart


@dataclass(frozen=True)
class Line:
    """One line: its name, its points from left to right, and the number of its colour."""

    name: str
    points: list[tuple[float, float]]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over epochs.

    Attributes:
        name: what is drawn.
        unit: of the values.
        note: what a reader should know to judge the values.
        lines: the lines.
        levels: horizontal lines to compare with, (what, value).
        moments: vertical lines, (what, epoch).
        span: lowest and highest value that are always in sight.
    """

    name: str
    unit: str
    note: str
    lines: list[Line]
    levels: Sequence[tuple[str, float]] = ()
    moments: Sequence[tuple[str, float]] = ()
    span: tuple[float, float] | None = None

    def range(self) -> tuple[float, float, float, float]:
        """Least and greatest epoch and value."""
        x = [p[0] for line in self.lines for p in line.points]
        y = [p[1] for line in self.lines for p in line.points] + [level for _, level in self.levels]
        y += list(self.span or ())
        low, high = min(y), max(y)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        if self.span is not None:
            return min(0.0, *x), max(x), min(low, self.span[0]), max(high, self.span[1])
        return min(0.0, *x), max(x) or 1.0, low - margin, high + margin

    def summary(self) -> str:
        """The chart in words, for those who do not see it."""
        parts = []
        for line in self.lines:
            first, last = line.points[0], line.points[-1]
            parts.append(f"{line.name} from {first[1]:.4g} to {last[1]:.4g} over {some(last[0], 'epoch')}")
        parts += [f"{what} at {value:.4g}" for what, value in self.levels]
        return f"{self.name} ({self.unit}): {'; '.join(parts)}"

    def data(self) -> dict[str, Any]:
        """What the page needs to tell values under the pointer."""
        x0, x1, y0, y1 = self.range()
        lines = [{"name": n.name, "colour": n.colour, "points": thin(n.points)} for n in self.lines]
        box = [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM]
        return {"x": [x0, x1], "y": [y0, y1], "box": box, "lines": lines, "unit": self.unit}

    def svg(self) -> Markup:
        """The chart as an SVG element."""
        x0, x1, y0, y1 = self.range()

        def at(x: float, y: float) -> tuple[float, float]:
            across = (x - x0) / ((x1 - x0) or 1)
            up = (y - y0) / ((y1 - y0) or 1)
            return (
                round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
                round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
            )

        parts = []
        for value in ticks(y0, y1):
            _, y = at(x0, value)
            parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
            parts.append(
                f'<text class="tick" x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{number(value)}</text>'
            )
        for value in ticks(x0, x1):
            x, _ = at(value, y0)
            parts.append(_text("tick", x, HEIGHT - BOTTOM + 16, number(value), "middle"))
        parts.append(_text("tick", WIDTH - RIGHT, HEIGHT - 3, "epoch", "end"))
        taken: list[float] = []
        for what, value in sorted(self.levels, key=lambda level: -level[1]):
            _, y = at(x0, value)
            over = y - 4 if all(abs(y - 4 - other) > 12 for other in taken) and y - 4 > TOP else y + 12
            taken.append(over)
            parts.append(f'<path class="level" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
            parts.append(_text("name", WIDTH - RIGHT, over, what, "end"))
        for what, epoch in self.moments:
            x, _ = at(epoch, y0)
            parts.append(f'<path class="moment" d="M{x} {TOP}V{HEIGHT - BOTTOM}"/>')
            parts.append(_text("name", x + 4, HEIGHT - BOTTOM - 6, what, "start"))
        for line in self.lines:
            spots = [at(*point) for point in thin(line.points)]
            path = "M" + "L".join(f"{x} {y}" for x, y in spots)
            colour = f"c{line.colour % 8}"
            parts.append(f'<path class="line{" dashed" if line.dashed else ""} {colour}" d="{path}"/>')
            if len(spots) <= 20:
                parts += [
                    f'<circle class="dot c{line.colour % 8}" cx="{x}" cy="{y}" r="2.6"/>' for x, y in spots
                ]
        inside = Markup("".join(parts))
        return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
            WIDTH, HEIGHT, self.summary(), inside
        )


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` of the points, evenly, with the first and the last."""
    if len(points) > POINTS:
        points = [points[round(i * (len(points) - 1) / (POINTS - 1))] for i in range(POINTS)]
    return [(round(x, 4), float(f"{y:.6g}")) for x, y in points]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two values, about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's number, short."""
    if value and (abs(value) >= 100_000 or abs(value) < 0.001):
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.6g}"


def _text(kind: str, x: float, y: float, words: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{round(y, 1)}" text-anchor="{anchor}">{escape(words)}</text>'
