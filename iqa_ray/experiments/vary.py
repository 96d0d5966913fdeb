"""How much of the lowest quality is worth removing? (Smith et al., sections 3.3, 4.4)."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import pyarrow as pa

from iqa_ray.experiments.arms import (
    check_runs,
    describe_experiment,
    note_fitted,
    read_candidates,
    summarise_experiment,
    train_arms,
)
from iqa_ray.experiments.settings import VaryJob
from iqa_ray.experiments.splits import REMOVED, rank_quality, split_varying
from iqa_ray.experiments.statistics import (
    COMPARISON_SCHEMA,
    DIFFERENCES_FILE,
    SUMMARY_FILE,
    SUMMARY_SCHEMA,
    compare_shares,
    format_varying,
    summarise_arms,
)
from iqa_ray.report.figures import draw_shares
from iqa_ray.scoring.tables import find_spec
from iqa_ray.storage.files import write_bytes
from iqa_ray.storage.workspace import Workspace

FOLDER = "comparisons/varying"


def run_vary(job: VaryJob) -> dict[str, Any]:
    """Train what is not trained yet, write `WS/comparisons/varying/`, and return the summary.

    The quality of an image is its mean rank over the metrics that voted.

    Raises:
        UsageError: no selection, too few images, or weights that cannot be had.
        IncompleteError: no room for a run, or some run gave no result.
    """
    start_s = time.monotonic()
    workspace = Workspace(job.workspace)
    candidates = read_candidates(workspace)
    directions = {name: find_spec(workspace, name).higher_is_better for name in candidates.metrics}
    scores = candidates.frame.set_index("image_id")[list(candidates.metrics)]
    quality = rank_quality(scores, directions)
    splits = split_varying(candidates.frame, quality, job.split_seed, job.num_train, job.removed)
    splits = note_fitted(workspace, splits, candidates)
    runs = train_arms(workspace, "vary", FOLDER, job, [job.backbone], splits, candidates)
    summary = summarise_arms(runs)
    removed = pd.to_numeric(summary["arm"].str.removeprefix(REMOVED), errors="coerce")
    summary["removed_percent"] = removed.astype("Int64")  # null for the high-quality images
    differences = compare_shares(runs)
    schema = SUMMARY_SCHEMA.append(pa.field("removed_percent", pa.int64()))
    workspace.write_frame(f"{FOLDER}/{SUMMARY_FILE}", summary, schema)
    workspace.write_frame(f"{FOLDER}/{DIFFERENCES_FILE}", differences, COMPARISON_SCHEMA)
    curve = draw_shares(summary[removed.notna()])
    write_bytes(workspace.location / f"{FOLDER}/curve.png", curve)
    text = format_varying(summary, differences)
    check_runs(runs, text)
    return {
        **summarise_experiment(workspace, splits, runs, text, start_s),
        "table": summary.astype(object).where(summary.notna(), None).to_dict("records"),
        "differences": differences.astype(object)
        .where(differences.notna(), None)
        .to_dict("records"),
    }


def describe_vary(summary: dict[str, Any]) -> str:
    """Table 3 of Smith et al. and what each share gains and sacrifices, for people."""
    return describe_experiment(summary, FOLDER, f", {DIFFERENCES_FILE}, curve.png")
