"""The versions of images as networks take them: in memory once a node, or on the GPU.

An epoch only gathers by index. The row of image i in version v is i + v · N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from iqa_ray.smoothing.versions import read_array
from iqa_ray.storage.files import Location
from iqa_ray.training.inputs import Inputs
from iqa_ray.training.pixels import CHUNK_SIZE, Pixels
from iqa_ray.training.sharing import Material


@dataclass(frozen=True)
class VersionsMaterial(Material):
    """Images whose versions lie in files of CHUNK_SIZE images each."""

    files: tuple[Location, ...] = ()

    def load_chunk(self, start: int, stop: int) -> tuple[Pixels, list[str | None]]:
        """(n, V, S, S, 3) uint8 RGB of the images from `start` to `stop`, and their hashes.

        The files are named by what they hold, so the hashes are those that are expected.
        """
        return read_array(self.files[start // CHUNK_SIZE]), [*self.content_hashes[start:stop]]

    def open_chunks(self, chunks: Sequence[Pixels]) -> Inputs:
        """The versions, on the GPU if this process has one."""
        if torch.cuda.is_available():
            return move_versions(chunks, torch.device("cuda"))
        return VersionedImages(chunks)


class VersionedImages:
    """Versions that lie in several arrays, gathered as they are asked for.

    Args:
        chunks: (n, V, S, S, 3) uint8 RGB each, all but the last of CHUNK_SIZE images.
    """

    def __init__(self, chunks: Sequence[Pixels]) -> None:
        self._chunks = chunks
        self._num_images = sum(map(len, chunks))

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 for the places `rows` (N,)."""
        gathered = np.empty((len(rows), *self._chunks[0].shape[2:]), np.uint8)
        for place, row in enumerate(rows.tolist()):
            version, image = divmod(row, self._num_images)
            gathered[place] = self._chunks[image // CHUNK_SIZE][image % CHUNK_SIZE, version]
        return torch.from_numpy(gathered).permute(0, 3, 1, 2)


class HeldVersions:
    """Versions in one tensor, gathered on the device that holds them.

    Args:
        pixels: (V · N, S, S, 3) uint8 RGB, all images of a version after those of the one before.
    """

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 for the places `rows` (N,), on that device."""
        return self._pixels[rows.to(self._pixels.device)].permute(0, 3, 1, 2)


def move_versions(chunks: Sequence[Pixels], device: torch.device) -> HeldVersions:
    """The versions of all chunks (see `VersionedImages`), moved to a device chunk by chunk."""
    num_versions, *shape = chunks[0].shape[1:]
    num_images = sum(map(len, chunks))
    held = torch.empty((num_versions, num_images, *shape), dtype=torch.uint8, device=device)
    start = 0
    for chunk in chunks:
        # a copy: what Ray holds cannot be written
        held[:, start : start + len(chunk)] = torch.tensor(chunk, device=device).transpose(0, 1)
        start += len(chunk)
    return HeldVersions(held.flatten(0, 1))
