"""The jobs `metrify build`, `metrify train` and `metrify evaluate`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import compute as pc

from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.images.source import ImageSource
from iqa_ray.metrics.spec import DEFAULT_METRICS, METRIFIER
from iqa_ray.metrifier import evaluation
from iqa_ray.metrifier.copies import CopyPlan
from iqa_ray.metrifier.dataset import (
    DATASET_FILE,
    DATASET_SCHEMA,
    FOLDER,
    SOURCES_FILE,
    SOURCES_SCHEMA,
    read_copy_plan,
    read_dataset,
    read_rows,
    split_images,
)
from iqa_ray.metrifier.settings import BuildJob, EvaluateMetrifierJob, TaskJob, TrainMetrifierJob
from iqa_ray.metrifier.targets import Floats
from iqa_ray.report.selection_figures import draw_coverage
from iqa_ray.scoring.tables import scored_metrics
from iqa_ray.selection.coverage import CONFIDENCE, RISK_COVERAGE_SCHEMA, trace_coverage
from iqa_ray.storage.files import locate, write_bytes
from iqa_ray.storage.workspace import Workspace

if TYPE_CHECKING:  # PyTorch is for those that use networks
    from iqa_ray.metrifier.builder import BuildPlan
    from iqa_ray.metrifier.training import Plan

MODEL_FILE = f"{FOLDER}/model.safetensors"
TRAINING_FILE = f"{FOLDER}/training.json"
EVALUATION_FILE = f"{FOLDER}/evaluation.json"
COVERAGE_FILE = f"{FOLDER}/risk_coverage.parquet"
COVERAGE_FIGURE = f"{FOLDER}/risk_coverage.png"


# --- build ----------------------------------------------------------------------------------------


def run_build(job: BuildJob) -> dict[str, Any]:
    """Make the rows that are missing, and write SOURCES_FILE and DATASET_FILE.

    Raises:
        UsageError: unusable images or task networks, or networks of other classes.
        IncompleteError: some images could not be done; the next run goes on.
    """
    from iqa_ray.metrifier.builder import build_missing

    start_s = time.monotonic()
    workspace = Workspace(job.workspace)
    source = ImageSource(locate(job.images), job.max_pixels)
    images = source.list(job.labels, exclude=[workspace.location]).table
    images = images.filter(pc.is_valid(images.column("label")))
    if not images.num_rows:
        raise UsageError(f"{job.images}: no image has a label: give labelled images")
    plan = _plan_build(job, source, images)
    workspace.prepare()
    workspace.record_config("metrify-build", job)
    num_done = build_missing(workspace, plan, images, job)
    build_s = time.monotonic() - start_s
    rows = read_rows(workspace, plan, images)
    frame = images.to_pandas()
    of_image = rows.drop_duplicates("image_id")["content_hash"].to_numpy()
    frame["content_hash"] = pd.Series(of_image, frame.index, dtype=object)
    frame["part"] = split_images(frame, job.split_seed)
    rows["part"] = rows["image_id"].map(frame.set_index("image_id")["part"])
    workspace.write_frame(SOURCES_FILE, frame[SOURCES_SCHEMA.names], SOURCES_SCHEMA)
    record = {
        **plan.copies.describe(),
        "images": str(source.root),
        "task_networks": list(job.task_networks),
        "key": plan.key,
    }
    workspace.write_frame(DATASET_FILE, rows[DATASET_SCHEMA.names], DATASET_SCHEMA, record)
    fine = rows[rows["status"] == "ok"]
    num_rows = num_done * len(plan.copies.distortions)
    return {
        "num_images": images.num_rows,
        "num_built": num_done,
        "num_rows": len(rows),
        "num_failed": len(rows) - len(fine),
        "parts": {name: int(count) for name, count in frame["part"].value_counts().items()},
        "accuracy": _round_mean(fine["correct"]),
        "target": _round_mean(fine["target"]),
        "levels": _tabulate_levels(fine),
        "key": plan.key,
        "seconds": round(time.monotonic() - start_s, 3),
        "rows_per_s": round(num_rows / build_s, 2),
        "workspace": str(workspace),
    }


def _plan_build(job: BuildJob, source: ImageSource, images: pa.Table) -> BuildPlan:
    """The plan of a job, its networks read once, so that what is wrong with them is said now."""
    from iqa_ray.metrifier.builder import plan_build
    from iqa_ray.training.network_files import DEFAULT_SIZE
    from iqa_ray.training.task_networks import check_labels

    labels = images.column("label").to_pylist()
    given_size = job.image_size or DEFAULT_SIZE
    sources, networks = _load_networks(job, job.task_networks, labels, given_size)
    check_labels(networks, labels)
    sizes = [network.image_size for network in networks if network.image_size]
    graded = [
        (name, level)
        for name in dict.fromkeys(job.distortions)
        for level in sorted(set(job.levels))
    ]
    copies = CopyPlan(
        source,
        job.image_size or (sizes[0] if sizes else DEFAULT_SIZE),
        (("", 0), *graded),
        job.split_seed,
    )
    return plan_build(copies, sources, networks)


def _load_networks(
    job: TaskJob, names: Sequence[str], labels: Sequence[str], given_size: int
) -> tuple[list[Any], list[Any]]:
    from iqa_ray.training.network_files import NetworkSource, split_name
    from iqa_ray.training.task_networks import load_networks, read_classes

    classes = read_classes(job.classes, labels)
    sources = [
        NetworkSource(*split_name(name), classes, job.normalise, given_size, "--task-networks")
        for name in names
    ]
    return sources, load_networks(sources)


def _round_mean(values: pd.Series[Any]) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None


def _tabulate_levels(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Accuracy and mean target of each distortion at each level."""
    groups = rows.groupby(["distortion", "level"], sort=False)[["correct", "target"]].mean()
    return [
        {
            "distortion": row["distortion"],
            "level": int(row["level"]),
            "accuracy": round(float(row["correct"]), 4),
            "target": round(float(row["target"]), 4),
        }
        for row in groups.reset_index().to_dict("records")
    ]


# --- train ----------------------------------------------------------------------------------------


def run_train(job: TrainMetrifierJob) -> dict[str, Any]:
    """Train what is not trained yet, and keep the model of the best seed.

    The best is that of the least error on validation rows, then the first. Writes TRAINING_FILE,
    MODEL_FILE, and `model-seed<N>.safetensors` of every seed.

    Raises:
        UsageError: there is no data set, or weights cannot be had.
        IncompleteError: the targets are all alike, there is no room for a run, or some run gave
            no result.
    """
    from iqa_ray.experiments.live import check_log_dir, train_missing
    from iqa_ray.metrifier import training

    start_s = time.monotonic()
    if job.log_dir is not None:
        check_log_dir(job.log_dir)
    workspace = Workspace(job.workspace)
    rows, images, record = read_dataset(workspace)
    plan = training.plan_runs(job, rows, images, read_copy_plan(record), record["key"])
    workspace.record_config("metrify-train", job)
    train_missing(plan.runs, plan.material, workspace.location / FOLDER, job)
    runs, models = _collect_runs(workspace, plan)
    summary = {
        "backbone": job.backbone,
        "num_rows": plan.num_rows,
        "num_images": len(plan.material.paths),
        "left_out": list(job.leave_out),
        "epochs": job.epochs,
        "runs": runs,
        "workspace": str(workspace),
        "seconds": round(time.monotonic() - start_s, 3),
    }
    if runs:
        best = int(np.argmin([run["validation_rmse"] for run in runs]))
        write_bytes(workspace.location / MODEL_FILE, models[best])
        workspace.write_json(TRAINING_FILE, summary)
    if len(runs) < len(plan.runs):
        raise IncompleteError(
            f"{len(plan.runs) - len(runs)} of {len(plan.runs)} runs gave no result; the same "
            "command tries those again"
        )
    return summary


def _collect_runs(workspace: Workspace, plan: Plan) -> tuple[list[dict[str, Any]], list[bytes]]:
    """What came of the runs that have a result, and their models' files, which it writes."""
    from iqa_ray.metrics.learnt import dump_metrifier
    from iqa_ray.training.runs import RunFiles

    files, rows, models = RunFiles(workspace.location / FOLDER), [], []
    for run in plan.runs:
        result = files.read_result(run)
        if result is None or result["status"] != "ok":
            continue
        seed, best = run.recipe.seed, result["history"][result["best_epoch"] - 1]
        rows.append(
            {
                "seed": seed,
                "best_epoch": result["best_epoch"],
                "minutes": round(result["seconds"] / 60, 3),
                "device": result["device"],
                "validation_rmse": round(best["validation_error"] ** 0.5, 5),
                "named_rightly": round(best["validation_accuracy"], 4),
                "history": result["history"],
            }
        )
        models.append(dump_metrifier(replace(plan.card, seed=seed), files.read_model(run)))
        write_bytes(workspace.location / f"{FOLDER}/model-seed{seed}.safetensors", models[-1])
    return rows, models


# --- evaluate -------------------------------------------------------------------------------------


def run_evaluate(job: EvaluateMetrifierJob) -> dict[str, Any]:
    """Compare a metrifier's predictions with the targets of test images, and with other voters.

    Writes EVALUATION_FILE, COVERAGE_FILE and COVERAGE_FIGURE.

    Raises:
        UsageError: there is no data set, or a model, metric or task network that cannot be used.
        IncompleteError: some scores could not be computed; the next run goes on.
    """
    from iqa_ray.metrics.learnt import build_metrifier
    from iqa_ray.metrifier.rating import gather_raters, rate_copies

    start_s = time.monotonic()
    workspace = Workspace(job.workspace)
    rows, images, record = read_dataset(workspace)
    copies = read_copy_plan(record)
    tested = images.filter(pc.equal(images.column("part"), "test"))
    model = METRIFIER + str(locate(job.model) if job.model else workspace.location / MODEL_FILE)
    names = job.metrics or tuple(scored_metrics(workspace)) or DEFAULT_METRICS
    groups = gather_raters([model, *(name for name in names if name != model)], job.weights)
    workspace.record_config("metrify-evaluate", job)
    qualities: dict[str, Floats] = {}
    for raters in groups:
        qualities |= rate_copies(workspace, raters, copies, tested, job)
    weights = groups[0].weights
    assert weights is not None, "the first group is the metrifier"
    card = build_metrifier(weights).card
    own = rows[rows["part"] == "test"].reset_index(drop=True)
    summary = _evaluate_rows(workspace, own, qualities, model, card.left_out)
    if job.task_networks:
        others = _build_transfer(workspace, job, copies, tested)
        frame, voters = _join(others, qualities, model)
        summary["transfer"] = evaluation.evaluate(frame, voters)
    summary |= {
        "model": model.removeprefix(METRIFIER),
        "backbone": card.backbone,
        "trained_on": "this data set" if card.dataset == record["key"] else "another data set",
        "workspace": str(workspace),
        "seconds": round(time.monotonic() - start_s, 3),
    }
    workspace.write_json(EVALUATION_FILE, summary)
    return summary


def _join(
    rows: pd.DataFrame, qualities: dict[str, Floats], model: str
) -> tuple[pd.DataFrame, dict[str, Floats]]:
    """Rows with a target and a prediction, and the qualities of the other metrics there."""
    predicted = qualities[model].ravel()
    assert len(predicted) == len(rows), "a row a copy of every test image, in one order"
    is_used = (rows["status"] == "ok").to_numpy() & ~np.isnan(predicted)
    frame = rows.assign(predicted=predicted)[is_used].reset_index(drop=True)
    others = {name: values.ravel()[is_used] for name, values in qualities.items() if name != model}
    return frame, others


def _evaluate_rows(
    workspace: Workspace,
    rows: pd.DataFrame,
    qualities: dict[str, Floats],
    model: str,
    left_out: Sequence[str],
) -> dict[str, Any]:
    """The figures over all distortions that were trained on, by each, and of those left out."""
    frame, voters = _join(rows, qualities, model)
    is_left_out = frame["distortion"].isin(left_out).to_numpy()
    seen = {name: values[~is_left_out] for name, values in voters.items()}
    trained = frame[~is_left_out].reset_index(drop=True)
    if trained.empty:
        raise UsageError("no test row has a target and a prediction: see dataset.parquet")
    figures = evaluation.evaluate(trained, seen)
    by_distortion = evaluation.evaluate_groups(trained, seen, ["distortion"])
    by_level = evaluation.evaluate_groups(trained, seen, ["distortion", "level"])
    unseen = {name: values[is_left_out] for name, values in voters.items()}
    curves, areas = trace_coverage(
        {
            evaluation.METRIFIER: trained["predicted"].to_numpy(float),
            **seen,
            CONFIDENCE: trained["confidence"].to_numpy(float),
        },
        trained["correct"].to_numpy(bool),
    )
    workspace.write_frame(COVERAGE_FILE, curves, RISK_COVERAGE_SCHEMA)
    write_bytes(workspace.location / COVERAGE_FIGURE, draw_coverage(curves, areas))
    return {
        "mixed": figures,
        "verdict": evaluation.say_whether_it_beats_confidence(figures, by_distortion),
        "by_distortion": by_distortion,
        "by_level": by_level,
        "left_out": evaluation.evaluate_groups(
            frame[is_left_out].reset_index(drop=True), unseen, ["distortion"]
        ),
    }


def _build_transfer(
    workspace: Workspace, job: EvaluateMetrifierJob, copies: CopyPlan, images: pa.Table
) -> pd.DataFrame:
    """The rows that other task networks make of the test images."""
    from iqa_ray.metrifier.builder import build_missing, plan_build
    from iqa_ray.training.task_networks import check_labels

    labels = images.column("label").to_pylist()
    sources, networks = _load_networks(job, job.task_networks, labels, copies.image_size)
    check_labels(networks, labels)
    plan = plan_build(copies, sources, networks)
    build_missing(workspace, plan, images, job)
    return read_rows(workspace, plan, images)


# --- for people -----------------------------------------------------------------------------------


def describe_build(summary: dict[str, Any]) -> str:
    """The summary for people, with a line a distortion."""
    parts = ", ".join(f"{name} {count:,}" for name, count in sorted(summary["parts"].items()))
    lines = [
        f"{summary['num_images']:,} images ({parts}), {summary['num_built']:,} built now "
        f"({summary['rows_per_s']:,.1f} rows/s): {summary['num_rows']:,} rows, "
        f"{summary['num_failed']:,} of them without a target",
        "accuracy of the task networks, mean target, by level:",
    ]
    named: dict[str, list[str]] = {}
    for row in summary["levels"]:
        cell = f"{row['level']}: {row['accuracy']:.1%}, {row['target']:.3f}"
        named.setdefault(row["distortion"] or "none", []).append(cell)
    lines += [f"  {name:15} {'   '.join(cells)}" for name, cells in named.items()]
    lines.append(f"written: {summary['workspace']}/{DATASET_FILE}")
    return "\n".join(lines)


def describe_train(summary: dict[str, Any]) -> str:
    """A line a seed."""
    counts = ", ".join(f"{count:,} {name}" for name, count in summary["num_rows"].items())
    lines = [
        f"{summary['backbone']} on {summary['num_images']:,} images: {counts} rows",
        f"{'seed':>4} {'epoch':>6} {'RMSE':>7} {'named':>7} {'minutes':>8}",
    ]
    for run in summary["runs"]:
        lines.append(
            f"{run['seed']:>4} {run['best_epoch']:>6} {run['validation_rmse']:>7.4f} "
            f"{run['named_rightly']:>7.1%} {run['minutes']:>8.1f}"
        )
    model = f"{summary['workspace']}/{MODEL_FILE}"
    lines.append("(RMSE of the target, and share of distortions and levels named rightly, of")
    lines.append("validation rows)")
    lines.append(f"written: {model}; as a metric: --metrics {METRIFIER}{model}")
    return "\n".join(lines)


def describe_evaluate(summary: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [evaluation.format_evaluation(summary["mixed"]), summary["verdict"]]
    for row in summary["left_out"]:
        lines.append(f"{row['distortion']}, left out of training:")
        lines.append(evaluation.format_evaluation(row))
    if "transfer" in summary:
        lines.append("errors of task networks that it was not trained on:")
        lines.append(evaluation.format_evaluation(summary["transfer"]))
    lines.append(f"written: {summary['workspace']}/{EVALUATION_FILE}, {COVERAGE_FIGURE}")
    return "\n".join(lines)
