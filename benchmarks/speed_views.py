"""Tables of `speed.py`: from images to views."""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as pil
from torchvision.transforms.v2 import functional as pixels

import measured
import official
from measured import Measured, alternate
from moco.data.augmentation import SMALL, V2, Augmentation
from moco.data.decoding import Crops
from moco.data.encoded import FolderSource
from moco.data.loader import Loader
from moco.data.parameters import Parameters
from moco.data.procedural import procedural
from moco.data.views import Views
from moco.recipes.small import cpu


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


def small_images(count: int, size: int = 32) -> list[Image.Image]:
    """Procedural images as PIL has them."""
    return [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in procedural(count, size=size).pixels]


@contextmanager
def photographs(count: int, size: tuple[int, int] = (500, 375)) -> Iterator[tuple[list[Path], FolderSource]]:
    """Smooth scenes with edges and noise, 4:2:0 JPEG of quality 90, in a folder that is removed."""
    rng = np.random.default_rng(0)
    width, height = size
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
            scene = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.float32)
            blocks = np.kron(rng.normal(0, 25, (height // 25 + 1, width // 25 + 1, 1)), np.ones((25, 25, 1)))
            noisy = scene + blocks[:height, :width] + rng.normal(0, 6, (height, width, 1))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(f"{folder}/{i:04d}.jpg", quality=90)
        yield sorted(Path(folder).iterdir()), FolderSource(Path(folder))


def aug32(rounds: int) -> Measured:
    source, count = procedural(256, size=32), 128
    loader, images = Loader(source, Views(SMALL), count), small_images(count)
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


def aug24(rounds: int) -> Measured:
    values = cpu()
    a: Augmentation = replace(values.views, mean=SMALL.mean, std=SMALL.std)
    loader = Loader(procedural(1024, size=32), Views(a), values.batch)
    made, images = official.transform(a), small_images(values.batch)
    steps = iter(range(10**6))
    times = alternate(
        lambda: torch.stack([made(image) for image in images for _ in range(2)]),
        lambda: loader.batch(next(steps) % 4),
        rounds,
    )
    return Measured("two views of 256 images of 32 pixels at 24, recipe `cpu`", times, "that of aug32", 4)


def aug224(rounds: int) -> Measured:
    count, made = 24, official.transform(V2)
    with photographs(count) as (files, source), ThreadPoolExecutor(1) as pool:
        loader = Loader(source, Views(V2), count, workers=1)
        index, parameters = loader._plan(0)
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


def views224(rounds: int) -> Measured:
    count, made = 64, official.transform(V2)
    with photographs(count) as (files, source):
        loader = Loader(source, Views(V2), count, workers=1)
        steps = iter(range(10**6))

        def usually() -> Tensor:
            made_of = [Image.open(file).convert("RGB") for file in files]
            return torch.stack([made(image) for image in made_of for _ in range(2)])

        def ours() -> tuple[Tensor, Tensor]:
            return loader.batch(next(steps)).views

        apart = errors_apart(usually, lambda: torch.cat(ours()))
        times = alternate(usually, ours, rounds)
    assert apart < 5, f"{apart:.1f} standard errors between the views"
    return Measured(
        "64 JPEGs of 500 x 375 to two v2 views of 224, all on the CPU", times,
        f"mean, spread, steps between pixels and greyness of all views within {apart:.1f} standard errors", 3,
    )  # fmt: skip


def errors_apart(theirs: Callable[[], Tensor], ours: Callable[[], Tensor], times: int = 5) -> float:
    """The largest difference between so many sets of views in what they are like, in standard errors."""
    if measured.side is not None:
        return 0.0
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (V2.mean, V2.std))
    left, right = (torch.cat([made() for _ in range(times)]) for made in (theirs, ours))
    largest = 0.0
    for like in (
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.std((1, 2, 3)),
        lambda x: (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3)),
        lambda x: ((x * std + mean).diff(dim=1).abs().amax((1, 2, 3)) < 0.02).float(),
    ):
        a, b = like(left), like(right)
        error = (a.var() / len(a) + b.var() / len(b)).sqrt().item()
        largest = max(largest, abs(a.mean().item() - b.mean().item()) / error)
    return largest


class TwoViews(Dataset):
    """Two views of PIL images or of their files, as the released code's data sets give them."""

    def __init__(self, images: list[Any], transform: Any):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        found = self.images[index]
        image = Image.open(found).convert("RGB") if isinstance(found, Path) else found
        return self.transform(image), self.transform(image)


def usual_loader(images: list[Any], transform: Any, batch: int) -> DataLoader:
    """The released code's: worker processes anew in every epoch."""
    return DataLoader(
        TwoViews(images, transform), batch, shuffle=True, num_workers=2, drop_last=True,
        worker_init_fn=lambda number: random.seed(number),
    )  # fmt: skip


def loader(rounds: int) -> Measured:
    torch.set_num_threads(2)
    count, batch = 256, 32
    with photographs(count) as (files, source):
        theirs = usual_loader(list(files), official.transform(V2), batch)
        ours = Loader(source, Views(V2), batch, workers=2)
        starts = iter(range(0, 10**6, count // batch))

        def stream() -> int:
            start = next(starts)
            return sum(len(b.views[0]) for b in ours.stream(start, start + count // batch))

        assert sum(len(first) for first, _ in theirs) == stream() == count
        times = alternate(lambda: [None for _ in theirs], stream, rounds, time.perf_counter)
    return Measured(
        "an epoch of 256 JPEGs of 500 x 375 to batches of two v2 views of 224, two workers", times,
        "numbers of views; values: views224", None, wall=True,
    )  # fmt: skip
