"""Labelled images: read from a folder or manifest, and split.

Copies of one photograph never stand on both sides of a split: a network would know the scene
instead of the distortion.
"""

from __future__ import annotations

import posixpath
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from iqa_ray.distortion_types.settings import MOTION_BLUR, PAPER_COUNTS
from iqa_ray.errors import UsageError
from iqa_ray.images.decoding import ImageError
from iqa_ray.images.listing import read_column
from iqa_ray.images.source import ImageSource
from iqa_ray.progress import log
from iqa_ray.storage.files import Location

CLASSES = (*PAPER_COUNTS, MOTION_BLUR)
REFERENCE_CLASS = "refimgs"

PARTS = {"test": 0.2, "validation": 0.15, "train": 0.65}

MAX_SEVERITY = 5


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
        wrong = cells.notna().to_numpy() & ~((values >= 0) & (values <= MAX_SEVERITY))
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
