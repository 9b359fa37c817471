"""Views made by the fused kernel: the same parameters, the same values, in one or two launches."""

import torch
from torch import Tensor

from moco.data.form import FULL
from moco.data.parameters import Parameters
from moco.data.views import Views
from moco.device import send
from moco.kernels.views import make_views


class FusedViews:
    """Makes what `Views` makes of RGB images on a GPU.

    Args:
        views: say how.
        dtype: of the result; bfloat16 is what an encoder of that precision takes anyway.
    """

    def __init__(self, views: Views, dtype: torch.dtype = torch.float32):
        self.views, self.dtype = views, dtype

    def of_pixels(self, pixels: Tensor, index: Tensor, parameters: Parameters) -> Tensor:
        """Views (N, 3, size, size) of the images pixels[index], of any one size."""
        count, (height, width) = len(index), pixels.shape[2:]
        boxes = self.views.boxes(parameters, torch.full((count,), height), torch.full((count,), width))
        low, high = self.views.augmentation.range or (0, FULL[pixels.dtype])
        return self._make(pixels, index, boxes, parameters, low, high)

    def of_crops(self, crops: Tensor, parameters: Parameters) -> Tensor:
        """Views of crops (N, 3, size, size) that are as they shall be but for their colours: 8-bit, or
        floats in [0, 1]."""
        low, high = (0, 1) if crops.is_floating_point() else self.views.augmentation.range or (0, 255)
        index = torch.arange(len(crops), device=crops.device)
        return self._make(crops, index, None, parameters, low, high)

    def _make(
        self, pixels: Tensor, index: Tensor, boxes: Tensor | None, p: Parameters, low: float, high: float
    ) -> Tensor:
        a = self.views.augmentation
        assert a.mean is not None
        assert a.std is not None
        blurs = max(a.blur_probability, a.second_blur_probability or 0) > 0
        corners = p.order.new_zeros(len(p.flip), 4) if boxes is None else boxes
        chosen = torch.stack([p.flip, p.jitter, p.grayscale, p.blur], 1)
        numbers = torch.cat([corners, chosen, p.order, p.solarize[:, None]], 1).to(torch.int32)
        fractions = torch.cat([p.factors, p.sigma[:, None]], 1)
        return make_views(
            pixels, index, send(numbers, pixels.device), send(fractions, pixels.device), size=a.size,
            crop=boxes is not None, grayscale_first=a.grayscale_first, blur=blurs,
            low=low, high=high, mean=a.mean, std=a.std, dtype=self.dtype,
        )  # fmt: skip
