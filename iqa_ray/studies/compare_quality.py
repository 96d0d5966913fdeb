"""Does training on the selected images beat training on all? (paper 000, sections 3.2, 4.3)."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import pyarrow as pa
from pydantic import Field, field_validator

from iqa_ray.errors import UsageError
from iqa_ray.holdout import find_same_images
from iqa_ray.images import list_images
from iqa_ray.store import Workspace
from iqa_ray.studies.arms import (
    ArmsJob,
    Candidates,
    check_runs,
    describe_study,
    read_candidates,
    summarise_study,
    train_arms,
)
from iqa_ray.studies.splits import Splits, split_quality
from iqa_ray.studies.statistics import compare_arms, format_comparison, summarise_arms
from iqa_ray.train_job import BackboneName

FOLDER = "comparisons/quality"


class CompareJob(ArmsJob):
    """Compare training on high-quality images with training on images of all qualities.

    Both arms have the same number of training images, share validation and test images, seeds and
    initial heads, and are compared seed by seed.
    """

    backbones: tuple[BackboneName, ...] = Field(
        default=("alexnet", "vgg19", "resnet18", "resnet34"),
        description="networks to train, separated by commas",
    )
    test_on: str = Field(
        default="high",
        description="high: a tenth of the high-quality images; all: also a tenth of the others; "
        "or a folder, manifest or URI of other labelled images",
    )

    @field_validator("backbones")
    @classmethod
    def _check_backbones(cls, names: tuple[BackboneName, ...]) -> tuple[BackboneName, ...]:
        if not names:
            raise ValueError("name at least one backbone")
        return tuple(dict.fromkeys(names))


def run_compare(job: CompareJob) -> dict[str, Any]:
    """Train what is not trained yet, write `WS/comparisons/quality/`, and return the summary.

    Raises:
        UsageError: no selection, too few images, or weights that cannot be had.
        IncompleteError: no room for a run, or some run gave no result.
    """
    start_s = time.monotonic()
    workspace = Workspace(job.workspace)
    candidates = read_candidates(workspace)
    splits, candidates = _split(workspace, candidates, job)
    runs = train_arms(workspace, "compare", FOLDER, job, job.backbones, splits, candidates)
    summary, comparison = summarise_arms(runs), compare_arms(runs)
    workspace.write_frame(f"{FOLDER}/summary.parquet", summary.merge(comparison, on="backbone"))
    text = format_comparison(summary, comparison)
    check_runs(runs, text)
    return {
        **summarise_study(workspace, splits, runs, text, start_s),
        "comparison": comparison.astype(object).where(comparison.notna(), None).to_dict("records"),
    }


def _split(
    workspace: Workspace, candidates: Candidates, job: CompareJob
) -> tuple[Splits, Candidates]:
    """Split the candidates; images of another test set join them, and their copies leave."""
    if job.test_on in ("high", "all"):
        test_on: Any = job.test_on
        return split_quality(candidates.frame, job.split_seed, job.num_train, test_on), candidates
    listing = list_images(job.test_on)
    if listing.root.options != candidates.options:
        raise UsageError(f"--test-on {job.test_on}: must be reached by the same options of its URI")
    others = listing.table.to_pandas()
    images = workspace.read_table("images.parquet", "score IMAGES")
    same = find_same_images(images, candidates.options, listing.table, listing.root.options)
    frame, notes = candidates.frame, []
    copies = set(images.filter(pa.array(same)).column("image_id").to_pylist())
    if copies:
        notes.append(f"{len(copies)} images left out: they are also in --test-on")
        frame = frame[~frame["image_id"].isin(copies)]
    splits = split_quality(frame, job.split_seed, job.num_train)
    known = others["label"].isin(splits.table["label"])
    if not known.any():
        raise UsageError(
            f"--test-on {job.test_on}: no label of its images is one of the classes "
            f"(such as {splits.table['label'].iloc[0]!r})"
        )
    if not known.all():
        unknown = sorted({str(label) for label in others.loc[~known, "label"]})
        notes.append(
            f"{(~known).sum()} test images left out: of labels that are not trained "
            f"({', '.join(unknown[:5])})"
        )
    others = others[known].assign(image_id="test/" + others["image_id"], keep=True)
    # nobody has read them yet: a changed file is another one by its size or time
    changed = others["size_bytes"].astype(str) + " " + others["mtime_ns"].astype(str)
    others = others.assign(content_hash=others["image_id"] + " " + changed)
    columns = ["image_id", "path", "label"]
    parts = splits.table[splits.table["part"] != "test"]
    tests = [others[columns].assign(arm=arm, part="test") for arm in parts["arm"].unique()]
    table = pd.concat([parts, *tests], ignore_index=True)
    merged = pd.concat([frame, others[[*columns, "content_hash", "keep"]]], ignore_index=True)
    joined = Candidates(merged, candidates.metrics, candidates.options, candidates.max_pixels)
    return Splits(table, [*notes, *splits.notes]), joined


def describe_compare(summary: dict[str, Any]) -> str:
    """The paper's Table 2 and what it comes to, for people."""
    return describe_study(summary, FOLDER)
