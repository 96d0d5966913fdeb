"""Labelled images that are made of clean photographs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO, StringIO

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from iqa_ray.distortion_types.dataset import REFERENCE_CLASS
from iqa_ray.distortion_types.settings import MOTION_BLUR, PAPER_COUNTS, Mix
from iqa_ray.distortions import distort, downscale
from iqa_ray.errors import UsageError
from iqa_ray.images.decoding import ImageError, hash_content
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.files import Location, is_file, write_bytes
from iqa_ray.synthetic.leaves import make_leaves

MANIFEST_FILE = "manifest.csv"

# Which of `iqa_ray.distortions` make a class; several take turns. Elaraby et al. call bad lighting
# "dull or dark" photographs; those with too much light are badly lit as well.
_MADE_BY = {
    "bad_lighting": ("underexposure", "overexposure"),
    "fastfading": ("fast_fading",),
    "gblur": ("gaussian_blur",),
    "jp2k": ("jpeg2000",),
    "jpeg": ("jpeg",),
    "wn": ("noise",),
    MOTION_BLUR: ("motion_blur",),
}
_LEVELS = (1, 2, 3, 4, 5)

# What cameras and programs do to photographs that still count as clean: shrink them, as far as so
# many pixels a side are left; sharpen them; and keep them as JPEG files of good quality.
_MAX_SHRINKING, _MIN_SIDE = 2.5, 128
_MAX_SHARPENING, _SHARPENING_SIGMA = 1.0, 1.0
_GOOD_QUALITIES = (75, 98)
_LEAVES_SIDE = 348  # px: no less than the photographs of phones that were scaled for a network


def plan_counts(num_images: int, mix: Mix, motion_blur: bool) -> dict[str, int]:
    """How many images of each class are made, `num_images` in all.

    Shares are those of Elaraby et al.'s Table 1, or equal. Motion blur, which it lacks, has the
    mean share. What rounding leaves goes to the classes with the largest remainders.
    """
    shares: dict[str, float] = dict(PAPER_COUNTS)
    if motion_blur:
        shares[MOTION_BLUR] = sum(shares.values()) / len(shares)
    if mix == "balanced":
        shares = dict.fromkeys(shares, 1)
    exact = {name: num_images * share / sum(shares.values()) for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: num_images - sum(counts.values())]:
        counts[name] += 1
    return counts


def synthesise(
    photographs: Sequence[tuple[ImageSource, str]],
    counts: dict[str, int],
    seed: int,
    folder: Location,
    on_done: Callable[[int], object],
    is_varied: bool = False,
) -> ImageSource:
    """Make distorted copies of photographs in `folder`, as PNG files with a manifest.

    Each class goes through the photographs in an order of its own, and its levels take turns.
    What is drawn at random for a copy depends on `seed` and on the photograph. The manifest is
    written last: where it is there, everything is.

    Collections differ in how sharp their photographs are from pixel to pixel, and in what JPEG left
    in them. A network that saw one collection alone would take others for distorted, so those to
    train on may be varied first (`vary_photograph`).

    Args:
        photographs: where each lies, and its path there.
        counts: how many images of each class.
        seed: of the order and of noise.
        folder: where to.
        on_done: told of each image that is made: 1.
        is_varied: whether photographs are varied before they are distorted.

    Returns:
        The manifest's data set: path, label, reference, distortion, severity.

    Raises:
        UsageError: a photograph cannot be decoded.
    """
    jobs = [
        (label, number, photographs[place], _draw_level(label, number))
        for label, count in counts.items()
        for number, place in enumerate(_draw_places(len(photographs), count, label, seed))
    ]

    def make(job: tuple[str, int, tuple[ImageSource, str], tuple[str, int]]) -> dict[str, object]:
        label, number, (source, path), (name, level) = job
        file = f"{label}/{number:05}.png"
        varied_for = label if is_varied else None
        write_bytes(folder / file, _make_copy(source, path, name, level, seed, varied_for))
        return {
            "path": file, "label": label, "reference": path, "distortion": name, "severity": level,
        }  # fmt: skip

    rows = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for row in pool.map(make, jobs):
            rows.append(row)
            on_done(1)
    text = StringIO()
    pd.DataFrame(rows).to_csv(text, index=False)
    write_bytes(folder / MANIFEST_FILE, text.getvalue().encode())
    return ImageSource(folder / MANIFEST_FILE)


def _draw_places(num_photographs: int, count: int, label: str, seed: int) -> NDArray[np.int64]:
    """Which photographs are distorted: each once, before any is taken again."""
    rng = np.random.default_rng([seed, *label.encode()])
    rounds = -(-count // num_photographs)
    order = [rng.permutation(num_photographs) for _ in range(rounds)]
    return np.concatenate([*order, np.empty(0, np.int64)])[:count].astype(np.int64)


def _draw_level(label: str, number: int) -> tuple[str, int]:
    """The distortion of an image, and its level; none and 0 of a reference image."""
    if label == REFERENCE_CLASS:
        return "", 0
    names = _MADE_BY[label]
    return names[number // len(_LEVELS) % len(names)], _LEVELS[number % len(_LEVELS)]


def _make_copy(
    source: ImageSource,
    path: str,
    name: str,
    level: int,
    seed: int,
    varied_for: str | None,
) -> bytes:
    """A distorted copy of a photograph, as a PNG file; varied first where its class is given."""
    try:
        data = source.read(path)
        pixels = source.decode(data)
    except ImageError as error:
        raise UsageError(f"--synthesise-from: {path}: {error}") from None
    if varied_for is not None:
        place = int(hash_content(data), 16)
        pixels = vary_photograph(pixels, np.random.default_rng([seed, *varied_for.encode(), place]))
    if name:
        pixels = distort(pixels, name, level=level, rng=seed)
    return _to_png(pixels)


def _to_png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def vary_photograph(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The photograph as another camera or program might have kept it, still clean.

    Two thirds are shrunk, by up to _MAX_SHRINKING; half are sharpened by an unsharp mask; and two
    thirds are encoded as JPEG of a quality in _GOOD_QUALITIES, all of them drawn evenly.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        rng: what is drawn.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    draws = rng.random(3)
    shrinking = min(rng.uniform(1, _MAX_SHRINKING), min(pixels.shape[:2]) / _MIN_SIDE)
    amount = rng.uniform(0, _MAX_SHARPENING)
    quality = int(rng.integers(*_GOOD_QUALITIES, endpoint=True))
    if draws[0] < 2 / 3 and shrinking > 1:
        pixels = downscale(pixels, shrinking)
    if draws[1] < 1 / 2:
        blurred = cv2.GaussianBlur(pixels, (0, 0), _SHARPENING_SIGMA)
        pixels = cv2.addWeighted(pixels, 1 + amount, blurred, -amount, 0).astype(np.uint8)
    if draws[2] < 2 / 3:
        pixels = distort(pixels, "jpeg", parameter=quality)
    return pixels


def find_leaves(folder: Location, number: int, seed: int) -> ImageSource:
    """Images of leaves (see `make_leaves`) in a folder of `folder`; those that lack are made."""
    place = folder / f"leaves-{number}-{seed}"

    def make(row: int) -> None:
        file = place / f"{row:05}.png"
        if is_file(file):
            return
        pixels = make_leaves(_LEAVES_SIDE, np.random.default_rng([seed, row]))
        write_bytes(file, _to_png(pixels))

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(make, range(number)))
    return ImageSource(place)


def find_made(
    folder: Location,
    sources: Sequence[ImageSource],
    counts: dict[str, int],
    seed: int,
    on_done: Callable[[int], object],
    is_varied: bool = False,
) -> ImageSource:
    """The images made of the photographs of `sources`, from before or made now (see `synthesise`).

    They lie in a folder of `folder` that is named by all that decides them.

    Raises:
        UsageError: there are no photographs, or one cannot be decoded.
    """
    photographs, depends_on = [], [str(counts), str(seed), str(is_varied)]
    for source in sources:
        table = source.list("none").table
        photographs += [(source, path) for path in table.column("path").to_pylist()]
        depends_on += [str(row) for row in table.drop_columns(["label", "split"]).to_pylist()]
    key = hashlib.blake2b("\n".join(depends_on).encode(), digest_size=8).hexdigest()
    place = folder / f"images-{key}"
    if is_file(place / MANIFEST_FILE):
        return ImageSource(place / MANIFEST_FILE)
    return synthesise(photographs, counts, seed, place, on_done, is_varied)
