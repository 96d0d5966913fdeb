"""The data set of a metrifier: its images and their parts, and one row a distorted image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from iqa_ray.errors import UsageError
from iqa_ray.images.source import ImageSource
from iqa_ray.metrifier.builder import ROWS_SCHEMA, BuildPlan
from iqa_ray.metrifier.copies import CopyPlan
from iqa_ray.progress import log
from iqa_ray.storage.files import locate
from iqa_ray.storage.parquet import record_of
from iqa_ray.storage.workspace import Workspace

FOLDER = "metrifier"
DATASET_FILE = f"{FOLDER}/dataset.parquet"
DATASET_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("distortion", pa.string()),  # empty of an image as it is
        ("level", pa.int64()),
        ("loss", pa.float64()),
        ("correct", pa.bool_()),
        ("confidence", pa.float64()),
        ("probability_true", pa.float64()),
        ("target", pa.float64()),
        ("part", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)
SOURCES_FILE = f"{FOLDER}/images.parquet"
SOURCES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("part", pa.string()),
        ("content_hash", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
)
PARTS = {"test": 0.2, "validation": 0.15, "train": 0.65}
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_LISTED = ROWS_SCHEMA.names[3:]  # columns that are lists


def read_rows(workspace: Workspace, plan: BuildPlan, images: pa.Table) -> pd.DataFrame:
    """The rows of images as they are now, one a distorted image, in the order of both.

    Args:
        workspace: that keeps them.
        plan: of the rows.
        images: image_id, label, size_bytes and mtime_ns.

    Returns:
        The columns of DATASET_SCHEMA but `part`, and content_hash. An image that was away has rows
        that say so.
    """
    found = workspace.parts(plan.parts_folder).read_listed(
        plan.make_fingerprints(images), ROWS_SCHEMA
    )
    frame = found.to_pandas()
    frame["image_id"] = images.column("image_id").to_pylist()
    number, is_away = len(plan.copies.distortions), frame["distortion"].isna()
    names, levels = zip(*plan.copies.distortions, strict=True)
    away = {
        "distortion": names,
        "level": levels,
        "status": ("unreadable",) * number,
        "error": ("No such file or directory",) * number,
    }
    for name in _LISTED:
        lists = frame[name].astype(object)
        fill = away.get(name, (None,) * number)
        frame[name] = [fill if lost else cells for lost, cells in zip(is_away, lists, strict=True)]
    flat = frame[["image_id", "content_hash", *_LISTED]].explode(_LISTED, ignore_index=True)
    numbers = ["loss", "confidence", "probability_true", "target"]
    types = {**dict.fromkeys(numbers, "float64"), "level": "int64", "correct": "boolean"}
    return flat.astype(types)


def split_images(images: pd.DataFrame, seed: int) -> NDArray[np.str_]:
    """The part of each image: train, validation or test.

    Parts are those of the column `split` (train, val or validation, test) where it is filled in; a
    share of the training images validates if none are for that. Without it images are drawn, label
    by label: 65% train, 15% choose the epoch, 20% test. Images of one content share a part.

    Args:
        images: label, split (may be empty), content_hash (None where unreadable), image_id.
        seed: by which images are drawn.

    Returns:
        (n,) parts.

    Raises:
        UsageError: splits that are no parts, or no image to train on, to validate or to test.
    """
    units = images["content_hash"].fillna(images["image_id"])
    first = images.assign(unit=units).drop_duplicates("unit").set_index("unit")
    parts = pd.Series("", first.index, dtype=object)
    given = first["split"]
    if given.notna().any():
        parts = given.map(_SPLITS)
        if parts.isna().any():
            wrong = given[parts.isna()].iloc[0]
            raise UsageError(
                f"column `split`: {wrong!r}: write train, val, validation or test of every image"
            )
        drawn = {} if (parts == "validation").any() else {"validation": PARTS["validation"] / 0.8}
        pool = parts == "train"
    else:
        drawn = {name: PARTS[name] for name in ("test", "validation")}
        pool = parts == ""
    for label in sorted(first.loc[pool, "label"].unique()):
        own = first.index[pool & (first["label"] == label)]
        order = np.random.default_rng([seed, *label.encode()]).permutation(len(own))
        start = 0
        for name, share in drawn.items():
            end = min(len(own), start + max(1, round(share * len(own)))) if len(own) > 2 else start
            parts[own[order[start:end]]] = name
            start = end
        parts[own[order[start:]]] = "train"
    if absent := sorted(set(PARTS) - set(parts)):
        raise UsageError(
            f"there is no image for {' and '.join(absent)}: give more labelled images (three of a "
            "class or more), or a manifest whose column `split` says which are which"
        )
    if len(first) < len(images):
        log(f"{len(images) - len(first):,} copies of other images are in the same part as those")
    return units.map(parts).to_numpy(str)


def read_dataset(workspace: Workspace) -> tuple[pd.DataFrame, pa.Table, dict[str, Any]]:
    """What `metrify build` wrote: the rows, the images, and the record of what made them.

    Raises:
        UsageError: it was not run.
    """
    table = workspace.read_table(DATASET_FILE, "metrify build IMAGES", DATASET_SCHEMA)
    images = workspace.read_table(SOURCES_FILE, "metrify build IMAGES", SOURCES_SCHEMA)
    frame = table.select(DATASET_SCHEMA.names).to_pandas()
    frame["correct"] = frame["correct"].astype("boolean")
    return frame, images, record_of(table.schema)


def read_copy_plan(record: dict[str, Any]) -> CopyPlan:
    """Which copies a data set's rows are of, by its record."""
    source = ImageSource(locate(record["images"]), record["max_pixels"])
    distortions = tuple((str(name), int(level)) for name, level in record["distortions"])
    return CopyPlan(source, record["image_size"], distortions, record["seed"])
