"""From what a user writes after `--data` to a source."""

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from moco.data.procedural import procedural
from moco.data.shards import ShardSource, has_shards
from moco.data.source import ArraySource, DatasetSource, FolderSource, Source, channels_first

EMBEDDED = ("procedural", "digits")
PROCEDURAL_IMAGES = {"train": 6000, "test": 2000}
_TEST_FOLDERS = ("test", "val", "valid", "validation")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def open_source(spec: str, split: str = "train") -> Source | None:
    """The training or test images that a specification names; None if it has no test images.

    Args:
        spec: one of
            "procedural" or "digits" (no files needed; digits needs scikit-learn);
            a folder of images, with or without class folders, with or without train/ and test/
            (or val/) below it;
            a folder of tar shards, as `moco pack` or others write them, or train/ and test/ of them;
            a folder holding CIFAR-10 or CIFAR-100 as torchvision stores it, or as packed .npz;
            an .npz with arrays images, labels, test_images, test_labels (all but the first
            optional) or an .npy with images: uint8 (N, H, W) or (N, H, W, channels);
            "torchvision:NAME:ROOT" for another torchvision data set present under ROOT.
        split: "train" or "test".

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is there but not of a form listed above.
    """
    if spec == "procedural":
        return procedural(PROCEDURAL_IMAGES[split], split=split)
    if spec == "digits":
        return _digits(split)
    if spec.startswith("torchvision:"):
        _, _, rest = spec.partition(":")
        name, _, root = rest.partition(":")
        return _torchvision(name, root or "data", split)
    path = Path(spec).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {spec}; --data takes a folder, an .npz or .npy file, procedural or digits"
        )
    if path.is_file():
        return _arrays(path, split)
    if (path / "train_1.npz").exists():
        return _packed_cifar(path, split)
    for folder, name in ("cifar-10-batches-py", "CIFAR10"), ("cifar-100-python", "CIFAR100"):
        if (path / folder).is_dir():
            return _torchvision(name, str(path), split)
    if has_shards(path):
        return ShardSource(path) if split == "train" else None
    if (path / "train").is_dir():
        if split == "train" and has_shards(path / "train"):
            return ShardSource(path / "train", name=f"{spec} (train)")
        if split == "train":
            return FolderSource(path / "train", name=f"{spec} (train)")
        found = [folder for folder in _TEST_FOLDERS if (path / folder).is_dir()]
        if not found:
            return None
        if has_shards(path / found[0]):
            return ShardSource(path / found[0], name=f"{spec} ({found[0]})")
        classes = FolderSource(path / "train").classes
        return FolderSource(path / found[0], name=f"{spec} ({found[0]})", classes=classes)
    return FolderSource(path) if split == "train" else None


def _arrays(path: Path, split: str) -> Source | None:
    if path.suffix == ".npy":
        return None if split == "test" else ArraySource(channels_first(np.load(path)), name=str(path))
    if path.suffix != ".npz":
        raise ValueError(f"{path} is a file but neither .npz nor .npy; give its folder for image files")
    with np.load(path) as arrays:
        prefix = "" if split == "train" else "test_"
        if prefix + "images" not in arrays:
            if split == "test":
                return None
            raise ValueError(f"{path} has no array 'images', it has {', '.join(arrays)}")
        labels = torch.from_numpy(arrays[prefix + "labels"]) if prefix + "labels" in arrays else None
        return ArraySource(channels_first(arrays[prefix + "images"]), labels, name=f"{path} ({split})")


def _packed_cifar(folder: Path, split: str) -> Source:
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


def _digits(split: str) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every fifth is a test image."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    test = np.arange(len(digits.images)) % 5 == 4
    chosen = test if split == "test" else ~test
    pixels = (digits.images[chosen] * (255 / 16)).round().astype(np.uint8)
    return ArraySource(
        channels_first(pixels), torch.from_numpy(digits.target[chosen]), name=f"digits ({split})"
    )


def _torchvision(name: str, root: str, split: str) -> Source | None:
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
            raise FileNotFoundError(f"torchvision's {name} is not in {root}: {error}") from None
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
    return DatasetSource(dataset, labels, name=label)
