"""The loop: batches in, steps, a journal, measurements and checkpoints out."""

import hashlib
import time
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
from moco.keys import KeyEncoder, MomentumKeys
from moco.loss import Contrast, Entries
from moco.training.checkpoint import Checkpoints
from moco.training.interpreter import Interpreter
from moco.training.interruption import EXIT_CODE, Interruption
from moco.training.interruption import name as interruption_name
from moco.training.journal import Journal
from moco.training.observer import Observer
from moco.training.step import step
from moco.training.unreadable import Unreadables
from moco.training.window import Window
from moco.world import World


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
    loss_weight: float
    """Factor of the loss where it is differentiated; journals have the loss without it."""
    world: World
    batches: Callable[[int, int], Iterator[Batch]]
    learning_rate: Callable[[int], float]
    momentum: Callable[[int], float] | None
    """m with which f_k follows after a step, where it changes over the run."""
    steps: int
    steps_per_epoch: int
    batch_size: int
    images: int
    unreadable_budget: float
    """Share of the images that may turn out unreadable before the run stops."""
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
        """Tensors and plain values from which `restore` goes on; whole on the first process only."""
        states = {name: module.state_dict() for name, module in self.modules().items()}
        for name, rows in self.dictionary.dealt.items():
            table = self.world.collect(states["dictionary"][name])
            states["dictionary"][name] = None if table is None else table[:rows]
        return states | {"optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any], tables: dict[str, Tensor]) -> None:
        """Take up a state of `state`; of dealt buffers the first process has the tables."""
        own = self.dictionary.state_dict()
        for name in self.dictionary.dealt:
            block, table = own[name], tables.get(name)
            if table is not None:  # the blocks are equal, so the last may reach past the table
                table = torch.cat([table, table.new_zeros(-len(table) % self.world.size, *table.shape[1:])])
            self.world.deal(table, block)
            state["dictionary"][name] = block
        for name, module in self.modules().items():
            module.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])

    def digest(self) -> int:
        """A number that processes which hold the same encoders and dictionary agree on."""
        total = hashlib.blake2b(digest_size=7)
        for module in self.f_q, self.keys, self.dictionary:
            for name, value in module.state_dict().items():
                if isinstance(value, Tensor) and name not in self.dictionary.dealt:
                    content = value.detach().cpu().contiguous()
                    total.update(content.view(-1).view(torch.uint8).numpy().data)
        return int.from_bytes(total.digest(), "little")


def train(run: Run, folder: Path) -> Journal:
    """Go on from the newest whole checkpoint to the last step.

    The first process writes; the others compute. A checkpoint that cannot be written leaves the
    earlier ones as they are and is tried again at the next interval.

    Returns:
        The journal; of the first process only, the others' is empty.

    Raises:
        FloatingPointError: if the loss is not finite; the newest checkpoint precedes it.
        RuntimeError: if more images are unreadable than the budget allows.
        OSError: if the last checkpoint cannot be written, or another process is lost.
        SystemExit: with `EXIT_CODE`, after a checkpoint, if a signal asked any process to leave.
    """
    world, first = run.world, run.world.rank == 0
    start, window, device = 0, Window(), next(run.f_q.parameters()).device
    if (found := _newest(run)) is not None:
        start, state, tables = found
        run.restore(state, tables)
        sums = state["window"]["sums"]
        window = Window(None if sums is None else sums.to(device), state["window"]["count"])
        _check_equal(run, start)
    observers = run.observers if first else []
    journal = Journal(folder if first else None, start)
    run.interpreter.replay(journal.rows)

    def say(sentence: str) -> None:
        for observer in observers:
            observer.say(sentence)

    def write(row: dict[str, Any]) -> None:
        journal.write(row)
        for observer in observers:
            observer.row(row)
        for sentence in run.interpreter.read(row):
            say(sentence)

    def save(done: int) -> str:
        """Write a checkpoint; what went wrong, if anything did."""
        _check_equal(run, done)
        state = run.state() | {"window": window.state()}
        if not first:
            return ""
        # a checkpoint must not outlive the rows before it
        return run.checkpoints.attempt(done, state, before=journal.flush)

    if start:
        say(f"resuming after step {start:,} of {run.steps:,}")
    else:
        for sentence in run.interpreter.introduction():
            say(sentence)
    for observer in observers:
        observer.begin(start, run.steps, run.batch_size)
    last: dict[str, Any] = next((row for row in reversed(journal.rows) if "loss" in row), {})
    clock, clock_step = time.perf_counter(), start
    run.f_q.train()
    run.keys.train()
    # what a network itself draws (dropout, stochastic depth) is keyed by the step, as all else is
    purpose = f"network {world.rank}" if world.rank else "network"
    unreadable = Unreadables(journal, world, run.images, run.unreadable_budget)
    with Interruption().heeded() as interruption:
        for batch in run.batches(start, run.steps):
            world.enter(batch.step)
            flags = world.largest(interruption.signal, len(unreadable.new(batch)))
            lr = run.learning_rate(batch.step)
            for group in run.optimizer.param_groups:
                group["lr"] = lr
            if run.momentum is not None and isinstance(run.keys, MomentumKeys):
                run.keys.momentum = run.momentum(batch.step)
            torch.manual_seed(chance.generator(run.seed, purpose, batch.step).initial_seed())
            done = batch.step + 1
            journal_due = done % run.journal_every == 0 or done == run.steps
            masked = run.dictionary.masked(batch, world) if journal_due else None  # before it is enqueued
            window.add(step(run, batch, world), batch.step)
            asked_to_leave, found_unreadable = flags()
            leaving = asked_to_leave * (done < run.steps)
            checkpoint_due = done % run.checkpoint_every == 0 or done == run.steps

            if found_unreadable:
                for sentence in unreadable.take(batch):
                    say(sentence)
            by_epoch = run.measure_every and done % (run.measure_every * run.steps_per_epoch) == 0
            if (journal_due or checkpoint_due or leaving or by_epoch) and (
                bad := window.first_bad()
            ) is not None:
                raise FloatingPointError(
                    f"the loss of step {bad + 1:,} is not finite (lr {run.learning_rate(bad):.4g}, "
                    f"recipe {run.name}); lower optimizer.lr or add schedule.warmup"
                )
            if journal_due:
                last = {"step": done, "epoch": done / run.steps_per_epoch, **window.means(), "lr": lr}
                if masked is not None and (share := float(masked)):  # waits for the device, as the means do
                    last["masked"] = round(share, 9)
                window = Window()
                write(last)
                now = time.perf_counter()
                speed = (done - clock_step) * run.batch_size / (now - clock)
                journal.write_timing(
                    {"step": done, "images_per_second": round(speed, 1), "time": time.time()}
                )
                clock, clock_step = now, done
            if first and (done == run.steps or by_epoch):
                pause = time.perf_counter()
                if values := dict(run.measure(run.f_q)):
                    write({"step": done, "epoch": done / run.steps_per_epoch, **values})
                run.f_q.train()
                clock += time.perf_counter() - pause
            failure = save(done) if checkpoint_due or leaving else ""
            if failure and (leaving or done == run.steps):
                raise OSError(f"{failure}, so the run cannot end here; see to the disk, then start it again")
            if failure:
                say(f"{failure}; trying again after step {done + run.checkpoint_every:,}")
            if leaving:
                say(f"{interruption_name(leaving)}: saved step {done:,}; the same command goes on from there")
                raise SystemExit(EXIT_CODE)
            for observer in observers:
                observer.progress(done, last)
    return journal


def _newest(run: Run) -> tuple[int, dict[str, Any], dict[str, Tensor]] | None:
    """Step and state of the newest whole checkpoint, as the first process finds it, on all of them.

    Tables that the processes hold between them come apart from the state, and to the first only.
    """
    tables: dict[str, Tensor] = {}

    def load() -> tuple[int, dict[str, Any]] | None:
        if (found := run.checkpoints.load("cpu")) is not None:
            for name in run.dictionary.dealt:
                tables[name] = found[1]["dictionary"].pop(name)
        return found

    found = run.world.first(load)
    return None if found is None else (*found, tables)


def _check_equal(run: Run, done: int) -> None:
    """Raise if the processes no longer hold the same weights and queue; waits for the device."""
    if run.world.size == 1:
        return
    digest = run.digest()
    largest, negated = run.world.largest(digest, -digest)()
    if largest != -negated:
        raise RuntimeError(
            f"the processes hold different weights or queues after step {done:,}; do all machines run the "
            "same versions of moco and torch on the same kind of processor?"
        )
