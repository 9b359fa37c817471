"""What several processes compute together in `test_world.py`: each case gives numbers to compare.

Run as a program it forks those processes; they join the worlds they are told and save what these gave.
"""

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from moco.batch import Batch
from moco.dictionary import InBatch, MemoryBank, MomentumQueue
from moco.keys import MomentumKeys, QueryKeys, TiedKeys
from moco.loss import NCE, info_nce, margin
from moco.norm import synchronise
from moco.processes import joined
from moco.training.step import step
from moco.training.trainer import Run
from moco.world import World
from tiny import tiny_batch, tiny_encoder

IMAGES, BATCH = 102, 16  # slots do not divide among four processes

CASES = {
    "queue": {"steps": 12},
    "queue, symmetric": {"symmetric": True},
    "end-to-end": {"keys": "tied", "dictionary": "in-batch", "lr": 0.01},
    "end-to-end, symmetric": {"keys": "tied", "dictionary": "in-batch", "lr": 0.01, "symmetric": True},
    "memory bank": {"keys": "query", "dictionary": "bank"},
    "memory bank, draws per query": {"keys": "query", "dictionary": "bank", "per_query": True},
    "momentum keys in the batch": {"dictionary": "in-batch"},
    "own keys masked": {"mask_own": True, "size": 90, "steps": 8},
    "nce": {"loss": "nce"},
    "margin": {"loss": "margin"},
    "in parts": {"accumulate": 2, "most": 2},
    "v3": {"v3": True, "dictionary": "in-batch", "symmetric": True, "lr": 0.01},
}
"""Mechanisms and losses; `most` is the largest number of processes whose shares hold whole parts."""


SINGLE = {
    "steps": 12,
    "size": 48,
    "lr": 0.003,
}  # whole batches in the queue: their inner order does not matter


def share(batch: Batch, world: World) -> Batch:
    """A process's share of a global batch."""
    count = len(batch.index) // world.size
    mine = slice(world.rank * count, (world.rank + 1) * count)
    return Batch(tuple(v[mine] for v in batch.views), batch.index[mine], batch.orders, batch.step)


def train(world: World, *, dtype=torch.float64, regroup=0, **case) -> dict:
    """A few steps of a case: losses and measures of each, weights and dictionary at the end."""
    v3 = case.get("v3", False)  # batch normalisation over the whole batch, which has nothing to shuffle
    f_q = tiny_encoder(dtype=dtype, arch=case.get("arch", "resnet10"), v3=v3, bn_group=None if v3 else 4)
    size, masked = case.get("size", 50), case.get("mask_own", False)
    keys = {
        "momentum": lambda: MomentumKeys(f_q, 0.9, shuffle=not v3),
        "tied": lambda: TiedKeys(f_q),
        "query": QueryKeys,
    }
    dictionaries = {
        "queue": lambda: MomentumQueue(size, 8, mask_own=masked),
        "in-batch": InBatch,
        "bank": lambda: MemoryBank(IMAGES, size, 8, per_query=case.get("per_query", False), world=world),
    }
    losses = {
        "info_nce": lambda q, entries: info_nce(q, entries, 0.2),
        "nce": NCE(0.2, IMAGES, world),
        "margin": lambda q, entries: margin(q, entries, 0.5, world),
    }
    run = SimpleNamespace(
        f_q=f_q,
        keys=keys[case.get("keys", "momentum")](),
        dictionary=dictionaries[case.get("dictionary", "queue")]().to(dtype),
        loss=losses[case.get("loss", "info_nce")],
        optimizer=torch.optim.SGD(f_q.parameters(), case.get("lr", 0.05), momentum=0.9, weight_decay=1e-4),
        symmetric=case.get("symmetric", False),
        accumulate=case.get("accumulate", 1),
        loss_weight=1.0,
    )
    synchronise((f_q, run.keys), world)
    measured, left_out = [], []
    for s in range(case.get("steps", 4)):
        world.enter(s)
        batch = tiny_batch(BATCH, dtype, s, size=case.get("pixels", 8))
        if regroup:  # the same groups in another order: only the order of sums changes
            turn = torch.arange(BATCH).roll(regroup)
            order = turn.argsort()
            views = tuple(v[turn] for v in batch.views)
            orders = tuple(order[o].roll(regroup) for o in batch.orders)
            batch = Batch(views, batch.index[turn], orders, s)
        own = share(batch, world)
        left_out.append(run.dictionary.masked(own, world))
        measured.append(torch.stack(step(run, own, world)))
    state = {name: value.clone() for name, value in run.f_q.state_dict().items()}
    state |= {f"keys.{name}": value.clone() for name, value in run.keys.state_dict().items()}
    for name, value in run.dictionary.state_dict().items():
        if name in run.dictionary.dealt:
            value = world.collect(value)
            value = value if value is None else value[: run.dictionary.dealt[name]]
        state[f"dictionary.{name}"] = value
    return {"measures": torch.stack(measured), "masked": torch.stack(left_out), "state": state}


def moves(world: World) -> dict:
    """Results of each way to communicate, on rows that every process can name."""
    found = {}
    for rows, kind in (3, torch.uint8), (4, torch.bfloat16), (5, torch.float64):
        whole = torch.arange(rows * world.size * 2 * 6 * 6).view(-1, 2, 6, 6).to(kind)
        mine = whole[world.rank * rows : (world.rank + 1) * rows].contiguous(
            memory_format=torch.channels_last
        )
        for seed in range(20):
            order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
            moved = world.shuffle(mine, order)
            assert torch.equal(moved, whole[order][world.rank * rows : (world.rank + 1) * rows])
            assert moved.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(world.unshuffle(moved, order), mine)
        assert torch.equal(world.gather(mine), whole)
    own = torch.full((2, 3), world.rank + 1.0, requires_grad=True)
    weights = torch.arange(6.0 * world.size).view(-1, 3) * (world.rank + 1)
    (world.gather(own) * weights).sum().backward()
    found["gathered gradient"] = own.grad
    table = torch.arange(40.0).view(20, 2)
    block = table[world.rank * (20 // world.size) : (world.rank + 1) * (20 // world.size)]
    for rows in torch.tensor([19, 0, 7, 7, world.rank]), torch.tensor([[3, 2], [11, 19]]):
        assert torch.equal(world.fetch(block, rows), table[rows])
    collected = world.collect(block)
    assert (collected is None) == (world.rank > 0)
    back = torch.zeros_like(block)
    world.deal(collected, back)
    assert torch.equal(back, block)
    assert world.largest(-5 * world.rank - 1, world.rank)() == [-1, world.size - 1]
    assert world.first(lambda: {"rank": world.rank}) == {"rank": 0}
    try:
        world.first(lambda: [][world.rank + 1])
    except IndexError as error:
        found["error of the first"] = str(error)
    found["mean"] = world.mean(torch.tensor([world.rank, 2.0]), "numbers")
    return found


def main(folder: Path, rank: int, sizes: list[int], changes: dict) -> None:
    torch.set_num_threads(1)
    port = int(os.environ["MASTER_PORT"])
    for i, size in enumerate(sizes):
        if rank >= size:
            break
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_PORT": str(port + i)}
        with joined(time_limit=60) as world:
            found = {"moves": moves(world)}
            for name, case in CASES.items():
                if size <= case.get("most", size):
                    found[name] = train(world, **case | changes)
            found["float32"] = train(world, dtype=torch.float32, **SINGLE | changes)
            torch.save(found, folder / f"{size}-{rank}.pt")


def in_double(run: Run) -> Run:
    """The run in double precision, so that rounding does not hide what else differs."""
    for module in run.f_q, run.keys, run.dictionary:
        module.double()
    single = run.batches

    def double(start, stop):
        for batch in single(start, stop):
            yield dataclasses.replace(batch, views=tuple(view.double() for view in batch.views))

    run.batches = double
    return run


def fork(count: int, act: Callable[[int], object]) -> list[int]:
    """Run `act(rank)` in so many processes that share what is imported; the process numbers."""
    started = []
    for rank in range(count):
        if (process := os.fork()) == 0:
            code = 1
            try:
                act(rank)
                code = 0
            except SystemExit as left:
                code = int(left.code or 0)
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        started.append(process)
    return started


def wait(started: list[int]) -> list[int]:
    """The exit codes of forked processes."""
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]


if __name__ == "__main__":
    folder, sizes, changes = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    sys.exit(any(wait(fork(max(sizes), lambda rank: main(folder, rank, sizes, changes)))))
