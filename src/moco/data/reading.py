"""How image files become pixels: the settings, without the code (see `moco.data.decode`)."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Reading:
    """What is read of an image file, and how many files may be unreadable."""

    channels: int | None = None
    """Channels of every image; None: those of the files (grey files among colour ones become RGB)."""
    bits: int | None = None
    """8 scales deeper images down to 8 bits; None keeps the depth of the files."""
    alpha: Literal["composite", "drop", "keep"] = "composite"
    """Transparency: composite over the background, drop it, or keep it as a channel."""
    background: float = 1.0
    """What lies under transparent pixels, 0 (black) to 1 (white)."""
    max_pixels: int = 89_478_485
    """Larger images are refused from their header (a small file can unpack to gigabytes)."""
    max_memory: int = 268_435_456
    """Bytes that decoding may take at a time, in all threads together; an image that takes more is
    refused from its header. An RGB image takes 3 a pixel from JPEG (progressive: 6 to 9), 19 from
    WebP, else 7, and its file."""
    budget: float = 0.01
    """Share of the images that may turn out unreadable before the run stops."""
    follow_links: bool = False
    """Follow symbolic links, inside and out of the folder."""

    def __post_init__(self):
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"reading.channels must be at least 1, got {self.channels}")
        if self.bits not in (None, 8):
            raise ValueError(f"reading.bits must be 8, or None for the depth of the files, got {self.bits}")
        if self.alpha not in ("composite", "drop", "keep"):
            raise ValueError(f"reading.alpha must be one of composite, drop, keep, got {self.alpha!r}")
        if not 0 <= self.background <= 1:
            raise ValueError(f"reading.background must be in [0, 1], got {self.background}")
        if self.max_pixels < 1:
            raise ValueError(f"reading.max_pixels must be at least 1 pixel, got {self.max_pixels}")
        if self.max_memory < 1:
            raise ValueError(f"reading.max_memory must be at least 1 byte, got {self.max_memory}")
        if not 0 <= self.budget <= 1:
            raise ValueError(f"reading.budget must be a share of the images in [0, 1], got {self.budget}")
