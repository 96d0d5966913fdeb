"""Blur by convolution: Gaussian, lens out of focus, camera in motion.

All three work on the 8-bit values as they are, like the distorted sets that metrics are trained
on (LIVE, TID, KADID), and not in linear light. Beyond the edge the image is mirrored.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from iqa_ray.distortions.checks import Pixels, check_image, check_range, round_pixels

MAX_BLUR_PX = 100.0

FloatArray = NDArray[np.float64]

_SAMPLES_PER_PX = 32


def blur_gaussian(image: Pixels, sigma: float) -> Pixels:
    """Blur with an isotropic Gaussian.

    Args:
        image: (H, W, 3) uint8 RGB.
        sigma: standard deviation in pixels, 0 (no blur) to 100.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: another kind of image, or sigma out of range.
    """
    check_image(image)
    check_range("sigma", sigma, 0, MAX_BLUR_PX)
    if sigma == 0:
        return image.copy()
    # 8-bit input would be blurred in fixed point and with a shorter kernel
    reach = int(np.ceil(4 * sigma))
    kernel = cv2.getGaussianKernel(2 * reach + 1, sigma)
    blurred = cv2.sepFilter2D(
        image.astype(np.float32), -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101
    )
    return round_pixels(blurred)


def blur_defocus(image: Pixels, radius: float) -> Pixels:
    """Blur with a uniform disc, the circle of confusion of a lens out of focus.

    Args:
        image: (H, W, 3) uint8 RGB.
        radius: of the disc in pixels, 0 to 100. A disc of radius 0.5 or less lies within one
            pixel and changes nothing.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: another kind of image, or radius out of range.
    """
    check_image(image)
    check_range("radius", radius, 0, MAX_BLUR_PX)
    return _convolve(image, make_disc_kernel(radius))


def blur_motion(
    image: Pixels, length: float, rng: np.random.Generator, angle: float | None = None
) -> Pixels:
    """Blur along a straight line, as a camera that moves evenly during the exposure.

    Args:
        image: (H, W, 3) uint8 RGB.
        length: of the path in pixels, 0 (no blur) to 100.
        rng: draws the angle where none is given, evenly from 0 to 180 degrees.
        angle: of the path in degrees, counter-clockwise from the horizontal, −360 to 360.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: another kind of image, or length or angle out of range.
    """
    check_image(image)
    check_range("length", length, 0, MAX_BLUR_PX)
    if angle is None:
        angle = float(rng.uniform(0, 180))
    check_range("angle", angle, -360, 360)
    return _convolve(image, make_motion_kernel(length, angle))


def make_disc_kernel(radius: float) -> FloatArray:
    """Return the share of each pixel that a disc covers, (2R+1, 2R+1), of sum 1.

    Exact along one axis and finely sampled along the other, either way round, so that the kernel
    changes smoothly with a fractional radius.
    """
    reach = int(np.ceil(radius - 0.5))
    if reach <= 0:
        return np.ones((1, 1))
    pixels = np.arange(-reach, reach + 1)
    within = (np.arange(_SAMPLES_PER_PX) + 0.5) / _SAMPLES_PER_PX - 0.5
    x = pixels[:, None] + within
    half_chord = np.sqrt(np.maximum(radius**2 - x**2, 0))[:, :, None]
    top = np.clip(pixels - 0.5, -half_chord, half_chord)
    bottom = np.clip(pixels + 0.5, -half_chord, half_chord)
    covered = (bottom - top).sum(axis=1)
    kernel: FloatArray = covered + covered.T
    return kernel / kernel.sum()


def make_motion_kernel(length: float, angle: float) -> FloatArray:
    """Return the time that a point spends on each pixel of its path, (2R+1, 2R+1), of sum 1.

    The path is centred; between pixel centres its time is shared out bilinearly.
    """
    num_samples = max(int(np.ceil(length * _SAMPLES_PER_PX)), 1)
    along = ((np.arange(num_samples) + 0.5) / num_samples - 0.5) * length
    x, y = along * np.cos(np.deg2rad(angle)), -along * np.sin(np.deg2rad(angle))
    reach = int(np.ceil(length / 2)) + 1
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for column, share_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, share_y in ((top, top + 1 - y), (top + 1, y - top)):
            np.add.at(kernel, (row + reach, column + reach), share_x * share_y)
    return kernel / num_samples


def _convolve(image: Pixels, kernel: FloatArray) -> Pixels:
    # both kernels are symmetric about their centre, so correlation is convolution
    blurred = cv2.filter2D(
        image.astype(np.float32),
        -1,
        kernel.astype(np.float32),
        borderType=cv2.BORDER_REFLECT_101,
    )
    return round_pixels(blurred)
