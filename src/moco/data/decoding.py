"""From encoded images to the crops of two views: decoded once, by threads."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as pixels

from moco.data.decode import Unreadable
from moco.data.encoded import EncodedSource, Opened
from moco.data.source import Source
from moco.data.views import Parameters, Views

ATTEMPTS = 10  # images drawn in place of one that cannot be read, before the run gives up


class Crops:
    """The crops of one step, in the making; of 8-bit images they stay 8-bit until they are on the device.

    Args:
        source: the images.
        views: says where to crop.
        index: (N,) sample indices; unreadable ones are replaced in it.
        parameters: of the two views.
        replacement: (index, attempt) to the image that takes an unreadable one's place.
        known: unreadable images met so far, by index; added to.
        pool: of threads, `workers` of them.
        device: where the crops are wanted.
    """

    def __init__(
        self,
        source: Source,
        views: Views,
        index: np.ndarray,
        parameters: list[Parameters],
        *,
        replacement: Callable[[int, int], int],
        known: dict[int, Unreadable],
        pool: ThreadPoolExecutor,
        workers: int,
        device: torch.device,
    ):
        self.source, self.views, self.index, self.parameters = source, views, index, parameters
        self.replacement, self.known, self.device = replacement, known, device
        self.met: dict[int, Unreadable] = {}
        size = views.augmentation.size
        shape = (2, len(index), source.channels, size, size)
        dtype = torch.uint8 if source.dtype == torch.uint8 else torch.float32
        self.pixels = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
        rows = np.array_split(np.arange(len(index)), min(4 * workers, len(index)))
        self.futures: list[Future] = [pool.submit(self._fill, chunk) for chunk in rows]

    def _fill(self, rows: np.ndarray) -> None:
        planned = self.index[rows]
        for attempt in range(ATTEMPTS + 1):
            if attempt:
                for row, index in zip(rows, planned, strict=True):
                    self.index[row] = self.replacement(int(index), attempt)
            failed = self._try(rows)
            rows, planned = rows[failed], planned[failed]
            if not len(rows):
                return
        last = self.known[int(self.index[rows[0]])]
        raise RuntimeError(f"{ATTEMPTS + 1} images drawn in a row cannot be read, at last: {last}")

    def _try(self, rows: np.ndarray) -> np.ndarray:
        """Make the crops of these rows; where that fails is True."""
        source, size = self.source, self.views.augmentation.size
        images: list[Opened | Tensor | None] = []
        for row in rows:
            index = int(self.index[row])
            if index in self.known:
                self.met[index] = self.known[index]
                images.append(None)
                continue
            try:
                images.append(source.open(index) if isinstance(source, EncodedSource) else source.read(index))
            except Unreadable as error:
                self._note(index, error)
                images.append(None)
        boxes = self._boxes(rows, [_extent(image) for image in images])
        for place, (row, image) in enumerate(zip(rows, images, strict=True)):
            if isinstance(image, Opened):
                index = int(self.index[row])
                assert isinstance(source, EncodedSource)
                height, width = _extent(image)
                factor = _shrink(image.header.format, boxes[:, place], size)
                try:
                    image = source.decode(image, index, factor)
                except Unreadable as error:
                    self._note(index, error)
                    images[place] = None
                    continue
                if factor == 1 and image.shape[1:] != (height, width):  # turned by a mark inside
                    boxes[:, place] = self._boxes(rows[place : place + 1], [_extent(image)])[:, 0]
                    height, width = _extent(image)
                self._crop(row, image, boxes[:, place], image.shape[1] / height, image.shape[2] / width)
                images[place] = image[:0]  # done, and its memory free
            elif image is not None:
                self._crop(row, image, boxes[:, place], 1, 1)
        return np.array([image is None for image in images])

    def _note(self, index: int, error: Unreadable) -> None:
        self.met[index] = self.known[index] = error

    def _boxes(self, rows: np.ndarray, extents: list[tuple[int, int]]) -> Tensor:
        """(2 views, rows, 4): top, left, height and width in images of these heights and widths."""
        heights, widths = torch.tensor(extents).view(-1, 2).unbind(1)
        chosen = torch.from_numpy(rows)
        return torch.stack(
            [
                self.views.boxes(
                    Parameters(*(getattr(parameters, name)[chosen] for name in _FIELDS)), heights, widths
                )
                for parameters in self.parameters
            ]
        )

    def _crop(self, row: int, image: Tensor, boxes: Tensor, down: float, across: float) -> None:
        """Both crops of an image that was decoded at these shares of its height and width."""
        if image.dtype != torch.uint8:
            image = self.views.unit(image)
        size = self.views.augmentation.size
        for view, (top, left, height, width) in enumerate(boxes.tolist()):
            top, bottom = round(top * down), round((top + height) * down)
            left, right = round(left * across), round((left + width) * across)
            crop = pixels.resized_crop(
                image, top, left, max(1, bottom - top), max(1, right - left), [size, size], antialias=True
            )
            self.pixels[view, row] = crop.flip(-1) if self.parameters[view].flip[row] else crop

    def moved(self) -> list[Tensor]:
        """Both views' crops on the device, 8-bit or in [0, 1], once they are done."""
        for future in self.futures:
            future.result()
        return [view.to(self.device, non_blocking=True) for view in self.pixels]

    def crops(self) -> list[Tensor]:
        """Both views' crops, in [0, 1], once they are done."""
        return [self.views.unit(view) if view.dtype == torch.uint8 else view for view in self.moved()]

    def unreadable(self) -> tuple[tuple[str, str], ...]:
        """Name and reason of the images met that cannot be read, in the order of their indices."""
        return tuple((error.name, error.reason) for _, error in sorted(self.met.items()))


def _extent(image: Opened | Tensor | None) -> tuple[int, int]:
    """Height and width, pixels."""
    if image is None:
        return 1, 1
    if isinstance(image, Opened):
        return image.header.height, image.header.width
    return image.shape[1], image.shape[2]


def _shrink(kind: str, boxes: Tensor, size: int) -> int:
    """The largest factor by which a JPEG may be reduced as it is decoded, so that no crop is enlarged."""
    if kind != "JPEG":
        return 1
    smallest = int(boxes[:, 2:].min())
    return next((factor for factor in (8, 4, 2) if smallest >= factor * size), 1)


_FIELDS = tuple(Parameters.__dataclass_fields__)
