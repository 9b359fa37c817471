"""Batches as a pure function of the step: order, views and shuffles are keyed draws."""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from moco import chance
from moco.batch import Batch
from moco.data.crop import resize
from moco.data.decoding import ATTEMPTS, Crops, ahead
from moco.data.encoded import looking
from moco.data.order import WindowedOrder
from moco.data.parameters import Parameters
from moco.data.source import ArraySource, Source
from moco.data.unreadable import Unreadable
from moco.data.views import Views
from moco.device import send
from moco.world import Solo, World

if TYPE_CHECKING:
    from moco.data.fused import FusedViews

_LONG = 4  # times the short side: of longer images the middle is looked at


class Loader:
    """Two views of every image, batch by batch.

    Each epoch takes the images in a new keyed order and drops the last, incomplete batch. Images
    held in memory are cropped on the device; files are decoded once and cropped twice by threads.
    In place of an image that cannot be read comes another, a keyed draw of (seed, epoch, image,
    attempt), and the batch says which image it was and why, unless its shard was missing from the start.

    Args:
        source: the images.
        views: makes the views.
        batch: images per step.
        seed: keys every draw.
        device: where the batches go.
        workers: decoding threads, for sources that are not in memory.
        world: the processes that share each batch; this one makes its own share only.
        window: shards that are read at a time, for images in shards; None draws from all images.
        fused: makes the views in their stead, where there is a kernel for the device.

    Raises:
        ValueError: if there are fewer images than one batch takes, no worker, or a window without shards.
    """

    def __init__(
        self,
        source: Source,
        views: Views,
        batch: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        workers: int = 2,
        world: World | None = None,
        window: int | None = None,
        fused: "FusedViews | None" = None,
    ):
        if len(source) < batch:
            raise ValueError(
                f"{source.name} has {len(source)} images, fewer than a batch of {batch}; "
                "use a smaller --batch, a multiple of encoder.bn_group"
            )
        if workers < 1:
            raise ValueError(f"workers must be at least 1 thread, got {workers}")
        self.source, self.views, self.batch_size, self.seed = source, views, batch, seed
        self.device, self.workers, self.fused = torch.device(device), workers, fused
        self.steps_per_epoch = len(source) // batch
        self._windowed = None
        if window is not None:
            if source.shards is None:
                raise ValueError(
                    f"window {window} needs images in shards, {source.name} has none; see moco pack"
                )
            self._windowed = WindowedOrder(source.shards, window, seed)
        world = world or Solo()
        share = batch // world.size
        self._share = slice(world.rank * share, (world.rank + 1) * share)
        # processes that exchange rows plan it on the CPU
        self._orders_device = self.device if world.size == 1 else torch.device("cpu")
        self._pixels = source.pixels.to(self.device) if isinstance(source, ArraySource) else None
        self._groups = None if source.groups is None else source.groups.to(self.device)
        self._spare: list[Tensor] = []
        self.unreadable: dict[int, Unreadable] = {}  # met so far; they are not tried again

    def index(self, step: int) -> np.ndarray:
        """Sample indices of this process's share of a step's batch, (N,) int64."""
        epoch, place = divmod(step, self.steps_per_epoch)
        positions = place * self.batch_size + np.arange(self._share.start, self._share.stop)
        if self._windowed is not None:
            return self._windowed.at(positions, epoch)
        return chance.permute(positions, len(self.source), self.seed, "order", step=epoch)

    def batch(self, step: int) -> Batch:
        """The batch of a step, whatever was asked for before."""
        return next(self.stream(step, step + 1))

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start to stop - 1, decoded ahead."""
        if self._pixels is not None:
            for step in range(start, stop):
                index, parameters = self._plan(step)
                here = send(torch.from_numpy(index), self.device)
                if self.fused is not None:
                    made = [self.fused.of_pixels(self._pixels, here, p) for p in parameters]
                else:
                    images = self.views.unit(_rows(self._pixels, here))
                    crops = [self.views.geometry(images, p) for p in parameters]
                    made = list(map(self.views.photometry, crops, parameters))
                yield self._batch(step, here, made)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        try:
            works = ahead(self._crops(step, pool) for step in range(start, stop))
            for step, work in zip(range(start, stop), works, strict=True):
                if self.fused is not None:  # either settles which images the batch is made of
                    made = list(map(self.fused.of_crops, work.moved(), work.parameters))
                else:
                    made = list(map(self.views.photometry, work.crops(), work.parameters))
                here = send(torch.from_numpy(work.index), self.device)
                yield self._batch(step, here, made, work.unreadable())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def contact_sheet(self, count: int = 12) -> list[Float[Tensor, "count channels H W"]]:
        """The two views of the first step's first images, in [0, 1], to look at."""
        batch = self.batch(0)
        mean, std = self.views.constants(self.device)
        return [(view[:count] * std + mean).clamp(0, 1).cpu() for view in batch.views]

    def _plan(self, step: int) -> tuple[np.ndarray, list[Parameters]]:
        index, epoch = self.index(step), step // self.steps_per_epoch
        return index, [self.views.draw(self.seed, epoch, index, view) for view in (0, 1)]

    def _crops(self, step: int, pool: ThreadPoolExecutor) -> Crops:
        index, parameters = self._plan(step)
        return Crops(
            self.source, self.views, index, parameters, replacement=functools.partial(self.replacement, step),
            known=self.unreadable, pool=pool, workers=self.workers, device=self.device, spare=self._spare,
        )  # fmt: skip

    def replacement(self, step: int, index: int, attempt: int) -> int:
        """The image that takes an unreadable one's place at a step, at the given attempt from 1."""
        epoch = step // self.steps_per_epoch
        draws = chance.uniform(self.seed, "replacement", np.array([index]), ATTEMPTS, step=epoch)
        return int(draws[0, attempt - 1] * len(self.source))

    def _batch(
        self, step: int, index: Tensor, views: list[Tensor], unreadable: tuple[tuple[str, str], ...] = ()
    ) -> Batch:
        """Views with what identifies them."""
        first, second = views
        orders = [
            chance.permute(
                np.arange(self.batch_size), self.batch_size, self.seed, f"shuffle {view}", step=step
            )
            for view in (0, 1)
        ]
        first_order, second_order = send(torch.from_numpy(np.stack(orders)), self._orders_device)
        group = None if self._groups is None else self._groups[index]
        return Batch((first, second), index, (first_order, second_order), step, group, unreadable)


def plain_batches(
    source: Source,
    views: Views,
    indices: Int[Tensor, " M"],
    *,
    batch: int = 500,
    device: torch.device,
    workers: int = 2,
    unreadable: set[int] | None = None,
) -> Iterator[Float[Tensor, "N channels H W"]]:
    """Unaugmented, normalised images for evaluation, in the order of the indices.

    Images that cannot be read are left out, and their places among the indices added to
    `unreadable`; without such a set the first one is an error.

    Images of the evaluation size are taken whole; larger ones are resized so that the short side is
    8/7 of it (256 for 224), smaller ones so that it is equal, and both are cropped centrally.
    """
    size = views.augmentation.eval_size or views.augmentation.size

    def read(place: int) -> Tensor | None:
        try:
            with looking(source, int(indices[place])) as image:
                central = _central(image, size)
        except Unreadable:
            if unreadable is None:
                raise
            unreadable.add(place)
            return None
        return central if source.dtype == torch.uint8 else views.unit(central, source.dtype)

    for places in torch.arange(len(indices)).split(batch):
        if isinstance(source, ArraySource) and source.pixels.shape[2:] == (size, size):
            whole = _rows(source.pixels, indices[places]).to(device)
            yield views.normalise(views.unit(whole))
            continue
        if isinstance(source, ArraySource):
            images = [read(place) for place in places.tolist()]
        else:
            with ThreadPoolExecutor(workers) as pool:
                images = list(pool.map(read, places.tolist()))
        if readable := [image for image in images if image is not None]:
            whole = torch.stack(readable).to(device)
            yield views.normalise(views.unit(whole) if whole.dtype == torch.uint8 else whole)


def _central(image: Tensor, size: int) -> Tensor:
    if image.shape[1:] == (size, size):
        return image
    for long in 1, 2:  # what is cut off below need not be enlarged first
        if (spare := image.shape[long] - _LONG * image.shape[3 - long]) > 0:
            image = image.narrow(long, spare // 2, image.shape[long] - spare)
    short = round(size * 8 / 7) if max(image.shape[1:]) > size else size
    least = min(image.shape[1:])
    height, width = (int(short * extent / least) for extent in image.shape[1:])
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resize(image, height, width)[:, top : top + size, left : left + size].contiguous()


def _rows(pixels: Tensor, index: Tensor) -> Tensor:
    """`pixels[index]`; torch does not index 16-bit images on GPUs."""
    if pixels.dtype != torch.uint16:
        return pixels[index]
    return pixels.view(torch.int16)[index].view(torch.uint16)
