"""What networks are fed from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

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
        size = len(self._chunks[0])
        gathered = np.empty((len(rows), *self._chunks[0].shape[1:]), np.uint8)
        for place, row in enumerate(rows.tolist()):
            gathered[place] = self._chunks[row // size][row % size]
        return torch.from_numpy(gathered).permute(0, 3, 1, 2)


class CentreOf:
    """The squares of `size` in the middle of images."""

    def __init__(self, images: Inputs, size: int) -> None:
        self._images, self._size = images, size

    def __getitem__(self, rows: Tensor) -> Tensor:
        return cut_centre(self._images[rows], self._size)
