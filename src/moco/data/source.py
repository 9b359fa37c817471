"""Sources: numbered images, with labels where there are any. Training reads the images only."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from moco.data.decode import decode, to_tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")


class Source(ABC):
    """Images numbered from 0, in an order that is the same on every machine.

    Attributes:
        name: what to call it.
        channels: channels of every image.
        labels: (N,) class of each image, or None.
        classes: names of the classes.
        notes: sentences the user should read before a run.
        shards: how many images each file holds, in order, where files hold many; else None.
    """

    notes: tuple[str, ...] = ()
    shards: np.ndarray | None = None
    name: str
    channels: int
    labels: Int[Tensor, " N"] | None
    classes: list[str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> UInt8[Tensor, "channels H W"]:
        """One image.

        Raises:
            RuntimeError: if it cannot be decoded; the message names it.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest by which a resumed run recognises its images: of arrays all pixels, of folders
        the names and sizes of all files."""


class ArraySource(Source):
    """Images of one size, held in memory.

    Args:
        pixels: (N, channels, H, W) uint8.
        labels: (N,) class of each image, -1 where it is not known, or None.
        name: what to call it.
        classes: names of the classes; numbers when not given.

    Raises:
        ValueError: if the array is not of that form or the labels are not one per image.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor | None = None,
        *,
        name: str = "array",
        classes: Sequence[str] | None = None,
    ):
        if pixels.dtype != torch.uint8 or pixels.dim() != 4:
            raise ValueError(
                f"an image array must be uint8 of shape (images, channels, height, width), "
                f"got {str(pixels.dtype).removeprefix('torch.')} of shape {tuple(pixels.shape)}"
            )
        if labels is not None and (tuple(labels.shape) != (len(pixels),) or (labels.long() < -1).any()):
            raise ValueError(
                f"labels must be one class number from 0 per image, or -1 for none, got an array of shape "
                f"{tuple(labels.shape)} for {len(pixels)} images"
            )
        self.pixels = pixels
        self.name = name
        self.channels = pixels.shape[1]
        self.labels = None if labels is None else labels.long()
        count = 0 if self.labels is None or not len(self.labels) else int(self.labels.max()) + 1
        self.classes = list(classes) if classes is not None else [str(c) for c in range(count)]

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> UInt8[Tensor, "channels H W"]:
        return self.pixels[index]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().data)
        return digest.hexdigest()[:16]


class FolderSource(Source):
    """The image files under a folder, at any depth, as RGB.

    When every image lies in a subfolder and there are at least two of these, the first-level
    subfolders are the classes; otherwise there are no labels.

    Args:
        root: the folder.
        name: what to call it.
        classes: the classes to number by, those of the training images; None finds them.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        ValueError: if a subfolder is none of the classes given.
    """

    channels = 3

    def __init__(self, root: Path, *, name: str | None = None, classes: Sequence[str] = ()):
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}")
        self.root = root
        self.name = name or str(root)
        self.paths = sorted(_scan(str(root)))
        if not self.paths:
            raise FileNotFoundError(f"no image in {root} (looked for {', '.join(EXTENSIONS)} at any depth)")
        folders = [path.split("/", 1)[0] if "/" in path else None for path in self.paths]
        self.classes, self.labels = list(classes), None
        names = [folder for folder in folders if folder is not None]
        if len(names) == len(folders) and (classes or len(set(names)) > 1):
            self.classes = self.classes or sorted(set(names))
            number = {folder: i for i, folder in enumerate(self.classes)}
            if unknown := sorted(set(names) - set(number)):
                raise ValueError(f"{root / unknown[0]} is a class that the training images do not have")
            self.labels = torch.tensor([number[folder] for folder in names])

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> UInt8[Tensor, "channels H W"]:
        return decode(self.root / self.paths[index])

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(f"{path}\0{(self.root / path).stat().st_size}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]


class DatasetSource(Source):
    """A map-style data set whose items are (image, label), such as torchvision's.

    Args:
        dataset: has a length; its items hold a PIL image first and an integer label second.
        labels: (N,) class of each image, -1 where it is not known, or None.
        name: what to call it.
    """

    channels = 3

    def __init__(self, dataset, labels: Tensor | None, *, name: str):
        self.dataset, self.labels, self.name = dataset, labels, name
        self.classes = list(getattr(dataset, "classes", []))

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> UInt8[Tensor, "channels H W"]:
        try:
            image = self.dataset[index][0]
        except OSError as error:
            raise RuntimeError(f"cannot decode image {index} of {self.name}: {error}") from error
        return to_tensor(image, f"{self.name}[{index}]")

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.dataset!r}{len(self)}".encode()).hexdigest()[:16]


def channels_first(images: np.ndarray) -> Tensor:
    """(N, H, W) or (N, H, W, channels) pixels as (N, channels, H, W)."""
    if images.ndim == 3:
        images = images[..., None]
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))


def _scan(root: str) -> list[str]:
    """Paths of image files below a folder, relative to it with forward slashes.

    Each folder is visited once, however many links lead to it, and run folders are left out.
    """
    found, pending = [], [""]
    status = os.stat(root)
    seen = {(status.st_dev, status.st_ino)}
    while pending:
        folder = pending.pop()
        with os.scandir(os.path.join(root, folder)) as opened:
            entries = sorted(opened, key=lambda entry: entry.name)
        if folder and any(entry.name == "recipe.toml" for entry in entries):
            continue
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                status = entry.stat()
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    pending.append(path)
            elif entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                found.append(path)
    return found
