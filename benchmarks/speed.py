"""Our way against the released one (benchmarks/official.py), each part in one run, as ratios.

    python benchmarks/speed.py TABLE [--rounds N]     measure; writes results/speed/TABLE.json
    python benchmarks/speed_table.py tables           benchmarks/README.md from those rows

Tables: aug32, aug24, aug224, loss, ema, sgd, knn, step, e2e. One thread and processor time of this
process, so that other work on the machine matters little; the variants alternate in every round. A row
is written only if both sides gave the same values, within the bound that the row names (its gate).
"""

import argparse
import contextlib
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as pil
from torchvision.transforms.v2 import functional as pixels

import official
from moco import recipe
from moco.batch import Batch
from moco.build import build_dictionary, build_encoder, build_keys, has_fast_bfloat16
from moco.data.augmentation import SMALL, V2, Augmentation
from moco.data.decoding import Crops
from moco.data.encoded import FolderSource
from moco.data.loader import Loader
from moco.data.parameters import Parameters
from moco.data.procedural import procedural
from moco.data.views import Views
from moco.evaluate.knn import knn_predict
from moco.keys import momentum_update
from moco.loss import info_nce
from moco.recipes.small import cifar, cpu
from moco.resnet import resnet
from moco.run_folder import machine
from moco.training.sgd import SGD
from moco.training.step import step
from moco.world import Solo
from speed_table import ROWS


@dataclass
class Measured:
    """Seconds of both in each round, how far their values are apart, and what the ratio must be."""

    what: str
    times: list[tuple[float, float]]
    gate: str
    must: float
    note: str = ""
    extra: dict[str, Any] | None = None

    def row(self) -> dict[str, Any]:
        """The row that is kept."""
        ratios = sorted(a / b for a, b in self.times)
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        return {
            "what": self.what,
            "official_ms": round(1e3 * statistics.median(a for a, _ in self.times), 3),
            "ours_ms": round(1e3 * statistics.median(b for _, b in self.times), 3),
            "ratio": round(statistics.median(ratios), 2), "p10": round(low, 2), "p90": round(high, 2),
            "rounds": len(ratios), "must": self.must, "gate": self.gate, "note": self.note,
            **(self.extra or {}),
            "machine": machine(torch.device("cpu")) | {
                "bfloat16 in hardware": has_fast_bfloat16(torch.device("cpu")),
                "torchvision": torchvision.__version__,
            },
        }  # fmt: skip


def alternate(
    theirs: Callable[[], object], ours: Callable[[], object], rounds: int
) -> list[tuple[float, float]]:
    """Processor seconds of both in each round, after one of each to warm up."""
    theirs(), ours()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        theirs()
        middle = time.process_time()
        ours()
        times.append((middle - start, time.process_time() - middle))
    return times


def pil_view(image: Image.Image, views: Views, p: Parameters, row: int) -> Tensor:
    """One view of a PIL image from our parameters, by torchvision's operations on PIL images, in [0, 1]."""
    a = views.augmentation
    box = views.boxes(p, torch.full((len(p.flip),), image.height), torch.full((len(p.flip),), image.width))
    made = pil.resized_crop(image, *box[row].tolist(), [a.size, a.size])
    if p.jitter[row]:
        for number in p.order[row].tolist():
            name = ("brightness", "contrast", "saturation", "hue")[number]
            made = getattr(pil, f"adjust_{name}")(made, p.factors[row, number].item())
    if p.grayscale[row]:
        made = pil.to_grayscale(made, 3)
    return pil.to_tensor(pil.hflip(made) if p.flip[row] else made)


def aug32(rounds: int) -> Measured:
    source, count = procedural(256, size=32), 128
    loader = Loader(source, Views(SMALL), count)
    images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in source.pixels[:count]]
    made = official.transform(SMALL)
    views, p = loader.views, loader.views.draw(0, 0, np.arange(count), 0)
    x = views.photometry(views.geometry(views.unit(source.pixels[:count]), p), p) * views.std + views.mean
    usual = torch.stack([pil_view(image, views, p, row) for row, image in enumerate(images)])
    apart = 255 * (x - usual).abs().mean().item()
    assert apart <= 2, f"{apart:.2f} grey levels from PIL"
    steps = iter(range(10**6))
    times = alternate(
        lambda: torch.stack([made(image) for image in images for _ in range(2)]),
        lambda: loader.batch(next(steps) % 2),
        rounds,
    )
    return Measured(
        "two views of 128 images of 32 pixels", times, f"mean difference {apart:.2f} of 255 from PIL", 4
    )


def aug224(rounds: int) -> Measured:
    from decode import photographs

    count = 24
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), count, (500, 375))
        files, source = sorted(Path(folder).iterdir()), FolderSource(Path(folder))
        loader, made = Loader(source, Views(V2), count, workers=1), official.transform(V2)
        index, parameters = loader._plan(0)
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            spare: list[Tensor] = []

            def crops() -> list[Tensor]:
                work = Crops(
                    source, loader.views, index, parameters, known={}, pool=pool, workers=1,
                    replacement=lambda index, _: index, device=torch.device("cpu"), spare=spare,
                )  # fmt: skip
                made = work.moved()
                work.release()
                return made

            apart = 0.0
            for row, place in enumerate(index[:8]):
                image = Image.open(files[int(place)]).convert("RGB")
                heights, widths = torch.full((count,), image.height), torch.full((count,), image.width)
                box = loader.views.boxes(parameters[0], heights, widths)[row].tolist()
                usual = pixels.pil_to_tensor(pil.resized_crop(image, *box, [224, 224]))
                usual = usual.flip(-1) if parameters[0].flip[row] else usual
                apart = max(apart, (crops()[0][row].int() - usual.int()).abs().max().item())
            assert apart <= 2, f"{apart} grey levels from PIL"

            def usually() -> None:
                for file in files:
                    image = Image.open(file).convert("RGB")
                    made(image), made(image)

            times = alternate(usually, crops, rounds)
    return Measured(
        "24 JPEGs of 500 x 375: decoded, two crops of 224 as 8 bits (colours and blur left to a device)",
        times, f"largest difference of a crop from PIL's {apart:.0f} of 255", 6,
        "against the whole released path: decode, crops, colours, blur, normalisation",
    )  # fmt: skip


def loss(rounds: int) -> Measured:
    from method import loss_inputs, naive_info_nce, peak_memory
    from moco.loss import Entries

    torch.manual_seed(0)
    q, k, queue = loss_inputs()
    columns = queue.T.contiguous()

    def run(form: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        q.grad = None
        value = form()
        value.backward()
        assert q.grad is not None
        return value.detach(), q.grad

    usual = functools.partial(run, lambda: naive_info_nce(q, k, columns, 0.07))
    ours = functools.partial(run, lambda: info_nce(q, Entries(k, queue), 0.07).loss)
    for a, b in zip(usual(), ours(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    memory = {"official_mib": round(peak_memory("naive"), 1), "ours_mib": round(peak_memory("ours"), 1)}
    return Measured(
        "loss and gradient, N = 256, K = 65,536", alternate(usual, ours, rounds), "gradients to 1e-4", 2.5,
        f"memory {memory['official_mib']:.0f} against {memory['ours_mib']:.0f} MiB", memory,
    )  # fmt: skip


def _trunks(arch: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    f_q = resnet(arch).to(memory_format=torch.channels_last)
    f_k = resnet(arch).to(memory_format=torch.channels_last)
    return f_q, f_k


def ema(rounds: int) -> Measured:
    from method import naive_momentum_update

    (f_q, f_k), (_, plain) = _trunks("resnet50"), _trunks("resnet50")
    plain.load_state_dict(f_k.state_dict())
    naive_momentum_update(plain, f_q, 0.999)
    momentum_update(f_k, f_q, 0.999)
    for a, b in zip(plain.parameters(), f_k.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    times = alternate(
        lambda: naive_momentum_update(plain, f_q, 0.999),
        lambda: momentum_update(f_k, f_q, 0.999),
        3 * rounds,
    )
    return Measured("momentum update of ResNet-50", times, "parameters to 1e-5", 3.5)


def sgd(rounds: int) -> Measured:
    nets = [resnet("resnet50").to(memory_format=torch.channels_last) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    values: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
    usual = torch.optim.SGD(nets[0].parameters(), **values, foreach=False, fused=False)
    ours = SGD(nets[1].parameters(), **values)
    usual.step(), ours.step()
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b)
    return Measured(
        "SGD step of ResNet-50", alternate(usual.step, ours.step, 3 * rounds), "parameters to 1e-5", 2
    )


def knn(rounds: int) -> Measured:
    torch.manual_seed(0)
    centres, labels = F.normalize(torch.randn(10, 512), dim=1), torch.arange(60_000) % 10
    x = F.normalize(centres[labels] + 0.09 * torch.randn(60_000, 512), dim=1)
    bank, queries = x[:50_000], x[50_000:]
    values: dict[str, Any] = {"k": 200, "temperature": 0.1}
    usual = functools.partial(official.knn_predict, queries, bank, labels[None, :50_000], 10, **values)
    ours = functools.partial(knn_predict, queries, bank, labels[:50_000], **values)
    same = (usual() == ours()).double().mean().item()
    assert same >= 0.999, f"{100 * same:.2f} % equal predictions"
    right = 100 * (ours() == labels[50_000:]).double().mean().item()
    return Measured(
        "kNN, 10,000 queries, 50,000 voters, 512 numbers", alternate(usual, ours, rounds),
        f"{100 * same:.2f} % equal predictions at {right:.0f} % accuracy", 1.4,
    )  # fmt: skip


def both_steps(
    values: recipe.Recipe,
) -> tuple[official.Official, Any, Callable[[int], Batch], Tensor]:
    """The released step and ours from the same weights, ours in float32; and what puts a batch into the
    released order, in which the groups of batch normalisation are interleaved."""
    values = replace(values, precision="float32", dictionary=recipe.MomentumQueue(4096))
    data = procedural(4160, size=values.views.size)
    views = Views(replace(values.views, mean=SMALL.mean, std=SMALL.std))
    loader = Loader(data, views, values.batch)
    f_q = build_encoder(values, 3)
    table = build_dictionary(values, len(data))
    net, group = official.resnet18(small=True), values.encoder.bn_group or values.batch
    official.SplitNorm.splits = values.batch // group
    state = {**f_q.trunk.state_dict(), **{f"fc.{n}": v for n, v in f_q.head.state_dict().items()}}
    net.load_state_dict(state)
    lr = values.optimizer.lr * values.batch / 256
    decay = values.optimizer.weight_decay
    plain = official.Official(
        net, table.get_buffer("keys").clone(), m=0.99, temperature=0.1, lr=lr, decay=decay
    )

    class Ours:
        symmetric, accumulate = False, 1

        def loss(self, q: Tensor, entries: Any) -> Any:
            return info_nce(q, entries, 0.1)

    run: Any = Ours()
    run.f_q, run.keys, run.dictionary = f_q.train(), build_keys(values, f_q).train(), table
    run.optimizer = SGD(f_q.parameters(), lr, momentum=0.9, weight_decay=decay)
    interleaved = torch.arange(values.batch).view(-1, group).T.flatten()
    return plain, run, loader.batch, interleaved


def _step(rounds: int, *, with_data: bool) -> Measured:
    values = replace(cifar(), batch=64, encoder=recipe.Encoder("resnet18", stem="small", bn_group=8))
    plain, run, batches, mixed = both_steps(values)
    steps = iter(range(10**6))

    def usual_step(batch: Batch) -> float:
        first, second = (view.contiguous()[mixed] for view in batch.views)
        return plain.step(first, second, torch.argsort(mixed)[batch.orders[1][mixed]]).item()

    batch = batches(0)
    for _ in range(2):
        apart = abs(usual_step(batch) - step(run, batch, Solo()).loss.item())
    assert apart < 1e-2, f"losses differ by {apart:.4f} at the second step"
    made = official.transform(SMALL)
    images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in procedural(64, size=32).pixels]

    def usual() -> None:
        if with_data:
            torch.stack([made(image) for image in images for _ in range(2)])
        usual_step(batch)

    def ours() -> None:
        step(run, batches(next(steps)) if with_data else batch, Solo())

    precision = "float32 on both sides, for want of bfloat16 in hardware"
    name = "step with its data" if with_data else "step"
    return Measured(
        f"{name}: ResNet-18 at 32 pixels, batch 64, K = 4,096", alternate(usual, ours, rounds),
        f"losses of the second step apart by {apart:.0e}", 2.3 if with_data else 2.0, precision,
    )  # fmt: skip


def aug24(rounds: int) -> Measured:
    values = cpu()
    a: Augmentation = replace(values.views, mean=SMALL.mean, std=SMALL.std)
    source = procedural(1024, size=32)
    loader, made = Loader(source, Views(a), values.batch), official.transform(a)
    images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in source.pixels[: values.batch]]
    steps = iter(range(10**6))
    times = alternate(
        lambda: torch.stack([made(image) for image in images for _ in range(2)]),
        lambda: loader.batch(next(steps) % 4),
        rounds,
    )
    return Measured("two views of 256 images of 32 pixels at 24, recipe `cpu`", times, "that of aug32", 4)


TABLES: dict[str, tuple[Callable[[int], Measured], int]] = {
    "aug32": (aug32, 7),
    "aug24": (aug24, 7),
    "aug224": (aug224, 5),
    "loss": (loss, 15),
    "ema": (ema, 9),
    "sgd": (sgd, 9),
    "knn": (knn, 3),
    "step": (functools.partial(_step, with_data=False), 5),
    "e2e": (functools.partial(_step, with_data=True), 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--rounds", type=int, default=0)
    call = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)
    bench, rounds = TABLES[call.table]
    row = bench(call.rounds or rounds).row()
    ROWS.mkdir(parents=True, exist_ok=True)
    (ROWS / f"{call.table}.json").write_text(json.dumps(row, indent=1) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
