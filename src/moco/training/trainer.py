"""The loop: batches in, steps, a journal, measurements and checkpoints out."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco import chance
from moco.batch import Batch
from moco.dictionary import Dictionary
from moco.encoder import Encoder
from moco.keys import KeyEncoder
from moco.loss import Contrast, Entries
from moco.training.checkpoint import Checkpoints
from moco.training.interpreter import Interpreter
from moco.training.journal import Journal
from moco.training.step import Measures, step
from moco.world import World


class Observer(ABC):
    """Told what happens, to show it or to send it on; it cannot change the run."""

    @abstractmethod
    def begin(self, done: int, steps: int, batch_size: int) -> None:
        """Training starts, or goes on, after `done` of `steps` steps."""

    @abstractmethod
    def progress(self, done: int, row: dict[str, Any]) -> None:
        """A step was done; `row` is the newest of the journal."""

    @abstractmethod
    def row(self, row: dict[str, Any]) -> None:
        """A row was written to the journal."""

    @abstractmethod
    def say(self, sentence: str) -> None:
        """Something the user should know."""


@dataclass
class Run:
    """Everything one pre-training run works on; `moco.build.build` makes it from a recipe."""

    f_q: Encoder
    keys: KeyEncoder
    dictionary: Dictionary
    loss: Callable[[Tensor, Entries], Contrast]
    optimizer: torch.optim.Optimizer
    symmetric: bool
    accumulate: int
    world: World
    batches: Callable[[int, int], Iterator[Batch]]
    learning_rate: Callable[[int], float]
    steps: int
    steps_per_epoch: int
    batch_size: int
    measure: Callable[[Encoder], Iterator[tuple[str, float]]]
    """Yields (name, value) for the journal, every `measure_every` epochs."""
    measure_every: int
    interpreter: Interpreter
    checkpoints: Checkpoints
    journal_every: int
    checkpoint_every: int
    seed: int = 0
    name: str = ""
    observers: list[Observer] = field(default_factory=list)

    def modules(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint holds besides the optimizer."""
        parts = {"f_q": self.f_q, "keys": self.keys, "dictionary": self.dictionary}
        return parts | ({"loss": self.loss} if isinstance(self.loss, torch.nn.Module) else {})

    def state(self) -> dict[str, Any]:
        """Tensors and plain values from which `restore` goes on."""
        states = {name: module.state_dict() for name, module in self.modules().items()}
        return states | {"optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state of `state`."""
        for name, module in self.modules().items():
            module.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])


def train(run: Run, folder: Path) -> Journal:
    """Go on from the newest whole checkpoint to the last step.

    Raises:
        FloatingPointError: if the loss is not finite; the newest checkpoint precedes it.
    """
    start, window = 0, Window()
    if (found := run.checkpoints.load(next(run.f_q.parameters()).device)) is not None:
        start, state = found
        run.restore(state)
        window = Window(**state["window"])
    journal = Journal(folder, start)
    run.interpreter.replay(journal.rows)

    def say(sentence: str) -> None:
        for observer in run.observers:
            observer.say(sentence)

    def write(row: dict[str, Any]) -> None:
        journal.write(row)
        for observer in run.observers:
            observer.row(row)
        for sentence in run.interpreter.read(row):
            say(sentence)

    if start:
        say(f"resuming after step {start:,} of {run.steps:,}")
    else:
        for sentence in run.interpreter.introduction():
            say(sentence)
    for observer in run.observers:
        observer.begin(start, run.steps, run.batch_size)
    last: dict[str, Any] = next((row for row in reversed(journal.rows) if "loss" in row), {})
    clock, clock_step = time.perf_counter(), start
    run.f_q.train()
    run.keys.train()
    for batch in run.batches(start, run.steps):
        lr = run.learning_rate(batch.step)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        # what a network itself draws (dropout, stochastic depth) is keyed by the step, as all else is
        torch.manual_seed(chance.generator(run.seed, "network", batch.step).initial_seed())
        window.add(step(run, batch, run.world), batch.step)
        done = batch.step + 1
        journal_due = done % run.journal_every == 0 or done == run.steps
        checkpoint_due = done % run.checkpoint_every == 0 or done == run.steps

        if (journal_due or checkpoint_due) and (bad := window.first_bad()) is not None:
            raise FloatingPointError(
                f"the loss of step {bad + 1:,} is not finite (lr {run.learning_rate(bad):.4g}, "
                f"recipe {run.name}); lower optimizer.lr or add schedule.warmup"
            )
        if journal_due:
            last = {"step": done, "epoch": done / run.steps_per_epoch, **window.means(), "lr": lr}
            window = Window()
            write(last)
            now = time.perf_counter()
            speed = (done - clock_step) * run.batch_size / (now - clock)
            journal.write_timing({"step": done, "images_per_second": round(speed, 1), "time": time.time()})
            clock, clock_step = now, done
        if done == run.steps or (run.measure_every and done % (run.measure_every * run.steps_per_epoch) == 0):
            pause = time.perf_counter()
            if values := dict(run.measure(run.f_q)):
                write({"step": done, "epoch": done / run.steps_per_epoch, **values})
            run.f_q.train()
            clock += time.perf_counter() - pause
        if checkpoint_due:
            run.checkpoints.save(done, run.state() | {"window": window.state()})
        for observer in run.observers:
            observer.progress(done, last)
    return journal


class Window:
    """Means of the measures since the last journal row, summed on the device without synchronisation."""

    def __init__(self, sums: Tensor | None = None, count: int = 0):
        self.sums, self.count = sums, count
        self.bad: Tensor | None = None

    def add(self, measures: Measures, step: int) -> None:
        """Take in one step."""
        values = torch.stack(list(measures))
        self.sums = values if self.sums is None else self.sums + values
        self.count += 1
        bad = torch.where(measures.loss.isfinite(), -1, step)
        self.bad = bad if self.bad is None else torch.where(self.bad >= 0, self.bad, bad)

    def first_bad(self) -> int | None:
        """The first step of the window whose loss is not finite; waits for the device."""
        assert self.bad is not None
        bad = int(self.bad)
        return bad if bad >= 0 else None

    def means(self) -> dict[str, float]:
        """Mean of each measure, rounded to what is worth reading; waits for the device."""
        assert self.sums is not None
        means = (self.sums / self.count).tolist()
        return {name: round(mean, 6) for name, mean in zip(Measures._fields, means, strict=True)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"sums": self.sums, "count": self.count}
