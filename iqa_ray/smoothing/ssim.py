"""The structural similarity of many small images to their originals, all at once."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from iqa_ray.training.pixels import Pixels

WINDOW_SIDE, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # of grey levels 0-255
_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])  # BT.601


def measure_ssim(originals: Pixels, versions: Pixels) -> NDArray[np.float64]:
    """The mean SSIM (Wang et al. 2004) of versions of images to the originals.

    On grey images, as Wang et al. define it: BT.601 luma, not rounded. The window is their Gaussian
    of 11×11 with a standard deviation of 1.5 px, and only windows that lie within the image count.
    It is what scikit-image's `structural_similarity` gives with `gaussian_weights`, `sigma=1.5`
    and `use_sample_covariance=False`.

    Args:
        originals: (n, H, W, 3) uint8 RGB, at least 11 px a side.
        versions: (n, V, H, W, 3) uint8 RGB, V versions of each.

    Returns:
        (n, V) in [-1, 1]; 1 for a version that is the original.
    """
    assert min(originals.shape[1:3]) >= WINDOW_SIDE, "no window would lie within the image"
    first = _to_grey(originals)
    mean_first = _average(first)
    variance_first = _average(first * first) - mean_first**2
    found = np.empty(versions.shape[:2])
    for place in range(versions.shape[1]):
        second = _to_grey(versions[:, place])
        mean_second = _average(second)
        variance_second = _average(second * second) - mean_second**2
        covariance = _average(first * second) - mean_first * mean_second
        similarity = (2 * mean_first * mean_second + _C1) * (2 * covariance + _C2)
        similarity /= (mean_first**2 + mean_second**2 + _C1) * (
            variance_first + variance_second + _C2
        )
        found[:, place] = similarity.mean(axis=(1, 2))
    return found


def _to_grey(images: Pixels) -> NDArray[np.float64]:
    return np.asarray(images @ _LUMA_WEIGHTS)


def _average(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, H - 10, W - 10) averages over windows, of (n, H, W).

    The images are filtered as one tall image. Windows that reach into a neighbour are cut off.
    """
    num, height, width = values.shape
    kernel = cv2.getGaussianKernel(WINDOW_SIDE, _SIGMA)
    tall = cv2.sepFilter2D(values.reshape(num * height, width), -1, kernel, kernel)
    edge = WINDOW_SIDE // 2
    return np.asarray(tall, np.float64).reshape(num, height, width)[
        :, edge : height - edge, edge : width - edge
    ]
