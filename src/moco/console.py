"""What a run shows on a terminal: a progress bar where there is one, plain lines elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moco.embeddings import Embeddings
from moco.training.observer import Observer
from moco.words import some


class Plain(Console):
    """A console on standard error that says words as they are, brackets and colons too.

    Whoever does not read it any more misses what is said, and nothing else happens.
    """

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        self.file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


class Terminal(Observer):
    """Progress on standard error, so that standard output holds results only."""

    def __init__(self) -> None:
        self.console = Plain()
        self.steps = self.batch_size = self.first = 0
        self.knn: float | None = None
        self.started: float | None = None
        self.bar: Progress | None = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, done: int, steps: int, batch_size: int) -> None:
        self.steps, self.batch_size, self.started = steps, batch_size, None
        if self.bar is not None:
            self.bar.stop()
        if self.console.is_terminal or self.console.is_jupyter:
            columns = [
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[text]}"),
            ]
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("", total=steps, completed=done, text="")
            self.bar.start()

    def progress(self, done: int, row: dict[str, Any]) -> None:
        now = time.perf_counter()
        if self.started is None:  # the first step warms up and is not counted
            self.started, self.first = now, done
            return
        speed = (done - self.first) * self.batch_size / (now - self.started)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, text=f"{speed:.0f} images/s  {self._describe(row)}")
            if done == self.steps:  # whoever holds no `with` has the terminal back
                self.bar.stop()
        elif row and row["step"] == done:
            left = (self.steps - done) * self.batch_size / speed
            rate = f"{speed:.0f} images/s  {clock(left)} left"
            self.say(f"step {done:,}/{self.steps:,}  {rate}  {self._describe(row)}")

    def row(self, row: dict[str, Any]) -> None:
        self.knn = row.get("knn_trunk", self.knn)

    def say(self, sentence: str) -> None:
        self.console.print(sentence, soft_wrap=True)

    def _describe(self, row: dict[str, Any]) -> str:
        if not row:
            return ""
        text = f"loss {row['loss']:.3f}"
        if "accuracy" in row:
            text += f"  pretext {100 * row['accuracy']:.0f} %"
        return text if self.knn is None else f"{text}  kNN {self.knn:.1f} %"


def tell_lost(names: Sequence[str], what: str = "image") -> None:
    """Say which images could not be read and were left out, if any."""
    if names:
        many = some(len(names), what)
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        print(f"{many} could not be read, left out: {shown}", file=sys.stderr)


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[Embeddings], Embeddings]]:
    """A progress bar on standard error, where that is a terminal; what it is told of is handed on."""
    console = Plain()
    columns = [TextColumn(what), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(compact=True)]
    hidden = not (console.is_terminal or console.is_jupyter)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=total)

        def advance(part: Embeddings) -> Embeddings:
            bar.update(task, advance=len(part.names))
            return part

        yield advance
