"""Does training on the selected images beat training on all? (Smith et al., sections 3.2, 4.3)."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import pandas as pd
import pyarrow as pa
from numpy.random import SeedSequence

from iqa_ray.errors import UsageError
from iqa_ray.experiments.arms import (
    Candidates,
    check_runs,
    describe_experiment,
    note_fitted,
    read_candidates,
    summarise_experiment,
    train_arms,
)
from iqa_ray.experiments.quality import add_certainties
from iqa_ray.experiments.settings import CompareJob
from iqa_ray.experiments.splits import (
    COLUMNS,
    HIGH,
    KEEPING,
    SMOOTHED,
    WEIGHTED,
    Seed,
    Splits,
    join_seeds,
    split_quality,
)
from iqa_ray.experiments.statistics import (
    COMPARISON_SCHEMA,
    DIFFERENCES_FILE,
    SUMMARY_FILE,
    SUMMARY_SCHEMA,
    compare_arms,
    format_comparison,
    pair_arms,
    summarise_arms,
)
from iqa_ray.images.source import ImageSource
from iqa_ray.progress import log
from iqa_ray.storage.files import locate
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training.pixels import load_pixels

FOLDER = "comparisons/quality"


def run_compare(job: CompareJob) -> dict[str, Any]:
    """Train what is not trained yet, write `WS/comparisons/quality/`, and return the summary.

    Raises:
        UsageError: no selection, too few images, or weights that cannot be had.
        IncompleteError: no room for a run, or some run gave no result.
    """
    start_s = time.monotonic()
    workspace = Workspace(job.workspace)
    candidates = read_candidates(workspace)
    if {SMOOTHED, WEIGHTED} & set(job.arms):
        candidates = add_certainties(workspace, candidates)
    if job.test_on not in ("high", "all"):
        splits, candidates = _split_with_others(candidates, job)
    elif job.split_per_seed:
        # not the plain pair of seeds: NumPy takes (s, 0) for s
        seeds = {seed: SeedSequence(job.split_seed, spawn_key=(seed,)) for seed in job.seeds}
        splits = join_seeds({seed: _split(candidates, job, own) for seed, own in seeds.items()})
    else:
        splits = _split(candidates, job, job.split_seed)
    splits = note_fitted(workspace, splits, candidates)
    runs = train_arms(workspace, "compare", FOLDER, job, job.backbones, splits, candidates)
    summary = summarise_arms(runs)
    comparison = compare_arms(runs, pair_arms(job.arms), split_per_seed=job.split_per_seed)
    of_quality = comparison[(comparison["better"] == HIGH) & (comparison["worse"] == "all")]
    joined = summary.merge(of_quality, on="backbone")
    schema = pa.unify_schemas([SUMMARY_SCHEMA, COMPARISON_SCHEMA])
    workspace.write_frame(f"{FOLDER}/{SUMMARY_FILE}", joined, schema)
    workspace.write_frame(f"{FOLDER}/{DIFFERENCES_FILE}", comparison, COMPARISON_SCHEMA)
    text = format_comparison(summary, comparison)
    check_runs(runs, text)
    return {
        **summarise_experiment(workspace, splits, runs, text, start_s),
        "comparison": comparison.astype(object).where(comparison.notna(), None).to_dict("records"),
    }


def _split(candidates: Candidates, job: CompareJob, seed: Seed) -> Splits:
    test_on: Any = job.test_on
    return split_quality(candidates.frame, seed, job.num_train, test_on, _list_keeping(job))


def _list_keeping(job: CompareJob) -> list[str]:
    """The arms that keep every image."""
    return [arm for arm in job.arms if arm in KEEPING]


def _split_with_others(candidates: Candidates, job: CompareJob) -> tuple[Splits, Candidates]:
    """Split the candidates; the images of another test set join them, and their copies leave."""
    others, num_unusable = _read_others(candidates, job.test_on)
    frame, notes = candidates.frame, []
    if num_unusable:
        notes.append(f"{num_unusable} test images left out: they cannot be decoded")
    is_copy = frame["content_hash"].isin(others["content_hash"])
    if is_copy.any():
        notes.append(f"{is_copy.sum()} images left out: they are also in --test-on")
        frame = frame[~is_copy]
    splits = split_quality(frame, job.split_seed, job.num_train, keeping=_list_keeping(job))
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
    others = others[known]
    parts = splits.table[splits.table["part"] != "test"]
    tests = [others.assign(arm=arm, part="test") for arm in parts["arm"].unique()]
    table = pd.concat([parts, *tests], ignore_index=True)[COLUMNS]
    joined = replace(candidates, frame=pd.concat([frame, others], ignore_index=True))
    return Splits(table, [*notes, *splits.notes], splits.num_unusable + num_unusable), joined


def _read_others(candidates: Candidates, test_on: str) -> tuple[pd.DataFrame, int]:
    """The images of another test set that can be decoded, and how many cannot.

    Nobody has read them yet: which ones can be tested, and what they hold, must be known before
    the runs get their keys.

    Returns:
        One row an image: image_id, path, label, content_hash; and the number of those left out.

    Raises:
        UsageError: there are none, or they lie elsewhere than where the candidates' URI leads to.
    """
    source = ImageSource(locate(test_on), candidates.source.max_pixels)
    listing = source.list()
    if source.options != candidates.source.options:
        raise UsageError(f"--test-on {test_on}: must be reached by the same options of its URI")
    others = listing.table.select(["image_id", "path", "label"]).to_pandas()
    log(f"decoding {len(others):,} images of --test-on")
    # scaled to one pixel: only the hashes are needed
    _, hashes = load_pixels(source, others["path"].tolist(), 1, os.cpu_count() or 1)
    others["content_hash"] = hashes
    others["image_id"] = "test/" + others["image_id"]
    readable = others[others["content_hash"].notna()]
    if readable.empty:
        raise UsageError(f"--test-on {test_on}: none of its images can be decoded")
    return readable, len(others) - len(readable)


def describe_compare(summary: dict[str, Any]) -> str:
    """Table 2 of Smith et al. and what it comes to, for people."""
    return describe_experiment(summary, FOLDER, f", {DIFFERENCES_FILE}")
