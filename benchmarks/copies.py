"""How many copies of photographs `moco doctor` finds, kind by kind, and how many of its pairs are copies.

    python benchmarks/copies.py PHOTOGRAPHS [--images 1000]

Copies of random images are made in each of a few ways; each is sought among all the images, its original
among them. A pair of an image with another one's copy counts as false, unless the two originals are a pair
themselves. Writes `results/copies.toml`.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tomli_w
import torch
from PIL import Image, ImageEnhance, ImageOps

from moco import chance
from moco.data.duplicates import THRESHOLD, miniatures, near
from moco.data.open import open_source
from moco.run_folder import machine

ROOT = Path(__file__).parents[1]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Compressed and read again."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def part(image: Image.Image, share: float, where: float) -> Image.Image:
    """So much of height and width; `where` 0.5 is central, 0 the upper left corner."""
    width, height = round(image.width * share), round(image.height * share)
    left, top = round((image.width - width) * where), round((image.height - height) * where)
    return image.crop((left, top, left + width, top + height))


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resized to half": lambda i: i.resize((i.width // 2, i.height // 2), Image.Resampling.BICUBIC),
    "resized to a quarter": lambda i: i.resize((i.width // 4, i.height // 4), Image.Resampling.BICUBIC),
    "JPEG of quality 50": lambda i: jpeg(i, 50),
    "JPEG of quality 10": lambda i: jpeg(i, 10),
    "mirrored": ImageOps.mirror,
    "brighter by a third": lambda i: ImageEnhance.Brightness(i).enhance(4 / 3),
    "central 90 %": lambda i: part(i, 0.9, 0.5),
    "central 80 %": lambda i: part(i, 0.8, 0.5),
    "central 85 %": lambda i: part(i, 0.85, 0.5),
    "central 70 %": lambda i: part(i, 0.7, 0.5),
    "90 % at a corner": lambda i: part(i, 0.9, 0.0),
    "half the size, mirrored, JPEG of quality 50": lambda i: jpeg(
        ImageOps.mirror(i.resize((i.width // 2, i.height // 2))), 50
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs")
    parser.add_argument("--images", type=int, default=1000)
    call = parser.parse_args()
    source = open_source(call.photographs)
    assert source is not None
    count = min(call.images, len(source))
    index = chance.permute(np.arange(count), len(source), 0, "copies").tolist()
    pictures = [Image.fromarray(source.read(i).permute(1, 2, 0).numpy()) for i in index]
    whole = torch.stack([small(picture) for picture in pictures])
    alike = {(pair.first, pair.second) for pair in near(whole)}
    alike |= {(j, i) for i, j in alike}
    kinds = []
    for name, change in KINDS.items():
        copies = torch.stack([small(change(picture)) for picture in pictures])
        pairs = {(pair.first, pair.second) for pair in near(copies, whole)}
        found = sum((i, i) in pairs for i in range(count))
        false = sum(i != j and (i, j) not in alike for i, j in pairs)
        kinds.append({"kind": name, "found": round(100 * found / count, 2), "false_pairs": false})
        print(kinds[-1])
    about = machine(torch.device("cpu"))
    row = {
        "command": f"python benchmarks/copies.py {Path(call.photographs).name} --images {count}",
        "images": count, "threshold": THRESHOLD, "pairs_among_originals": len(alike) // 2,
        "hardware": about["hardware"], "torch": about["torch"], "copies": kinds,
    }  # fmt: skip
    (ROOT / "results" / "copies.toml").write_text(tomli_w.dumps(row))


def small(picture: Image.Image) -> torch.Tensor:
    """What stands for a picture."""
    return miniatures(torch.from_numpy(np.array(picture)).permute(2, 0, 1))


if __name__ == "__main__":
    main()
