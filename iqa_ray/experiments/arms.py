"""Training the arms of an experiment over seeds: runs and their keys, tables of results."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.experiments.quality import CERTAINTY, plan_arm
from iqa_ray.experiments.settings import ArmsJob
from iqa_ray.experiments.splits import SPLITS_FILE, SPLITS_SCHEMA, Splits
from iqa_ray.experiments.statistics import SUMMARY_FILE
from iqa_ray.images.decoding import hash_content
from iqa_ray.images.listing import IMAGES_FILE, IMAGES_SCHEMA
from iqa_ray.images.source import ImageSource
from iqa_ray.progress import log
from iqa_ray.scoring.tables import scores_frame
from iqa_ray.selection.judged import FOLDS_FILE, read_folds
from iqa_ray.selection.table import SELECTION_FILE, read_selection
from iqa_ray.storage.files import Location
from iqa_ray.storage.parquet import record_of
from iqa_ray.storage.workspace import Workspace

if TYPE_CHECKING:  # PyTorch is for those that train
    from iqa_ray.training.runs import Run

RUNS_FILE = "runs.parquet"
_POOLED = ["content_hash", CERTAINTY]  # what runs need to know of images
_EPOCH = [
    ("epoch", pa.int64()),
    *(
        (name, pa.float64())
        for name in ("loss", "accuracy", "validation_loss", "validation_accuracy", "seconds")
    ),
]
# one row a run; what failed has a status that is not `ok`, and nulls
RUNS_SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("backbone", pa.string()),
        ("seed", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("accuracy", pa.float64()),
        ("auc", pa.float64()),
        ("best_epoch", pa.int64()),
        ("last_accuracy", pa.float64()),
        ("last_auc", pa.float64()),
        ("history", pa.list_(pa.struct(_EPOCH))),
        ("seconds", pa.float64()),
        ("device", pa.string()),
        ("num_train", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Candidates:
    """The images of an experiment.

    Attributes:
        frame: one row an image: image_id, path, label, content_hash, status, keep, a column of
            scores a voting metric, and where arms need it, certainty (see `add_certainties`).
        metrics: those that voted.
        source: of the images.
    """

    frame: pd.DataFrame
    metrics: tuple[str, ...]
    source: ImageSource


def read_candidates(workspace: Workspace) -> Candidates:
    """Read the selection with the content hashes of its images.

    Raises:
        UsageError: there is none, or it was made from other images, labels or scores than the
            workspace holds now.
    """
    images = workspace.read_table(IMAGES_FILE, "score IMAGES", IMAGES_SCHEMA)
    selection, metrics = read_selection(workspace)
    if set(selection["image_id"]) != set(images.column("image_id").to_pylist()):
        raise UsageError(
            f"{workspace}/{SELECTION_FILE} was made from other images than {IMAGES_FILE} lists: "
            f"run `iqa-ray select --workspace {workspace}` again"
        )
    frame = scores_frame(workspace, metrics)
    selection = selection.set_index("image_id").loc[frame["image_id"]].reset_index()
    _check_selection(workspace, selection, frame, metrics)
    frame["keep"] = selection["keep"]
    return Candidates(
        frame[["image_id", "path", "label", "content_hash", "status", "keep", *metrics]],
        metrics,
        ImageSource.from_record(record_of(images.schema)),
    )


def _check_selection(
    workspace: Workspace, selection: pd.DataFrame, present: pd.DataFrame, metrics: Sequence[str]
) -> None:
    """Refuse a selection that was made from other labels or scores than the present ones.

    Args:
        workspace: where both come from.
        selection: with the present rows' images, in their order.
        present: what `scores_frame` returns.
        metrics: those that voted.

    Raises:
        UsageError: names an image and the commands to run.
    """
    for name in ("label", *metrics):
        before, now = selection[name], present[name]
        differs = (before != now) & ~(before.isna() & now.isna())
        if not differs.any():
            continue
        commands = f"`iqa-ray select --workspace {workspace}`"
        if name in metrics and now[differs].isna().any():
            commands = (
                f"`iqa-ray score IMAGES --workspace {workspace} --metrics {','.join(metrics)}`, "
                f"then {commands}"
            )
        what = "labels" if name == "label" else f"{name} scores"
        raise UsageError(
            f"{workspace}/{SELECTION_FILE} was made from other {what} of {differs.sum():,} "
            f"images, such as {present['path'][differs].iloc[0]!r}: run {commands} again"
        )


def note_fitted(workspace: Workspace, splits: Splits, candidates: Candidates) -> Splits:
    """Splits that say how many of their test images the cut-offs were fitted on.

    On those a gain is in-sample in part: the vote knows whether the classifier was right on them.
    """
    if not workspace.has(FOLDS_FILE):
        note = "it is not on record which images the cut-offs were fitted on"
        return replace(splits, notes=[*splits.notes, note])
    folds, origin = read_folds(workspace)
    if folds.empty:
        note = "the cut-offs were set by hand: which images they come from is not on record"
        return replace(splits, notes=[*splits.notes, note])
    is_test = splits.table["part"] == "test"
    tested = candidates.frame["image_id"].isin(splits.table.loc[is_test, "image_id"])
    hashes = candidates.frame.loc[tested, "content_hash"]
    num_fitted = int(hashes.isin(folds["content_hash"].dropna()).sum())
    notes = list(splits.notes)
    if num_fitted:
        notes.append(
            f"{num_fitted:,} of {len(hashes):,} test images are among those that the cut-offs were "
            f"fitted on (in {origin})"
        )
    return replace(splits, notes=notes, num_fitted=num_fitted)


def train_arms(
    workspace: Workspace,
    name: str,
    folder: str,
    job: ArmsJob,
    backbones: Sequence[str],
    splits: Splits,
    candidates: Candidates,
) -> pd.DataFrame:
    """Train every backbone on every arm with every seed, as far as that is not done yet.

    Writes SPLITS_FILE and RUNS_FILE. In the former `seed` is null where all seeds share their
    parts.

    Args:
        workspace: the tables' place.
        name: of the job, for its record.
        folder: of the experiment in the workspace.
        job: how to train.
        backbones: names.
        splits: who is trained and tested on what.
        candidates: where the images came from.

    Returns:
        One row a run (RUNS_SCHEMA); what failed has a status that is not ok, and an error.

    Raises:
        UsageError: weights that cannot be had.
        IncompleteError: no room, or images that can no longer be read.
    """
    for note in splits.notes:
        log(note)
    workspace.prepare()
    workspace.record_config(name, job)
    table = splits.table
    if "seed" not in table:
        table = table.assign(seed=pd.array([pd.NA] * len(table), "Int64"))
    workspace.write_frame(f"{folder}/{SPLITS_FILE}", table, SPLITS_SCHEMA)
    runs = _train_missing(workspace.location / folder, job, backbones, splits.table, candidates)
    workspace.write_frame(f"{folder}/{RUNS_FILE}", runs, RUNS_SCHEMA)
    return runs


def _train_missing(
    place: Location,
    job: ArmsJob,
    backbones: Sequence[str],
    splits: pd.DataFrame,
    candidates: Candidates,
) -> pd.DataFrame:
    from iqa_ray.experiments.live import check_log_dir, train_missing
    from iqa_ray.training.backbones import check_backbone, choose_image_size
    from iqa_ray.training.runs import RunFiles
    from iqa_ray.training.sharing import Material
    from iqa_ray.weights.backbones import find_weights

    if job.log_dir is not None:
        check_log_dir(job.log_dir)
    image_size = choose_image_size(backbones, job.image_size)
    weights = {}
    for name in backbones:
        path = find_weights(name, job.weights)
        check_backbone(name, path, image_size)
        weights[name] = path.read_bytes() if path else None
    known = candidates.frame[["image_id", *candidates.frame.columns.intersection(_POOLED)]]
    pool = splits.drop_duplicates("image_id").merge(known, on="image_id", how="left")
    classes, targets = np.unique(pool["label"].to_numpy(str), return_inverse=True)
    runs = _make_runs(job, backbones, splits, pool, candidates, weights, image_size)
    material = Material(
        paths=pool["path"].tolist(),
        content_hashes=pool["content_hash"].tolist(),
        targets=targets.astype(np.int64),
        num_classes=len(classes),
        weights=weights,
        image_size=image_size,
        source=candidates.source,
    )
    failures = train_missing(runs, material, place, job)
    reasons = {failure.run.key: failure.reason for failure in failures}
    files, rows = RunFiles(place), []
    for run in runs:
        result = files.read_result(run) or {"status": "failed", "error": reasons.get(run.key, "")}
        rows.append(
            {"arm": run.arm, "backbone": run.recipe.backbone, "seed": run.recipe.seed, **result}
        )
    return pd.DataFrame(rows, columns=RUNS_SCHEMA.names)


def _make_runs(
    job: ArmsJob,
    backbones: Sequence[str],
    splits: pd.DataFrame,
    pool: pd.DataFrame,
    candidates: Candidates,
    weights: dict[str, bytes | None],
    image_size: int,
) -> list[Run]:
    """All seeds of an arm, then the next arm: seeds run side by side, and pairs end together.

    A run's key holds labels and content of its parts, and so tells one seed's parts from another's.
    """
    from iqa_ray.training.loop import TRAINING_VERSION
    from iqa_ray.training.runs import Run

    if "seed" in splits:
        parts = {seed: _find_parts(rows, pool) for seed, rows in splits.groupby("seed")}
    else:
        parts = dict.fromkeys(job.seeds, _find_parts(splits, pool))
    runs, num_classes = [], pool["label"].nunique()
    for backbone in backbones:
        start = weights[backbone]
        for arm in splits["arm"].unique():
            for seed in job.seeds:
                content, places = parts[seed][arm]
                recipe = job.make_recipe(backbone, seed, image_size)
                plan = plan_arm(arm, pool, places["train"], num_classes)
                depends_on = [
                    TRAINING_VERSION,
                    arm,
                    {**recipe.describe(), "weights": hash_content(start) if start else None},
                    sorted(set(pool["label"])),
                    content,
                    candidates.source.max_pixels,
                    *plan.describe(),
                ]
                digest = hashlib.blake2b(json.dumps(depends_on).encode(), digest_size=12)
                runs.append(Run(digest.hexdigest(), arm, recipe, **places, plan=plan))
    return runs


def _find_parts(splits: pd.DataFrame, pool: pd.DataFrame) -> dict[str, tuple[Any, Any]]:
    """Of each arm: labels and content hashes of each part, and its places in the pool."""
    place_of = pd.Series(pool.index, index=pool["image_id"])
    hashes = pool.set_index("image_id")["content_hash"]
    parts: dict[str, tuple[Any, Any]] = {}
    for (arm, part), rows in splits.groupby(["arm", "part"], sort=False):
        content, places = parts.setdefault(str(arm), ({}, {}))
        content[part] = [rows["label"].tolist(), rows["image_id"].map(hashes).tolist()]
        places[part] = place_of[rows["image_id"]].to_numpy(np.int64)
    return parts


def check_runs(runs: pd.DataFrame, text: str) -> None:
    """Raise IncompleteError where some run gave no result, after showing `text`; names a few."""
    bad = runs[runs["status"] != "ok"]
    if len(bad):
        log(text)
        named = "; ".join(
            f"{row.arm} {row.backbone} seed {row.seed} {row.status}: {row.error}"
            for row in bad.head(3).itertuples()
        )
        raise IncompleteError(
            f"{len(bad)} of {len(runs)} runs gave no result ({named}); the tables hold the others, "
            "and the same command tries again those that failed"
        )


def summarise_experiment(
    workspace: Workspace, splits: Splits, runs: pd.DataFrame, text: str, start_s: float
) -> dict[str, Any]:
    """What the summary of every experiment has; `text` is its table for people.

    Where every seed has its own parts, their sizes are those of the first.
    """
    table = splits.table
    has_own_parts = "seed" in table
    first = table["arm"] == table["arm"].iloc[0]
    if has_own_parts:
        first &= table["seed"] == table["seed"].iloc[0]
    sizes = table.loc[first, "part"].value_counts()
    return {
        **{f"num_{part}": int(sizes[part]) for part in ("train", "validation", "test")},
        "split_per_seed": has_own_parts,
        "num_classes": int(table["label"].nunique()),
        "num_runs": len(runs),
        "num_unusable": splits.num_unusable,
        "num_test_fitted": splits.num_fitted,
        "notes": splits.notes,
        "text": text,
        "workspace": str(workspace),
        "seconds": round(time.monotonic() - start_s, 3),
    }


def describe_experiment(summary: dict[str, Any], folder: str, others: str = "") -> str:
    """An experiment's table and what it was made of, for people."""
    anew = ", drawn anew for every seed" if summary["split_per_seed"] else ""
    return (
        f"{summary['text']}\n\n{summary['num_train']:,} training, {summary['num_validation']:,} "
        f"validation and {summary['num_test']:,} test images of {summary['num_classes']} classes"
        f"{anew}; {summary['num_runs']} runs, {summary['seconds']:.0f} s\n"
        f"written: {summary['workspace']}/{folder}/{RUNS_FILE}, {SUMMARY_FILE}, "
        f"{SPLITS_FILE}{others}"
    )
