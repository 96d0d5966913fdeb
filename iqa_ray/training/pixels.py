"""Pixels as networks take them: decoded, scaled and cut to a square. PyTorch is not needed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from iqa_ray.images.decoding import ImageError, UnreadError, hash_content
from iqa_ray.images.source import ImageSource

Pixels = NDArray[np.uint8]


def load_pixels(
    source: ImageSource,
    paths: Sequence[str],
    image_size: int,
    num_threads: int,
    on_unread: Callable[[int], object] | None = None,
) -> tuple[Pixels, list[str | None]]:
    """Decode images of `source`, scale the shorter side to `image_size` and cut the centre.

    `on_unread` is told the rows of files that are away or refused, from several threads.

    Returns:
        (n, image_size, image_size, 3) uint8 RGB, and the content hashes of the files that
        they were read from. An image that could not be read is black and has the hash None.
    """
    pixels = np.zeros((len(paths), image_size, image_size, 3), np.uint8)
    hashes: list[str | None] = [None] * len(paths)

    def load(row: int) -> None:
        try:
            data = source.read(paths[row])
            image = Image.fromarray(source.decode(data))
        except ImageError as error:
            if on_unread is not None and isinstance(error, UnreadError):
                on_unread(row)
            return
        size = (image_size, image_size)
        pixels[row] = np.asarray(ImageOps.fit(image, size, Image.Resampling.BILINEAR))
        hashes[row] = hash_content(data)

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(load, range(len(paths))))
    return pixels, hashes
