"""Says what the loss means, because what users ask most about it is "is this normal?"."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

ROWS_AT_REST = 5  # journal rows that must agree before an alarm
SPREAD_ALARM = 0.1


class Interpreter:
    """Reads journal rows in order and answers with sentences.

    Its state is a function of the rows alone, so a resumed run replays them and goes on.

    Args:
        negatives: K, keys each query is told apart from; None for a loss without the ln(1 + K) line.
        filled_at: step after which the queue holds no random initial key; None without a queue.
        trend: what the label-free diagnostics so far say about going on.
        remarks: further sentences that belong before the first step.
        steps: of the whole run, where that is known.
    """

    def __init__(
        self,
        negatives: int | None,
        filled_at: int | None,
        trend: Callable[[Sequence[dict[str, Any]]], str] | None = None,
        remarks: Sequence[str] = (),
        steps: int | None = None,
    ):
        self.guessing = math.log(1 + negatives) if negatives is not None else None
        self.negatives, self.filled_at = negatives, filled_at
        self.filled = self.alarmed_rest = self.alarmed_collapse = False
        self.recent: list[dict[str, Any]] = []
        self.measured: list[dict[str, Any]] = []
        self.trend, self.said, self.remarks, self.steps = trend, "", remarks, steps

    def introduction(self) -> list[str]:
        """What to expect, before the first step."""
        if self.guessing is None:
            return [*self.remarks]
        text = f"guessing among {self.negatives:,} negatives costs ln(1 + K) = {self.guessing:.2f}"
        if self.filled_at is not None:
            text += (
                f"; the loss starts lower and rises while real keys replace random ones, "
                f"until step {self.filled_at:,}: that is normal"
            )
        if self.filled_at is not None and self.steps is not None and self.steps < self.filled_at:
            short = (
                f"the run ends at step {self.steps:,}, before the queue is filled: its loss and pretext "
                "accuracy say little; train longer (--epochs) or take a smaller queue (--dictionary.size)"
            )
            return [text, short, *self.remarks]
        return [text, *self.remarks]

    def read(self, row: dict[str, Any]) -> list[str]:
        """What a new row means, if anything."""
        if "retrieval" in row:
            return self._read_diagnostics(row)
        if "loss" not in row:
            return []
        self.recent = [*self.recent[-(ROWS_AT_REST - 1) :], row]
        notes = []
        if not self.filled and self.filled_at is not None and row["step"] >= self.filled_at:
            self.filled = True
            notes.append(
                f"queue filled at step {self.filled_at:,}: every negative is a real key from here on"
            )
        if len(self.recent) < ROWS_AT_REST or (self.filled_at is not None and not self.filled):
            return notes
        if (
            self.guessing is not None
            and not self.alarmed_rest
            and all(abs(r["loss"] - self.guessing) < 0.02 * self.guessing for r in self.recent)
        ):
            self.alarmed_rest = True
            notes.append(
                f"ALARM: the loss rests at ln(1 + K) = {self.guessing:.2f}, that of guessing. Nothing is "
                "learnt: lower optimizer.lr, raise keys.momentum towards 0.999, or check that the views "
                "of an image have something in common"
            )
        if not self.alarmed_collapse and all(r["spread"] < SPREAD_ALARM for r in self.recent):
            self.alarmed_collapse = True
            notes.append(
                f"ALARM: queries collapse, their spread is {row['spread']:.3f} (1 is even, 0 is one point). "
                "Lower optimizer.lr or raise keys.momentum"
            )
        return notes

    def _read_diagnostics(self, row: dict[str, Any]) -> list[str]:
        """A sentence when the trend of the label-free diagnostics has changed."""
        self.measured.append(row)
        if self.trend is None or (now := self.trend(self.measured)) == self.said:
            return []
        before, self.said = self.said, now
        if not before:
            return []  # nothing can be said of the first measurement
        return [
            f"label-free diagnostics: {now} (two-view retrieval {row['retrieval']:.1f} %, "
            f"RankMe {row['rankme']:.1f}, deviation {row['deviation']:.2f})"
        ]

    def replay(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take up the state after these rows."""
        for row in rows:
            self.read(row)
