"""Views: two random versions of an image, the pretext task's query and key.

Every parameter is a keyed draw of its own (seed, epoch, image, view), so a view does not depend on
the batch it is made in. The geometry comes first, because images of mixed size must become square
before they can form a batch; the photometric changes then run on the whole batch.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from moco import chance
from moco.data import colour, crop
from moco.data.augmentation import Augmentation
from moco.data.form import FULL
from moco.data.parameters import Parameters
from moco.device import send


class Views:
    """Makes views as an `Augmentation` says.

    Args:
        augmentation: its settings, with mean and standard deviation given.

    Raises:
        ValueError: if mean and standard deviation are still to be measured.

    Source: MoCo, Section 3.3 "Pretext task"; v2, Section 3; the released `main_moco.py`.
    """

    def __init__(self, augmentation: Augmentation):
        if augmentation.mean is None or augmentation.std is None:
            raise ValueError("views need a mean and a standard deviation; measure them on the images first")
        self.augmentation = augmentation
        self.mean = torch.tensor(augmentation.mean).view(1, -1, 1, 1)
        self.std = torch.tensor(augmentation.std).view(1, -1, 1, 1)
        self._there: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation on a device, (1, channels, 1, 1) each."""
        if device not in self._there:
            self._there[device] = self.mean.to(device), self.std.to(device)
        return self._there[device]

    def draw(self, seed: int, epoch: int, index: np.ndarray, view: int) -> Parameters:
        """The parameters of view 0 or 1 of the images with these sample indices in this epoch."""
        a = self.augmentation
        draws = chance.uniform(seed, "view", index, crop.DRAWS + 13, step=epoch, view=view)
        flip, jitter, grayscale, blur, sigma = draws[:, crop.DRAWS : crop.DRAWS + 5].unbind(1)
        factors = 2 * draws[:, -8:-4] - 1
        strengths = torch.tensor([a.brightness, a.contrast, a.saturation, a.hue], dtype=factors.dtype)
        centres = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=factors.dtype)
        second = view == 1
        blur_probability = a.blur_probability
        if second and a.second_blur_probability is not None:
            blur_probability = a.second_blur_probability
        solarize = torch.zeros(len(index), dtype=torch.bool)
        if second and a.second_solarize_probability:
            own = chance.uniform(seed, "solarize", index, 1, step=epoch, view=view)[:, 0]
            solarize = own < a.second_solarize_probability
        return Parameters(
            crop_draws=draws[:, : crop.DRAWS],
            flip=flip < a.flip_probability,
            jitter=jitter < a.jitter_probability,
            factors=(centres + strengths * factors).float(),
            order=draws[:, -4:].argsort(1),
            grayscale=grayscale < a.grayscale_probability,
            blur=blur < blur_probability,
            sigma=(a.blur_sigma[0] + (a.blur_sigma[1] - a.blur_sigma[0]) * sigma).float(),
            solarize=solarize,
        )

    def boxes(
        self, parameters: Parameters, heights: Int[Tensor, " N"], widths: Int[Tensor, " N"]
    ) -> Int[Tensor, "N 4"]:
        """Top, left, height and width of each crop in images of these sizes."""
        a = self.augmentation
        return crop.crop_boxes(parameters.crop_draws, heights, widths, a.scale, a.ratio)

    def geometry(
        self, images: Float[Tensor, "N channels H W"], parameters: Parameters
    ) -> Float[Tensor, "N channels size size"]:
        """Crop, resize and mirror images of one size."""
        count, _, height, width = images.shape
        boxes = self.boxes(parameters, torch.full((count,), height), torch.full((count,), width))
        boxes, flip = (send(part, images.device) for part in (boxes, parameters.flip))
        return crop.resize_boxes(images, boxes, flip, self.augmentation.size)

    def photometry(
        self, images: Float[Tensor, "N channels size size"], parameters: Parameters
    ) -> Float[Tensor, "N channels size size"]:
        """Colour changes, blur and normalisation of square images in [0, 1], which are overwritten."""
        if colour.by_opencv(images):
            from moco.data import opencv

            return opencv.photometry(images, parameters, self.augmentation)
        if not colour.alone(images):
            self._change(images, parameters)
            return self.normalise(images)
        result = torch.empty_like(images, memory_format=torch.channels_last)
        for row in range(len(images)):
            one = slice(row, row + 1)
            self._change(images[one], parameters.take(one))
            result[one] = images[one].sub_(self.mean).div_(self.std)
        return result

    def _change(self, images: Tensor, parameters: Parameters) -> None:
        """Colour changes, blur and solarizing, in place."""
        if self.augmentation.grayscale_first:
            colour.grayscale(images, parameters.grayscale)
        colour.jitter(images, parameters.factors, parameters.order, parameters.jitter)
        if not self.augmentation.grayscale_first:
            colour.grayscale(images, parameters.grayscale)
        colour.blur(images, parameters.sigma, parameters.blur)
        colour.solarize(images, parameters.solarize)

    def unit(self, images: Tensor, kind: torch.dtype | None = None) -> Tensor:
        """Pixels as floats in which `range` is 0 to 1; values beyond it stay beyond.

        Args:
            images: pixels of any type.
            kind: the type they had before they were resized, if that was another.
        """
        low, high = self.augmentation.range or (0, FULL[kind or images.dtype])
        layout = torch.channels_last if colour.by_opencv(images) else torch.contiguous_format
        values = images.to(torch.float32, copy=True, memory_format=layout)
        return (values.sub_(low) if low else values).mul_(1 / (high - low))

    def normalise(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation; laid out channels last."""
        mean, std = self.constants(images.device)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)
