"""A `World` of many processes, over torch.distributed: gloo between CPUs, NCCL between GPUs.

The processes are started by torchrun or srun, which set their environment; nothing here starts any.
Every wait carries a time limit, and its error says which process waited for what, at which step, and
which processes it did not hear from.
"""

import contextlib
import datetime
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.rendezvous import rendezvous

from moco import cluster
from moco.device import send
from moco.world import Solo, World

T = TypeVar("T")
_CPU = torch.device("cpu")
_START_LIMIT = datetime.timedelta(minutes=10)  # for processes to find each other, whatever the limit later


class Processes(World):
    """The processes that torchrun or srun started; made by `joined`.

    Args:
        store: where the processes leave notes for each other.
        time_limit: seconds a process waits for the others.
    """

    def __init__(self, store: Any, time_limit: float):
        self._store, self._limit = store, time_limit
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._where = "before the first step"

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    @property
    def neighbours(self) -> int:
        return cluster.processes_here(self._size)

    def enter(self, step: int) -> None:
        self._where = f"at step {step + 1:,}"

    def gather(self, x: Tensor) -> Tensor:
        return _Gather.apply(x, self)

    def shuffle(self, x: Tensor, order: Tensor) -> Tensor:
        order = order.to(_CPU)
        return _Shuffle.apply(x, order, order.argsort(), self)

    def unshuffle(self, x: Tensor, order: Tensor) -> Tensor:
        order = order.to(_CPU)
        return _Shuffle.apply(x, order.argsort(), order, self)

    def average(self, x: Tensor, what: str) -> Callable[[], None]:
        def begin() -> Any:
            x.div_(self._size)
            return dist.all_reduce(x, async_op=True)

        work = self._within_limit(what, begin)
        return lambda: self._within_limit(what, work.wait)

    def largest(self, *values: int) -> Callable[[], list[int]]:
        box = torch.tensor(values)
        what = "whether to go on"
        work: Any = self._within_limit(what, lambda: dist.all_reduce(box, dist.ReduceOp.MAX, async_op=True))

        def result() -> list[int]:
            self._within_limit(what, work.wait)
            return box.tolist()

        return result

    def first(self, act: Callable[[], T]) -> T:
        box: list[Any] = [None, None]
        if self._rank == 0:
            try:
                box = [act(), None]
            except Exception as error:  # the others must not wait for a process that gave up
                box = [None, error]
        own = box[1]
        self._within_limit("the first process", lambda: dist.broadcast_object_list(box, 0, device=_CPU))
        if own is not None:
            raise own
        if box[1] is not None:
            raise box[1]
        return box[0]

    def assemble(self, own: T) -> list[T]:
        parts: list[Any] | None = [None] * self._size if self._rank == 0 else None
        self._within_limit("what the others found", lambda: dist.gather_object(own, parts, 0))
        return parts or []

    def fetch(self, block: Tensor, rows: Tensor) -> Tensor:
        flat = rows.flatten().to(_CPU)
        owner = flat // len(block)
        by_owner = owner.argsort(stable=True)
        asks = owner.bincount(minlength=self._size)
        asked = torch.empty_like(asks)
        self._to_each(asked, asks, None, None)
        wanted = flat.new_empty(int(asked.sum()))
        self._to_each(wanted, flat[by_owner], asked.tolist(), asks.tolist())
        found = block[send(wanted - self._rank * len(block), block.device)]
        arrived = block.new_empty(len(flat), *block.shape[1:])
        self._to_each(arrived, found, asks.tolist(), asked.tolist())
        result = torch.empty_like(arrived)
        result[send(by_owner, block.device)] = arrived
        return result.view(*rows.shape, *block.shape[1:])

    def collect(self, block: Tensor) -> Tensor | None:
        own = block.detach().to(_CPU).contiguous()
        parts = [torch.empty_like(own) for _ in range(self._size)] if self._rank == 0 else None
        self._within_limit("the dictionary's blocks", lambda: dist.gather(own, parts, 0))
        return None if parts is None else torch.cat(parts)

    def deal(self, table: Tensor | None, block: Tensor) -> None:
        own = torch.empty_like(block, device=_CPU)
        parts = None if table is None else [part.contiguous() for part in table.to(_CPU).chunk(self._size)]
        self._within_limit("its block of the dictionary", lambda: dist.scatter(own, parts, 0))
        block.copy_(own)

    def exchange(self, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        """Rows of the global batch in an order, each sent once and only to where it belongs."""
        count, start = len(x), self._rank * len(x)
        places = inverse[start : start + count]  # where this process's rows go
        owners = order[start : start + count] // count  # who has the rows that come here
        leaving = places.argsort()
        arrived = torch.empty_like(x, memory_format=torch.contiguous_format)
        rows = x[send(leaving, x.device)].contiguous()
        incoming = owners.bincount(minlength=self._size).tolist()
        outgoing = (places // count).bincount(minlength=self._size).tolist()
        self._to_each(arrived, rows, incoming, outgoing)
        result = torch.empty_like(x)
        result[send(owners.argsort(stable=True), x.device)] = arrived
        return result

    def gather_rows(self, x: Tensor) -> Tensor:
        """Rows of all processes in rank order, without gradient."""
        result = x.new_empty(len(x) * self._size, *x.shape[1:])
        self._within_limit("rows to gather", lambda: dist.all_gather_into_tensor(result, x.contiguous()))
        return result

    def scatter_sum(self, x: Tensor) -> Tensor:
        """This process's rows of the sum over the processes."""
        result = x.new_empty(len(x) // self._size, *x.shape[1:])
        self._within_limit(
            "gradients of gathered rows", lambda: dist.reduce_scatter_tensor(result, x.contiguous())
        )
        return result

    def _to_each(
        self, out: Tensor, x: Tensor, incoming: list[int] | None, outgoing: list[int] | None
    ) -> None:
        self._within_limit(
            "rows that move between processes",
            lambda: dist.all_to_all_single(out, x.contiguous(), incoming, outgoing),
        )

    def _within_limit(self, what: str, act: Callable[[], T]) -> T:
        started = time.monotonic()
        try:
            return act()
        except torch.OutOfMemoryError:  # of this process; the others lost it
            raise
        except RuntimeError as error:
            waited = time.monotonic() - started
            raise self._explain(what, waited, error) from error

    def _explain(self, what: str, waited: float, error: RuntimeError) -> Exception:
        """A sentence for a wait that failed: a process is gone, or did not come within the limit."""
        place = f"process {self._rank} of {self._size} waited for {what} {self._where}"
        if not re.search(r"timed? ?out", str(error), re.IGNORECASE):
            said = str(error).partition("\n")[0]
            return ConnectionError(
                f"{place} and lost another process ({said}); its own message says why it ended. "
                "The same command goes on from the last checkpoint"
            )
        return TimeoutError(
            f"{place} for {waited:.0f} s, the time limit is {self._limit:g} s; not heard from: "
            f"{self._silent()}. Look at what that process does, or allow more with --time-limit"
        )

    def _silent(self) -> str:
        """The processes that do not report a failed wait of their own within two seconds."""
        try:
            self._store.set(f"waits in vain/{self._rank}", "")
            time.sleep(2)
            silent = [r for r in range(self._size) if not self._store.check([f"waits in vain/{r}"])]
        except RuntimeError:  # the process that kept the store is gone
            return "unknown"
        return ", ".join(f"process {r}" for r in silent) or "none, so the network is slower than the limit"


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, world):
        ctx.world = world
        return world.gather_rows(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return ctx.world.scatter_sum(grad), None


class _Shuffle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, order, inverse, world):
        ctx.world, ctx.orders = world, (inverse, order)
        return world.exchange(x, order, inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return ctx.world.exchange(grad, *ctx.orders), None, None, None


@contextlib.contextmanager
def joined(*, time_limit: float = 600) -> Iterator[World]:
    """The processes this one was started with by torchrun or srun; `Solo` if it was started alone.

    Args:
        time_limit: seconds a process waits for the others before it ends the run.

    Raises:
        ValueError: if the time limit is not positive.
    """
    if not time_limit > 0:
        raise ValueError(f"time_limit must be above 0 seconds, got {time_limit}")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        cluster.end_with_parent()
    rank, size = cluster.rank_and_size()
    if size == 1:
        yield Solo()
        return
    os.environ.setdefault(
        "MASTER_ADDR", cluster.first_host(os.environ.get("SLURM_STEP_NODELIST", "localhost"))
    )
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", 9500)) % 20000))
    store, rank, size = next(rendezvous("env://", rank, size, timeout=_START_LIMIT))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    limit = datetime.timedelta(seconds=time_limit)
    with _said_on_standard_error():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    yield Processes(store, time_limit)
    dist.destroy_process_group()  # only after a good end: a broken group is left to the exit


@contextlib.contextmanager
def _said_on_standard_error() -> Iterator[None]:
    """What libraries say is no result: gloo of torch 2.9 counts its peers on standard output."""
    if sys.__stdout__ is None or sys.__stderr__ is None:  # one of them was closed at the start
        yield
        return
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
