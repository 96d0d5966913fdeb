"""The jobs `cutoffs` and `select`: tables in, tables out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from iqa_ray.config import make_job
from iqa_ray.distortion_types.table import read_looks
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.predictions.table import PREDICTIONS_FILE
from iqa_ray.progress import log
from iqa_ray.scoring.tables import ListedScores, find_spec
from iqa_ray.selection.balance import (
    CLASS_BALANCE_FILE,
    CLASS_BALANCE_SCHEMA,
    describe_imbalance,
    keep_best,
    measure_balance,
)
from iqa_ray.selection.crossfit import PARTS, keep_by_folds, measure_accuracy
from iqa_ray.selection.cutoffs import Cutoff
from iqa_ray.selection.evidence import (
    EXPLANATIONS_FIGURE,
    remove_explanations,
    write_confidence,
    write_coverage,
    write_explanations,
)
from iqa_ray.selection.fitting import (
    CUTOFFS_FILE,
    FittedCutoffs,
    find_study_voters,
    fit_cutoffs,
    read_cutoffs,
    write_cutoffs,
)
from iqa_ray.selection.judged import (
    read_folds,
    read_judged,
)
from iqa_ray.selection.settings import CutoffsJob, Rule, SelectJob
from iqa_ray.selection.subsets import KEPT_FILE, link_kept, list_kept
from iqa_ray.selection.table import SELECTION_FILE, read_selection, write_selection
from iqa_ray.selection.votes import add_looks, cast_votes, rank_images, votes_to_reject
from iqa_ray.storage.files import locate
from iqa_ray.storage.workspace import Workspace


class OutdatedCutoffError(UsageError):
    """A voter's cut-off was learnt on another version of its scores."""


def run_cutoffs(job: CutoffsJob) -> dict[str, Any]:
    """Fit and write `cutoffs.json`, `folds.parquet`, `confidence.json` and `cutoffs.png`.

    Returns one entry a metric, as `cutoffs.json` has it, with predictions also `correlation`:
    num_images, pcc and srcc of `confidence.json`.
    With a target accuracy a further entry `certified` says of the vote: target, confidence,
    accuracy_kept, share_kept, num_images, voters, rule.

    Raises:
        UsageError: no scores or no predictions.
        IncompleteError: no metric has a cut-off, or nothing could be certified.
    """
    workspace = Workspace(job.workspace)
    fitted = fit_cutoffs(workspace, job)
    entries = write_cutoffs(workspace, fitted)
    for name, relation in write_confidence(workspace, fitted, job.weighting).items():
        entries[name]["correlation"] = relation.summarise()
    workspace.record_config("cutoffs", job)
    if all(entry["value"] is None for entry in entries.values()):
        log(describe_cutoffs(entries))
        reasons = "; ".join(f"{name}: {entry['reason']}" for name, entry in entries.items())
        raise IncompleteError(f"no metric has a cut-off ({reasons}); --cutoff NAME=VALUE sets one")
    certified = next(iter(entries.values()))["certified"]
    return {**entries, "certified": certified} if certified else entries


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
    entries.pop("certified", None)
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


def describe_cutoffs(entries: dict[str, Any]) -> str:
    """The cut-offs as a table for people."""
    lines = [
        f"{'metric':10} {'better':7} {'scale':5} {'cut-off':>9} {'95% interval':>19} {'valid':>6} "
        f"{'Youden':>6} {'p':>6} {'AUC':>6} {'right':>6} {'wrong':>6} {'bandwidths':>15}  note"
    ]
    entries, certified = dict(entries), entries.get("certified")
    entries.pop("certified", None)
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
    lines += _describe_correlations(entries)
    if certified:
        lines.append(
            f"certified: with a confidence of {certified['confidence']:.0%} the "
            f"{certified['rule']} vote of {', '.join(certified['voters'])} keeps images of which "
            f"at least {certified['target']:.1%} are classified rightly; it keeps "
            f"{certified['share_kept']:.1%} of {certified['num_images']:,} judged images that did "
            f"not lay the path, {certified['accuracy_kept']:.1%} of those right"
        )
    return "\n".join(lines)


def _describe_correlations(entries: dict[str, Any]) -> list[str]:
    found = {name: entry.get("correlation") or {} for name, entry in entries.items()}
    lines = [
        f"{name:10} PCC {_show_correlation(known['pcc'])}, SRCC {_show_correlation(known['srcc'])}"
        for name, known in found.items()
        if known.get("srcc")
    ]
    return ["correlation of quality and confidence [95% interval]:", *lines] if lines else []


def _show_correlation(found: dict[str, float]) -> str:
    return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**found)


def _show(value: float | None, without: str = "–", *, form: str = ".4g") -> str:
    return without if value is None else format(value, form)


def _note(entry: dict[str, Any]) -> str:
    if entry["source"] != "kde":
        return {"manual": "set by hand", "certified": "certified"}[entry["source"]]
    others = [_show(value) for value in entry["crossings"] if value != entry["value"]]
    crossings = f"curves also cross at {', '.join(others)}" if others else ""
    outside = "" if entry["is_between_medians"] in (None, True) else "outside the two medians"
    return "; ".join(filter(None, [entry["reason"], outside, crossings]))


def run_select(job: SelectJob) -> dict[str, Any]:
    """Vote and write `selection.parquet`, `kept.csv`, `class_balance.parquet` and, with
    predictions, `risk_coverage.parquet` and `.png`; returns the run's summary. With `figures`
    `explanations.png` is written as well; that of an earlier vote is removed.

    Raises:
        UsageError: no images, scores or cut-offs, a cut-off of another version of the scores, or
            a rule that the voters cannot meet, or more kept images than were certified.
    """
    workspace = Workspace(job.workspace)
    cutoffs = _choose_voters(workspace, job)
    votes_to_reject(job.rule, len(cutoffs))
    certified = next(iter(cutoffs.values())).certified
    if certified and job.min_per_class:
        raise UsageError(
            "--min-per-class keeps outvoted images, and the cut-offs were certified for the vote "
            "alone: leave it out, or run `iqa-ray cutoffs` without --target-accuracy"
        )
    scores = ListedScores(workspace)
    voted = _vote(workspace, scores, cutoffs, job.rule)
    ranks = rank_images(voted, cutoffs)
    selection = keep_best(voted, ranks, job.min_per_class) if job.min_per_class else voted
    if job.cutoffs_from:
        _copy_cutoffs(Workspace(job.cutoffs_from), workspace)
    workspace.prepare()
    remove_explanations(workspace)
    values = {name: cutoff.value for name, cutoff in cutoffs.items()}
    write_selection(workspace, selection, job.rule, values)
    workspace.write_text(KEPT_FILE, list_kept(selection))
    balance = measure_balance(selection)
    workspace.write_frame(CLASS_BALANCE_FILE, balance, CLASS_BALANCE_SCHEMA)
    judged = _match_judged(workspace, scores, selection)
    areas = write_coverage(workspace, scores, judged, ranks)
    workspace.record_config("select", job)
    num_kept = int(selection["keep"].sum())
    if not num_kept:
        log("no image was kept: look at the cut-offs, or use another --rule")
    num_linked = 0
    if job.link:
        options = locate(scores.record.get("images", "")).options
        num_linked = link_kept(selection, job.link, copy=job.copy_files, options=options)
    for warning in describe_imbalance(balance):
        log(warning)
    num_explained = 0
    if job.figures:
        num_explained = write_explanations(workspace, scores, judged, ranks, list(cutoffs))
    return {
        "num_images": len(selection),
        "num_kept": num_kept,
        "num_rejected": len(selection) - num_kept,
        "num_unscored": int(selection[list(cutoffs)].isna().any(axis=1).sum()),
        "num_saved": num_kept - int(voted["keep"].sum()),
        "num_linked": num_linked,
        "num_explained": num_explained,
        **_measure(workspace, judged, cutoffs, job.rule),
        "augrc": areas,
        "metrics": list(cutoffs),
        "rule": job.rule,
        "cutoffs": values,
        **({"certified": certified} if certified else {}),
        "workspace": str(workspace),
    }


def _copy_cutoffs(learnt_on: Workspace, workspace: Workspace) -> None:
    fitted = FittedCutoffs(read_cutoffs(learnt_on), read_folds(learnt_on)[0])
    write_cutoffs(workspace, fitted, str(learnt_on))
    write_confidence(workspace, FittedCutoffs({}))  # that of before was of other cut-offs


def _vote(
    workspace: Workspace, scores: ListedScores, cutoffs: Mapping[str, Cutoff], rule: Rule
) -> pd.DataFrame:
    """What `cast_votes` returns; rejected images say what they look like, if that is known."""
    frame = scores.images.select(["image_id", "path", "label"]).to_pandas()
    for name, rows in scores.read_all(list(cutoffs)).items():
        frame[name] = rows.column("score").to_numpy()
        frame[f"{name}_error"] = rows.column("error").to_pandas()
    voted = cast_votes(frame, cutoffs, rule)
    looks = read_looks(workspace)
    if looks is not None:
        voted["reason"] = add_looks(voted, looks)
    return voted


def _match_judged(
    workspace: Workspace, scores: ListedScores, selection: pd.DataFrame
) -> pd.DataFrame:
    """Judged predictions of the images' present contents, with the columns of the selection and
    `row`, the place among its rows; empty without predictions.
    """
    if not workspace.has(PREDICTIONS_FILE):
        return pd.DataFrame()
    hashes = pd.Series(scores.read_hashes().to_pandas().to_numpy(), selection["image_id"])
    judged = read_judged(workspace, scores)
    judged = judged[judged["content_hash"] == judged["image_id"].map(hashes)]
    return judged.merge(selection.reset_index(names="row"), on="image_id")


def _measure(
    workspace: Workspace, judged: pd.DataFrame, cutoffs: Mapping[str, Cutoff], rule: Rule
) -> dict[str, Any]:
    """How often the classifier is right on what is kept: in-sample, and cross-fitted if it can be.

    The latter is of the vote alone. Both are None without judged images.
    """
    found: dict[str, Any] = {"cross_fitted": None, "in_sample": None}
    if judged.empty:
        return found
    folds, _ = read_folds(workspace)
    fold_of = folds.dropna().drop_duplicates("content_hash").set_index("content_hash")
    judged_folds = judged["content_hash"].map(fold_of["fold"]).to_numpy(np.float64)
    units = judged["content_hash"].map(fold_of["unit"]).fillna(judged["content_hash"])
    correct = judged["correct"].to_numpy(bool)
    found["in_sample"] = measure_accuracy(correct, judged["keep"].to_numpy(bool), units)
    keep = keep_by_folds(judged, cutoffs, rule, judged_folds)
    if keep is not None:
        num_folds = int(pd.Series(judged_folds).nunique())
        found["cross_fitted"] = {**measure_accuracy(correct, keep, units), "num_folds": num_folds}
    return found


def _choose_voters(workspace: Workspace, job: SelectJob) -> dict[str, Cutoff]:
    """The cut-offs of those asked for, else of the study's voters, else of all that have one."""
    learnt_on = Workspace(job.cutoffs_from) if job.cutoffs_from else workspace
    known = read_cutoffs(learnt_on)
    names, is_strict = job.metrics or tuple(known), bool(job.metrics)
    certified = next((cutoff.certified for cutoff in known.values() if cutoff.certified), None)
    if not job.metrics:
        of_study = None if certified else find_study_voters(workspace)
        names = tuple(certified["voters"]) if certified else of_study or names
    cutoffs = {}
    for name in names:
        if name not in known:
            where = f"{job.cutoffs_from}/{CUTOFFS_FILE}" if job.cutoffs_from else CUTOFFS_FILE
            problem = f"{where} has no {name}, only {', '.join(known)}"
        elif known[name].value is not None:
            cutoffs[name] = known[name]
            continue
        else:
            problem = f"{name} has no cut-off: {known[name].reason}"
        if is_strict:
            raise UsageError(f"--metrics: {problem}")
        log(f"not a voter: {problem}")
    if not cutoffs:
        raise UsageError(f"no metric in {learnt_on}/{CUTOFFS_FILE} that may vote has a cut-off")
    if len(cutoffs) == 2 < len(names) and job.rule == "majority":
        log(
            f"only {' and '.join(cutoffs)} of {len(names)} voters are left, and a majority of two "
            "is both: an image is rejected only where both call it low"
        )
    for name, cutoff in cutoffs.items():
        _check_version(workspace, name, cutoff, learnt_on)
        _check_certified(cutoff, set(cutoffs), job.rule)
    return cutoffs


def _check_certified(cutoff: Cutoff, voters: set[str], rule: Rule) -> None:
    """A guarantee is that of one vote."""
    vote = cutoff.certified
    if vote and (set(vote["voters"]) != voters or vote["rule"] != rule):
        raise UsageError(
            f"the cut-offs were certified for the {vote['rule']} vote of "
            f"{', '.join(vote['voters'])}: select with these --metrics and --rule, or run "
            "`iqa-ray cutoffs` without --target-accuracy"
        )


def _check_version(workspace: Workspace, name: str, cutoff: Cutoff, learnt_on: Workspace) -> None:
    version = find_spec(workspace, name).version
    if cutoff.version in (None, version):
        return
    if learnt_on is workspace:
        remedy = f"run `iqa-ray cutoffs --workspace {workspace}` again"
    else:
        remedy = "score both workspaces with the same settings"
    raise OutdatedCutoffError(
        f"the cut-off of {name} was learnt on version {cutoff.version} of its scores, and they are "
        f"of version {version} now: {remedy}"
    )


def describe_selection(summary: dict[str, Any]) -> str:
    """The selection's summary for people."""
    kept, total = summary["num_kept"], summary["num_images"]
    lines = [
        f"kept {kept:,} of {total:,} images ({kept / total:.1%}), rejected "
        f"{summary['num_rejected']:,} ({summary['num_unscored']:,} of them for lack of a score)",
        f"voters: {', '.join(summary['metrics'])}; rule: {summary['rule']}",
        f"written: {summary['workspace']}/{SELECTION_FILE} and {KEPT_FILE}",
    ]
    if summary["num_saved"]:
        lines.insert(1, f"{summary['num_saved']:,} of them outvoted, for --min-per-class")
    lines += _describe_accuracy(summary)
    if summary["augrc"]:
        ranked = sorted(summary["augrc"].items(), key=lambda item: item[1])
        areas = ", ".join(f"{voter} {area:.4f}" for voter, area in ranked)
        lines.append(f"AUGRC (lower is better): {areas}")
    if summary["num_linked"]:
        lines.append(f"linked: {summary['num_linked']:,} images")
    if summary["num_explained"]:
        lines.append(
            f"answers explained for {summary['num_explained']} classes: "
            f"{summary['workspace']}/{EXPLANATIONS_FIGURE}"
        )
    return "\n".join(lines)


def _describe_accuracy(summary: dict[str, Any]) -> list[str]:
    """How often the classifier is right, on images that did not choose the cut-offs."""
    lines = []
    if summary["cross_fitted"]:
        folds = f"cross-fitted in {summary['cross_fitted']['num_folds']} folds"
        lines.append(f"accuracy, {folds}: {_list_accuracies(summary['cross_fitted'])}")
    if summary["in_sample"]:
        figures = _list_accuracies(summary["in_sample"])
        lines.append(f"accuracy, in-sample (on images that chose the cut-offs): {figures}")
    return lines


def _list_accuracies(measured: dict[str, Any]) -> str:
    cells = []
    for part in PARTS:
        if measured[f"accuracy_{part}"] is None:
            cells.append(f"{part} – (no images)")
            continue
        low, high = measured[f"accuracy_{part}_ci"]
        cells.append(
            f"{part} {measured[f'accuracy_{part}']:.1%} [{low:.1%}, {high:.1%}] of "
            f"{measured[f'num_{part}']:,}"
        )
    return ", ".join(cells)
