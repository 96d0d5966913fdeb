"""What happens pixel by pixel: noise, bad lighting, loss of contrast."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from iqa_ray.distortions.checks import Pixels, check_image, check_range, round_pixels

# A small sensor in poor light: electrons that fill a pixel, and the standard deviation in
# electrons of reading it out.
FULL_WELL = 2000.0
READ_NOISE = 8.0

_LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # BT.601, of sRGB values
_LUMINANCE_WEIGHTS = np.array([0.2126, 0.7152, 0.0722], np.float32)  # BT.709, of linear light


def add_noise(image: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    """Add white Gaussian noise, independent in every pixel and channel.

    For one seed the noise of every variance is the same field, scaled.

    Args:
        image: (H, W, 3) uint8 RGB.
        variance: of the noise on the scale where white is 1, 0 to 1.
        rng: draws the noise.

    Returns:
        (H, W, 3) uint8 RGB, clipped to 0-255.

    Raises:
        ValueError: another kind of image, or variance out of range.
    """
    check_image(image)
    check_range("variance", variance, 0, 1)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return round_pixels(image + np.float32(255 * np.sqrt(variance)) * noise)


def underexpose(image: Pixels, gamma: float, rng: np.random.Generator) -> Pixels:
    """Photograph the scene with too little light, so that its shadows sink into sensor noise.

    The sRGB values are taken back to linear light (IEC 61966-2-1). A pixel of luminance Y in
    [0, 1] (BT.709) is scaled by Y^(gamma − 1), all channels alike: grey becomes Y^gamma, white
    stays, shadows lose most, and no colour shifts. A channel of light L then counts
    L · `FULL_WELL` electrons, with photon noise (a Gaussian whose variance is that count) and
    Gaussian read noise of `READ_NOISE` electrons, and the result is clipped and encoded as sRGB
    again. For one seed every gamma meets the same standard normal draws.

    Args:
        image: (H, W, 3) uint8 RGB.
        gamma: 1 (noise alone) to 20.
        rng: draws the noise.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: another kind of image, or gamma out of range.
    """
    check_image(image)
    check_range("gamma", gamma, 1, 20)
    light = decode_srgb(np.arange(256) / 255).astype(np.float32)[image]
    luminance = np.minimum(light @ _LUMINANCE_WEIGHTS, 1)
    light *= luminance[:, :, None] ** np.float32(gamma - 1)
    spread = np.sqrt(light * np.float32(FULL_WELL) + np.float32(READ_NOISE**2))
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    light += spread * noise / np.float32(FULL_WELL)
    return round_pixels(255 * encode_srgb(np.clip(light, 0, 1)))


def overexpose(image: Pixels, gain: float) -> Pixels:
    """Photograph the scene with too much light, so that its highlights clip to white.

    The linear light of every channel (sRGB, IEC 61966-2-1) is multiplied by `gain`, clipped at 1
    and encoded again.

    Args:
        image: (H, W, 3) uint8 RGB.
        gain: 1 (no change) to 1000; each doubling is one stop.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: another kind of image, or gain out of range.
    """
    check_image(image)
    check_range("gain", gain, 1, 1000)
    light = np.minimum(gain * decode_srgb(np.arange(256) / 255), 1)
    table = round_pixels(255 * encode_srgb(light))
    return np.ascontiguousarray(table[image])


def reduce_contrast(image: Pixels, factor: float) -> Pixels:
    """Pull every value towards the mean grey of the image, as haze or a poor display does.

    The mean grey is the mean BT.601 luma; a value v becomes mean + factor · (v − mean), so colour
    fades with the contrast.

    Args:
        image: (H, W, 3) uint8 RGB.
        factor: the share of contrast that is left, 0 to 1 (no change).

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: another kind of image, or factor out of range.
    """
    check_image(image)
    check_range("factor", factor, 0, 1)
    mean_grey = float(np.dot(cv2.mean(image)[:3], _LUMA_WEIGHTS))
    table = round_pixels(mean_grey + factor * (np.arange(256) - mean_grey))
    return np.ascontiguousarray(table[image])


def decode_srgb(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """sRGB values in [0, 1] to linear light in [0, 1] (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encode_srgb(light: NDArray[np.floating]) -> NDArray[np.floating]:
    """Linear light in [0, 1] to sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
