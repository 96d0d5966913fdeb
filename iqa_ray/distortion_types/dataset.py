"""Labelled images: read from a folder or manifest, or made of photographs, and split.

Copies of one photograph never stand on both sides of a split: a network would know the scene
instead of the distortion.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO, StringIO
from pathlib import PurePosixPath

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from iqa_ray.distortion_types.settings import MOTION_BLUR, PAPER_COUNTS, Mix
from iqa_ray.distortions import distort, downscale
from iqa_ray.errors import UsageError
from iqa_ray.images.decoding import ImageError
from iqa_ray.images.listing import read_column
from iqa_ray.images.source import ImageSource
from iqa_ray.progress import log
from iqa_ray.storage.files import Location, is_file, locate, write_bytes

CLASSES = (*PAPER_COUNTS, MOTION_BLUR)
REFERENCE_CLASS = "refimgs"
MANIFEST_FILE = "manifest.csv"
PARTS = {"test": 0.2, "validation": 0.15, "train": 0.65}

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


def read_labelled(source: ImageSource) -> pd.DataFrame:
    """The labelled images of a folder or manifest, one row an image.

    A folder holds one folder a class. What an image was made of (its reference) is named by the
    manifest's column `reference`, or by a file `info.txt` in the folder of its class as in the
    LIVE release; without either, files of the same name are taken for copies of one photograph.

    Returns:
        image_id, path, label, reference, severity (1 to 5, 0 of `refimgs`; NaN where unknown).

    Raises:
        UsageError: there are no labels, unknown ones, or severities that are not 0 to 5.
    """
    frame = source.list().table.select(["image_id", "path", "label"]).to_pandas()
    where = str(source.root)
    known = frame["label"].isin(CLASSES)
    if not known.any():
        raise UsageError(
            f"{where}: no image is labelled {', '.join(CLASSES)}: give a folder with one folder a "
            "class, or a manifest with a column `label`"
        )
    if not known.all():
        others = sorted({str(label) for label in frame.loc[~known, "label"]})
        log(f"{where}: {(~known).sum():,} images of other labels left out: {', '.join(others[:5])}")
    frame = frame[known].reset_index(drop=True)
    references = _read_cells(source.root, "reference", frame)
    if references is None:
        references = _read_info(source, frame["path"])
    if references.isna().any():
        path = frame["path"][references.isna()].iloc[0]
        raise UsageError(f"{where}: no reference is named for {path!r}: fill in the column")
    frame["reference"] = references
    frame["severity"] = _read_severities(source.root, frame)
    return frame


def _read_info(source: ImageSource, paths: pd.Series[str]) -> pd.Series[str]:
    """The references of images by the `info.txt` beside them, else by their own names.

    LIVE's has a line an image: the reference's file, the image's, and a parameter.
    """
    named: dict[str, str] = {}
    for folder in sorted({posixpath.dirname(path) for path in paths}):
        try:
            text = source.read(f"{folder}/info.txt").decode(errors="replace")
        except ImageError:
            continue
        for words in map(str.split, text.splitlines()):
            if len(words) > 1:
                named[f"{folder}/{words[1]}"] = words[0]
    if not named:
        log(f"{source.root} names no references: files of one name count as of one photograph")
    return paths.map(lambda path: PurePosixPath(str(named.get(path, path))).stem)


def _read_cells(root: Location, column: str, frame: pd.DataFrame) -> pd.Series[str] | None:
    """A column of the manifest for the images of `frame`; None where there is none."""
    if not root.path.lower().endswith((".csv", ".parquet")):
        return None
    try:
        cells = read_column(root, column)
    except UsageError:
        return None
    return frame["image_id"].map(cells)


def _read_severities(root: Location, frame: pd.DataFrame) -> NDArray[np.float64]:
    cells = _read_cells(root, "severity", frame)
    if cells is None:
        values = np.full(len(frame), np.nan)
    else:
        values = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64, copy=True)
        wrong = cells.notna().to_numpy() & ~((values >= 0) & (values <= _LEVELS[-1]))
        if wrong.any():
            cell = cells[wrong].iloc[0]
            raise UsageError(f"{root}: severity {cell!r}: give 0 (none) to 5 (severe), or nothing")
    values[(frame["label"] == REFERENCE_CLASS).to_numpy()] = 0
    return values


def split_references(frame: pd.DataFrame, seed: int) -> NDArray[np.str_]:
    """The part of each image: train, validation or test, by its reference.

    References are dealt out class by class, the rarest class first, so that each class is in
    every part as far as it has references for that; of two, one trains and one tests.

    Args:
        frame: label and reference, one row an image.
        seed: by which references are drawn.

    Returns:
        (n,) of `train`, `validation`, `test`.

    Raises:
        UsageError: one class only, or a class with one reference: it could not be both trained and
            tested.
    """
    references_of = frame.groupby("label")["reference"].unique()
    if len(references_of) < 2:
        raise UsageError(
            f"all images are labelled {frame['label'].iloc[0]!r}: give two classes or more"
        )
    numbers = references_of.map(len).sort_values(kind="stable")
    if numbers.iloc[0] < 2:
        raise UsageError(
            f"all images of class {numbers.index[0]} are of one photograph: a class needs two or "
            "more, one to train on and one to test on"
        )
    rng = np.random.default_rng(seed)
    part_of: dict[str, str] = {}
    for label in numbers.index:
        own = sorted(references_of[label])
        wanted = {part: max(1, round(share * len(own))) for part, share in PARTS.items()}
        for name in rng.permutation(np.array(own, dtype=object)):
            if name in part_of:
                continue
            have = [part_of.get(other) for other in own]
            # test before validation, and both before train, but for a class of two
            short = [part for part in PARTS if have.count(part) < wanted[part]]
            is_last_of_two = len(own) == 2 and "test" in have
            part_of[name] = "train" if is_last_of_two else (short or ["train"])[0]
    return frame["reference"].map(part_of).to_numpy(str)


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
        try:
            pixels = source.decode(source.read(path))
        except ImageError as error:
            raise UsageError(f"--synthesise-from: {path}: {error}") from None
        if is_varied:
            rng = np.random.default_rng([seed, *label.encode(), *path.encode()])
            pixels = vary_photograph(pixels, rng)
        if name:
            pixels = distort(pixels, name, level=level, rng=seed)
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        file = f"{label}/{number:05}.png"
        write_bytes(folder / file, buffer.getvalue())
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


def find_made(
    folder: Location,
    sources: Sequence[str],
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
    for uri in sources:
        source = ImageSource(locate(uri))
        table = source.list("none").table
        photographs += [(source, path) for path in table.column("path").to_pylist()]
        depends_on += [str(row) for row in table.drop_columns(["label", "split"]).to_pylist()]
    key = hashlib.blake2b("\n".join(depends_on).encode(), digest_size=8).hexdigest()
    place = folder / f"images-{key}"
    if is_file(place / MANIFEST_FILE):
        return ImageSource(place / MANIFEST_FILE)
    return synthesise(photographs, counts, seed, place, on_done, is_varied)
