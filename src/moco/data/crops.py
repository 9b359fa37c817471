"""One random crop of each labelled image: what supervised training and linear classification look at."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from moco import chance
from moco.data.crop import resize
from moco.data.encoded import looking
from moco.data.source import ArraySource, Source
from moco.data.views import Parameters, Views

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
    """
    count = len(indices)
    order = torch.from_numpy(chance.permute(np.arange(count), count, seed, "crop order", step=epoch))
    end = count - count % batch if drop_last else count
    with ThreadPoolExecutor(workers) as pool:
        for places in order[:end].split(batch):
            index = indices[places]
            parameters = views.draw(seed, epoch, index.numpy(), _VIEW)
            if isinstance(source, ArraySource):
                images = views.unit(source.pixels[index].to(device))
                images = views.geometry(images, parameters)
            else:
                rows = range(len(index))
                read = [pool.submit(_crop, source, views, int(index[row]), parameters, row) for row in rows]
                images = torch.stack([future.result() for future in read]).to(device)
                images = views.unit(images) if images.dtype == torch.uint8 else images
            yield views.normalise(images), labels[places].to(device)


def _crop(source: Source, views: Views, index: int, parameters: Parameters, row: int) -> Tensor:
    own = parameters.take(slice(row, row + 1))
    size = views.augmentation.size
    with looking(source, index) as image:
        height, width = (torch.tensor([extent]) for extent in image.shape[1:])
        top, left, h, w = views.boxes(own, height, width)[0].tolist()
        crop = resize(image[:, top : top + h, left : left + w], size, size)
    crop = crop if image.dtype == torch.uint8 else views.unit(crop, image.dtype)
    return crop.flip(-1) if own.flip else crop
