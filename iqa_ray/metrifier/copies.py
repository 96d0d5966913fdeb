"""Distorted copies of images, made on threads while a network or metrics look at earlier ones.

An image is scaled and cut to the square that networks see, and distorted then. So a level is as
strong for what they see whatever the camera's resolution, and costs the same for every image; and
task networks and metrifier get the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from iqa_ray.errors import Status
from iqa_ray.images.decoding import AbsentError, ImageError, hash_content
from iqa_ray.images.prefetch import run_ahead
from iqa_ray.images.source import ImageSource
from iqa_ray.metrifier.targets import Floats
from iqa_ray.storage.files import one_line
from iqa_ray.training.inputs import distort_square
from iqa_ray.training.pixels import Pixels, cut_square

# values of (n, S, S, 3) copies, (n,) each, by name; and the row of each copy's image in the shard
Measure = Callable[[Pixels, NDArray[np.int64]], dict[str, Floats]]


@dataclass(frozen=True)
class CopyPlan:
    """Which copies are made of every image.

    Attributes:
        source: of the images.
        image_size: pixels a side.
        distortions: (name, level) of each copy; ("", 0) is the image as it is.
        seed: of noise; what is drawn depends on it and on the image.
    """

    source: ImageSource
    image_size: int
    distortions: tuple[tuple[str, int], ...]
    seed: int

    def describe(self) -> dict[str, Any]:
        """All that decides the copies of an image, for keys."""
        return {
            "image_size": self.image_size,
            "distortions": [list(pair) for pair in self.distortions],
            "seed": self.seed,
            "max_pixels": self.source.max_pixels,
        }


class Problem(NamedTuple):
    """Why there is no value of a copy."""

    status: Status
    error: str


@dataclass(frozen=True)
class _Made:
    """The V copies of an image, (V, S, S, 3), and what is wrong with each."""

    copies: Pixels
    problems: list[Problem | None]
    content_hash: str | None = None
    is_absent: bool = False


@dataclass(frozen=True)
class Measured:
    """What was measured on the V copies of n images.

    Attributes:
        values: by name (n, V); NaN where there is none.
        problems: of n images V each; None where all is well.
        hashes: of the images' contents; None where they could not be read.
        is_absent: (n,) whether the file was not there.
    """

    values: dict[str, Floats]
    problems: list[list[Problem | None]]
    hashes: list[str | None]
    is_absent: NDArray[np.bool_]


def to_lists(values: NDArray[Any], is_known: NDArray[np.bool_]) -> list[list[Any]]:
    """(n, V) values as lists for a table, None where they are not known."""
    cells = values.astype(object)
    cells[~is_known] = None
    return list(cells.tolist())


def make_copies(plan: CopyPlan, path: str) -> _Made:
    """Read an image and make its copies; one that cannot be made does not cost the others."""
    size, number = plan.image_size, len(plan.distortions)
    copies = np.zeros((number, size, size, 3), np.uint8)
    content_hash = None
    try:
        data = plan.source.read(path)
        content_hash = hash_content(data)
        square = cut_square(plan.source.decode(data), size)
    except ImageError as error:
        problem = Problem(error.status, str(error))
        return _Made(copies, [problem] * number, content_hash, isinstance(error, AbsentError))
    problems: list[Problem | None] = [None] * number
    for place, (name, level) in enumerate(plan.distortions):
        try:
            copies[place] = distort_square(square, name, level, plan.seed)
        except Exception as error:  # codecs raise almost anything
            text = f"{name} at level {level}: {type(error).__name__}: {one_line(error)}"
            problems[place] = Problem("undefined", text)
    return _Made(copies, problems, content_hash)


def measure_copies(
    plan: CopyPlan,
    paths: Sequence[str],
    names: Sequence[str],
    measure: Measure,
    num_threads: int,
    batch_size: int,
) -> Measured:
    """Measure all copies of images, in batches, while threads make the next ones.

    Args:
        plan: which copies.
        paths: of the images.
        names: of the values.
        measure: gives the values of up to `batch_size` copies.
        num_threads: that read, decode and distort.
        batch_size: copies that are measured at once, of whichever images.
    """
    shape = (len(paths), len(plan.distortions))
    values = {name: np.full(shape, np.nan) for name in names}
    problems, hashes, is_absent = [], [], []
    waiting: list[tuple[int, int, Pixels]] = []

    def flush(number: int) -> None:
        batch, waiting[:] = waiting[:number], waiting[number:]
        rows, places = (np.array([entry[side] for entry in batch]) for side in (0, 1))
        for name, found in measure(np.stack([copy for *_, copy in batch]), rows).items():
            values[name][rows, places] = found

    ahead = run_ahead(partial(make_copies, plan), paths, num_threads, 2 * num_threads)
    for row, made in enumerate(ahead):
        problems.append(made.problems)
        hashes.append(made.content_hash)
        is_absent.append(made.is_absent)
        fine = (place for place, problem in enumerate(made.problems) if problem is None)
        waiting += [(row, place, made.copies[place]) for place in fine]
        while len(waiting) >= batch_size:
            flush(batch_size)
    if waiting:
        flush(len(waiting))
    return Measured(values, problems, hashes, np.array(is_absent, bool))
