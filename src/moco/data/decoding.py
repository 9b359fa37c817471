"""From encoded images to the crops of their views: decoded once, by threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from moco.batch import TooManyUnreadable
from moco.data.crop import crop_boxes, resize
from moco.data.encoded import EncodedSource, Opened
from moco.data.parameters import Parameters
from moco.data.source import Source
from moco.data.unreadable import Lost, Unreadable
from moco.data.views import Views
from moco.device import send

ATTEMPTS = 64  # images drawn in place of one that cannot be read, before the run gives up
_AHEAD = 2  # batches decoded before they are asked for
_HELD = 1 << 24  # bytes of files that a thread has open at a time, and one more


class Crops:
    """The crops of one batch, in the making; of 8-bit images they stay 8-bit until they are on the device.

    Args:
        source: the images.
        views: says where to crop.
        index: (N,) sample indices; unreadable ones are replaced in it.
        parameters: of each view.
        replacement: (index, attempt) to the image that takes an unreadable one's place, or an error.
        known: unreadable images met so far, by index; added to.
        pool: of threads, `workers` of them.
        device: where the crops are wanted.
        spare: memory of batches that are done with, used again: fresh memory costs a page fault every
            four kilobytes. On a GPU torch keeps it itself.
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
        spare: list[Tensor],
    ):
        self.source, self.views, self.index, self.parameters = source, views, index, parameters
        self.replacement, self.known, self.device, self.spare = replacement, known, device, spare
        self.met: dict[int, Unreadable] = {}
        size = views.augmentation.size
        shape = (len(parameters), len(index), size, size, source.channels)  # as decoders lay pixels out
        dtype = torch.uint8 if source.dtype == torch.uint8 else torch.float32
        used = next((place for place, old in enumerate(spare) if old.shape == shape), None)
        if used is None:
            self.memory = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
        else:
            self.memory = spare.pop(used)
        self.pixels = self.memory.permute(0, 1, 4, 2, 3)
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
        index = int(self.index[rows[0]])
        last = self.known.get(index, f"{self.source.sample_name(index)} is missing")
        raise TooManyUnreadable(f"{ATTEMPTS + 1} images drawn in a row cannot be read, at last: {last}")

    def _try(self, rows: np.ndarray) -> np.ndarray:
        """Make the crops of these rows; where that fails is True."""
        failed, start = np.zeros(len(rows), bool), 0
        while start < len(rows):
            images: list[Opened | Tensor | None] = []
            held = 0
            for row in rows[start:]:
                images.append(image := self._open(int(self.index[row])))
                held += _size(image)
                if held > _HELD:
                    break
            some = slice(start, start + len(images))
            failed[some] = self._crop_all(rows[some], images)
            start = some.stop
        return failed

    def _open(self, index: int) -> Opened | Tensor | None:
        if index in self.known:
            self.met[index] = self.known[index]
            return None
        source = self.source
        try:
            return source.open(index) if isinstance(source, EncodedSource) else source.read(index)
        except Unreadable as error:
            self._note(index, error)
            return None

    def _crop_all(self, rows: np.ndarray, images: list[Opened | Tensor | None]) -> list[bool]:
        """Make the crops of opened images, which are let go; where that fails is True."""
        boxes = self._boxes(rows, [_extent(image) for image in images])
        failed = []
        for place, row in enumerate(rows):
            image, images[place] = images[place], None
            if isinstance(image, Opened):
                failed.append(not self._decode(image, row, boxes[:, place]))
            else:
                failed.append(image is None)
                if image is not None:
                    self._crop(row, image, boxes[:, place])
        return failed

    def _decode(self, opened: Opened, row: int, boxes: np.ndarray) -> bool:
        """Make the crops of an opened image, if it can be decoded."""
        source, index = self.source, int(self.index[row])
        assert isinstance(source, EncodedSource)
        height, width = _extent(opened)
        factor = _shrink(opened.header.format, boxes, self.views.augmentation.size)
        with source.room(opened, factor):
            try:
                image = source.decode(opened, factor)
            except Unreadable as error:
                self._note(index, error)
                return False
            if factor == 1 and _extent(image) != (height, width):  # turned by a mark inside
                boxes = self._boxes(np.array([row]), [_extent(image)])[:, 0]
            self._crop(row, image, boxes, factor if _extent(image) != (height, width) else 1)
        return True

    def _note(self, index: int, error: Unreadable) -> None:
        if not isinstance(error, Lost):
            self.met[index] = self.known[index] = error

    def _boxes(self, rows: np.ndarray, extents: list[tuple[int, int]]) -> np.ndarray:
        """(views, rows, 4): top, left, height and width in images of these heights and widths."""
        chosen, count = torch.from_numpy(rows), len(self.parameters)
        draws = torch.cat([p.crop_draws[chosen] for p in self.parameters])
        heights, widths = torch.tensor(extents).view(-1, 2).repeat(count, 1).unbind(1)
        a = self.views.augmentation
        return crop_boxes(draws, heights, widths, a.scale, a.ratio).view(count, -1, 4).numpy()

    def _crop(self, row: int, image: Tensor, boxes: np.ndarray, factor: int = 1) -> None:
        """The crops of an image whose pixels stand for `factor` x `factor` each, the last ones for fewer."""
        size = self.views.augmentation.size
        for view, (top, left, height, width) in enumerate(boxes.tolist()):
            top, bottom = round(top / factor), round((top + height) / factor)
            left, right = round(left / factor), round((left + width) / factor)
            box = image[:, top : max(bottom, top + 1), left : max(right, left + 1)]
            crop = resize(box, size, size)
            if image.dtype != torch.uint8:
                crop = self.views.unit(crop, image.dtype)
            self.pixels[view, row] = crop.flip(-1) if self.parameters[view].flip[row] else crop

    def moved(self) -> list[Tensor]:
        """Every view's crops on the device, 8-bit or in [0, 1], once they are done."""
        for future in self.futures:
            future.result()
        return [send(view, self.device) for view in self.pixels]

    def crops(self) -> list[Tensor]:
        """Every view's crops, in [0, 1], once they are done."""
        moved = self.moved()
        if self.memory.dtype != torch.uint8:
            return [view.contiguous() for view in moved]
        made = [self.views.unit(view) for view in moved]
        self.release()
        return made

    def release(self) -> None:
        """Give the memory of the crops back, once nothing looks at it."""
        if self.device.type == "cpu":
            self.spare.append(self.memory)

    def unreadable(self) -> tuple[tuple[str, str], ...]:
        """Name and reason of the images met that cannot be read, in the order of their indices."""
        return tuple((error.name, error.reason) for _, error in sorted(self.met.items()))


def ahead(batches: Iterable[Crops]) -> Iterator[Crops]:
    """The same batches, each begun while those before it are still in use."""
    pending: deque[Crops] = deque()
    for crops in batches:
        pending.append(crops)
        if len(pending) > _AHEAD:
            yield pending.popleft()
    yield from pending


def _size(image: Opened | Tensor | None) -> int:
    """Bytes."""
    return len(image.content) if isinstance(image, Opened) else 0 if image is None else image.nbytes


def _extent(image: Opened | Tensor | None) -> tuple[int, int]:
    """Height and width, pixels."""
    if image is None:
        return 1, 1
    if isinstance(image, Opened):
        return image.header.height, image.header.width
    return image.shape[1], image.shape[2]


def _shrink(kind: str, boxes: np.ndarray, size: int) -> int:
    """The largest factor by which a JPEG may be reduced as it is decoded, so that no crop is enlarged."""
    if kind != "JPEG":
        return 1
    smallest = int(boxes[:, 2:].min())
    return next((factor for factor in (8, 4, 2) if smallest >= factor * size), 1)
