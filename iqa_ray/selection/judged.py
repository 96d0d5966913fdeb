"""Judged images: those whose prediction is right or wrong, which cut-offs are fitted on."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from iqa_ray.errors import UsageError
from iqa_ray.images.listing import MANIFEST_EXTENSIONS, read_column
from iqa_ray.predictions.table import PREDICTIONS_FILE, read_predictions
from iqa_ray.progress import log
from iqa_ray.scoring.tables import ListedScores
from iqa_ray.selection.crossfit import assign_folds
from iqa_ray.storage.files import locate
from iqa_ray.storage.parquet import record_of
from iqa_ray.storage.workspace import Workspace

FOLDS_FILE = "folds.parquet"
# the images that the cut-offs were fitted on; `unit` is what was kept together
FOLDS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("content_hash", pa.string()),
        ("unit", pa.string()),
        ("fold", pa.int64()),
    ]
)


def read_judged(workspace: Workspace, scores: ListedScores) -> pd.DataFrame:
    """The predictions that were judged.

    One that was judged by a label which the listing no longer gives is left out, and so is one of
    an image on which the user's model was trained (`split` is `train`).

    Returns:
        image_id, content_hash, predicted, correct, confidence, probability_true.

    Raises:
        UsageError: there are no predictions.
    """
    predictions, origins = read_predictions(workspace)
    listed = scores.images.select(["image_id", "label", "split"]).to_pandas().set_index("image_id")
    is_judged = predictions["correct"].notna()
    if origins is None:
        log(
            f"{PREDICTIONS_FILE} does not say of which contents its predictions are, so those of "
            "images that changed since count as well: run `iqa-ray predict` again"
        )
        hashes = pd.Series(scores.read_hashes().to_pandas().to_numpy(), listed.index)
        predictions["content_hash"] = predictions["image_id"].map(hashes)
    else:
        predictions["content_hash"] = pd.Series(origins.content_hashes, dtype=object)
    if origins is not None and not origins.has_own_labels:
        present = predictions["image_id"].map(listed["label"])
        is_other = is_judged & present.notna() & (present != predictions["label"])
        if is_other.any():
            log(
                f"{is_other.sum():,} predictions were judged by labels that changed since, and do "
                "not count: run `iqa-ray predict` again"
            )
        is_judged &= ~is_other
    is_trained = is_judged & (predictions["image_id"].map(listed["split"]) == "train")
    if is_trained.any():
        log(
            f"{is_trained.sum():,} predictions are of images with split=train, which the model "
            "may know by heart, and do not count"
        )
    columns = ["image_id", "content_hash", "predicted", "correct", "confidence"]
    judged = predictions[is_judged & ~is_trained]
    return judged.reindex(columns=[*columns, "probability_true"]).reset_index(drop=True)


def deal_folds(judged: pd.DataFrame, scores: ListedScores, group: str | None, seed: int) -> None:
    """Add the columns `unit` and `fold` to judged images.

    A unit is the images of equal content, or of one group: a column of the manifest that was
    scored. An image without a group is its own unit.

    Raises:
        UsageError: there is no manifest, no such column in it, or only one group.
    """
    judged["unit"] = judged["content_hash"].fillna(judged["image_id"])
    if group is not None:
        names = judged["image_id"].map(_read_groups(scores, group))
        if names.nunique() < 2:
            raise UsageError(
                f"--group {group}: the judged images have {names.nunique()} groups, and folds "
                "need at least 2"
            )
        judged["unit"] = ("group " + names).fillna(judged["unit"])
    judged["fold"] = assign_folds(judged["unit"], seed)


def _read_groups(scores: ListedScores, group: str) -> dict[str, str | None]:
    images = scores.record.get("images", "")
    if not images.lower().endswith(MANIFEST_EXTENSIONS):
        raise UsageError(
            f"--group {group}: needs a manifest with that column, and {images} is a folder"
        )
    return read_column(locate(images), group)


def write_folds(workspace: Workspace, judged: pd.DataFrame, origin: str) -> None:
    """Write `folds.parquet`; `origin` is the workspace whose images these are."""
    folds = judged[FOLDS_SCHEMA.names]
    workspace.write_frame(FOLDS_FILE, folds, FOLDS_SCHEMA, {"workspace": origin})


def read_folds(workspace: Workspace) -> tuple[pd.DataFrame, str]:
    """The images that the cut-offs were fitted on, and the workspace where they were.

    Empty where none were fitted, or an older version fitted them.
    """
    if not workspace.has(FOLDS_FILE):
        return FOLDS_SCHEMA.empty_table().to_pandas(), str(workspace)
    table = workspace.read_table(FOLDS_FILE, "cutoffs", FOLDS_SCHEMA)
    return table.to_pandas(), record_of(table.schema).get("workspace", str(workspace))
