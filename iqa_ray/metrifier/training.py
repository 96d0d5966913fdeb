"""Training runs of metrifiers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.images.decoding import hash_content
from iqa_ray.metrics.learnt import MetrifierCard
from iqa_ray.metrifier.copies import CopyPlan
from iqa_ray.metrifier.settings import PRETRAINED, TrainMetrifierJob
from iqa_ray.training.backbones import check_backbone
from iqa_ray.training.inputs import Copies
from iqa_ray.training.loop import TRAINING_VERSION
from iqa_ray.training.recipe import Recipe
from iqa_ray.training.runs import Run
from iqa_ray.training.sharing import Material
from iqa_ray.weights.backbones import find_weights

# The loss of the target counts as much as that of the name of the distortion; both are nats.
_TARGET_WEIGHT = 1.0
# targets that differ less than this have nothing to be learnt, but rounding
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Plan:
    """Runs, one a seed, and what they share; `num_rows` by part."""

    runs: list[Run]
    material: Material
    card: MetrifierCard
    num_rows: dict[str, int]


def plan_runs(
    job: TrainMetrifierJob,
    rows: pd.DataFrame,
    images: pa.Table,
    copies: CopyPlan,
    dataset: str,
) -> Plan:
    """The runs of a job.

    Args:
        job: how to train.
        rows: of the data set (DATASET_SCHEMA).
        images: its images (SOURCES_SCHEMA).
        copies: which copies of images the rows are of.
        dataset: the key of the data set.

    Raises:
        UsageError: weights that cannot be had, or distortions that the data set has not.
        IncompleteError: the targets are all alike, so that there is nothing to learn.
    """
    rows = _choose_rows(job, rows)
    parts = {part: np.flatnonzero(rows["part"] == part) for part in ("train", "validation")}
    recipe, content = _make_recipe(job, copies.image_size)
    material = _gather_material(job, rows, images, copies, content)
    assert material.copies is not None
    depends_on: list[Any] = [
        TRAINING_VERSION,
        {**recipe.describe(), "weights": hash_content(content) if content else None},
        dataset,
        job.leave_out,
        material.content_hashes,
        hash_content(material.targets.tobytes()),
        rows["part"].tolist(),
    ]
    runs = []
    for seed in job.seeds:
        text = json.dumps([*depends_on, seed]).encode()
        key = hashlib.blake2b(text, digest_size=12).hexdigest()
        runs.append(
            Run(
                key,
                "metrifier",
                replace(recipe, seed=seed),
                train=parts["train"],
                validation=parts["validation"],
                test=parts["validation"],  # test images are for `metrify evaluate`
                keep_model=True,
            )
        )
    named = material.copies.distortions
    card = MetrifierCard(job.backbone, copies.image_size, named, job.leave_out, dataset)
    return Plan(runs, material, card, {name: len(places) for name, places in parts.items()})


def _gather_material(
    job: TrainMetrifierJob,
    rows: pd.DataFrame,
    images: pa.Table,
    copies: CopyPlan,
    weights: bytes | None,
) -> Material:
    """The images of `rows`, their copies, and (N, 2) targets: what was done to each, and how well
    the task networks did.
    """
    used = images.filter(pa.array(np.isin(images.column("image_id").to_numpy(), rows["image_id"])))
    place_of = {name: place for place, name in enumerate(used.column("image_id").to_pylist())}
    pairs = list(zip(rows["distortion"], rows["level"], strict=True))
    present = set(pairs)
    distortions = tuple(pair for pair in copies.distortions if pair in present)
    kinds = np.array([distortions.index(pair) for pair in pairs])
    made = rows["image_id"].map(place_of).to_numpy(np.int64)
    return Material(
        paths=used.column("path").to_pylist(),
        content_hashes=used.column("content_hash").to_pylist(),
        targets=np.stack([kinds, rows["target"]], axis=1).astype(np.float32),
        num_classes=len(distortions),
        weights={job.backbone: weights},
        image_size=copies.image_size,
        source=copies.source,
        copies=Copies(made, kinds, distortions, copies.seed),
    )


def _choose_rows(job: TrainMetrifierJob, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows to train and validate on: those with a target, of what is not left out."""
    if unknown := sorted(set(job.leave_out) - set(rows["distortion"])):
        raise UsageError(f"--leave-out {', '.join(unknown)}: the data set has no such distortion")
    is_used = (rows["status"] == "ok") & (rows["part"] != "test")
    chosen = rows[is_used & ~rows["distortion"].isin(job.leave_out)]
    chosen = chosen.reset_index(drop=True)
    for part in ("train", "validation"):
        if (chosen["part"] == part).sum() < 2:
            raise IncompleteError(
                f"the data set has no two {part} rows with a target: its images cannot be read, or "
                "the task networks fail on them (see `status` and `error` in dataset.parquet)"
            )
    targets = chosen.loc[chosen["part"] == "train", "target"]
    if targets.max() - targets.min() < _LEAST_SPREAD:
        raise IncompleteError(
            f"all {len(targets):,} training targets are alike (about {targets.mean():.4f}): there "
            "is nothing to learn; give images or levels on which the task networks differ"
        )
    return chosen


def _make_recipe(job: TrainMetrifierJob, image_size: int) -> tuple[Recipe, bytes | None]:
    """How the job trains, and the content of the file of initial weights, if any."""
    weights = job.weights or ("imagenet" if job.backbone in PRETRAINED else "none")
    path = find_weights(job.backbone, weights)
    check_backbone(job.backbone, path, image_size)
    recipe = Recipe(
        job.backbone,
        weights,
        job.epochs,
        image_size,
        job.batch_size,
        job.lr,
        freeze_backbone=job.freeze_backbone,
        augment="none" if job.freeze_backbone else "flip",
        severity_weight=_TARGET_WEIGHT,
        predicts_share=True,
    )
    return recipe, path.read_bytes() if path else None
