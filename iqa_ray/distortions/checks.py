"""What every distortion asks of its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def check_image(image: Any) -> None:
    """Raise ValueError for anything but (H, W, 3) uint8 of at least one pixel."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"an image must be a uint8 array, not {kind}")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"an image must be (H, W, 3) with at least one pixel, not {image.shape}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError for a value outside `low` to `high`, both allowed; NaN is outside."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low:g} to {high:g}, not {value}")


def round_pixels(values: NDArray[Any]) -> Pixels:
    """Round to whole grey levels and clip to 0-255: any float array to uint8, contiguous."""
    return np.ascontiguousarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
