"""What networks are fed from."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iqa_ray.distortions import distort
from iqa_ray.training.augment import cut_centre
from iqa_ray.training.pixels import Pixels


class Inputs(Protocol):
    """What a network is fed from: rows of images (N, 3, S, S) uint8, or of features (N, F)."""

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


class ChunkedImages:
    """Images that lie in several arrays, gathered as they are asked for.

    Args:
        chunks: (n, S, S, 3) uint8 RGB each, all but the last of the same length.
    """

    def __init__(self, chunks: Sequence[Pixels]) -> None:
        self._chunks = chunks

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 for the places `rows` (N,)."""
        gathered = np.empty((len(rows), *self._chunks[0].shape[1:]), np.uint8)
        for place, row in enumerate(rows.tolist()):
            gathered[place] = self.look_up(row)
        return torch.from_numpy(gathered).permute(0, 3, 1, 2)

    def look_up(self, row: int) -> Pixels:
        """The image (S, S, 3) at a place, not to be written to."""
        size = len(self._chunks[0])
        return self._chunks[row // size][row % size]


@dataclass(frozen=True)
class Copies:
    """Distorted copies of images, by what they are made of.

    Attributes:
        images: (N,) the place of each copy's image.
        kinds: (N,) the place of its distortion in `distortions`.
        distortions: (name, level) each; ("", 0) leaves an image as it is.
        seed: of noise; with the content of an image it decides what is drawn.
    """

    images: NDArray[np.int64]
    kinds: NDArray[np.int64]
    distortions: tuple[tuple[str, int], ...]
    seed: int


def distort_square(image: Pixels, name: str, level: int, seed: int) -> Pixels:
    """An image at a level of a distortion, or as it is where `name` is empty."""
    return distort(image, name, level=level, rng=seed) if name else image


class DistortedImages:
    """Distorted copies of images, made as they are asked for and kept nowhere.

    Args:
        images: those that are copied.
        copies: how.
        num_threads: that make copies of a batch side by side.
    """

    def __init__(self, images: ChunkedImages, copies: Copies, num_threads: int) -> None:
        self._images, self._copies, self._num_threads = images, copies, num_threads

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 for the copies `rows` (N,)."""
        with ThreadPoolExecutor(self._num_threads) as pool:
            copies = list(pool.map(self._make, rows.tolist()))
        return torch.from_numpy(np.stack(copies)).permute(0, 3, 1, 2)

    def _make(self, row: int) -> Pixels:
        copies = self._copies
        image = self._images.look_up(int(copies.images[row]))
        name, level = copies.distortions[copies.kinds[row]]
        return distort_square(image, name, level, copies.seed)


class CentreOf:
    """The squares of `size` in the middle of images."""

    def __init__(self, images: Inputs, size: int) -> None:
        self._images, self._size = images, size

    def __getitem__(self, rows: Tensor) -> Tensor:
        return cut_centre(self._images[rows], self._size)
