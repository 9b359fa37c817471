"""What one view of each image is made with."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Parameters:
    """The parameters of one view of N images, as the operations take them; they stay on the CPU."""

    crop_draws: Float[Tensor, "N 40"]
    flip: Bool[Tensor, " N"]
    jitter: Bool[Tensor, " N"]
    factors: Float[Tensor, "N 4"]
    order: Int[Tensor, "N 4"]
    grayscale: Bool[Tensor, " N"]
    blur: Bool[Tensor, " N"]
    sigma: Float[Tensor, " N"]
    solarize: Bool[Tensor, " N"]

    def take(self, rows: slice | Tensor) -> "Parameters":
        """Those of some images."""
        return Parameters(*(getattr(self, name)[rows] for name in _FIELDS))


_FIELDS = tuple(Parameters.__dataclass_fields__)
