"""The images that benchmarks score: one's own or synthetic ones, linked under many names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from iqa_ray.images.listing import list_images
from iqa_ray.synthetic.dotcodes import make_dataset

_NUM_SYNTHETIC = 200


@dataclass(frozen=True)
class LinkedImages:
    """Image files, and a temporary folder on their file system, as hard links need."""

    name: str
    paths: list[str]
    folder: Path

    def link(self, num_images: int) -> Path:
        """A new folder with the images linked in turn until there are `num_images`.

        They lie in subfolders of a thousand: `000/000000.jpg` is the first.
        """
        target = Path(tempfile.mkdtemp(prefix=f"{num_images}-", dir=self.folder))
        for number in range(num_images):
            path = self.paths[number % len(self.paths)]
            folder = target / f"{number // 1000:03}"
            folder.mkdir(exist_ok=True)
            os.link(path, folder / f"{number:06}{Path(path).suffix}")
        return target


@contextmanager
def open_source(images: str | None, image_size: int) -> Iterator[LinkedImages]:
    """The images below the folder `images`, or without it synthetic ones of `image_size` px."""
    beside = Path(images).parent if images else None
    with tempfile.TemporaryDirectory(dir=beside) as name:
        folder = Path(name)
        if not images:
            make_dataset(folder / "synthetic", _NUM_SYNTHETIC, image_size)
        table = list_images(images or str(folder / "synthetic")).table
        yield LinkedImages(
            name=Path(images).name if images else f"synthetic, {image_size}x{image_size} px",
            paths=table.column("path").to_pylist(),
            folder=folder,
        )
