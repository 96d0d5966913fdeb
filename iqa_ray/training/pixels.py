"""Pixels as networks take them: decoded, scaled and cut to a square. PyTorch is not needed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from iqa_ray.images.decoding import ImageError, UnreadError, hash_content
from iqa_ray.images.source import ImageSource

Pixels = NDArray[np.uint8]
Fit = Literal["scale", "crop"]

# where crops lie within the room that they have: the centre, the corners, then the edges
_PLACES = (
    (0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0),
    (0.0, 0.5), (1.0, 0.5), (0.5, 0.0), (0.5, 1.0),
)  # fmt: skip
MAX_CROPS = len(_PLACES)


def cut_crops(image: Pixels, size: int, num_crops: int) -> Pixels:
    """Squares of an image at full resolution; one that is smaller is mirrored at its edges first.

    Args:
        image: (H, W, 3) uint8 RGB.
        size: pixels a side.
        num_crops: 1 to MAX_CROPS: the centre, the corners, the middles of the edges.

    Returns:
        (num_crops, size, size, 3) uint8 RGB.
    """
    missing = [(max(0, size - side)) for side in image.shape[:2]]
    if any(missing):
        before = [(lack // 2, lack - lack // 2) for lack in missing]
        image = np.pad(image, [*before, (0, 0)], mode="symmetric")
    room = (image.shape[0] - size, image.shape[1] - size)
    crops = []
    for down, right in _PLACES[:num_crops]:
        top, left = int(down * room[0]), int(right * room[1])
        crops.append(image[top : top + size, left : left + size])
    return np.stack(crops)


def cut_square(image: Pixels, size: int, fit: Fit = "scale") -> Pixels:
    """The (size, size, 3) square in the middle of an image (H, W, 3).

    With `scale` the shorter side is scaled to `size` first; with `crop` nothing is scaled, and an
    image that is smaller is mirrored at its edges.
    """
    if fit == "crop":
        return np.asarray(cut_crops(image, size, 1)[0])
    scaled = ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.BILINEAR)
    return np.asarray(scaled)


def load_pixels(
    source: ImageSource,
    paths: Sequence[str],
    image_size: int,
    num_threads: int,
    on_unread: Callable[[int], object] | None = None,
    fit: Fit = "scale",
) -> tuple[Pixels, list[str | None]]:
    """Decode images of `source`, and cut each to a square of `image_size` (see `cut_square`).

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
            image = source.decode(data)
        except ImageError as error:
            if on_unread is not None and isinstance(error, UnreadError):
                on_unread(row)
            return
        pixels[row] = cut_square(image, image_size, fit)
        hashes[row] = hash_content(data)

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(load, range(len(paths))))
    return pixels, hashes
