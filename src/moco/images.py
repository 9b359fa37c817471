"""The images of a run, in the forms in which it trains on them and is measured on them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moco import chance, recipe
from moco.data.crops import crop_batches
from moco.data.encoded import looking
from moco.data.loader import Loader, plain_batches
from moco.data.open import open_source
from moco.data.quarantine import read_quarantine
from moco.data.reading import Reading
from moco.data.source import ArraySource, Source
from moco.data.unreadable import Unreadable
from moco.data.views import Views
from moco.evaluate.knn import Labelled
from moco.words import some

_PAIRS = 200  # pairs of views encoded at once, at most
_AT_ONCE = 4096  # files in the hands of a pool of threads
_LOOKED_AT = 64  # test images, before a run begins


@dataclass(frozen=True)
class Data:
    """The images of a run: what it trains on, and what it may be measured on."""

    train: Source
    test: Source | None


@dataclass(frozen=True)
class Portion:
    """Some labelled images of a source.

    Attributes:
        source: holds them.
        indices: (M,) which they are.
        labels: (M,) their classes.
    """

    source: Source
    indices: Tensor
    labels: Tensor

    @property
    def groups(self) -> Tensor | None:
        """(M,) which patient, video or site each shows; None where the source does not say."""
        return None if self.source.groups is None else self.source.groups[self.indices]

    def plain(self, values: recipe.Recipe, device: torch.device, *, strict: bool = False) -> Labelled:
        """Unaugmented, normalised, in the order of the indices; unreadable images are left out, with
        their classes, or with `strict` the first one is an error."""
        views, unreadable = Views(values.views), None if strict else set[int]()
        batches = functools.partial(
            plain_batches, self.source, views, self.indices, device=device, unreadable=unreadable
        )
        return Labelled(batches, self.labels, set() if unreadable is None else unreadable)

    def crops(
        self,
        values: recipe.Recipe,
        device: torch.device,
        *,
        batch: int,
        drop_last: bool = False,
        seed: int = 0,
    ) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
        """Epoch to batches of random crops, mirrored, of the size at which features are measured."""
        views = dataclasses.replace(
            values.views, size=values.views.eval_size or values.views.size, scale=(0.08, 1.0)
        )

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            return crop_batches(
                self.source, Views(views), self.indices, self.labels,
                epoch=epoch, batch=batch, seed=seed, device=device, drop_last=drop_last,
            )  # fmt: skip

        return batches

    def readable(self, workers: int | None = None) -> tuple["Portion", list[str]]:
        """Those that can be read, and the names of the others; every file is decoded once."""
        if isinstance(self.source, ArraySource):
            return self, []

        def reads(index: int) -> bool:
            try:
                with looking(self.source, index):
                    return True
            except Unreadable:
                return False

        fine = torch.ones(len(self.indices), dtype=torch.bool)
        with ThreadPoolExecutor(workers) as pool:
            for places in torch.arange(len(fine)).split(_AT_ONCE):
                fine[places] = torch.tensor(list(pool.map(reads, self.indices[places].tolist())))
        lost = self.take((~fine).nonzero().flatten())
        return self.take(fine.nonzero().flatten()), lost.names()

    def names(self) -> list[str]:
        """What the images are called, in the order of the source."""
        return [self.source.sample_name(index) for index in self.indices.sort().values.tolist()]

    def take(self, places: Tensor) -> "Portion":
        """Those at some places."""
        return Portion(self.source, self.indices[places], self.labels[places])


def open_data(spec: str, reading: Reading | None = None, listed: frozenset[str] = frozenset()) -> Data:
    """The training and, where there are any, test images of a specification, less those listed."""
    train_images = open_source(spec, "train", reading=reading, quarantine=listed)
    assert train_images is not None
    test_images = open_source(spec, "test", reading=reading, quarantine=listed)
    if test_images is not None:
        pixels = str(train_images.dtype).removeprefix("torch.")
        check_form(
            test_images, {"channels": train_images.channels, "pixels": pixels}, "the training images have"
        )
        _check_readable(test_images)
    if listed and not train_images.left_out + (test_images.left_out if test_images is not None else 0):
        train_images.notes += (
            f"none of the {len(listed):,} files on the quarantine list is among these images; names are as "
            f"moco doctor and runs write them, such as {train_images.sample_name(0)}",
        )
    return Data(train_images, test_images)


def _check_readable(source: Source) -> None:
    """Refuse test images, before anything is trained, if none of some of them can be read."""
    reason = None
    for index in np.unique(np.linspace(0, len(source) - 1, min(_LOOKED_AT, len(source))).astype(int)):
        try:
            with looking(source, int(index)):
                return
        except Unreadable as error:
            reason = reason or error
    raise ValueError(f"no test image that was looked at can be read, such as {reason}; mend or remove them")


def as_trained(reading: Reading, pixels: str | None) -> Reading:
    """How files are read for weights that were trained on pixels of a type: to 8 bits, if those had 8."""
    return dataclasses.replace(reading, bits=8) if pixels == "uint8" else reading


def check_form(source: Source, about: Mapping[str, Any], whose: str = "the weights were trained on") -> None:
    """Refuse images of other channels or pixels than those a network was trained on.

    Args:
        source: the images.
        about: "channels" and "pixels" of those it was trained on, where they are known.
        whose: they are.

    Raises:
        ValueError: if they are; their values would mean something else.
    """
    channels, pixels = about.get("channels"), about.get("pixels")
    if channels is not None and source.channels != channels:
        raise ValueError(
            f"{source.name} has images of {some(source.channels, 'channel')}, {whose} {channels}"
        )
    have = str(source.dtype).removeprefix("torch.")
    if pixels is not None and have != pixels:
        raise ValueError(f"{source.name} has {have} pixels, {whose} {pixels}")


def open_like(spec: str, reading: Reading, quarantine: str, about: Mapping[str, Any]) -> Data:
    """As `open_data`, for weights that were trained on images of a form (see `as_trained`, `check_form`)."""
    listed = read_quarantine(quarantine) if quarantine else frozenset[str]()
    data = open_data(spec, as_trained(reading, about.get("pixels")), listed)
    for source in (data.train, *(() if data.test is None else (data.test,))):
        check_form(source, about)
    return data


def _every_fifth(source: Source) -> Tensor:
    """Which images are held out, (N,) bool: of images in groups whole groups, none on both sides."""
    number = torch.arange(len(source))
    if source.groups is not None:
        groups, numbers = source.groups.unique(return_inverse=True)
        number = numbers if len(groups) > 1 else number
    fold = max(1, min(5, int(number.max()) + 1))
    held_out = number % fold == fold - 1
    if source.labels is not None and source.groups is None:
        known = source.labels[~held_out].unique()
        if not torch.isin(source.labels[held_out], known).all():  # classes in turn: every fifth of each
            for label in source.labels.unique():
                members = (source.labels == label).nonzero()[:, 0]
                held_out[members] = torch.arange(len(members)) % fold == fold - 1
    return held_out


def portions(
    data: Data, seed: int, *, bank: int | None = None, queries: int | None = None
) -> tuple[Portion, Portion] | None:
    """Images to learn classes from and images to test on, in a random but fixed order; None without labels.

    Without test images every fifth training image is one and the others are learnt from; of images in
    groups every fifth group is. Images without a class, whose label is negative, are left out.

    Args:
        data: the images.
        seed: keys the order.
        bank, queries: how many to take of each; None takes all.
    """
    test = data.test if data.test is not None else data.train
    if data.train.labels is None or test.labels is None:
        return None
    held_out = _every_fifth(data.train) if data.test is None else None
    chosen = []
    for source, count, purpose in (data.train, bank, "bank"), (test, queries, "queries"):
        order = chance.permute(np.arange(len(source)), len(source), seed, purpose)
        indices = torch.from_numpy(order)
        if held_out is not None:
            indices = indices[held_out[indices] == (purpose == "queries")]
        assert source.labels is not None
        indices = indices[source.labels[indices] >= 0][:count]
        if not len(indices):
            return None
        chosen.append(Portion(source, indices, source.labels[indices]))
    return chosen[0], chosen[1]


def labelled(
    values: recipe.Recipe,
    data: Data,
    device: torch.device,
    *,
    bank: int | None = None,
    queries: int | None = None,
) -> tuple[Labelled, Labelled] | None:
    """Bank and queries for kNN: `portions` as the recipe prepares images for measurements."""
    found = portions(data, values.seed, bank=bank, queries=queries)
    return None if found is None else (found[0].plain(values, device), found[1].plain(values, device))


def pairs(
    values: recipe.Recipe, data: Data, device: torch.device, *, count: int
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """The pretext task's two views of images, always the same ones, for label-free diagnostics.

    They are test images where there are any; else training images, which the network has seen. Batches
    are of one size, so up to one image less than there are batches may be left out.
    """
    source = data.test if data.test is not None and len(data.test) > 1 else data.train  # one has no spread
    count = min(count, len(source))
    steps = math.ceil(count / _PAIRS)
    loader = Loader(source, Views(values.views), count // steps, seed=values.seed, device=device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for found in loader.stream(0, steps):
            yield found.views[0], found.views[1]

    return batches
