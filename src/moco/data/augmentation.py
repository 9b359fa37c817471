"""The settings of an augmentation, without the code that applies it (see `moco.data.views`)."""

from dataclasses import dataclass

from moco.channels import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Augmentation:
    """How a view is made of an image. The defaults are MoCo v1's, which are InstDisc's."""

    size: int = 224
    """Height and width of a view, pixels."""
    eval_size: int | None = None
    """Height and width at which features are measured and used; None is that of a view. Random crops
    make things look larger than they are, so views somewhat smaller than the images match them."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area that a crop keeps."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Narrowest and widest crop, width over height, before it is resized to a square."""
    brightness: float = 0.4
    """Brightness is multiplied by a factor in 1 ± this; contrast and saturation likewise."""
    contrast: float = 0.4
    """See brightness."""
    saturation: float = 0.4
    """See brightness."""
    hue: float = 0.4
    """Hue is turned by up to this share of the colour circle, at most 0.5."""
    jitter_probability: float = 1.0
    """Probability of the four colour changes, which come in random order."""
    grayscale_probability: float = 0.2
    """Probability that a view loses its colour."""
    grayscale_first: bool = True
    """Take the colour away before the colour changes (v1) or after them (v2)."""
    blur_probability: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Least and greatest standard deviation of the Gaussian blur, pixels of the view."""
    second_blur_probability: float | None = None
    """Probability of the blur for an image's second view (v3: 0.1); None is that of the first."""
    second_solarize_probability: float = 0.0
    """Probability that the bright half of a second view's pixel values is inverted (v3: 0.2)."""
    flip_probability: float = 0.5
    """Probability that a view is mirrored left to right."""
    range: tuple[float, float] | None = None
    """Pixel values that become 0 and 1; None: 0 to 255 for 8 bits, for deeper images measured."""
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    """Per-channel mean subtracted from pixels in [0, 1]; None measures it on the training images."""
    std: tuple[float, ...] | None = IMAGENET_STD
    """Per-channel standard deviation divided by; None measures it on the training images."""

    def __post_init__(self):
        for name in "size", "eval_size":
            pixels = getattr(self, name)
            if pixels is not None and pixels < 1:
                raise ValueError(f"views.{name} must be at least 1 pixel, got {pixels}")
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"views.scale must be two shares of the area, 0 < low <= high <= 1, got {self.scale}"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"views.ratio must be 0 < narrowest <= widest, got {self.ratio}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"views.hue must be in [0, 0.5] of the colour circle, got {self.hue}")
        for name in "brightness", "contrast", "saturation":
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"views.{name} must be in [0, 1], got {getattr(self, name)}")
        for name in "jitter", "grayscale", "blur", "flip", "second_blur", "second_solarize":
            probability = getattr(self, f"{name}_probability")
            if probability is not None and not 0 <= probability <= 1:
                raise ValueError(f"views.{name}_probability must be in [0, 1], got {probability}")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"views.blur_sigma must be 0 < least <= greatest, got {self.blur_sigma}")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"views.range must be two pixel values, low < high, got {self.range}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"views.std must be above 0, got {self.std}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("views.mean and views.std must both be given or both be measured")


V1 = Augmentation()
"""MoCo v1 at 224 pixels: grayscale, then strong colour changes, always."""

V2 = Augmentation(hue=0.1, jitter_probability=0.8, grayscale_first=False, blur_probability=0.5)
"""MoCo v2's "aug+": weaker hue, colour changes four times in five, and blur."""

V3 = Augmentation(
    saturation=0.2,
    hue=0.1,
    jitter_probability=0.8,
    grayscale_first=False,
    blur_probability=1.0,
    second_blur_probability=0.1,
    second_solarize_probability=0.2,
)
"""MoCo v3's for ResNets, which are BYOL's: the first view is always blurred, the second may be solarized."""

SMALL = Augmentation(
    size=32,
    scale=(0.08, 1.0),
    hue=0.1,
    jitter_probability=0.8,
    grayscale_first=False,
    mean=CIFAR_MEAN,
    std=CIFAR_STD,
)
"""The released CIFAR-10 demo's: crops from 8 % of the area, no blur, CIFAR-10's statistics."""
