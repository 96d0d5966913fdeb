"""The jobs `cutoffs` and `select`: tables in, tables out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from iqa_ray.config import make_job
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.predictions.table import PREDICTIONS_FILE, read_predictions
from iqa_ray.progress import log
from iqa_ray.scoring.tables import ListedScores, find_spec, scored_metrics
from iqa_ray.selection.cutoffs import Cutoff, fit_cutoff, name_direction
from iqa_ray.selection.settings import CutoffsJob, SelectJob
from iqa_ray.selection.subsets import KEPT_FILE, link_kept, list_kept
from iqa_ray.selection.table import SELECTION_FILE, read_selection, write_selection
from iqa_ray.selection.votes import cast_votes, votes_to_reject
from iqa_ray.storage.files import locate
from iqa_ray.storage.workspace import Workspace
from iqa_ray.study.verdicts import VERDICTS_FILE

CUTOFFS_FILE = "cutoffs.json"


class OutdatedCutoffError(UsageError):
    """A voter's cut-off was learnt on another version of its scores."""


def run_cutoffs(job: CutoffsJob) -> dict[str, Any]:
    """Fit and write `cutoffs.json`; returns one entry a metric, as the file has it.

    Raises:
        UsageError: no scores or no predictions.
        IncompleteError: no metric has a cut-off.
    """
    workspace = Workspace(job.workspace)
    cutoffs = fit_cutoffs(workspace, job)
    entries = write_cutoffs(workspace, cutoffs)
    workspace.record_config("cutoffs", job)
    if all(cutoff.value is None for cutoff in cutoffs.values()):
        log(describe_cutoffs(entries))
        reasons = "; ".join(f"{name}: {cutoff.reason}" for name, cutoff in cutoffs.items())
        raise IncompleteError(f"no metric has a cut-off ({reasons}); --cutoff NAME=VALUE sets one")
    return entries


def fit_cutoffs(workspace: Workspace, job: CutoffsJob) -> dict[str, Cutoff]:
    """The cut-off of each metric that the job names, without writing any.

    A score and a prediction count together only if they are of the same content of an image.

    Raises:
        UsageError: no scores or no predictions.
    """
    fitted = [name for name in job.metrics or scored_metrics(workspace) if name not in job.cutoff]
    if not fitted and not job.cutoff:
        raise UsageError(
            f"{workspace} has no scores: run `iqa-ray score IMAGES --workspace {workspace}` first"
        )
    cutoffs = {}
    if fitted:
        scores = ListedScores(workspace)
        predictions = _read_judged(workspace, scores.images)
        for name in fitted:
            cutoffs[name] = _fit(workspace, name, scores.read(name), predictions, job)
    for name, value in job.cutoff.items():
        spec = find_spec(workspace, name)
        direction = name_direction(spec.higher_is_better)
        cutoffs[name] = Cutoff(value, direction, source="manual", version=spec.version)
    return cutoffs


def cutoffs(workspace: str, **settings: Any) -> pd.DataFrame:
    """Learn each metric's cut-off and return them, one row a metric, with the metric as index.

    Args:
        workspace: folder or URI of the tables, with scores and predictions.
        settings: further settings of `CutoffsJob`, such as `metrics` or `weighting`.

    Returns:
        The fields of `Cutoff`: value, direction, source, ci, counts, reason and so on.

    Raises:
        ValueError: unusable input (an `iqa_ray.errors.UsageError`).
        IncompleteError: no metric has a cut-off.
    """
    entries = run_cutoffs(make_job(CutoffsJob, {"workspace": str(workspace), **settings}))
    return pd.DataFrame(list(entries.values()), pd.Index(list(entries), name="metric"))


def select(workspace: str, **settings: Any) -> pd.DataFrame:
    """Let the metrics vote and return the selection, one row an image.

    Args:
        workspace: folder or URI of the tables, with scores and cut-offs.
        settings: further settings of `SelectJob`, such as `metrics`, `rule` or `link`.

    Returns:
        image_id, path, label, each voter's score and low_<metric>, num_low, keep, reason.

    Raises:
        ValueError: unusable input (an `iqa_ray.errors.UsageError`).
    """
    job = make_job(SelectJob, {"workspace": str(workspace), **settings})
    run_select(job)
    return read_selection(Workspace(job.workspace))[0]


def write_cutoffs(workspace: Workspace, cutoffs: Mapping[str, Cutoff]) -> dict[str, Any]:
    """Write `cutoffs.json` and return what it holds."""
    entries = {name: cutoff.to_json() for name, cutoff in cutoffs.items()}
    workspace.prepare()
    workspace.write_json(CUTOFFS_FILE, entries)
    return entries


def read_cutoffs(workspace: Workspace) -> dict[str, Cutoff]:
    """The cut-offs of `cutoffs.json`.

    Raises:
        UsageError: there are none.
    """
    entries = workspace.read_json(CUTOFFS_FILE, "cutoffs")
    return {name: Cutoff.from_json(entry) for name, entry in entries.items()}


def _read_judged(workspace: Workspace, images: pa.Table) -> pd.DataFrame:
    """The predictions that were judged: image_id, correct, and content_hash if it is on record.

    One that was judged by a label which the listing no longer gives is left out.
    """
    predictions, origins = read_predictions(workspace)
    judged = predictions["correct"].notna()
    columns = ["image_id", "correct"]
    if origins is None:
        log(
            f"{PREDICTIONS_FILE} does not say of which contents its predictions are, so those of "
            "images that changed since count as well: run `iqa-ray predict` again"
        )
    else:
        predictions["content_hash"] = pd.Series(origins.content_hashes, dtype=object)
        columns.append("content_hash")
    if origins is not None and not origins.has_own_labels:
        ids, labels = (images.column(name).to_pandas() for name in ("image_id", "label"))
        present = predictions["image_id"].map(dict(zip(ids, labels, strict=True)))
        is_other = judged & present.notna() & (present != predictions["label"])
        if is_other.any():
            log(
                f"{is_other.sum():,} predictions were judged by labels that changed since, and do "
                "not count: run `iqa-ray predict` again"
            )
        judged &= ~is_other
    return predictions.loc[judged, columns]


def _fit(
    workspace: Workspace, name: str, rows: pa.Table, predictions: pd.DataFrame, job: CutoffsJob
) -> Cutoff:
    scores = rows.select(["image_id", "content_hash", "score"]).to_pandas().dropna()
    keys = [column for column in ("image_id", "content_hash") if column in predictions]
    joined = predictions.merge(scores, on=keys)
    num_other = int(predictions["image_id"].isin(scores["image_id"]).sum()) - len(joined)
    if num_other:
        log(
            f"{name}: {num_other:,} predictions are of other contents than the scores, and do not "
            "count: run `iqa-ray predict` again"
        )
    spec = find_spec(workspace, name)
    cutoff = fit_cutoff(
        joined["score"].to_numpy(np.float64),
        joined["correct"].to_numpy(bool),
        spec.higher_is_better,
        value_range=spec.range,
        scale=job.scale,
        bandwidth=job.bandwidth,
        weighting=job.weighting,
        min_wrong=job.min_wrong,
        seed=job.seed,
    )
    return replace(cutoff, version=spec.version)


def describe_cutoffs(entries: dict[str, Any]) -> str:
    """The cut-offs as a table for people."""
    lines = [
        f"{'metric':10} {'better':7} {'scale':5} {'cut-off':>9} {'95% interval':>19} {'valid':>6} "
        f"{'Youden':>6} {'p':>6} {'AUC':>6} {'right':>6} {'wrong':>6} {'bandwidths':>15}  note"
    ]
    for name, entry in entries.items():
        counts, widths = entry["counts"] or {}, entry["bandwidths"]
        cells = [
            f"{name:10} {entry['direction'].split('_')[0]:7} {entry['scale'] or '–':5}",
            f"{_show(entry['value'], 'none'):>9}",
            f"{' … '.join(map(_show, entry['ci'])) if entry['ci'] else '–':>19}",
            f"{_show(entry['valid_share'], form='.0%'):>6}",
            f"{_show(entry['youden'], form='.3f'):>6} {_show(entry['p_value'], form='.2g'):>6}",
            f"{_show(entry['separation'], form='.3f'):>6}",
            f"{counts.get('correct', '–'):>6} {counts.get('incorrect', '–'):>6}",
            f"{' / '.join(map(_show, widths.values())) if widths else '–':>15}",
            f" {_note(entry)}",
        ]
        lines.append(" ".join(cells).rstrip())
    return "\n".join(lines)


def _show(value: float | None, without: str = "–", *, form: str = ".4g") -> str:
    return without if value is None else format(value, form)


def _note(entry: dict[str, Any]) -> str:
    if entry["source"] == "manual":
        return "set by hand"
    others = [_show(value) for value in entry["crossings"] if value != entry["value"]]
    crossings = f"curves also cross at {', '.join(others)}" if others else ""
    outside = "" if entry["is_between_medians"] in (None, True) else "outside the two medians"
    return "; ".join(filter(None, [entry["reason"], outside, crossings]))


def run_select(job: SelectJob) -> dict[str, Any]:
    """Vote and write `selection.parquet` and `kept.csv`; returns the run's summary.

    Raises:
        UsageError: no images, scores or cut-offs, a cut-off of another version of the scores, or
            a rule that the voters cannot meet.
    """
    workspace = Workspace(job.workspace)
    cutoffs = _choose_voters(workspace, job)
    try:
        votes_to_reject(job.rule, len(cutoffs))
    except ValueError as error:
        raise UsageError(f"--rule: {error}") from None
    scores = ListedScores(workspace)
    frame = scores.images.select(["image_id", "path", "label"]).to_pandas()
    for name, rows in scores.read_all(list(cutoffs)).items():
        frame[name] = rows.column("score").to_numpy()
        frame[f"{name}_error"] = rows.column("error").to_pandas()
    selection = cast_votes(frame, cutoffs, job.rule)
    workspace.prepare()
    values = {name: cutoff.value for name, cutoff in cutoffs.items()}
    write_selection(workspace, selection, job.rule, values)
    workspace.write_text(KEPT_FILE, list_kept(selection))
    workspace.record_config("select", job)
    num_kept = int(selection["keep"].sum())
    if not num_kept:
        log("no image was kept: look at the cut-offs, or use another --rule")
    num_linked = 0
    if job.link:
        options = locate(scores.record.get("images", "")).options
        num_linked = link_kept(selection, job.link, copy=job.copy_files, options=options)
    return {
        "num_images": len(selection),
        "num_kept": num_kept,
        "num_rejected": len(selection) - num_kept,
        "num_unscored": int(selection[list(cutoffs)].isna().any(axis=1).sum()),
        "num_linked": num_linked,
        "metrics": list(cutoffs),
        "rule": job.rule,
        "cutoffs": values,
        "workspace": str(workspace),
    }


def _choose_voters(workspace: Workspace, job: SelectJob) -> dict[str, Cutoff]:
    """The cut-offs of those asked for, else of the study's voters, else of all that have one."""
    known = read_cutoffs(workspace)
    names, is_strict = job.metrics or tuple(known), bool(job.metrics)
    if not job.metrics and workspace.has(VERDICTS_FILE):
        names = tuple(workspace.read_json(VERDICTS_FILE, "study IMAGES")["voters"])
        if not names:
            raise UsageError(
                f"no metric qualified in {workspace}/{VERDICTS_FILE}: name voters with --metrics"
            )
    cutoffs = {}
    for name in names:
        if name not in known:
            problem = f"{CUTOFFS_FILE} has no {name}, only {', '.join(known)}"
        elif known[name].value is not None:
            cutoffs[name] = known[name]
            continue
        else:
            problem = f"{name} has no cut-off: {known[name].reason}"
        if is_strict:
            raise UsageError(f"--metrics: {problem}")
        log(f"not a voter: {problem}")
    if not cutoffs:
        raise UsageError(f"no metric in {workspace}/{CUTOFFS_FILE} that may vote has a cut-off")
    for name, cutoff in cutoffs.items():
        version = find_spec(workspace, name).version
        if cutoff.version not in (None, version):
            raise OutdatedCutoffError(
                f"the cut-off of {name} was learnt on version {cutoff.version} of its scores, and "
                f"they are of version {version} now: run `iqa-ray cutoffs --workspace "
                f"{workspace}` again"
            )
    return cutoffs


def describe_selection(summary: dict[str, Any]) -> str:
    """The selection's summary for people."""
    kept, total = summary["num_kept"], summary["num_images"]
    lines = [
        f"kept {kept:,} of {total:,} images ({kept / total:.1%}), rejected "
        f"{summary['num_rejected']:,} ({summary['num_unscored']:,} of them for lack of a score)",
        f"voters: {', '.join(summary['metrics'])}; rule: {summary['rule']}",
        f"written: {summary['workspace']}/{SELECTION_FILE} and {KEPT_FILE}",
    ]
    if summary["num_linked"]:
        lines.append(f"linked: {summary['num_linked']:,} images")
    return "\n".join(lines)
