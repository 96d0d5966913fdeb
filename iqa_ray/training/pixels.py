"""Pixels as networks take them: decoded, scaled and cut to a square. PyTorch is not needed here."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from iqa_ray.decoding import ImageError, decode_image, read_image_bytes
from iqa_ray.images import locate_image

Pixels = NDArray[np.uint8]


def load_pixels(
    paths: Sequence[str], image_size: int, max_pixels: int, options: str, num_threads: int
) -> tuple[Pixels, NDArray[np.bool_]]:
    """Decode images, scale the shorter side to `image_size` and cut the centre.

    Returns:
        (n, image_size, image_size, 3) uint8 RGB, and (n,) which of them could be read; the others
        are black.
    """
    pixels = np.zeros((len(paths), image_size, image_size, 3), np.uint8)
    readable = np.zeros(len(paths), bool)

    def load(row: int) -> None:
        try:
            data = read_image_bytes(locate_image(paths[row], options))
            image = Image.fromarray(decode_image(data, max_pixels))
        except ImageError:
            return
        size = (image_size, image_size)
        pixels[row] = np.asarray(ImageOps.fit(image, size, Image.Resampling.BILINEAR))
        readable[row] = True

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(load, range(len(paths))))
    return pixels, readable
