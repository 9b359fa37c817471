"""JPEG files to two v2 views of 224 pixels: the usual way and ours, interleaved on one core.

The usual way is torchvision's transforms on PIL images, one image at a time, decoded once. Run:
    python benchmarks/decode.py
Prints images per second of both, their ratio, and how the two distributions of views compare.
"""

import argparse
import contextlib
import io
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as T

from moco.data.augmentation import V2
from moco.data.encoded import FolderSource
from moco.data.loader import Loader
from moco.data.views import Views


def photographs(root: Path, count: int, size: tuple[int, int]) -> None:
    """Smooth scenes with edges and noise, 4:2:0 JPEG of quality 90."""
    rng = np.random.default_rng(0)
    width, height = size
    for i in range(count):
        coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        scene = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
        blocks = np.kron(rng.normal(0, 25, (height // 25 + 1, width // 25 + 1, 1)), np.ones((25, 25, 1)))
        noisy = scene + blocks[:height, :width] + rng.normal(0, 6, (height, width, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / f"{i:04d}.jpg", quality=90)


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(*V2.blur_sigma)))


def usual() -> T.Compose:
    """v2's views as the released code writes them."""
    return T.Compose(
        [
            T.RandomResizedCrop(224, scale=V2.scale),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            T.RandomGrayscale(p=0.2),
            T.RandomApply([_blur], p=0.5),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(V2.mean, V2.std),
        ]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), arguments.images, tuple(arguments.size))
        files = sorted(Path(folder).iterdir())
        source = FolderSource(Path(folder))
        loader = Loader(source, Views(V2), arguments.images, workers=1)
        transform = usual()
        times: dict[str, list[float]] = {"usual": [], "ours": []}
        views: dict[str, list[torch.Tensor]] = {"usual": [], "ours": []}
        for turn in range(arguments.rounds + 1):
            begin = time.process_time()
            theirs = []
            for file in files:
                image = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
                theirs += [transform(image), transform(image)]
            middle = time.process_time()
            ours = loader.batch(turn)
            end = time.process_time()
            if turn:  # the first warms up
                times["usual"].append(middle - begin)
                times["ours"].append(end - middle)
                views["usual"].append(torch.stack(theirs))
                views["ours"].append(torch.cat(ours.views))
    speeds = {name: [arguments.images / t for t in values] for name, values in times.items()}
    ratios = [b / a for a, b in zip(speeds["usual"], speeds["ours"], strict=True)]
    result = {
        "images/s, median": {name: round(statistics.median(v), 1) for name, v in speeds.items()},
        "ratio": {"median": round(statistics.median(ratios), 2), "least": round(min(ratios), 2),
                  "most": round(max(ratios), 2), "rounds": len(ratios)},
        "views": {name: _like(torch.cat(v)) for name, v in views.items()},
    }  # fmt: skip
    print(json.dumps(result, indent=1))


def _like(views: torch.Tensor) -> dict[str, float]:
    """What a distribution of views is like."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (V2.mean, V2.std))
    steps = (views[..., 1:] - views[..., :-1]).abs().mean((1, 2, 3))
    grey = ((views * std + mean).diff(dim=1).abs().amax((1, 2, 3)) < 0.02).float()
    measured = {
        "mean": views.mean((1, 2, 3)),
        "spread": views.std((1, 2, 3)),
        "step between pixels": steps,
        "grey": grey,
    }
    result = {}
    for name, values in measured.items():
        result[name] = round(values.mean().item(), 4)
        result[f"± {name}"] = round(values.std().item() * len(values) ** -0.5, 4)
    return result


if __name__ == "__main__":
    main()
