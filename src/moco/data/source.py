"""Sources: numbered images, with labels where there are any. Training reads the images only."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from moco.data.decode import from_pil
from moco.data.form import FULL, Form
from moco.data.reading import Reading
from moco.data.unreadable import Unreadable


class Source(ABC):
    """Images numbered from 0, in an order that is the same on every machine.

    Attributes:
        name: what to call it.
        channels: channels of every image.
        dtype: type of the pixels: uint8, uint16, or float32 with values as they were stored.
        labels: (N,) class of each image, or None.
        classes: names of the classes.
        groups: (N,) number of what each image belongs to (a patient, a video, a site), or None.
            Images of one group are never each other's negatives.
        notes: sentences the user should read before a run.
        shards: how many images each file holds, in order, where files hold many; else None.
        lost: (N,) bool, images whose file was missing from the start, which have no label; or None.
        left_out: how many images a quarantine list kept out.
    """

    notes: tuple[str, ...] = ()
    left_out: int = 0
    shards: np.ndarray | None = None
    name: str
    channels: int
    dtype: torch.dtype
    labels: Int[Tensor, " N"] | None
    classes: list[str]
    groups: Int[Tensor, " N"] | None = None
    lost: Bool[Tensor, " N"] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Shaped[Tensor, "channels H W"]:
        """One image.

        Raises:
            Unreadable: if it cannot be decoded; the message names it.
        """

    @abstractmethod
    def sample_name(self, index: int) -> str:
        """What messages and quarantine lists call an image."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest by which a resumed run recognises its images: of arrays all pixels, of folders
        the names and sizes of all files, of others what tells them apart cheaply; and of the groups, where
        there are any. It is the same wherever the images lie."""


class ArraySource(Source):
    """Images of one size, held in memory.

    Args:
        pixels: (N, channels, H, W) uint8, uint16 or float32.
        labels: (N,) class of each image, -1 where it is not known, or None.
        name: what to call it.
        classes: names of the classes; numbers when not given.
        groups: (N,) group of each image, -1 for one that belongs to none, or None.

    Raises:
        ValueError: if the array is not of that form or labels or groups are not one per image.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor | None = None,
        *,
        name: str = "array",
        classes: Sequence[str] | None = None,
        groups: Tensor | None = None,
    ):
        if pixels.dtype not in FULL or pixels.dim() != 4:
            raise ValueError(
                "an image array must be uint8, uint16 or float32 of shape (images, channels, height, width), "
                f"got {str(pixels.dtype).removeprefix('torch.')} of shape {tuple(pixels.shape)}"
            )
        if pixels.is_floating_point() and not pixels.isfinite().all():
            raise ValueError(
                "an image array must hold finite values, got some that are infinite or no number"
            )
        if labels is not None and (tuple(labels.shape) != (len(pixels),) or (labels.long() < -1).any()):
            raise ValueError(
                "labels must be one class number from 0 per image, or -1 for none, got an array of shape "
                f"{tuple(labels.shape)} for {len(pixels)} images"
            )
        if groups is not None and tuple(groups.shape) != (len(pixels),):
            raise ValueError(
                "groups must be one number from 0 per image, or -1 for none, got an array of shape "
                f"{tuple(groups.shape)} for {len(pixels)} images"
            )
        self.pixels = pixels
        self.groups = None if groups is None else each_its_own(groups.long())
        self.name = name
        self.channels, self.dtype = pixels.shape[1], pixels.dtype
        self.labels = None if labels is None else labels.long()
        count = 0 if self.labels is None or not len(self.labels) else int(self.labels.max()) + 1
        self.classes = list(classes) if classes is not None else [str(c) for c in range(count)]

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> Shaped[Tensor, "channels H W"]:
        return self.pixels[index]

    def sample_name(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        digest.update(np.ascontiguousarray(self.pixels.numpy()).data)
        if self.groups is not None:
            digest.update(self.groups.numpy().tobytes())
        return digest.hexdigest()[:16]


class DatasetSource(Source):
    """A map-style data set whose items are (image, label), such as torchvision's.

    Args:
        dataset: has a length; its items hold a PIL image first and an integer label second.
        labels: (N,) class of each image, -1 where it is not known, or None.
        name: what to call it.
    """

    dtype = torch.uint8

    def __init__(self, dataset, labels: Tensor | None, *, name: str, reading: Reading | None = None):
        self.dataset, self.labels, self.name = dataset, labels, name
        self.classes = list(getattr(dataset, "classes", []))
        self.reading = reading or Reading()
        self.channels = self.reading.channels or 3

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Shaped[Tensor, "channels H W"]:
        name = self.sample_name(index)
        try:
            return from_pil(self.dataset[index][0], name, Form(self.channels), self.reading)
        except (OSError, ValueError, SyntaxError) as error:
            raise Unreadable(name, str(error)) from error

    def sample_name(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{type(self.dataset).__name__} {self.name} {len(self)}".encode())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]


def each_its_own(groups: Tensor) -> Tensor:
    """The groups, with a number of its own for each image that belongs to none.

    Raises:
        ValueError: if a number is below -1.
    """
    if (groups < -1).any():
        raise ValueError(f"groups must be numbers from 0, or -1 for none, got {int(groups.min())}")
    alone = groups == -1
    if not alone.any():
        return groups
    return groups.masked_scatter(alone, groups.max() + 1 + torch.arange(int(alone.sum())))


def renumbered(
    labels: Int[Tensor, " N"], names: Sequence[str], classes: Sequence[str], source: str
) -> Int[Tensor, " N"]:
    """Numbers among `names` as numbers among `classes`; -1 stays.

    Raises:
        ValueError: if an image of the source is of none of these classes.
    """
    used = {names[label] for label in labels.unique().tolist() if label >= 0}
    if unknown := sorted(used - set(classes)):
        raise ValueError(f"{source}/{unknown[0]} is a class that the training images do not have")
    number = {name: i for i, name in enumerate(classes)}
    numbers = torch.tensor([*(number.get(name, -1) for name in names), -1])
    return numbers[labels]  # the last one is that of -1


def unknown_class(folder: str, classes: Sequence[str]) -> ValueError:
    """The error for a folder of test images that is none of the training images' classes."""
    shown = ", ".join(classes[:3]) + ", ..." * (len(classes) > 3)
    return ValueError(
        f"{folder} is a class that the training images do not have; the folders of theirs are {shown}. If "
        "those are no classes, put all of them into one folder of train/, such as train/all/; else take that "
        "class out of the test images"
    )


def channels_first(images: np.ndarray) -> Tensor:
    """(N, H, W) or (N, H, W, channels) pixels as (N, channels, H, W)."""
    if images.ndim == 3:
        images = images[..., None]
    native = images.dtype.newbyteorder("=")
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1), native))
