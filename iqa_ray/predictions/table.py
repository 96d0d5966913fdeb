"""The table of predictions, and the import of what a user's own model said."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from iqa_ray.errors import UsageError
from iqa_ray.images.listing import IMAGES_FILE, read_manifest
from iqa_ray.progress import log
from iqa_ray.scoring.tables import scored_metrics, scores_frame
from iqa_ray.storage.files import Location, locate
from iqa_ray.storage.parquet import record_of
from iqa_ray.storage.workspace import Workspace

PREDICTIONS_FILE = "predictions.parquet"
PREDICTIONS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("predicted", pa.string()),
        ("confidence", pa.float64()),
        ("correct", pa.bool_()),
    ]
)


# the probability that the classifier gave to the label; a table has this column where it is known
PROBABILITY_TRUE = pa.field("probability_true", pa.float64())
_SHARES = ("confidence", "probability_true")


@dataclass(frozen=True)
class Origins:
    """What predictions are of.

    Attributes:
        content_hashes: row for row, the hash of the content that was predicted; None where it is
            not known.
        has_own_labels: whether the user's file gave labels, which are then those to compare with.
        model: the key of the classifier trained here that made them; None for imported ones.
    """

    content_hashes: list[str | None]
    has_own_labels: bool = False
    model: str | None = None


def write_predictions(workspace: Workspace, table: pa.Table, origins: Origins) -> None:
    """Write `predictions.parquet` (PREDICTIONS_SCHEMA, and PROBABILITY_TRUE where known).

    The record in its metadata keeps the origins, since other programs read its columns.
    """
    workspace.write_table(PREDICTIONS_FILE, table, asdict(origins))


def read_predictions(workspace: Workspace) -> tuple[pd.DataFrame, Origins | None]:
    """The predictions (PREDICTIONS_SCHEMA, and PROBABILITY_TRUE where known) and what they are of.

    The origins are None if they are not on record, as in a file that an older version wrote, or
    from which another program took rows out.

    Raises:
        UsageError: there are no predictions.
    """
    table = workspace.read_table(PREDICTIONS_FILE, "predict", PREDICTIONS_SCHEMA)
    record = record_of(table.schema)
    frame = table.select(_choose_schema(table.column_names).names).to_pandas()
    if "content_hashes" not in record or len(record["content_hashes"]) != len(frame):
        return frame, None
    return frame, Origins(**record)


def import_predictions(
    workspace: Workspace, images: pa.Table, file: str
) -> tuple[pa.Table, Origins, dict[str, Any]]:
    """Read a user's predictions and match them with the images of the workspace.

    Args:
        images: the workspace's image table.
        file: CSV or Parquet with `path` and `predicted`, and optionally `label`, `confidence` and
            `probability_true`. Paths may be as listed, relative to the images' root, or to the
            present folder.

    Returns:
        The table (as `write_predictions` takes it), its origins, with the content hashes that the
        scores know of its images, and where it comes from for the run's summary.

    Raises:
        UsageError: a column is missing, a path is empty or there twice, none is known, or a
            confidence or probability is no number in [0, 1].
    """
    location = locate(file)
    given = read_manifest(location, ["path", "label", "predicted", *_SHARES])
    if "predicted" not in given.column_names:
        raise UsageError(f"{file} has no column `predicted`")
    if not given.num_rows:
        raise UsageError(f"{file} has no rows: give a prediction an image")
    frame = given.to_pandas()
    root = locate((workspace.read_record(IMAGES_FILE) or {}).get("root", ""))
    frame["image_id"] = _match_paths(given.column("path").to_pylist(), images, root, location)
    known = frame.dropna(subset=["image_id"])
    if known.empty:
        raise UsageError(
            f"{file}: none of its {len(frame):,} paths is an image of {workspace} (the first: "
            f"{frame['path'].iat[0]!r}; there: {images.column('path')[0].as_py()!r})"
        )
    repeated = known.loc[known["image_id"].duplicated(), "path"]
    if len(repeated):
        raise UsageError(f"{file} has more than one row for {repeated.iat[0]!r}")
    if len(known) < len(frame):
        log(f"{file}: {len(frame) - len(known):,} rows are of images not in {workspace}: left out")
    columns = {"image_id": known["image_id"], "predicted": known["predicted"], "confidence": np.nan}
    columns |= {name: _read_shares(known[name], file) for name in _SHARES if name in known}
    described = images.select(["image_id", "path", "label"]).to_pandas()
    result = described.merge(pd.DataFrame(columns), on="image_id")
    if "label" in known:
        labels = known.set_index("image_id")["label"]
        result["label"] = result["image_id"].map(labels).fillna(result["label"])
    origins = Origins(_find_hashes(workspace, result["image_id"]), "label" in known)
    return judge_predictions(result), origins, {"predictions": str(location)}


def _read_shares(cells: pd.Series[Any], file: str) -> pd.Series[float]:
    shares = pd.to_numeric(cells, errors="coerce")
    if (shares.isna() & cells.notna()).any():
        raise UsageError(f"{file}: column `{cells.name}` must hold numbers")
    is_outside = shares.notna() & ~shares.between(0, 1)
    if is_outside.any():
        raise UsageError(
            f"{file}: column `{cells.name}` must hold numbers from 0 to 1, and has "
            f"{shares[is_outside].iat[0]:g}"
        )
    return shares


def _choose_schema(names: Collection[str]) -> pa.Schema:
    """PREDICTIONS_SCHEMA, with PROBABILITY_TRUE if it is among the columns `names`."""
    if PROBABILITY_TRUE.name not in names:
        return PREDICTIONS_SCHEMA
    place = PREDICTIONS_SCHEMA.get_field_index("correct")
    return PREDICTIONS_SCHEMA.insert(place, PROBABILITY_TRUE)


def _match_paths(
    paths: Sequence[str | None], images: pa.Table, root: Location, file: Location
) -> list[str | None]:
    """Ids of images by path: as listed, or relative to the images' root or else to this folder."""
    by_path = dict(
        zip(images.column("path").to_pylist(), images.column("image_id").to_pylist(), strict=True)
    )
    ids: list[str | None] = []
    for row, path in enumerate(paths):
        if not path:
            raise UsageError(f"{file}: row {row + 1} has an empty path")
        below_root = root.prefix + posixpath.join(root.path, posixpath.normpath(path))
        here = locate(path)
        candidates = (path, below_root, here.prefix + here.path)
        ids.append(next((by_path[name] for name in candidates if name in by_path), None))
    return ids


def _find_hashes(workspace: Workspace, ids: pd.Series[str]) -> list[str | None]:
    """The content hashes of images that the scores know; None of an image without a valid score."""
    if not (names := scored_metrics(workspace)):
        return [None] * len(ids)
    known = scores_frame(workspace, names).set_index("image_id")["content_hash"].reindex(ids)
    return list(pa.array(known, pa.string(), from_pandas=True).to_pylist())


def judge_predictions(frame: pd.DataFrame, classes: set[str] | None = None) -> pa.Table:
    """Add `correct`: null without a label or prediction, or for a label that has no class."""
    correct = (frame["predicted"] == frame["label"]).astype("boolean")
    unknown = frame["label"].isna() | frame["predicted"].isna()
    if classes is not None:
        unknown |= ~frame["label"].isin(classes)
    frame["correct"] = correct.mask(unknown)
    schema = _choose_schema(frame.columns)
    return pa.Table.from_pandas(frame[schema.names], schema, preserve_index=False)
