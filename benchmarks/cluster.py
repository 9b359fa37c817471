"""What a run costs on many GPUs: step time, bytes on the wire, memory, time to finish, from measured costs.

    python benchmarks/cluster.py                the table of docs/scaling.md
    python benchmarks/cluster.py --images-per-second 2000 --node-gbit 100 ...
    python benchmarks/cluster.py check          the same formulas against 1, 2, 4 processes on this machine

The model of a step on W processes that share a batch of N:

    compute   launch + (N / W) / images_per_second
    gradients 2 (W - 1) / W * 4 bytes * parameters by ring, beside the backward pass (half of compute)
    shuffle   (N / W) images of 2 bytes a value, (W - 1) / W of them to elsewhere, before the key encoder
    keys      (N / W) (W - 1) vectors gathered twice (un-shuffle, enqueue), statistics of batch normalisation
    latency   per message and hop
"""

import argparse
import dataclasses
import importlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cluster:
    """Measured or assumed costs; ResNet-50 at 224 pixels in bfloat16 unless said otherwise."""

    images_per_second: float = 2000.0
    """Of one GPU, both encoders and the backward pass; measure it with a run on one GPU."""
    launch: float = 0.008
    """Seconds per step that do not shrink with the share (kernel launches)."""
    parameters: float = 23.8e6
    statistics: float = 2 * 53_120
    """Numbers in the running statistics of both encoders."""
    pixels: int = 3 * 224 * 224
    dim: int = 128
    queue: int = 65536
    per_image_bytes: float = 30e6
    """Activations kept for the backward pass, per image."""
    node_gpus: int = 8
    gpu_gbyte: float = 200.0
    """GB/s between GPUs of one machine."""
    node_gbit: float = 100.0
    """Gbit/s between machines, shared by the GPUs of each."""
    hop: float = 15e-6
    """Seconds per message and hop."""


@dataclass(frozen=True)
class Step:
    """Seconds and bytes of one step on one process."""

    compute: float
    gradients: float
    shuffle: float
    other: float
    wire: float

    @property
    def seconds(self) -> float:
        """The step: gradients travel beside the backward pass, the rest does not overlap."""
        exposed = max(self.gradients - self.compute / 2, 0.1 * self.gradients)
        return self.compute + exposed + self.shuffle + self.other


def step(c: Cluster, batch: int, size: int) -> Step:
    """The model of one step."""
    share = batch / size
    away = (size - 1) / size
    link = c.gpu_gbyte * 1e9 if size <= c.node_gpus else c.node_gbit / 8 * 1e9 / c.node_gpus
    ring = c.gpu_gbyte * 1e9 if size <= c.node_gpus else c.node_gbit / 8 * 1e9
    hops = math.ceil(math.log2(size)) if size > 1 else 0
    gradients = 2 * away * 4 * c.parameters
    images = share * away * 2 * c.pixels
    rest = 2 * share * (size - 1) * c.dim * 4 + 2 * away * 4 * c.statistics
    return Step(
        compute=c.launch + share / c.images_per_second,
        gradients=gradients / ring + 4 * hops * c.hop if size > 1 else 0,
        shuffle=images / link + size * c.hop * (size > 1),
        other=rest / link + 4 * hops * c.hop,
        wire=gradients + images + rest,
    )


def table(c: Cluster) -> None:
    """Rows of docs/scaling.md."""
    print("| images | batch | GPUs | images each | step, ms | gradients beside it, ms "
          "| MB sent per GPU and step | GPU memory, GB | share of ideal | days |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for images, passes, batches in (1.28e6, 200, {8: 256, 64: 2048}), (
        940e6, 1.4, {8: 1024, 64: 1024, 512: 16384},
    ):  # fmt: skip
        for size, batch in batches.items():
            s = step(c, batch, size)
            steps = images * passes / batch
            memory = (4 * 5 * c.parameters + 4 * c.queue * c.dim + batch / size * c.per_image_bytes) / 1e9
            ideal = batch / size / c.images_per_second
            print(f"| {images / 1e6:,.2f} M × {passes} | {batch:,} | {size} | {batch / size:.0f} "
                  f"| {1000 * s.seconds:.1f} | {1000 * s.gradients:.1f} | {s.wire / 1e6:.0f} | {memory:.1f} "
                  f"| {100 * ideal / s.seconds:.0f} % | {steps * s.seconds / 86400:.1f} |")  # fmt: skip


def check() -> None:
    """Predict steps of 1, 2 and 4 processes on this machine from one process and one link; measure them."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    sys.path.insert(0, str(Path(__file__).parent))
    ranks: Any = importlib.import_module("ranks")
    new_address = importlib.import_module("elastic").new_address
    import torch

    from moco.processes import joined

    folder, batch, size = Path(tempfile.mkdtemp()), 64, 32

    def measure(rank: int, count: int) -> None:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
        from moco.training.step import step as train_step
        from tiny import tiny_batch, tiny_data, tiny_recipe, tiny_run  # type: ignore[import-not-found]

        with joined() as world:
            values = tiny_recipe(batch=batch, dictionary=type(tiny_recipe().dictionary)(1024, True))
            values = dataclasses.replace(
                values, encoder=dataclasses.replace(values.encoder, width=16, bn_group=16)
            )
            run = tiny_run(values, tiny_data(), world=world)
            run.f_q.train()
            shared = ranks.share(tiny_batch(batch, torch.float32, size=size), world)
            times, link = [], []
            for _ in range(12):
                world.mean(torch.zeros(1), "start")
                begun = time.perf_counter()
                train_step(run, shared, world)
                times.append(time.perf_counter() - begun)
            for numbers in 1, 2_500_000:
                x = torch.zeros(numbers)
                once = []
                for _ in range(9):
                    begun = time.perf_counter()
                    world.mean(x, "link")
                    once.append(time.perf_counter() - begun)
                link.append(statistics.median(once))
            parameters = sum(p.numel() for p in run.f_q.parameters())
            if rank == 0:
                found = {"step": statistics.median(times), "link": link, "parameters": parameters}
                (folder / f"{count}.json").write_text(json.dumps(found))

    for count in 1, 2, 4:
        new_address()
        assert not any(ranks.wait(ranks.fork(count, lambda rank, count=count: measure(rank, count))))
    found = {count: json.loads((folder / f"{count}.json").read_text()) for count in (1, 2, 4)}
    cores = os.cpu_count() or 1
    for count in 1, 2, 4:
        hop, ten_mb = found[count]["link"]
        speed = 2 * (count - 1) / count * 10e6 / max(ten_mb - hop, 1e-9)  # bytes/s of a ring
        c = Cluster(
            images_per_second=batch / found[1]["step"] * min(1, cores / count), launch=0, node_gpus=4,
            gpu_gbyte=speed / 1e9 if count > 1 else 1, hop=hop if count > 1 else 0, dim=16, queue=1024,
            parameters=found[1]["parameters"], statistics=2 * 4_800, pixels=2 * 3 * size * size,
        )  # fmt: skip
        s = step(c, batch, count)
        predicted = s.compute + s.gradients + s.shuffle + s.other if count > 1 else s.compute
        print(f"{count} processes on {cores} cores: predicted {1000 * predicted:.0f} ms per step, "
              f"measured {1000 * found[count]['step']:.0f} ms")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["table", "check"], default="table")
    for field in dataclasses.fields(Cluster):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default
        )
    call = vars(parser.parse_args())
    check() if call.pop("what") == "check" else table(Cluster(**call))


if __name__ == "__main__":
    main()
