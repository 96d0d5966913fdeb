"""Series of images for the study: made from samples, or listed in a manifest."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from iqa_ray import distortions
from iqa_ray.errors import UsageError
from iqa_ray.images.listing import read_manifest, resolve_path
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.files import Location, locate, write_bytes
from iqa_ray.study.settings import SMALLEST_STUDY
from iqa_ray.study.tables import SERIES_SCHEMA
from iqa_ray.study.verdicts import SMALLEST_SERIES

Pixels = NDArray[np.uint8]
Step = Callable[[Pixels, int, np.random.Generator], Pixels]

# A change of the images that are made: raise this so that old ones are not taken for new.
SERIES_VERSION = 2
COLUMNS = tuple(SERIES_SCHEMA.names)
_SMALLEST_DISC = 0.5  # radius in pixels: such a disc is the pixel itself
_STEPS_PER_SIDE = 1000  # a step of defocus widens the disc's radius by longer side / 1000 pixels
_LARGEST_BLURRED = 10_000  # pixels of the longer side; beyond it the steps do not grow
_PNG_LEVEL = 1  # a series is read once or twice


@dataclass(frozen=True)
class Configuration:
    """One way of changing a sample step by step.

    `change` is given the sample, the index (from 0, the mildest) and a generator. Where
    `starts_unchanged`, index 0 is the sample itself.
    """

    num_images: int
    change: Step
    starts_unchanged: bool = True


def _crop(image: Pixels, index: int, _: np.random.Generator) -> Pixels:
    return distortions.crop_progressively(image, index)


def _rotate(image: Pixels, index: int, _: np.random.Generator) -> Pixels:
    return distortions.rotate(image, distortions.ROTATION_ANGLES[index])


def _defocus(image: Pixels, index: int, rng: np.random.Generator) -> Pixels:
    # a picture loses as much, whatever the size that it is studied at
    step = min(max(image.shape[:2]), _LARGEST_BLURRED) / _STEPS_PER_SIDE
    radius = _SMALLEST_DISC + index * step
    return distortions.distort(image, "defocus", parameter=radius, rng=rng)


def _degrade(image: Pixels, index: int, rng: np.random.Generator, name: str) -> Pixels:
    return distortions.distort(image, name, level=index, rng=rng)


# The first three are those of Smith et al. (section 2.1): ten crops, six rotations in steps of 15°,
# ten steps of defocus, which are taken with a camera there; how wide ours are is our choice.
CONFIGURATIONS: dict[str, Configuration] = {
    "cropping": Configuration(distortions.NUM_CROP_STEPS, _crop),
    # index 0 has the others' crop and interpolation, so that only the angle differs
    "rotating": Configuration(len(distortions.ROTATION_ANGLES), _rotate, starts_unchanged=False),
    "blurring": Configuration(10, _defocus),
    "noise": Configuration(6, partial(_degrade, name="noise")),
    "jpeg": Configuration(6, partial(_degrade, name="jpeg")),
    "underexposure": Configuration(6, partial(_degrade, name="underexposure")),
    "overexposure": Configuration(6, partial(_degrade, name="overexposure")),
}


@dataclass(frozen=True)
class Sample:
    """An image that series are made of: its id, its name for people, and its path."""

    image_id: str
    name: str
    path: str


def load_sample(source: ImageSource, path: str, image_size: int) -> Pixels:
    """Decode a sample and shrink it until its longer side has at most `image_size` pixels.

    Raises:
        ImageError: it cannot be read.
    """
    image = source.decode(source.read(path))
    longer = max(image.shape[:2])
    return distortions.downscale(image, longer / image_size) if longer > image_size else image


class SeriesMaker:
    """Makes all series of a sample and writes them as PNG files below a folder of a workspace."""

    def __init__(
        self,
        workspace: str,
        folder: str,
        source: ImageSource,
        image_size: int,
        seed: int,
    ) -> None:
        self._workspace, self._folder = locate(workspace), folder
        self._source, self._image_size, self._seed = source, image_size, seed

    def __call__(self, sample: Sample) -> list[dict[str, Any]]:
        """Returns rows with the COLUMNS; paths are relative to the workspace."""
        image = load_sample(self._source, sample.path, self._image_size)
        folder = f"{self._folder}/{sample.image_id}"
        _write_png(self._workspace / f"{folder}/unchanged.png", image)
        rows = []
        for name, configuration in CONFIGURATIONS.items():
            for index in range(configuration.num_images):
                path = f"{folder}/{name}-{index}.png"
                if index == 0 and configuration.starts_unchanged:
                    path = f"{folder}/unchanged.png"
                else:
                    # the same draws at every index, so that only the strength differs
                    rng = np.random.default_rng([self._seed, int(sample.image_id, 16) % 2**32])
                    changed = configuration.change(image, index, rng)
                    _write_png(self._workspace / path, changed)
                rows.append(dict(zip(COLUMNS, (path, sample.name, index, name), strict=True)))
        return rows


def _write_png(file: Location, image: Pixels) -> None:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=_PNG_LEVEL)
    write_bytes(file, stream.getvalue())


def read_series(source: str) -> pd.DataFrame:
    """Read a manifest of series (CSV or Parquet with the COLUMNS).

    Returns the rows, sorted by configuration, sample and index, with paths as they are opened
    (relative ones count from the manifest's folder).

    Raises:
        UsageError: unreadable, a column is missing, an index is no number or occurs twice in a
            series, a series has fewer than three images, or there are fewer than two samples.
    """
    location = locate(source)
    table = read_manifest(location, COLUMNS)
    lacking = [name for name in COLUMNS if name not in table.column_names]
    if lacking:
        raise UsageError(f"--series {source} has no column {', '.join(lacking)}")
    frame = table.to_pandas()
    empty = frame.isna().any(axis=1)
    if empty.any():
        raise UsageError(f"--series {source}: row {int(empty.argmax()) + 1} has an empty cell")
    root = Location(location.prefix, posixpath.dirname(location.path), location.options)
    frame["path"] = [
        resolve_path(path, root, location, row) for row, path in enumerate(frame["path"])
    ]
    frame["index"] = pd.to_numeric(frame["index"], errors="coerce")
    if not np.isfinite(frame["index"]).all():
        row = int((~np.isfinite(frame["index"])).argmax()) + 1
        raise UsageError(f"--series {source}: row {row}: the index is no number")
    for problem in _find_problems(frame):
        raise UsageError(f"--series {source}: {problem}")
    return frame.sort_values(["configuration", "sample", "index"], ignore_index=True)


def _find_problems(frame: pd.DataFrame) -> Iterator[str]:
    num_samples = frame["sample"].nunique()
    if num_samples < SMALLEST_STUDY:
        yield f"a study needs at least {SMALLEST_STUDY} samples, here are {num_samples}"
    for (name, sample), series in frame.groupby(["configuration", "sample"]):
        if series["index"].duplicated().any():
            yield f"{name} of sample {sample!r} has an index twice"
        if len(series) < SMALLEST_SERIES:
            yield (
                f"{name} of sample {sample!r} has {len(series)} images, at least "
                f"{SMALLEST_SERIES} are needed"
            )
