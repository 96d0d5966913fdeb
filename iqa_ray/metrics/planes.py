"""The grey views of an image that several metrics start from, each computed once at most."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

# BT.601 luma in thousandths of a grey level: whole numbers up to 255 000, so float32 holds them,
# and sums of a few of them, without rounding
_BT601_THOUSANDTHS = np.array([[299, 587, 114]], np.float32)


def check_grey_or_rgb(image: Any) -> None:
    """Raise ValueError for anything but (H, W, 3) or (H, W) uint8, of at least one pixel."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"an image must be a uint8 array, not {kind}")
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"an image must be (H, W, 3) or (H, W), not {image.shape}")
    if image.size == 0:
        raise ValueError(f"an image must have at least one pixel, not {image.shape}")


class Planes:
    """An image and the grey planes that metrics share.

    image: (H, W, 3) uint8 RGB or (H, W) uint8, of at least one pixel. Anything else raises
    ValueError. An image with three equal channels has the planes of that one channel.
    """

    def __init__(self, image: NDArray[Any]) -> None:
        check_grey_or_rgb(image)
        self._image = image
        self.height, self.width = image.shape[:2]

    @cached_property
    def grey_thousandths(self) -> NDArray[np.float32]:
        """BT.601 luma in thousandths of a grey level: (H, W), whole numbers in 0-255 000."""
        pixels = self._image.astype(np.float32, order="C")
        if pixels.ndim == 2:
            return pixels * np.float32(1000)
        return np.asarray(cv2.transform(pixels, _BT601_THOUSANDTHS), np.float32)

    @cached_property
    def grey(self) -> NDArray[np.float64]:
        """BT.601 luma: (H, W), 0-255, not rounded to whole grey levels."""
        grey: NDArray[np.float64] = np.divide(self.grey_thousandths, 1000, dtype=np.float64)
        return grey

    @cached_property
    def luma(self) -> NDArray[np.float32]:
        """BT.601 luma rounded to whole grey levels: (H, W), 0-255.

        BRISQUE and NIQE start from it: their parameters were fitted to 8-bit grey images, and
        pyiqa rounds its Y channel likewise (`to_y_channel`, colour space "yiq").
        """
        grey = self.grey_thousandths / np.float32(1000)
        luma: NDArray[np.float32] = np.rint(grey)
        if self._image.ndim == 3:
            # One pixel in a thousand lies half-way. pyiqa's float32 arithmetic decides which way
            # it goes, and on small images a handful of them moves BRISQUE by tenths.
            ties = np.abs(grey - luma) == 0.5
            red, green, blue = (self._image[ties] / np.float32(255)).T
            weights = (_BT601_THOUSANDTHS[0] / 1000).astype(np.float32)
            luma[ties] = np.rint(
                (red * weights[0] + green * weights[1] + blue * weights[2]) * np.float32(255)
            )
        return luma

    @cached_property
    def is_flat(self) -> bool:
        """Whether every pixel has the same luma."""
        return bool(self.luma.min() == self.luma.max())
