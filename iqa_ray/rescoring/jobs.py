"""The jobs `rescore` and `compact`: every night only what changed, and its traces kept small."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc

from iqa_ray.config import make_job
from iqa_ray.distortion_types.jobs import run_apply
from iqa_ray.distortion_types.settings import ApplyTypesJob
from iqa_ray.distortion_types.table import DISTORTIONS_FILE
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.metrics.deep import parse_version
from iqa_ray.metrics.spec import get_spec
from iqa_ray.predictions.table import PREDICTIONS_FILE
from iqa_ray.progress import log
from iqa_ray.rescoring.drift import Drift, ShareChange, compare_shares, find_alerts, measure_drift
from iqa_ray.rescoring.history import (
    LISTING_FILE,
    RUNS_FILE,
    add_hashes,
    append_deleted,
    append_run,
)
from iqa_ray.rescoring.night import CLASSES, Night, begin_night, carry_scores
from iqa_ray.rescoring.settings import CompactJob, RescoreJob
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import (
    ListedScores,
    count_failures,
    known_metrics,
    read_scores,
    read_specs,
)
from iqa_ray.selection.evidence import write_confidence
from iqa_ray.selection.fitting import CUTOFFS_FILE, fit_cutoffs, read_cutoffs, write_cutoffs
from iqa_ray.selection.jobs import OutdatedCutoffError, run_select
from iqa_ray.selection.settings import CutoffsJob, SelectJob
from iqa_ray.selection.table import SELECTION_FILE, SELECTION_SCHEMA
from iqa_ray.storage.lock import hold_lock
from iqa_ray.storage.workspace import Workspace, list_parts_folders

_LARGEST_PART = 100_000  # rows
# settings of `score` that only deep metrics have
_OF_DEEP_METRICS = ("weights", "gpus_per_actor", "resources")


def run_rescore(job: RescoreJob) -> dict[str, Any]:
    """Rescore, vote, measure drift, and write the night's row; returns it as the summary.

    Raises:
        UsageError: nothing was scored before, or other images than before.
        IncompleteError: another run holds the workspace, or some images could not be scored.
    """
    start_s = time.monotonic()
    workspace = Workspace(job.workspace)
    workspace.prepare()
    if job.refit and not workspace.has(PREDICTIONS_FILE):
        raise UsageError(
            f"--refit: {workspace} has no {PREDICTIONS_FILE}: run `iqa-ray predict --workspace "
            f"{workspace}` first"
        )
    with hold_lock(workspace.location):
        workspace.record_config("rescore", job)
        settings = _read_scoring_settings(workspace)
        night = begin_night(workspace, job.images, settings["labels"])
        carry_scores(workspace, night)
        row: dict[str, Any] = {"started": night.started, **night.counts}
        try:
            recorded = {n: parse_version(s.version) for n, s in read_specs(workspace).items()}
            scored = run_score(_plan_scoring(job, settings), recorded=recorded)
            _look_again(workspace, job)
            vote = _vote(workspace, night, job)
        except (IncompleteError, UsageError) as error:
            seconds = round(time.monotonic() - start_s, 3)
            append_run(workspace, {**row, "status": f"incomplete: {error}", "seconds": seconds})
            raise
        drifts = _measure_drifts(workspace, night, scored["metrics"])
        alerts = vote["alerts"] + _find_alerts(workspace, job, night, drifts, vote["change"])
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
        listing = night.listing.table
        hashes = ListedScores(workspace, listing).read_hashes()
        workspace.write_table(LISTING_FILE, add_hashes(listing, hashes))
    return {**summary, "started": night.started.isoformat(), "workspace": str(workspace)}


def _read_scoring_settings(workspace: Workspace) -> dict[str, Any]:
    """How the night scores: as the last `score`, with every metric that there are scores of.

    What concerns deep metrics is that of the last `score` that had one of them; their precision
    and size are those of each one's version.
    """
    configs = workspace.read_configs("score")
    last = next(configs)
    names = tuple(dict.fromkeys([*last["metrics"], *known_metrics(workspace)]))
    settings = {**last, "metrics": names, "precision": "fp32", "max_side": None}
    deep = {name for name in names if get_spec(name).backend != "cpu"}
    for config in chain([last], configs):
        if deep.intersection(config["metrics"]):
            return settings | {name: config[name] for name in _OF_DEEP_METRICS}
    return settings


def _plan_scoring(job: RescoreJob, settings: dict[str, Any]) -> ScoreJob:
    """The last `score` over again."""
    given = {"workspace": job.workspace, "address": job.address, "images": job.images}
    for name in ("weights", "num_actors"):
        if (value := getattr(job, name)) is not None:
            given[name] = value
    return make_job(ScoreJob, {**settings, **given})


def _look_again(workspace: Workspace, job: RescoreJob) -> None:
    """Name the distortions of new and changed images, where `distortions apply` was run before."""
    if not workspace.has(DISTORTIONS_FILE):
        return
    given = {name: value for name in ("num_actors",) if (value := getattr(job, name)) is not None}
    settings = {**_last_settings(workspace, "distortions-apply", job), **given}
    run_apply(make_job(ApplyTypesJob, settings))


def _vote(workspace: Workspace, night: Night, job: RescoreJob) -> dict[str, Any]:
    """Vote with the cut-offs that there are; with `--refit` they are fitted again first."""
    without: dict[str, Any] = dict.fromkeys(("num_kept", "num_rejected", "rejected_share"))
    without |= {"cutoffs": {}, "change": compare_shares(0, 0, 0, 0)}
    alerts = _refit(workspace, night, job) if job.refit else []
    if not workspace.has(CUTOFFS_FILE):
        log("no cut-offs yet, so no vote: `iqa-ray cutoffs` learns them")
        return {**without, "alerts": alerts}
    chosen = {
        **_last_settings(workspace, "select", job),
        "link": None, "copy_files": False, "figures": False,
        "cutoffs_from": None,  # they were copied, and a refit replaces them
    }  # fmt: skip
    try:
        summary = run_select(make_job(SelectJob, chosen))
    except OutdatedCutoffError as error:
        return {**without, "alerts": [*alerts, f"no vote: {error}"]}
    selection = workspace.read_table(SELECTION_FILE, "select", SELECTION_SCHEMA)
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
        "alerts": alerts,
    }


def _refit(workspace: Workspace, night: Night, job: RescoreJob) -> list[str]:
    """Fit the cut-offs again and keep the old ones, dated, in history/.

    A metric for which no cut-off is found keeps its old one. Returns an alert for each of those.
    """
    settings = make_job(CutoffsJob, _last_settings(workspace, "cutoffs", job))
    try:
        outcome = fit_cutoffs(workspace, settings)
    except IncompleteError as error:  # no vote could be certified
        return [f"--refit keeps the old cut-offs: {error}"]
    fitted = outcome.cutoffs
    old = read_cutoffs(workspace) if workspace.has(CUTOFFS_FILE) else {}
    found = {name: cutoff for name, cutoff in fitted.items() if cutoff.value is not None}
    alerts = [
        f"--refit found no cut-off of {name}, which keeps its old one: {cutoff.reason}"
        for name, cutoff in fitted.items()
        if name not in found and name in old and old[name].value is not None
    ]
    if not found and not alerts:
        reasons = "; ".join(f"{name}: {cutoff.reason}" for name, cutoff in fitted.items())
        return [f"--refit found no cut-off: {reasons}"]
    if found:
        if old:
            stamp = night.started.strftime("%Y%m%dT%H%M%SZ")
            entries = {name: cutoff.to_json() for name, cutoff in old.items()}
            workspace.write_json(f"history/cutoffs-{stamp}.json", entries)
        # the folds are tonight's: those of the kept ones were others
        kept = {name: replace(cutoff, fold_values=None) for name, cutoff in old.items()}
        renewed = replace(outcome, cutoffs={**fitted, **kept, **found})
        write_cutoffs(workspace, renewed)
        write_confidence(workspace, renewed, settings.weighting)
    return alerts


def _last_settings(workspace: Workspace, name: str, job: RescoreJob) -> dict[str, Any]:
    try:
        settings = next(workspace.read_configs(name))
    except UsageError:  # never run, as where cut-offs were copied from elsewhere
        settings = {}
    return {**settings, "workspace": job.workspace, "address": job.address}


def _mark(images: pa.Table, night: Night) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(n,) which of `images` are new or changed."""
    return np.asarray(pc.is_in(images.column("image_id"), value_set=night.tonight))


def _measure_drifts(workspace: Workspace, night: Night, metrics: list[str]) -> dict[str, Drift]:
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


def _find_alerts(
    workspace: Workspace,
    job: RescoreJob,
    night: Night,
    drifts: dict[str, Drift],
    change: ShareChange,
) -> list[str]:
    listing = night.listing.table
    tonight = listing.filter(pa.array(_mark(listing, night)))
    num_failed, _ = count_failures(ListedScores(workspace, tonight), list(drifts))
    return find_alerts(
        drifts,
        change,
        num_failed,
        tonight.num_rows,
        job.alert_drift,
        job.alert_rejected,
        job.alert_errors,
    )


def describe_rescore(summary: dict[str, Any]) -> str:
    """The night for people."""
    counts = ", ".join(f"{summary[f'num_{name}']:,} {name}" for name in CLASSES)
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
    lines.append(f"written: {summary['workspace']}/{RUNS_FILE}")
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
