"""The jobs `rescore` and `compact`: every night only what changed, and its traces kept small."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc
from pydantic import Field, model_validator

from iqa_ray.config import Job, WorkspaceJob, make_job, positional
from iqa_ray.decoding import ImageError, hash_content
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.images import Listing, list_images
from iqa_ray.lock import hold_lock
from iqa_ray.parts import make_fingerprints
from iqa_ray.progress import log
from iqa_ray.reading import run_ahead
from iqa_ray.rescoring.changes import (
    ResolvedChanges,
    compare_listings,
    find_candidates,
    resolve_changes,
)
from iqa_ray.rescoring.drift import Drift, compare_shares, find_alerts, measure_drift
from iqa_ray.rescoring.history import LISTING_FILE, append_deleted, append_run, read_listing
from iqa_ray.score_job import ScoreJob
from iqa_ray.scores import (
    count_failures,
    find_spec,
    known_metrics,
    read_scores,
    scored_metrics,
    scores_folder,
)
from iqa_ray.scoring import make_row_settings, run_score
from iqa_ray.selection.jobs import (
    CUTOFFS_FILE,
    SELECTION_FILE,
    CutoffsJob,
    SelectJob,
    run_cutoffs,
    run_select,
)
from iqa_ray.shards import read_file
from iqa_ray.store import Workspace, list_parts_folders

_NUM_READERS, _NUM_AHEAD = 8, 64
_LARGEST_PART = 100_000  # rows
_CLASSES = ("new", "changed", "moved", "deleted", "retouched", "unchanged")


class RescoreJob(WorkspaceJob):
    """Score what is new or changed since the last night, vote again, and look for drift.

    How images are scored and how metrics vote is as in the last `score` and `select`.
    """

    images: str = positional("folder, manifest (.csv, .parquet) or URI, as for `score`", "IMAGES")
    refit: bool = Field(
        default=False, description="fit the cut-offs again; the old ones are kept in history/"
    )
    alert_drift: float | None = Field(
        default=None,
        gt=0,
        description="exit with 3 where a metric's population stability index of tonight's images "
        "against all others is above this (0.25 is usually called a major shift)",
    )
    alert_rejected: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="exit with 3 where the rejected share of tonight's images exceeds that of the "
        "others by more than this, such as 0.1",
    )
    alert_errors: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="exit with 3 where a larger share of tonight's images has no score for some "
        "metric",
    )
    weights: str | None = Field(
        default=None,
        description="folder or URI of deep metrics' files (default: as in the last `score`)",
        json_schema_extra={"metavar": "DIR"},
    )
    num_actors: int | None = Field(
        default=None, ge=1, description="actors of each pool (default: as in the last `score`)"
    )


class CompactJob(Job):
    """Merge the small parts that nights leave behind; readers never see a gap."""

    ws: str | None = positional("the workspace", "WS", default=None)
    workspace: str | None = Field(default=None, description="the same, as a flag")

    @model_validator(mode="after")
    def _check_workspace(self) -> CompactJob:
        if (self.ws is None) == (self.workspace is None):
            raise ValueError("name one workspace")
        return self


@dataclass(frozen=True)
class _Night:
    """What was found at the beginning of a night."""

    started: datetime
    listing: Listing
    changes: ResolvedChanges

    @property
    def counts(self) -> dict[str, int]:
        return {f"num_{name}": getattr(self.changes, name).num_rows for name in _CLASSES}

    @cached_property
    def tonight(self) -> pa.Array:
        """Ids of the images that are new or have changed."""
        tables = [self.changes.new, self.changes.changed]
        return pa.concat_tables(tables).column("image_id").combine_chunks()


def run_rescore(job: RescoreJob) -> dict[str, Any]:
    """Rescore, vote, measure drift, and write the night's row; returns it as the summary.

    Raises:
        UsageError: nothing was scored before, or other images than before.
        IncompleteError: another run holds the workspace, or some images could not be scored.
    """
    start_s = time.monotonic()
    workspace = Workspace(job.workspace)
    workspace.prepare()
    with hold_lock(workspace.location):
        workspace.record_config("rescore", job)
        settings = workspace.read_last_config("score")
        night = _look(workspace, job, settings)
        _carry_scores(workspace, night, settings)
        row: dict[str, Any] = {"started": night.started, **night.counts}
        try:
            scored = run_score(_plan_scoring(workspace, job, settings))
        except IncompleteError as error:
            seconds = round(time.monotonic() - start_s, 3)
            append_run(workspace, {**row, "status": f"incomplete: {error}", "seconds": seconds})
            raise
        vote = _vote(workspace, night, job)
        drifts = _measure_drifts(workspace, night, scored["metrics"])
        listed = night.listing.table
        failed = count_failures(
            workspace, scored["metrics"], listed.filter(pa.array(_mark(listed, night)))
        )
        alerts = find_alerts(
            drifts,
            vote["change"],
            failed["images"],
            len(night.tonight),
            job.alert_drift,
            job.alert_rejected,
            job.alert_errors,
        )
        seconds = time.monotonic() - start_s
        summary = {
            **night.counts,
            **{n: scored[n] for n in ("num_images", "num_scored", "num_reused", "num_failed")},
            **{n: vote[n] for n in ("num_kept", "num_rejected", "rejected_share", "cutoffs")},
            "failures": scored["failures"],
            "rejected": asdict(vote["change"]),
            "drift": {name: asdict(drift) for name, drift in drifts.items()},
            "metrics": scored["metrics"],
            "alerts": alerts,
            "seconds": round(seconds, 3),
            "images_per_s": round(scored["num_scored"] / seconds, 2),
        }
        row |= summary
        row |= {name: json.dumps(summary[name]) for name in ("failures", "cutoffs", "drift")}
        append_deleted(workspace, night.changes.deleted, night.started)
        append_run(workspace, {**row, "status": "alert" if alerts else "ok"})
        # last: a night that was cut short is looked at again from where the one before ended
        workspace.write_table(LISTING_FILE, night.listing.table)
    return {**summary, "started": night.started.isoformat(), "workspace": str(workspace)}


def _look(workspace: Workspace, job: RescoreJob, settings: dict[str, Any]) -> _Night:
    """List the images and find out what changed, opening only those whose content decides."""
    started = datetime.now(timezone.utc).replace(microsecond=0)
    before = read_listing(workspace)
    listing = list_images(job.images, settings["labels"], exclude=[workspace.location])
    changes = compare_listings(before, listing.table, _read_hashes(workspace))
    candidates = find_candidates(changes)
    options = listing.root.options

    def hash_image(path: str) -> str | None:
        data = read_file(path, options)
        return None if isinstance(data, ImageError) else hash_content(data)

    paths = candidates.column("path").to_pylist()
    hashes = pa.array(list(run_ahead(hash_image, paths, _NUM_READERS, _NUM_AHEAD)), pa.string())
    known = pa.table({"image_id": candidates.column("image_id"), "content_hash": hashes})
    return _Night(started, listing, resolve_changes(changes, known))


def _read_hashes(workspace: Workspace) -> pa.Table:
    """Content hashes of all images that were ever read (image_id, content_hash)."""
    for name in scored_metrics(workspace):
        return read_scores(workspace, name).select(["image_id", "content_hash"])
    raise UsageError(f"{workspace} has no scores: run `iqa-ray score IMAGES` first")


def _carry_scores(workspace: Workspace, night: _Night, settings: dict[str, Any]) -> None:
    """Give images that only moved, or were only touched, the scores of their content.

    Rows of images that could not be read are dropped, so that those are tried again: what is
    wrong with them need not show in size or time.
    """
    retouched = night.changes.retouched.column("image_id").combine_chunks()
    sources = {image_id: image_id for image_id in retouched.to_pylist()}
    moved = night.changes.moved
    sources |= dict(
        zip(*(moved.column(n).to_pylist() for n in ("image_id", "previous_id")), strict=True)
    )
    table = night.listing.table
    fingerprints = make_fingerprints(table, make_row_settings(settings["max_pixels"]))
    for name in scored_metrics(workspace):
        parts = workspace.parts(scores_folder(name, find_spec(workspace, name).version))
        parts.copy_rows(sources, table.select(["image_id", "path"]), fingerprints)
        parts.drop_stale(retouched, fingerprints)
        failed = parts.read(
            ["image_id", "status"], lambda rows: pc.equal(rows.column("status"), "unreadable")
        )
        if failed is not None and failed.num_rows:
            ids = failed.column("image_id").combine_chunks()
            others = ~pc.is_in(table.column("image_id"), value_set=ids).to_numpy()
            parts.drop_stale(ids, fingerprints[others])


def _plan_scoring(workspace: Workspace, job: RescoreJob, settings: dict[str, Any]) -> ScoreJob:
    """The last `score` over again, with every metric that the workspace has scores of."""
    metrics = tuple(dict.fromkeys([*settings["metrics"], *known_metrics(workspace)]))
    given = {"workspace": job.workspace, "address": job.address, "images": job.images}
    for name in ("weights", "num_actors"):
        if (value := getattr(job, name)) is not None:
            given[name] = value
    return make_job(ScoreJob, {**settings, "metrics": metrics, **given})


def _vote(workspace: Workspace, night: _Night, job: RescoreJob) -> dict[str, Any]:
    """Vote with the cut-offs that there are; with `--refit` they are fitted again first."""
    if not workspace.has(CUTOFFS_FILE):
        log("no cut-offs yet, so no vote: `iqa-ray cutoffs` learns them")
        counts = dict.fromkeys(("num_kept", "num_rejected", "rejected_share"))
        return {**counts, "cutoffs": {}, "change": compare_shares(0, 0, 0, 0)}
    if job.refit:
        stamp = night.started.strftime("%Y%m%dT%H%M%SZ")
        old = workspace.read_json(CUTOFFS_FILE, "cutoffs")
        workspace.write_json(f"history/cutoffs-{stamp}.json", old)
        run_cutoffs(make_job(CutoffsJob, _last_settings(workspace, "cutoffs", job)))
    chosen = {**_last_settings(workspace, "select", job), "link": None, "copy_files": False}
    summary = run_select(make_job(SelectJob, chosen))
    selection = workspace.read_table(SELECTION_FILE, "select")
    keep = selection.column("keep").to_numpy()
    tonight = _mark(selection, night)
    change = compare_shares(
        int((~keep & ~tonight).sum()), int((~tonight).sum()),
        int((~keep & tonight).sum()), int(tonight.sum()),
    )  # fmt: skip
    return {
        "num_kept": summary["num_kept"],
        "num_rejected": summary["num_rejected"],
        "rejected_share": round(summary["num_rejected"] / summary["num_images"], 6),
        "cutoffs": summary["cutoffs"],
        "change": change,
    }


def _last_settings(workspace: Workspace, name: str, job: RescoreJob) -> dict[str, Any]:
    try:
        settings = workspace.read_last_config(name)
    except UsageError:  # never run, as where cut-offs were copied from elsewhere
        settings = {}
    return {**settings, "workspace": job.workspace, "address": job.address}


def _mark(images: pa.Table, night: _Night) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(n,) which of `images` are new or changed."""
    return np.asarray(pc.is_in(images.column("image_id"), value_set=night.tonight))


def _measure_drifts(workspace: Workspace, night: _Night, metrics: list[str]) -> dict[str, Drift]:
    """Tonight's scores beside those of all other listed images, a metric each."""
    if not len(night.tonight):
        return {}
    listed = night.listing.table.column("image_id").combine_chunks()
    drifts = {}
    for name in metrics:
        scores = read_scores(workspace, name).select(["image_id", "score"])
        scores = scores.filter(pc.is_in(scores.column("image_id"), value_set=listed))
        values = scores.column("score").to_numpy().astype(np.float64)
        tonight = _mark(scores, night)
        drifts[name] = measure_drift(values[~tonight], values[tonight])
    return drifts


def describe_rescore(summary: dict[str, Any]) -> str:
    """The night for people."""
    counts = ", ".join(f"{summary[f'num_{name}']:,} {name}" for name in _CLASSES)
    lines = [
        f"{summary['num_images']:,} images: {counts}",
        f"{summary['num_scored']:,} scored, {summary['num_failed']:,} without a score for some "
        f"metric; {summary['seconds']:.1f} s",
    ]
    for name, statuses in summary["failures"].items():
        kinds = ", ".join(f"{entry['num_images']:,} {kind}" for kind, entry in statuses.items())
        lines.append(f"  {name}: {kinds}")
    rejected = summary["rejected"]
    if summary["num_kept"] is not None:
        lines.append(
            f"kept {summary['num_kept']:,}, rejected {summary['num_rejected']:,} "
            f"({summary['rejected_share']:.1%})"
        )
    if rejected["difference"] is not None:
        lines.append(
            f"rejected of tonight's images {rejected['share_now']:.1%}, of the others "
            f"{rejected['share_before']:.1%} (difference {rejected['difference']:+.1%}, 95% "
            f"interval {rejected['low']:+.1%} to {rejected['high']:+.1%})"
        )
    if summary["drift"]:
        lines.append(f"{'drift':10} {'KS':>6} {'PSI':>7}   tonight's scores beside all others")
    for name, drift in summary["drift"].items():
        if drift["psi"] is None:
            lines.append(f"{name:10} {drift['reason']}")
        else:
            lines.append(f"{name:10} {drift['ks']:6.3f} {drift['psi']:7.3f}")
    lines.append(f"written: {summary['workspace']}/history/runs.parquet")
    return "\n".join(lines)


def run_compact(job: CompactJob) -> dict[str, Any]:
    """Merge parts of every table that is kept as parts.

    Raises:
        UsageError: there is no such workspace.
        IncompleteError: another run holds the workspace.
    """
    start_s = time.monotonic()
    workspace = Workspace(job.ws or job.workspace or "")
    workspace.check_exists()
    tables = {}
    with hold_lock(workspace.location):
        for folder in list_parts_folders(workspace):
            before, after = workspace.parts(folder).compact(_LARGEST_PART)
            tables[folder] = {"num_before": before, "num_after": after}
    return {
        "tables": tables,
        "seconds": round(time.monotonic() - start_s, 3),
        "workspace": str(workspace),
    }


def describe_compact(summary: dict[str, Any]) -> str:
    """The merged tables for people."""
    lines = [
        f"{folder}: {counts['num_before']:,} parts, now {counts['num_after']:,}"
        for folder, counts in summary["tables"].items()
    ]
    return "\n".join(lines) or f"{summary['workspace']} has no parts"
