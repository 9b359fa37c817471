"""Batches as a pure function of the step: order, views and shuffles are keyed draws."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.transforms.v2 import functional as pixels

from moco import chance
from moco.batch import Batch
from moco.data.order import WindowedOrder
from moco.data.source import ArraySource, Source
from moco.data.views import Parameters, Views
from moco.world import Solo, World

_AHEAD = 2  # batches decoded before they are asked for


class Loader:
    """Two views of every image, batch by batch.

    Each epoch takes the images in a new keyed order and drops the last, incomplete batch. Images
    held in memory are cropped on the device; files are decoded once and cropped twice by threads.

    Args:
        source: the images.
        views: makes the views.
        batch: images per step.
        seed: keys every draw.
        device: where the batches go.
        workers: decoding threads, for sources that are not in memory.
        world: the processes that share each batch; this one makes its own share only.
        window: shards that are read at a time, for images in shards; None draws from all images.

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
    ):
        if len(source) < batch:
            raise ValueError(
                f"{source.name} has {len(source)} images, fewer than a batch of {batch}; "
                "use a smaller --batch, a multiple of encoder.bn_group"
            )
        if workers < 1:
            raise ValueError(f"workers must be at least 1 thread, got {workers}")
        self.source, self.views, self.batch_size, self.seed = source, views, batch, seed
        self.device, self.workers = torch.device(device), workers
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
                images = self._pixels[torch.from_numpy(index).to(self.device)].float().mul_(1 / 255)
                crops = [self.views.geometry(images, p) for p in parameters]
                yield self._finish(step, index, crops, parameters)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        pending: deque[_Decoding] = deque()
        try:
            for step in range(start, stop):
                while len(pending) <= _AHEAD and step + len(pending) < stop:
                    pending.append(_Decoding(self, step + len(pending), pool))
                work = pending.popleft()
                yield self._finish(step, work.index, work.crops(), work.parameters)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def contact_sheet(self, count: int = 12) -> list[Float[Tensor, "count channels H W"]]:
        """The two views of the first step's first images, in [0, 1], to look at."""
        batch = self.batch(0)
        mean, std = self.views.mean.to(self.device), self.views.std.to(self.device)
        return [(view[:count] * std + mean).clamp(0, 1).cpu() for view in batch.views]

    def _plan(self, step: int) -> tuple[np.ndarray, list[Parameters]]:
        index, epoch = self.index(step), step // self.steps_per_epoch
        return index, [self.views.draw(self.seed, epoch, index, view) for view in (0, 1)]

    def _finish(
        self, step: int, index: np.ndarray, crops: list[Tensor], parameters: list[Parameters]
    ) -> Batch:
        """Photometric changes, on the device and on whole batches."""
        first, second = map(self.views.photometry, crops, parameters)
        orders = [
            torch.from_numpy(
                chance.permute(
                    np.arange(self.batch_size), self.batch_size, self.seed, f"shuffle {view}", step=step
                )
            ).to(self._orders_device)
            for view in (0, 1)
        ]
        here = torch.from_numpy(index).to(self.device)
        return Batch((first, second), here, (orders[0], orders[1]), step)


class _Decoding:
    """The crops of one step, in the making."""

    def __init__(self, loader: Loader, step: int, pool: ThreadPoolExecutor):
        self.loader = loader
        self.index, self.parameters = loader._plan(step)
        size = loader.views.augmentation.size
        shape = (2, len(self.index), loader.source.channels, size, size)
        pinned = loader.device.type == "cuda"
        self.pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        rows = np.array_split(np.arange(len(self.index)), 4 * loader.workers)
        self.futures: list[Future] = [pool.submit(self._decode, chunk) for chunk in rows]

    def _decode(self, rows: np.ndarray) -> None:
        views, size = self.loader.views, self.loader.views.augmentation.size
        for row in rows:
            image = self.loader.source.read(int(self.index[row]))
            height, width = (torch.tensor([extent]) for extent in image.shape[1:])
            for view, parameters in enumerate(self.parameters):
                own = Parameters(*(getattr(parameters, name)[row : row + 1] for name in _FIELDS))
                top, left, h, w = views.boxes(own, height, width)[0].tolist()
                crop = pixels.resized_crop(image, top, left, h, w, [size, size], antialias=True)
                self.pixels[view, row] = crop.flip(-1) if own.flip else crop

    def crops(self) -> list[Tensor]:
        for future in self.futures:
            future.result()
        return [view.to(self.loader.device, non_blocking=True).float().mul_(1 / 255) for view in self.pixels]


_FIELDS = tuple(Parameters.__dataclass_fields__)


def plain_batches(
    source: Source,
    views: Views,
    indices: Int[Tensor, " M"],
    *,
    batch: int = 500,
    device: torch.device,
    workers: int = 2,
) -> Iterator[Float[Tensor, "N channels H W"]]:
    """Unaugmented, normalised images for evaluation, in the order of the indices.

    Images of the evaluation size are taken whole; larger ones are resized so that the short side is
    8/7 of it (256 for 224), smaller ones so that it is equal, and both are cropped centrally.
    """
    size = views.augmentation.eval_size or views.augmentation.size

    def read(index: int) -> Tensor:
        return _central(source.read(index), size)

    for chunk in indices.split(batch):
        if isinstance(source, ArraySource):
            images = torch.stack([read(i) for i in chunk.tolist()])
        else:
            with ThreadPoolExecutor(workers) as pool:
                images = torch.stack(list(pool.map(read, chunk.tolist())))
        yield views.normalise(images.to(device).float().mul_(1 / 255))


def _central(image: Tensor, size: int) -> Tensor:
    if image.shape[1:] == (size, size):
        return image
    short = round(size * 8 / 7) if max(image.shape[1:]) > size else size
    return pixels.center_crop(pixels.resize(image, [short], antialias=True), [size, size])


def measure(source: Source, *, images: int = 1024) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of pixels in [0, 1], over evenly spaced images."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(images, len(source))).astype(int))
    total = torch.zeros(2, source.channels, dtype=torch.float64)
    pixels_seen = 0
    for i in chosen:
        image = source.read(int(i)).double().flatten(1) / 255
        total += torch.stack([image.sum(1), image.square().sum(1)])
        pixels_seen += image.shape[1]
    mean = total[0] / pixels_seen
    std = (total[1] / pixels_seen - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
    return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) for s in std.tolist())
