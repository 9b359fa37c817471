"""One random crop of each labelled image: what supervised training and linear classification look at."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from moco import chance
from moco.data.decoding import Crops, ahead
from moco.data.source import ArraySource, Source
from moco.data.unreadable import Unreadable
from moco.data.views import Views

_VIEW = 2  # 0 and 1 are the pretext task's query and key


def crop_batches(
    source: Source,
    views: Views,
    indices: Int[Tensor, " M"],
    labels: Int[Tensor, " M"],
    *,
    epoch: int,
    batch: int,
    seed: int = 0,
    device: torch.device,
    drop_last: bool = False,
    workers: int = 2,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images cropped at random, mirrored and normalised, with their classes, in a new order each epoch.

    Colours stay as they are. Order and crops are keyed by seed, epoch and image.

    Args:
        source: the images.
        views: say how large a part is cropped, to which size.
        indices: of the images to take.
        labels: their classes.
        epoch: which pass.
        batch: images per batch.
        seed: keys every draw.
        device: where the batches go.
        drop_last: leave out a last, incomplete batch.
        workers: decoding threads.

    Raises:
        Unreadable: if an image cannot be read.
    """
    count = len(indices)
    order = torch.from_numpy(chance.permute(np.arange(count), count, seed, "crop order", step=epoch))
    batches = order[: count - count % batch if drop_last else count].split(batch)
    if isinstance(source, ArraySource):
        for places in batches:
            index = indices[places]
            images = views.unit(source.pixels[index].to(device))
            crops = views.geometry(images, views.draw(seed, epoch, index.numpy(), _VIEW))
            yield views.normalise(crops), labels[places].to(device)
        return
    known: dict[int, Unreadable] = {}
    spare: list[Tensor] = []

    def refuse(index: int, _: int) -> int:
        raise known[index]

    def crop(places: Tensor) -> Crops:
        index = indices[places].numpy()
        return Crops(
            source, views, index, [views.draw(seed, epoch, index, _VIEW)], replacement=refuse,
            known=known, pool=pool, workers=workers, device=device, spare=spare,
        )  # fmt: skip

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for places, work in zip(batches, ahead(map(crop, batches)), strict=True):
            yield views.normalise(work.crops()[0]), labels[places].to(device)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
