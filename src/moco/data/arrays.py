"""Images that are arrays already: .npz and .npy files, packed CIFAR-10, digits, torchvision's data sets."""

import io
import itertools
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from moco.data.reading import Reading
from moco.data.source import ArraySource, DatasetSource, Source, channels_first, renumbered

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def open_arrays(path: Path, split: str) -> Source | None:
    """The arrays images, labels and groups of an .npz file, or test_images and so on; or those of an .npy.

    Images of 1 to 4 rows, of at least 8 columns and of more than 4 channels are taken for images with their
    channels first, and refused; so are those that have as many channels as columns, and fewer rows.

    Raises:
        ValueError: if it holds no such arrays, or is cut short; or if no training image has the label of a
            test image.
    """
    if path.suffix.lower() == ".npy" and split == "test":
        return None
    prefix = "" if split == "train" else "test_"
    images, labels, groups = f"{prefix}images", f"{prefix}labels", f"{prefix}groups"
    try:
        with open(path, "rb") as file:  # by its path, numpy leaves a damaged .npz open
            loaded = np.load(file)
            found = {"images": loaded} if isinstance(loaded, np.ndarray) else loaded
            arrays = {name: found[name] for name in {images, labels, groups, "labels"} & {*found}}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(f"{path} holds no arrays of numbers or words, or is cut short: {error}") from None
    if images not in arrays:
        if split == "test":
            return None
        raise ValueError(f"{path} has no array 'images', it has {', '.join(found)}")
    pixels = arrays[images]
    if pixels.dtype.newbyteorder("=") not in (np.uint8, np.uint16, np.float32) or pixels.ndim not in (3, 4):
        raise ValueError(
            f"{path} must have {images} of uint8, uint16 or float32, of shape (N, H, W) or (N, H, W, "
            f"channels), got {pixels.dtype} of shape {pixels.shape}"
        )
    if pixels.ndim == 4 and pixels.shape[3] > 4:
        rows, columns, channels = pixels.shape[1:]
        if rows < columns == channels or (rows <= 4 and columns >= 8):
            raise ValueError(
                f"{path} must have the channels of {images} last, got an array of shape {pixels.shape}: save "
                f"np.moveaxis({images}, 1, -1)"
            )
    numbers, classes = _numbered(arrays.get(labels), labels, path)
    if split == "test" and numbers is not None and "labels" in arrays:
        learnt, known = _numbered(arrays["labels"], "labels", path)
        assert learnt is not None
        if (known is None) != (classes is None):
            raise ValueError(f"{path} must have words in both labels and test_labels, or numbers in both")
        if known is not None and classes is not None:
            numbers, classes = renumbered(numbers, classes, known, f"{path} (test)"), known
        unknown = set(numbers[numbers >= 0].tolist()) - set(learnt.tolist())
        if unknown and (learnt >= 0).any():
            raise ValueError(
                f"class {min(unknown)} of the test images of {path} has no training image; take them out, or "
                "label them -1, which is no class"
            )
    name = str(path) if path.suffix.lower() == ".npy" else f"{path} ({split})"
    return ArraySource(
        channels_first(pixels), numbers, groups=_numbered(arrays.get(groups), groups, path)[0], name=name,
        classes=classes,
    )  # fmt: skip


def _numbered(values: np.ndarray | None, name: str, path: Path) -> tuple[Tensor | None, list[str] | None]:
    """Labels or groups as numbers, and the words they were, in the order of these; "" and "-1" are none.

    Raises:
        ValueError: if they are neither words nor whole numbers.
    """
    if values is None:
        return None, None
    if values.dtype.kind not in "SU":
        wrong = values[values % 1 != 0] if values.dtype.kind in "biuf" else values
        if wrong.size:
            raise ValueError(
                f"{path} must have whole numbers or words in {name}, got {wrong.flat[0]} ({values.dtype})"
            )
        return torch.from_numpy(values.astype(np.int64)), None
    words = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
    known = np.isin(words, ["", "-1"], invert=True)
    every, places = np.unique(words[known], return_inverse=True)
    numbers = np.full(words.shape, -1)
    numbers[known] = places
    return torch.from_numpy(numbers), every.tolist()


def open_packed_cifar(folder: Path, split: str) -> Source:
    """CIFAR-10 as numbered .npz files of lossless WebP strips, 100 images one below the other."""
    paths = sorted(folder.glob("train_*.npz")) if split == "train" else [folder / "test.npz"]
    images, labels = [], []
    for path in paths:
        with np.load(path) as pack:
            blob, offsets = pack["blob"].tobytes(), pack["offsets"]
            labels.append(torch.from_numpy(pack["labels"]))
        for start, end in itertools.pairwise(offsets):
            strip = np.asarray(Image.open(io.BytesIO(blob[start:end])).convert("RGB"))
            images.append(strip.reshape(-1, 32, 32, 3))
    return ArraySource(
        channels_first(np.concatenate(images)),
        torch.cat(labels),
        name=f"CIFAR-10 ({split})",
        classes=CIFAR10_CLASSES,
    )


def open_digits(split: str) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every fifth is a test image."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    test = np.arange(len(digits.images)) % 5 == 4
    chosen = test if split == "test" else ~test
    pixels = (digits.images[chosen] * (255 / 16)).round().astype(np.uint8)
    return ArraySource(
        channels_first(pixels), torch.from_numpy(digits.target[chosen]), name=f"digits ({split})"
    )


def open_torchvision(name: str, root: str, split: str, reading: Reading) -> Source | None:
    """A data set of torchvision by its name there.

    Raises:
        FileNotFoundError: if it is not under the root.
        ValueError: if there is none of that name, or without training images.
    """
    import torchvision

    kind = getattr(torchvision.datasets, name, None)
    if kind is None:
        raise ValueError(f"torchvision has no data set {name!r}")
    dataset = None
    names = ["train"] if split == "train" else ["test", "val"]
    ways: list[dict[str, Any]] = [{"train": split == "train", "download": False}]
    ways += [{"split": word} for word in names]
    for way in ways:  # most are parted by a flag, some by a name, and not all have the same names
        try:
            dataset = kind(root, **way)
            break
        except (TypeError, ValueError):
            continue
        except (RuntimeError, OSError) as error:
            raise FileNotFoundError(
                f"torchvision's {name} is not in {root}: {error}; moco downloads nothing, so put it "
                f"there once in Python: torchvision.datasets.{name}({root!r}, download=True)"
            ) from None
    if dataset is None:
        if split == "test":
            return None
        raise ValueError(f"torchvision's {name} has no training images that can be asked for by name")
    targets = getattr(dataset, "targets", getattr(dataset, "labels", getattr(dataset, "_labels", None)))
    labels = None if targets is None else torch.as_tensor(targets)
    pixels = getattr(dataset, "data", None)
    label = f"{name} ({split})"
    if isinstance(pixels, torch.Tensor):
        pixels = pixels.numpy()
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim in (3, 4):
        if pixels.ndim == 4 and pixels.shape[1] == 3 != pixels.shape[3]:  # SVHN, STL10
            pixels = np.moveaxis(pixels, 1, -1)
        classes = getattr(dataset, "classes", None)
        return ArraySource(channels_first(pixels), labels, name=label, classes=classes)
    return DatasetSource(dataset, labels, name=label, reading=reading)
