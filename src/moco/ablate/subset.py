"""A smaller data set for a small machine: a keyed draw of images, kept in the study's folder."""

import io
from pathlib import Path

import numpy as np

from moco import chance
from moco.data.open import open_source
from moco.data.source import ArraySource
from moco.files import write_atomically


def subset(data: str, out: Path, *, images: int | None, test_images: int | None, seed: int = 0) -> str:
    """Draw images without replacement, keyed by the seed, and write them as an .npz file.

    Test images of a class of which no training image was drawn are of no class there.

    Args:
        data: as for `moco.pretrain`.
        out: folder of the file `images.npz`; one that is there already is kept if it holds the same.
        images, test_images: how many to draw; None takes all.
        seed: of the draw.

    Returns:
        What to give as data: the file.

    Raises:
        ValueError: if there are not so many, they are not held in memory (folders of files), or other
            images are there.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, count, prefix in ("train", images, ""), ("test", test_images, "test_"):
        source = open_source(data, split)
        if source is None:
            if count is not None:
                raise ValueError(f"{data} has no test images to draw from; leave --test-images out")
            continue
        if not isinstance(source, ArraySource):
            raise ValueError(
                f"--images draws from images held in memory (arrays, CIFAR), {data} is "
                f"{type(source).__name__}; make a smaller folder instead"
            )
        count = len(source) if count is None else count
        if not 1 <= count <= len(source):
            raise ValueError(
                f"{split} images must be between 1 and the {len(source):,} of {source.name}, got {count}"
            )
        drawn = np.sort(chance.permute(np.arange(count), len(source), seed, f"subset {split}"))
        arrays[f"{prefix}images"] = np.moveaxis(source.pixels[drawn].numpy(), 1, -1)
        if source.labels is not None:
            arrays[f"{prefix}labels"] = source.labels[drawn].numpy()
        if source.groups is not None:
            arrays[f"{prefix}groups"] = source.groups[drawn].numpy()
    if "labels" in arrays and "test_labels" in arrays:
        asked = arrays["test_labels"]
        arrays["test_labels"] = np.where(np.isin(asked, arrays["labels"]), asked, -1)
    path = out / "images.npz"
    if path.exists():
        with np.load(path) as kept:
            same = kept.keys() == arrays.keys() and all(np.array_equal(kept[k], arrays[k]) for k in arrays)
        if not same:
            raise ValueError(
                f"{path} holds other images than are drawn from {data} now; choose another --out"
            )
        return str(path.resolve())
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return str(path.resolve())
