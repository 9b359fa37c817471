"""Training batches and test images, decoded ahead by threads; a batch is a pure function of its step."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from moco import chance
from moco.transfer.batch import DetectionBatch, ImageList, SegmentationBatch, Targets
from moco.transfer.example import Example, Examples
from moco.transfer.order import Order
from moco.transfer.transforms import (
    Sizes,
    Wanted,
    for_detection,
    for_segmentation,
    label_image,
    resized,
)
from moco.world import World

Decode = Callable[[Path], Tensor]
BatchT = TypeVar("BatchT", DetectionBatch, SegmentationBatch)
_AHEAD = 2  # batches made before they are asked for
_DRAWS = 4


@dataclass(frozen=True)
class Pixels:
    """How pixels become a network's input: scaled to [0, 1], less the mean, over the deviation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, image: UInt8[Tensor, "3 H W"]) -> Float[Tensor, "3 H W"]:
        """An image as floating point, its mean colour zero."""
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        return (image.float() / 255 - mean) / std


def checked(decode: Decode, example: Example) -> UInt8[Tensor, "3 H W"]:
    """The image of an example.

    Raises:
        RuntimeError: if it cannot be read, or its size is not the annotated one.
    """
    image = decode(example.path)
    if tuple(image.shape[1:]) != (example.height, example.width):
        raise RuntimeError(
            f"{example.path} is {image.shape[2]} x {image.shape[1]} pixels, its annotation says "
            f"{example.width} x {example.height}"
        )
    return image


class Loader(Generic[BatchT]):
    """This process's share of every global batch.

    Args:
        order: of the global batches.
        make: image number, draws and seed to one sample.
        collate: samples to a batch.
        seed: keys every draw.
        world: the processes.
        device: where the batches go.
        workers: decoding threads.

    Raises:
        ValueError: if the processes cannot share the batch equally.
    """

    def __init__(
        self,
        order: Order,
        make: Callable[[int, list[float], int], Any],
        collate: Callable[[list[Any]], BatchT],
        *,
        seed: int,
        world: World,
        device: torch.device,
        workers: int = 2,
    ):
        if order.batch % world.size:
            raise ValueError(
                f"a batch of {order.batch} images cannot be shared by {world.size} processes; "
                f"make --batch a multiple of {world.size}"
            )
        self.order, self.make, self.seed = order, make, seed
        self.collate: Callable[[list[Any]], BatchT] = collate
        self.world, self.device, self.workers = world, device, workers

    def batch(self, step: int) -> BatchT:
        """The batch of a step."""
        return next(self.stream(step, step + 1))

    def stream(self, start: int, stop: int) -> Iterator[BatchT]:
        """The batches of steps start to stop - 1."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        pending: deque[list[Future]] = deque()
        try:
            for step in range(start, stop):
                while len(pending) <= _AHEAD and step + len(pending) < stop:
                    pending.append(self._begin(step + len(pending), pool))
                yield self.collate([future.result() for future in pending.popleft()]).to(self.device)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, step: int, pool: ThreadPoolExecutor) -> list[Future]:
        index = self.order.index(step)
        purpose = self.order.purpose
        places = np.arange(len(index))  # an image may come twice in a batch
        draws = chance.uniform(self.seed, f"{purpose} view", places, _DRAWS, step=step)
        seeds = chance.uniform(self.seed, f"{purpose} samples", places, 1, step=step)[:, 0] * 2**53
        share = len(index) // self.world.size
        mine = slice(self.world.rank * share, (self.world.rank + 1) * share)
        return [
            pool.submit(self.make, int(image), draw.tolist(), int(own))
            for image, draw, own in zip(index[mine], draws[mine], seeds[mine], strict=True)
        ]


def detection_loader(
    examples: Examples,
    order: Order,
    decode: Decode,
    pixels: Pixels,
    sizes: Sizes,
    wanted: Wanted,
    *,
    divisor: int,
    **options: Any,
) -> Loader[DetectionBatch]:
    """A loader of images with objects; `options` are further arguments of `Loader`."""

    def make(number: int, draws: list[float], seed: int) -> tuple[Tensor, Targets, int]:
        example = examples.examples[number]
        image, target = for_detection(checked(decode, example), example, examples, sizes, wanted, draws)
        return pixels.normalise(image), target, seed

    def collate(samples: list[tuple[Tensor, Targets, int]]) -> DetectionBatch:
        images, targets, seeds = zip(*samples, strict=True)
        return DetectionBatch(ImageList.stack(images, divisor), targets, seeds)

    return Loader(order, make, collate, **options)


def segmentation_loader(
    examples: Examples,
    order: Order,
    decode: Decode,
    pixels: Pixels,
    crop: int,
    scales: tuple[float, float],
    **options: Any,
) -> Loader[SegmentationBatch]:
    """A loader of crops with a class for each pixel; `options` are further arguments of `Loader`."""

    def make(number: int, draws: list[float], _: int) -> tuple[Tensor, Tensor]:
        example = examples.examples[number]
        labels = label_image(example, examples)
        return for_segmentation(pixels.normalise(checked(decode, example)), labels, crop, scales, draws)

    def collate(samples: list[tuple[Tensor, Tensor]]) -> SegmentationBatch:
        images, labels = zip(*samples, strict=True)
        return SegmentationBatch(ImageList.stack(images), torch.stack(labels))

    return Loader(order, make, collate, **options)


def evaluation_images(
    examples: Examples, decode: Decode, pixels: Pixels, sizes: Sizes | None, divisor: int = 1
) -> Iterator[tuple[Example, ImageList]]:
    """Every image of a split, one at a time, at its test size; None leaves the size as it is."""
    for example in examples.examples:
        image = checked(decode, example)
        if sizes is not None:
            image = resized(image, *sizes.of(example.height, example.width, 0.0))
        yield example, ImageList.stack([pixels.normalise(image)], divisor)
