"""One run on 1, 2 and 4 processes, through kills and changes of their number: see docs/reliability.md.

    python benchmarks/elastic.py equal      losses of every mechanism against one process, 30 steps
    python benchmarks/elastic.py elastic    4, then 2, then 1 process in one run's life
    python benchmarks/elastic.py kills      50 processes killed at random moments (--kills, --processes)
    python benchmarks/elastic.py moves      bytes and time of a shuffle against gathering everything
    python benchmarks/elastic.py overhead   a step in a world of one against a step without

All of them fork their processes on this machine and talk by gloo; the small runs are those of tests/.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from moco.processes import joined  # noqa: E402
from moco.recipe import SGD  # noqa: E402
from moco.training.checkpoint import Checkpoints  # noqa: E402
from moco.training.trainer import Run, train  # noqa: E402
from moco.world import Solo, World  # noqa: E402

SIZE = 32
"""Pixels of a side: at 8 or 16 the last stage normalises four values a group, which multiplies rounding."""

ranks: Any = importlib.import_module("ranks")
tiny: Any = importlib.import_module("tiny")


def new_address() -> None:
    """A free port for the next group of processes."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(s.getsockname()[1])}


def equal(call: argparse.Namespace) -> None:
    """Largest difference of any loss from one process in double precision, and the drift in single."""
    folder = Path(tempfile.mkdtemp(prefix="moco-equal-"))
    new_address()
    changes = {
        "steps": call.steps,
        "arch": "resnet18",
        "pixels": 32,
    }  # at 8 pixels rounding grows tenfold a step
    command = [sys.executable, str(TESTS / "ranks.py"), str(folder), "[4, 2]", json.dumps(changes)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for name, case in ranks.CASES.items():
        alone = ranks.train(Solo(), **case | changes)["measures"][:, 0]
        for size in 2, 4:
            found = [torch.load(folder / f"{size}-{rank}.pt") for rank in range(size)]
            if name in found[0]:
                ours = found[0][name]["measures"][:, 0]
                same = all(
                    torch.equal(other[name]["measures"], found[0][name]["measures"]) for other in found
                )
                queues = [found[r][name]["state"].get("dictionary.keys") for r in range(size)]
                bits = all(queue is None or torch.equal(queue, queues[0]) for queue in queues)
                print(
                    f"{name:30} {size} processes: largest difference {(ours - alone).abs().max():.1e}, "
                    f"ranks {'equal' if same and bits else 'DIFFER'}",
                    flush=True,
                )
    single = ranks.SINGLE | changes
    reference = ranks.train(Solo(), dtype=torch.float32, **single)["measures"][:, 0]
    curves = {"one process, sums reordered": ranks.train(
        Solo(), dtype=torch.float32, regroup=True, **single)["measures"][:, 0]}  # fmt: skip
    for size in 2, 4:
        curves[f"{size} processes"] = torch.load(folder / f"{size}-0.pt")["float32"]["measures"][:, 0]
    print(f"single precision, difference from one process at steps 1, 5, 10, 20, {call.steps}:")
    for name, curve in curves.items():
        drift = (curve - reference).abs()
        print(f"{name:30} " + "  ".join(f"{drift[s]:.1e}" for s in (0, 4, 9, 19, call.steps - 1)))
    shutil.rmtree(folder)


def small_run(world: World, folder: Path, steps: int) -> Run:
    """The run that is disturbed; in double precision, so that rounding does not hide what else differs."""
    values = tiny.tiny_recipe(
        batch=16,
        epochs=None,
        iterations=steps,
        checkpoint_every=4,
        journal_every=1,
        views=dataclasses.replace(tiny.RECIPE.views, size=SIZE),
        optimizer=SGD(lr=0.01),
    )
    run = tiny.tiny_run(values, tiny.tiny_data(), folder / "checkpoints", world=world)
    run.measure = lambda _: iter(())
    return ranks.in_double(run)


def live(folder: Path, rank: int, size: int, steps: int) -> None:
    """One process of the run, from its newest checkpoint on."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    with joined(time_limit=60) as world:
        train(small_run(world, folder, steps), folder)


def losses(folder: Path) -> list[float]:
    """The losses of a journal, of every step once."""
    rows = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def same(a: object, b: object) -> bool:
    """Whether two checkpoints hold the same bits."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def elastic(_: argparse.Namespace) -> None:
    """The losses of a run on 4, then 2, then 1 process against those of 1 throughout."""
    folder = Path(tempfile.mkdtemp(prefix="moco-elastic-"))
    for name in "alone", "changing":
        (folder / name).mkdir()
    train(small_run(Solo(), folder / "alone", 30), folder / "alone")
    for size, steps in (4, 12), (2, 20), (1, 30):

        def part(rank: int, size: int = size, stop: int = steps) -> None:
            torch.set_num_threads(1)
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
            with joined(time_limit=60) as world:
                run = small_run(world, folder / "changing", 30)
                run.steps = stop  # the schedule stays that of 30 steps
                train(run, folder / "changing")

        new_address()
        assert not any(ranks.wait(ranks.fork(size, part)))
    pairs = list(zip(losses(folder / "alone"), losses(folder / "changing"), strict=True))
    drift = [abs(a - b) for a, b in pairs]
    found = [Checkpoints(folder / name / "checkpoints").load() for name in ("alone", "changing")]
    alone, changing = (state["f_q"] for _, state in filter(None, found))
    weights = max(float((value - changing[name]).abs().max()) for name, value in alone.items())
    print(
        "4 processes to step 12, 2 to step 20, 1 to step 30, double precision: largest difference from 1 "
        f"process throughout, of a loss as journalled (6 digits) {max(drift):.1e}, of a weight {weights:.1e}"
    )
    shutil.rmtree(folder)


def kills(call: argparse.Namespace) -> None:
    """Kill one process at a random moment, restart all, and compare each finished run with a calm one."""
    folder, size, steps = Path(tempfile.mkdtemp(prefix="moco-kills-")), call.processes, 40
    moments = random.Random(call.seed)

    def start(name: str) -> list[int]:
        (folder / name).mkdir(exist_ok=True)
        new_address()
        return ranks.fork(size, lambda rank: live(folder / name, rank, size, steps))

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the processes' own words on how they ended
    begun = time.monotonic()
    assert not any(ranks.wait(start("calm")))
    lifetime = time.monotonic() - begun
    calm = Checkpoints(folder / "calm" / "checkpoints").load()
    count = finished = equals = torn = most_lost = 0
    slowest = 0.0
    while count < call.kills:
        name = f"victim {finished}"
        started = start(name)
        time.sleep(moments.uniform(0.05, 0.7) * lifetime)
        victim = moments.randrange(size)
        gone, _ = os.waitpid(started[victim], os.WNOHANG)
        if not gone:
            journal = folder / name / "journal.jsonl"
            os.kill(started[victim], signal.SIGKILL)
            count += 1
            killed = time.monotonic()
            ranks.wait(started)
            slowest = max(slowest, time.monotonic() - killed)
            reached = len(journal.read_text().splitlines()) if journal.exists() else 0
            said: list[str] = []
            found = Checkpoints(folder / name / "checkpoints", say=said.append).load()
            torn += any("is passed over" in sentence for sentence in said)
            newest = found[0] if found else 0
            most_lost = max(most_lost, reached - newest)
            print(
                f"kill {count}: process {victim} after step {reached}, newest checkpoint {newest}; "
                f"{equals} of {finished} runs ended with the bits of a calm one",
                flush=True,
            )
            continue
        ranks.wait([rank for rank in started if rank != gone])
        equals += same(Checkpoints(folder / name / "checkpoints").load(), calm) and (
            losses(folder / name) == losses(folder / "calm")
        )
        finished += 1
    while finished == 0 or (folder / f"victim {finished}").exists():
        assert not any(ranks.wait(start(f"victim {finished}")))
        equals += same(Checkpoints(folder / f"victim {finished}" / "checkpoints").load(), calm) and (
            losses(folder / f"victim {finished}") == losses(folder / "calm")
        )
        finished += 1
    print(
        f"{count} kills of one of {size} processes, any process, any moment of a run of {steps} steps: "
        f"{equals} of {finished} runs ended with the bits of a calm one; at most {most_lost} steps lost "
        f"(a checkpoint every 4); {torn} unfinished checkpoints passed over, none loaded; the other "
        f"processes ended within {slowest:.1f} s"
    )
    shutil.rmtree(folder)
    sys.exit(equals != finished)


def moves(call: argparse.Namespace) -> None:
    """Time and bytes of shuffling a key batch: rows sent where they belong, against all to all processes."""

    def measure(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(call.processes)}
        with joined() as world:
            for kind in torch.float32, torch.bfloat16, torch.uint8:
                share = 32
                x = torch.zeros(share, 3, 224, 224).to(kind)
                order = torch.randperm(share * world.size, generator=torch.Generator().manual_seed(0))
                mine = slice(world.rank * share, (world.rank + 1) * share)
                ways: dict[str, Any] = {
                    "exchange": functools.partial(world.shuffle, x, order),
                    "gather": lambda x=x, o=order, m=mine: world.gather(x)[o[m]],
                }
                times: dict[str, list[float]] = {name: [] for name in ways}
                for _ in range(7):
                    for name, way in ways.items():
                        world.mean(torch.zeros(1), "start")
                        begun = time.perf_counter()
                        way()
                        times[name].append(1000 * (time.perf_counter() - begun))
                if rank == 0:
                    away = int((order[mine] // share != rank).sum())
                    row = x[0].numel() * x.element_size()
                    print(
                        f"{kind}: exchange {statistics.median(times['exchange']):.0f} ms, "
                        f"{away * row / 1e6:.1f} MB received; gather "
                        f"{statistics.median(times['gather']):.0f} ms, "
                        f"{(world.size - 1) * share * row / 1e6:.1f} MB",
                        flush=True,
                    )

    new_address()
    ranks.wait(ranks.fork(call.processes, measure))


def overhead(call: argparse.Namespace) -> None:
    """Ratio of a step through `Solo` to one with every world call replaced by what one process needs."""
    from moco.training import step as module

    torch.set_num_threads(1)
    run = tiny.tiny_run(tiny.tiny_recipe(), tiny.tiny_data())
    run.f_q.train()
    batch = tiny.tiny_batch(16, torch.float32, size=16)
    times: dict[str, list[float]] = {"world": [], "without": []}
    plain = {
        "averaged_gradients": lambda *_: contextlib.nullcontext(),
        "average_statistics": lambda *_: None,
    }
    ours = {name: getattr(module, name) for name in plain}
    for turn in range(2 * call.rounds):
        name = ("world", "without")[turn % 2]
        for key, value in (ours if name == "world" else plain).items():
            setattr(module, key, value)
        begun = time.process_time()
        for _ in range(5):
            if name == "world":
                run.world.enter(0)
                asked = run.world.largest(0)
            module.step(run, batch, run.world)
            if name == "world":
                asked()
        times[name].append(time.process_time() - begun)
    ratios = [a / b for a, b in zip(times["world"], times["without"], strict=True)]
    middle = statistics.median(ratios)
    spread = statistics.stdev(ratios) / len(ratios) ** 0.5
    print(
        f"step with a world of one / without: {middle:.4f} (standard error {spread:.4f}, {len(ratios)} pairs)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    acts = {act.__name__: act for act in (equal, elastic, kills, moves, overhead)}
    parser.add_argument("what", choices=acts)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    call = parser.parse_args()
    acts[call.what](call)


if __name__ == "__main__":
    main()
