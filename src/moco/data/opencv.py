"""Photometric changes of large RGB images on CPUs by OpenCV: one image at a time, colours side by side.

The operations of `colour` on the same parameters, in a fraction of the time; values differ by rounding.
Those that are linear in a pixel's colours are a product with a matrix.
"""

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from moco.data.augmentation import Augmentation
from moco.data.colour import LUMA, gaussian
from moco.data.parameters import Parameters


def photometry(
    images: Float[Tensor, "N 3 size size"], parameters: Parameters, augmentation: Augmentation
) -> Float[Tensor, "N 3 size size"]:
    """Colour changes, blur and normalisation of images in [0, 1], in place where they lie channels last."""
    a, p = augmentation, parameters
    assert a.mean is not None
    assert a.std is not None
    mean, std = np.array(a.mean), np.array(a.std)
    normal = np.concatenate([np.diag(1 / std), (-mean / std)[:, None]], 1)
    images = images.contiguous(memory_format=torch.channels_last)
    spare = np.empty((*images.shape[2:], 3), np.float32)
    for row, home in enumerate(images.permute(0, 2, 3, 1).numpy()):
        canvas = Canvas(home, spare)
        if p.grayscale[row] and a.grayscale_first:
            canvas.grayscale()
        if p.jitter[row]:
            for number in p.order[row].tolist():
                canvas.operations[number](float(p.factors[row, number]))
        if p.grayscale[row] and not a.grayscale_first:
            canvas.grayscale()
        if p.blur[row]:
            canvas.blur(float(p.sigma[row]))
        if p.solarize[row]:
            canvas.solarize()
        cv2.transform(canvas.image, normal, dst=home)
    return images


class Canvas:
    """One image (H, W, 3), and room for another: what cannot work in place writes to the other."""

    def __init__(self, image: np.ndarray, spare: np.ndarray):
        self.image, self.spare = image, spare
        self.operations = self.brightness, self.contrast, self.saturation, self.hue

    def brightness(self, factor: float) -> None:
        torch.from_numpy(self.image).mul_(factor).clamp_(0, 1)

    def contrast(self, factor: float) -> None:
        grey = float(np.dot(LUMA, cv2.mean(self.image)[:3]))
        torch.from_numpy(self.image).mul_(factor).add_((1 - factor) * grey).clamp_(0, 1)

    def saturation(self, factor: float) -> None:
        self._product(factor * np.eye(3) + (1 - factor) * np.tile(LUMA, (3, 1)))
        torch.from_numpy(self.image).clamp_(0, 1)

    def hue(self, shift: float) -> None:
        cv2.cvtColor(self.image, cv2.COLOR_RGB2HSV, dst=self.spare)
        self.spare[..., 0] += 360 * (shift % 1)  # wrapped by the way back
        cv2.cvtColor(self.spare, cv2.COLOR_HSV2RGB, dst=self.image)

    def grayscale(self) -> None:
        self._product(np.tile(LUMA, (3, 1)))

    def blur(self, sigma: float) -> None:
        kernel = gaussian(sigma).numpy()
        cv2.sepFilter2D(self.image, -1, kernel, kernel, dst=self.spare, borderType=cv2.BORDER_REPLICATE)
        self.image, self.spare = self.spare, self.image

    def solarize(self) -> None:
        bright = torch.from_numpy(self.image)
        torch.where(bright >= 0.5, 1 - bright, bright, out=bright)

    def _product(self, matrix: np.ndarray) -> None:
        cv2.transform(self.image, matrix, dst=self.spare)
        self.image, self.spare = self.spare, self.image
