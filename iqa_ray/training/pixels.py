"""Pixels as networks take them: decoded, scaled and cut to a square."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

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


class ChunkedImages:
    """Images that lie in several arrays, gathered as they are asked for.

    Args:
        chunks: (n, S, S, 3) uint8 RGB each, all but the last of the same length.
    """

    def __init__(self, chunks: Sequence[Pixels]) -> None:
        self._chunks = chunks

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 for the places `rows` (N,)."""
        size = len(self._chunks[0])
        gathered = np.empty((len(rows), *self._chunks[0].shape[1:]), np.uint8)
        for place, row in enumerate(rows.tolist()):
            gathered[place] = self._chunks[row // size][row % size]
        return torch.from_numpy(gathered).permute(0, 3, 1, 2)
