"""The loop of fine-tuning: batches in, steps, a journal and checkpoints out."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco import chance
from moco.training.checkpoint import Checkpoints
from moco.training.gradients import averaged_gradients
from moco.training.interruption import EXIT_CODE, Interruption, name
from moco.training.journal import Journal
from moco.training.observer import Observer
from moco.transfer.detector import Detector
from moco.transfer.loader import Loader
from moco.transfer.segmentation import Segmenter
from moco.transfer_build import learning_rate, optimizer
from moco.transfer_recipe import TransferRecipe
from moco.world import World


@dataclass
class Trial:
    """Everything one trial works on.

    Attributes:
        began: when the trial did, by `time.perf_counter`, less what a resumed one had taken before.
    """

    values: TransferRecipe
    model: Detector | Segmenter
    loader: Loader
    checkpoints: Checkpoints
    world: World
    seed: int
    began: float
    observers: list[Observer] = field(default_factory=list)


def fine_tune(run: Trial, folder: Path) -> dict[str, Any]:
    """Go on from the newest whole checkpoint to the last step.

    Args:
        run: what to train.
        folder: of the journal.

    Returns:
        The last row of the journal.

    Raises:
        FloatingPointError: if the loss is not finite; the newest checkpoint precedes it.
        SystemExit: with `EXIT_CODE`, after a checkpoint, if a signal asked any process to leave.
    """
    with Interruption().heeded() as interruption:
        return _fine_tune(run, folder, interruption)


def _fine_tune(run: Trial, folder: Path, interruption: Interruption) -> dict[str, Any]:
    values, model = run.values, run.model
    descent, start, sums = optimizer(values, model), 0, {}
    found = run.world.first(lambda: run.checkpoints.load("cpu"))  # others may have other disks
    if found is not None:
        start, state = found
        model.load_state_dict(state["model"])
        descent.load_state_dict(state["optimizer"])
        device = next(model.parameters()).device
        sums = {kind: value.to(device) for kind, value in state["sums"].items()}
        run.began -= state.get("seconds", 0.0)  # checkpoints of earlier versions do not say
        _say(run, f"resuming after step {start:,} of {values.iterations:,}")
    journal = Journal(folder if run.world.rank == 0 else None, start)
    last = dict(journal.rows[-1]) if journal.rows else {}
    for observer in run.observers:
        observer.begin(start, values.iterations, values.batch)
    clock, clock_step = time.perf_counter(), start
    model.train()
    for step, batch in enumerate(run.loader.stream(start, values.iterations), start):
        run.world.enter(step)
        flags = run.world.largest(interruption.signal)
        lr = learning_rate(values, step)
        for group in descent.param_groups:
            group["lr"] = lr
        torch.manual_seed(chance.generator(run.seed, "transfer network", step).initial_seed())
        losses = model.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        descent.zero_grad(set_to_none=True)
        with averaged_gradients(model, run.world):
            total.backward()
        descent.step()
        for kind, value in {"loss": total, **losses}.items():
            sums[kind] = sums.get(kind, 0) + value.detach()
        done = step + 1
        journal_due = done % values.journal_every == 0 or done == values.iterations
        leaving = flags()[0] * (done < values.iterations)
        checkpoint_due = done % values.checkpoint_every == 0 or done == values.iterations or leaving
        if journal_due or checkpoint_due:
            _refuse_non_finite(run, sums, done, lr)
        if journal_due:
            count = done - (done - 1) // values.journal_every * values.journal_every
            last = {"step": done, **_means(sums, count, run.world), "lr": lr}
            sums = {}
            journal.write(last)
            now = time.perf_counter()
            speed = (done - clock_step) * values.batch / (now - clock)
            journal.write_timing({"step": done, "images_per_second": round(speed, 2), "time": time.time()})
            clock, clock_step = now, done
        if checkpoint_due:
            sums = _shared(sums, run.world)
            failure = ""
            if run.world.rank == 0:
                state = {"model": model.state_dict(), "optimizer": descent.state_dict(), "sums": sums}
                state["seconds"] = time.perf_counter() - run.began
                failure = run.checkpoints.attempt(done, state, before=journal.flush)
            if failure and (leaving or done == values.iterations):
                raise OSError(f"{failure}, so the run cannot end here; see to the disk, then start it again")
            if failure:
                _say(run, f"{failure}; trying again after step {done + values.checkpoint_every:,}")
        if leaving:
            _say(run, f"{name(leaving)}: saved step {done:,}; the same command goes on from there")
            raise SystemExit(EXIT_CODE)
        for observer in run.observers:
            observer.progress(done, last)
    return last


def _shared(sums: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Sums of losses as means over the processes, so that every process can go on from them."""
    if not sums:
        return {}
    means = world.gather(torch.stack(list(sums.values()))[None]).mean(0)
    return dict(zip(sums, means, strict=True))


def _means(sums: dict[str, Tensor], count: int, world: World) -> dict[str, float]:
    """Mean of each loss over steps and processes; waits for the device."""
    values = world.gather((torch.stack(list(sums.values())) / count)[None]).mean(0).tolist()
    return {kind: round(value, 6) for kind, value in zip(sums, values, strict=True)}


def _refuse_non_finite(run: Trial, sums: dict[str, Tensor], done: int, lr: float) -> None:
    """Stop all processes when the loss of one is not finite; waits for the device."""
    finite = sums["loss"].isfinite().float().reshape(1, 1)
    if bool((run.world.gather(finite) < 1).any()):
        raise FloatingPointError(
            f"the loss is not finite at step {done:,} or shortly before (lr {lr:.4g}, recipe "
            f"{run.values.name}, seed {run.seed}); lower --lr or lengthen --schedule.warmup"
        )


def _say(run: Trial, sentence: str) -> None:
    for observer in run.observers:
        observer.say(sentence)
