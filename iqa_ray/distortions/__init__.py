"""Distortions at graded levels: pure functions on (H, W, 3) uint8 RGB images, in memory.

    distort(image, "gaussian_blur", level=3)
    distort(image, "jpeg", parameter=PAPER_LEVELS["label_smoothing"]["jpeg"][0])
    distort(image, "noise", level=2, rng=7)      # a seed, or a numpy Generator

Changes of geometry have no levels: `crop_progressively`, `rotate`, `downscale`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from iqa_ray.distortions.blurs import blur_defocus, blur_gaussian, blur_motion
from iqa_ray.distortions.checks import Pixels, check_image
from iqa_ray.distortions.codecs import compress_jpeg, compress_jpeg2000
from iqa_ray.distortions.fading import transmit_fast_fading
from iqa_ray.distortions.geometry import (
    NUM_CROP_STEPS,
    ROTATION_ANGLES,
    crop_progressively,
    downscale,
    rotate,
)
from iqa_ray.distortions.tones import add_noise, overexpose, reduce_contrast, underexpose
from iqa_ray.images.decoding import hash_content

__all__ = [
    "DISTORTIONS",
    "NUM_CROP_STEPS",
    "PAPER_LEVELS",
    "ROTATION_ANGLES",
    "Distortion",
    "crop_progressively",
    "distort",
    "downscale",
    "rotate",
]

Apply = Callable[[Pixels, float, np.random.Generator], Pixels]


@dataclass(frozen=True)
class Distortion:
    """One kind of distortion: what it does and how strongly at each level."""

    name: str
    apply: Apply  # (image, parameter, rng) to an image of the same size
    parameter: str  # what the parameter means, with its unit
    levels: tuple[float, float, float, float, float]  # parameters: just visible to severe


def _without_rng(function: Callable[[Pixels, float], Pixels]) -> Apply:
    return lambda image, parameter, _rng: function(image, parameter)


_ALL = (
    Distortion(
        "gaussian_blur", _without_rng(blur_gaussian), "sigma, px", (0.7, 1.2, 2.0, 3.5, 6.0)
    ),
    Distortion("defocus", _without_rng(blur_defocus), "disc radius, px", (1.0, 2.0, 3.5, 5.5, 8.5)),
    Distortion("motion_blur", blur_motion, "path length, px", (3.0, 6.0, 10.0, 16.0, 26.0)),
    Distortion("noise", add_noise, "variance, white = 1", (0.001, 0.003, 0.008, 0.02, 0.05)),
    Distortion("jpeg", _without_rng(compress_jpeg), "IJG quality", (50, 28, 15, 8, 4)),
    Distortion(
        "jpeg2000", _without_rng(compress_jpeg2000), "bits per pixel", (1.2, 0.6, 0.3, 0.15, 0.07)
    ),
    Distortion(
        "fast_fading", transmit_fast_fading, "receiver SNR, dB", (26.1, 23.5, 21.0, 18.5, 15.5)
    ),
    Distortion("underexposure", underexpose, "gamma of luminance", (1.2, 1.5, 1.9, 2.5, 3.3)),
    Distortion(
        "overexposure", _without_rng(overexpose), "gain in linear light", (1.3, 1.8, 2.6, 4.0, 7.0)
    ),
    Distortion(
        "contrast_loss",
        _without_rng(reduce_contrast),
        "contrast left",
        (0.8, 0.6, 0.42, 0.27, 0.15),
    ),
)
DISTORTIONS: dict[str, Distortion] = {distortion.name: distortion for distortion in _ALL}

# method, distortion, parameters at the levels of its paper, from 1 on
PAPER_LEVELS: dict[str, dict[str, tuple[float, ...]]] = {
    # Chen et al., *Image Quality Assessment Guided Deep Neural Networks Training*, section 4.3
    "label_smoothing": {
        "gaussian_blur": (0.7, 1.0, 1.2),
        "noise": (0.005, 0.01, 0.02),
        "jpeg": (12, 8, 4),
    },
}


def distort(
    image: Pixels,
    name: str,
    *,
    level: int | None = None,
    parameter: float | None = None,
    rng: np.random.Generator | int = 0,
) -> Pixels:
    """Distort an image, at a level or with a parameter.

    Args:
        image: (H, W, 3) uint8 RGB; it is left as it is.
        name: a key of `DISTORTIONS`.
        level: 1 (just visible) to 5 (severe).
        parameter: instead of a level, in the unit of the distortion.
        rng: a generator, which is used as it is, or a seed. What is drawn from a seed also depends
            on the image's content: every level of an image has the same draws and another image has
            others, so that images that are distorted with one seed do not share a field of noise.

    Returns:
        (H, W, 3) uint8 RGB, contiguous, the same for the same arguments.

    Raises:
        ValueError: an unknown name, neither or both of level and parameter, one that is out of
            range, or another kind of image.
    """
    if name not in DISTORTIONS:
        raise ValueError(f"distortion must be one of {list(DISTORTIONS)}, not {name!r}")
    distortion = DISTORTIONS[name]
    if (level is None) == (parameter is None):
        raise ValueError("give either a level or a parameter")
    if level is not None:
        if level not in range(1, len(distortion.levels) + 1):
            raise ValueError(f"level must be a whole number from 1 to 5, not {level}")
        parameter = distortion.levels[int(level) - 1]
    assert parameter is not None
    check_image(image)
    if not isinstance(rng, np.random.Generator):
        rng = np.random.default_rng([rng, int(hash_content(image.tobytes()), 16)])
    return distortion.apply(image, parameter, rng)
