"""The versions of images, pristine and distorted, and their quality: made once, in parallel.

Images are made in chunks, a file each, named by all that decides it: a second run finds them, and
one that was killed makes what is missing. A chunk is what training loads at a time.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from iqa_ray import metrics
from iqa_ray.cluster import connection
from iqa_ray.cluster.capacity import Resources
from iqa_ray.cluster.pools import Pool, run_shards
from iqa_ray.distortions import distort
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.images.decoding import ImageError, hash_content
from iqa_ray.images.source import ImageSource
from iqa_ray.metrics import MetricError
from iqa_ray.progress import Progress
from iqa_ray.smoothing.dataset import LabelledSet
from iqa_ray.smoothing.settings import SSIM
from iqa_ray.smoothing.ssim import WINDOW_SIDE, measure_ssim
from iqa_ray.smoothing.strategies import VERSIONS
from iqa_ray.storage.files import Location, is_file, read_bytes, write_bytes
from iqa_ray.storage.parts import make_fingerprints
from iqa_ray.training.pixels import CHUNK_SIZE, Pixels

# A change of what is made or measured: raise this, so that what was made before is not used.
VERSIONS_VERSION = 1

# Of SSIM: what is unlike its original in every window may be at 0 or below, which no label can be.
SMALLEST_SSIM = 0.01

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Chunk:
    """Images that are made together, and the files of their versions.

    Attributes:
        folder: where the files lie, or will lie.
        key: begins their names.
        paths: of the images.
        pixels: of the images, where they come from no files of their own.
    """

    folder: Location
    key: str
    paths: list[str]
    pixels: Pixels | None

    @property
    def pixels_file(self) -> Location:
        """(n, V, S, S, 3) uint8; written last: where it is, the others are as well."""
        return self.folder / f"{self.key}.pixels.npy"

    @property
    def info_file(self) -> Location:
        """Content hashes, errors and sizes of the images."""
        return self.folder / f"{self.key}.info.npz"

    def scores_file(self, score: str) -> Location:
        """(n, V) the scores of all versions by a metric, or their SSIM."""
        return self.folder / f"{self.key}.{score}.npy"


@dataclass(frozen=True)
class Versions:
    """What was made of the images of a set, row for row.

    Attributes:
        chunks: of CHUNK_SIZE images each.
        content_hashes: of each image; None where it could not be decoded.
        errors: why it could not.
        image_size: pixels a side.
    """

    chunks: list[Chunk]
    content_hashes: list[str | None]
    errors: list[str]
    image_size: int


def plan_chunks(images: LabelledSet, image_size: int, seed: int, folder: Location) -> list[Chunk]:
    """The chunks of a set, each named by its images, their content and all settings."""
    frame = images.frame
    settings = f"{VERSIONS_VERSION} {image_size} {seed} {VERSIONS}"
    columns = [frame[name].tolist() for name in ("image_id", "size_bytes", "mtime_ns")]
    prints = make_fingerprints(pa.table(columns, ["image_id", "size_bytes", "mtime_ns"]), settings)
    chunks = []
    for start in range(0, len(frame), CHUNK_SIZE):
        rows = slice(start, start + CHUNK_SIZE)
        key = hashlib.blake2b(prints[rows].tobytes(), digest_size=12).hexdigest()
        pixels = None if images.pixels is None else images.pixels[rows]
        chunks.append(Chunk(folder, key, frame["path"].tolist()[rows], pixels))
    return chunks


def find_size(images: LabelledSet) -> int:
    """Pixels a side of the first image that can be decoded; all others must have the same.

    Raises:
        UsageError: none can be decoded, it is no square, or too small for SSIM's window.
    """
    height = width = 0
    if images.pixels is not None:
        height, width = images.pixels.shape[1:3]
    for path in images.frame["path"] if images.pixels is None else ():
        try:
            height, width = images.source.decode(images.source.read(path)).shape[:2]
        except ImageError:
            continue
        break
    where = str(images.source.root)
    if not height:
        raise UsageError(f"{where}: none of its images can be decoded")
    if height != width:
        raise UsageError(
            f"{where}: images must be squares of one size, and the first is {width}x{height} px: "
            "cut or scale them first"
        )
    if height < WINDOW_SIDE:
        raise UsageError(f"{where}: images of {height} px: SSIM needs {WINDOW_SIDE} px a side")
    return height


class VersionMaker:
    """Makes the versions of a chunk, measures their SSIM, and writes both files."""

    def __init__(self, source: ImageSource, image_size: int, seed: int) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._source, self._size, self._seed = source, image_size, seed

    def __call__(self, chunk: Chunk) -> int:
        """Returns the number of images."""
        num_images = len(chunk.paths)
        pixels = np.zeros((num_images, len(VERSIONS), self._size, self._size, 3), np.uint8)
        sizes = np.zeros((num_images, 2), np.int64)
        hashes, errors = [""] * num_images, [""] * num_images
        for place in range(num_images):
            try:
                image, content = self._read(chunk, place)
            except ImageError as error:
                errors[place] = f"{error.status}: {error}"
                continue
            sizes[place] = image.shape[:2]
            if image.shape[:2] == (self._size, self._size):
                hashes[place], pixels[place] = content, self._make(image)
        found = np.clip(measure_ssim(pixels[:, 0], pixels), SMALLEST_SSIM, 1.0)
        found[np.array(hashes) == ""] = np.nan
        buffer = io.BytesIO()
        np.savez(buffer, hashes=np.array(hashes), errors=np.array(errors), sizes=sizes)
        write_bytes(chunk.info_file, buffer.getvalue())
        _write_array(chunk.scores_file(SSIM), found)
        _write_array(chunk.pixels_file, pixels)
        return num_images

    def _read(self, chunk: Chunk, place: int) -> tuple[Pixels, str]:
        if chunk.pixels is not None:
            image = chunk.pixels[place]
            return image, hash_content(image.tobytes())
        data = self._source.read(chunk.paths[place])
        return self._source.decode(data), hash_content(data)

    def _make(self, image: Pixels) -> Pixels:
        """All versions of an image. A seed gives each image a noise of its own (see `distort`)."""
        made = [image if how is None else self._distort(image, *how) for how in VERSIONS.values()]
        return np.stack(made)

    def _distort(self, image: Pixels, name: str, parameter: float) -> Pixels:
        return distort(image, name, parameter=parameter, rng=self._seed)


class VersionScorer:
    """Scores all versions of a chunk with a no-reference metric, and writes its file."""

    def __init__(self, name: str, file: str) -> None:
        self._metric, self._file = metrics.create(name), file

    def __call__(self, chunk: Chunk) -> int:
        """Returns the number of images."""
        pixels, is_read = read_array(chunk.pixels_file), _read_info(chunk)["hashes"] != ""
        found = np.full(pixels.shape[:2], np.nan)
        for place in np.flatnonzero(is_read):
            for version, image in enumerate(pixels[place]):
                found[place, version] = self._score(image)
        _write_array(chunk.scores_file(self._file), found)
        return len(pixels)

    def _score(self, image: Pixels) -> float:
        try:
            return float(self._metric(image))
        except MetricError:
            return float("nan")


def _write_array(file: Location, values: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    write_bytes(file, buffer.getvalue())


def read_array(file: Location) -> NDArray[Any]:
    """An array that stands in a file; nothing in it is executed."""
    return np.asarray(np.load(io.BytesIO(read_bytes(file)), allow_pickle=False))


def _read_info(chunk: Chunk) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(read_bytes(chunk.info_file)), allow_pickle=False) as stored:
        return {name: stored[name] for name in ("hashes", "errors", "sizes")}


def make_versions(
    images: LabelledSet, seed: int, folder: Location, address: str | None
) -> Versions:
    """The versions of a set's images, from before or made now on Ray.

    Args:
        images: of the set.
        seed: of noise.
        folder: where they are kept.
        address: of the Ray cluster.

    Raises:
        UsageError: images that are no squares of one size, or none that can be decoded.
        IncompleteError: some could not be made; the next run goes on.
    """
    size = find_size(images)
    chunks = plan_chunks(images, size, seed, folder)
    missing = [chunk for chunk in chunks if not is_file(chunk.pixels_file)]
    make = partial(VersionMaker, images.source, size, seed)
    _do_chunks(missing, make, address, "make versions")
    infos = [_read_info(chunk) for chunk in chunks]
    hashes, errors, sizes = (
        np.concatenate([info[name] for info in infos]) for name in ("hashes", "errors", "sizes")
    )
    is_other = (sizes[:, 0] > 0) & (sizes != size).any(axis=1)
    if is_other.any():
        place = int(np.flatnonzero(is_other)[0])
        raise UsageError(
            f"images differ in size: {images.frame['path'].iloc[place]} is "
            f"{sizes[place, 1]}x{sizes[place, 0]} px, and the first is {size}x{size} px: cut or "
            "scale them to squares of one size first"
        )
    return Versions(chunks, [content or None for content in hashes.tolist()], errors.tolist(), size)


def measure_versions(versions: Versions, score: str, address: str | None) -> Scores:
    """(n, V) scores of all versions of all images: SSIM, or those of a no-reference metric.

    NaN for an image that could not be decoded.

    Raises:
        UsageError: there is no such metric, it needs larger images, or it has no score for some.
        IncompleteError: some could not be scored; the next run goes on.
    """
    name = score
    if score != SSIM:
        try:
            spec = metrics.get_spec(score)
            spec.check_size(versions.image_size, versions.image_size)
        except ValueError as error:
            raise UsageError(f"--score {score}: {error}") from None
        name = f"{score}-{spec.version}"
        missing = [chunk for chunk in versions.chunks if not is_file(chunk.scores_file(name))]
        make = partial(VersionScorer, score, name)
        _do_chunks(missing, make, address, f"score versions: {score}")
    found = np.concatenate([read_array(chunk.scores_file(name)) for chunk in versions.chunks])
    is_read = np.array([content is not None for content in versions.content_hashes])
    lacks = np.isnan(found) & is_read[:, None]
    if lacks.any():
        image, version = np.argwhere(lacks)[0]
        paths = [path for chunk in versions.chunks for path in chunk.paths]
        raise UsageError(
            f"--score {score}: no score for {lacks.sum():,} of {is_read.sum() * lacks.shape[1]:,} "
            f"versions of {lacks.any(axis=1).sum():,} images (such as {list(VERSIONS)[version]} of "
            f"{paths[image]}): leave those images out, or choose another score"
        )
    return found


def _do_chunks(
    chunks: Sequence[Chunk],
    make_worker: Callable[[], Callable[[Chunk], int]],
    address: str | None,
    title: str,
) -> None:
    if not chunks:
        return
    with connection.connect(address):
        resources = connection.prefer_gpu(Resources(num_cpus=1.0))
        num_actors = connection.count_actors(None, resources, len(chunks))
        with Progress(sum(len(chunk.paths) for chunk in chunks), title) as progress:
            pool: Pool[Any, int] = Pool(make_worker, chunks, num_actors, resources)
            failures = run_shards([pool], lambda _, __, done: progress.update(done))
    if failures:
        raise IncompleteError(
            f"{len(failures)} of {len(chunks)} chunks of versions could not be done "
            f"({title}): {failures[0].reason}; run the same command again to complete them"
        )
