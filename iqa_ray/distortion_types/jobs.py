"""The jobs `distortions train`, `distortions evaluate` and `distortions apply`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import compute as pc

from iqa_ray.distortion_types.applier import apply_missing
from iqa_ray.distortion_types.dataset import read_labelled, split_references
from iqa_ray.distortion_types.evaluation import format_evaluation
from iqa_ray.distortion_types.settings import (
    ApplyTypesJob,
    EvaluateTypesJob,
    LabelledJob,
    TrainTypesJob,
)
from iqa_ray.distortion_types.synthesis import find_leaves, find_made, plan_counts
from iqa_ray.distortion_types.table import DISTORTIONS_FILE, read_found
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.images.listing import IMAGES_FILE, IMAGES_SCHEMA
from iqa_ray.images.source import ImageSource
from iqa_ray.progress import Progress, log
from iqa_ray.report.type_figures import draw_training
from iqa_ray.storage.files import locate, write_bytes
from iqa_ray.storage.parquet import record_of
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training.pixels import load_pixels

if TYPE_CHECKING:  # PyTorch is for those that train
    from iqa_ray.distortion_types.training import Plan

FOLDER = "distortion_types"
MODEL_FILE = f"{FOLDER}/model.safetensors"
TRAINING_FILE = f"{FOLDER}/training.json"
FIGURE_FILE = f"{FOLDER}/training.png"
EVALUATION_FILE = f"{FOLDER}/evaluation.json"
SPLITS_FILE = f"{FOLDER}/splits.parquet"
SPLITS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("reference", pa.string()),
        ("severity", pa.float64()),
        ("part", pa.string()),
        ("content_hash", pa.string()),
    ]
)


def run_train(job: TrainTypesJob) -> dict[str, Any]:
    """Train what is not trained yet, test every seed, and keep the model of the best one.

    The best is that of the highest accuracy on validation images, then the first. Writes
    SPLITS_FILE, TRAINING_FILE, FIGURE_FILE, MODEL_FILE and `model-seed<N>.safetensors` of every
    seed.

    Raises:
        UsageError: unusable images or weights.
        IncompleteError: no room for a run, or some run gave no result.
    """
    from iqa_ray.distortion_types import training
    from iqa_ray.experiments.live import check_log_dir, train_missing

    start_s = time.monotonic()
    if job.log_dir is not None:
        check_log_dir(job.log_dir)
    workspace = Workspace(job.workspace)
    workspace.prepare()
    source = _find_source(workspace, job, job.num_leaves, is_varied=True)
    frame = _read_frame(source)
    frame["part"] = split_references(frame, job.split_seed)
    plan = training.plan_runs(job, frame, source)
    workspace.record_config("distortions-train", job)
    workspace.write_frame(SPLITS_FILE, frame[SPLITS_SCHEMA.names], SPLITS_SCHEMA)
    train_missing(plan.runs, plan.material, workspace.location / FOLDER, job)
    parts = {name: frame[frame["part"] == name] for name in ("train", "validation", "test")}
    rows, models = _measure_runs(workspace, plan, parts, source)
    summary = _summarise_training(workspace, job, rows, parts, plan, start_s)
    if rows:
        best = int(np.argmax([row["validation"]["accuracy"] for row in rows]))
        write_bytes(workspace.location / MODEL_FILE, models[best])
        workspace.write_json(TRAINING_FILE, summary)
        write_bytes(workspace.location / FIGURE_FILE, draw_training(rows, best))
    if len(rows) < len(plan.runs):
        raise IncompleteError(
            f"{len(plan.runs) - len(rows)} of {len(plan.runs)} runs gave no result; the same "
            "command tries those again"
        )
    return summary


def _find_source(
    workspace: Workspace, job: LabelledJob, num_leaves: int = 0, is_varied: bool = False
) -> ImageSource:
    """The labelled images, which may have to be made: of photographs and leaves, varied or not."""
    if job.data is not None:
        return ImageSource(locate(job.data))
    folder = workspace.location / FOLDER
    sources = [ImageSource(locate(uri)) for uri in job.synthesise_from]
    if num_leaves:
        log(f"making {num_leaves:,} images of leaves")
        sources.append(find_leaves(folder, num_leaves, job.split_seed))
    counts = plan_counts(job.num_images, job.mix, job.motion_blur)
    with Progress(job.num_images, "distort photographs") as progress:
        return find_made(
            folder, sources, counts, job.split_seed, progress.update, is_varied
        )  # fmt: skip


def _read_frame(source: ImageSource) -> pd.DataFrame:
    """The labelled images that can be decoded, with content hashes."""
    frame = read_labelled(source)
    paths = frame["path"].tolist()
    log(f"reading {len(paths):,} labelled images")
    # one pixel each: only the hashes are needed
    _, hashes = load_pixels(source, paths, 1, os.cpu_count() or 1)
    frame["content_hash"] = hashes
    readable = frame["content_hash"].notna()
    if not readable.all():
        path = frame["path"][~readable].iloc[0]
        log(f"{(~readable).sum():,} images left out: they cannot be decoded (such as {path!r})")
    if not readable.any():
        raise UsageError(f"{source.root}: none of its images can be decoded")
    return frame[readable].reset_index(drop=True)


def _measure_runs(
    workspace: Workspace, plan: Plan, parts: dict[str, pd.DataFrame], source: ImageSource
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Calibrate and test the model of every run that has one, and write it.

    Returns:
        A row a model: seed, best_epoch, minutes, device, train_accuracy, history, and the figures
        of `validation` and `test`; and the models' files.
    """
    from iqa_ray.distortion_types.model import TypesModel, dump_model
    from iqa_ray.distortion_types.training import calibrate, compute_answers, measure_answers
    from iqa_ray.training.runs import RunFiles

    files, rows, models = RunFiles(workspace.location / FOLDER), [], []
    for run in plan.runs:
        result = files.read_result(run)
        if result is None or result["status"] != "ok":
            continue
        seed, epoch = run.recipe.seed, result["best_epoch"]
        state = files.read_model(run)
        model = TypesModel(replace(plan.card, seed=seed), state)
        answers = {
            name: compute_answers(model, parts[name], source) for name in ("validation", "test")
        }
        card = calibrate(model.card, answers["validation"])
        tests = {name: measure_answers(card, given) for name, given in answers.items()}
        row = {
            "seed": seed,
            "best_epoch": epoch,
            "minutes": round(result["seconds"] / 60, 3),
            "device": result["device"],
            "train_accuracy": result["history"][epoch - 1]["accuracy"],
            "history": result["history"],
        }
        rows.append({**row, **tests})
        models.append(dump_model(card, state))
        write_bytes(workspace.location / f"{FOLDER}/model-seed{seed}.safetensors", models[-1])
    return rows, models


def _summarise_training(
    workspace: Workspace,
    job: TrainTypesJob,
    rows: Sequence[dict[str, Any]],
    parts: dict[str, pd.DataFrame],
    plan: Plan,
    start_s: float,
) -> dict[str, Any]:
    """What TRAINING_FILE holds: Tables 3 and 4 of Elaraby et al. with means over the seeds."""
    figures = {
        "train_accuracy": [row["train_accuracy"] for row in rows],
        "test_accuracy": [row["test"]["accuracy"] for row in rows],
        "minutes": [row["minutes"] for row in rows],
    }
    return {
        "network": job.network,
        "classes": list(plan.card.classes),
        **{f"num_{name}": len(part) for name, part in parts.items()},
        "num_references": int(pd.concat(parts.values())["reference"].nunique()),
        "epochs": job.epochs,
        **{name: _summarise(values) for name, values in figures.items()},
        "runs": list(rows),
        "workspace": str(workspace),
        "seconds": round(time.monotonic() - start_s, 3),
    }


def _summarise(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation over the seeds; without a deviation for one alone."""
    return {
        "mean": round(float(np.mean(values)), 4) if values else None,
        "sd": round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None,
    }


def run_evaluate(job: EvaluateTypesJob) -> dict[str, Any]:
    """Test a model on labelled images, all of them; writes and returns EVALUATION_FILE.

    Raises:
        UsageError: unusable images or model, or images of a class that the model does not know.
    """
    from iqa_ray.distortion_types.model import load_model
    from iqa_ray.distortion_types.training import compute_answers, measure_answers

    start_s = time.monotonic()
    model, key = load_model(job.model)
    workspace = Workspace(job.workspace)
    workspace.prepare()
    source = _find_source(workspace, job)
    frame = read_labelled(source)
    if unknown := sorted(set(frame["label"]) - set(model.card.classes)):
        raise UsageError(
            f"--model {job.model or 'of the package'}: it was trained on "
            f"{', '.join(model.card.classes)}, and there are images of {', '.join(unknown)}"
        )
    log(f"testing on {len(frame):,} images")
    figures = measure_answers(model.card, compute_answers(model, frame, source))
    summary = {
        "network": model.card.network,
        "model": key,
        **figures,
        "workspace": str(workspace),
        "seconds": round(time.monotonic() - start_s, 3),
    }
    workspace.write_json(EVALUATION_FILE, summary)
    workspace.record_config("distortions-evaluate", job)
    return summary


def run_apply(job: ApplyTypesJob) -> dict[str, Any]:
    """Look at the scored images that were not looked at yet and write `distortions.parquet`.

    Raises:
        UsageError: no images, or a model that cannot be used.
        IncompleteError: some images could not be done; the next run goes on.
    """
    from iqa_ray.distortion_types.model import load_model

    start_s = time.monotonic()
    workspace = Workspace(job.workspace)
    images = workspace.read_table(IMAGES_FILE, "score IMAGES", IMAGES_SCHEMA)
    model, key = load_model(job.model)
    workspace.prepare()
    source = ImageSource.from_record(record_of(images.schema))
    num_done = apply_missing(workspace, images, job.model, key, source, job.num_actors, job.address)
    found = _fill_absent(read_found(workspace, images, key), images)
    record = {"model": key, "network": model.card.network, "classes": model.card.classes}
    workspace.write_table(DISTORTIONS_FILE, found, record)
    workspace.record_config("distortions-apply", job)
    counts = found.column("distortion").drop_null().value_counts().to_pylist()
    seconds = time.monotonic() - start_s
    return {
        "num_images": images.num_rows,
        "num_applied": num_done,
        "num_failed": int(pc.sum(pc.not_equal(found.column("status"), "ok")).as_py() or 0),
        "distortions": {entry["values"]: entry["counts"] for entry in counts},
        "model": key,
        "seconds": round(seconds, 3),
        "images_per_s": round(num_done / seconds, 2),
        "workspace": str(workspace),
    }


def _fill_absent(found: pa.Table, images: pa.Table) -> pa.Table:
    """Every image has a row: one whose file was away is said to be so."""
    columns = {
        "image_id": images.column("image_id"),
        "path": images.column("path"),
        "status": pc.fill_null(found.column("status"), "unreadable"),
        "error": pc.fill_null(found.column("error"), "No such file or directory"),
    }
    return pa.table(
        [columns.get(name, found.column(name)) for name in found.column_names], found.schema
    )


def describe_train(summary: dict[str, Any]) -> str:
    """Tables 3 and 4 for people: accuracies over the seeds, and the first seed's confusions."""
    lines = [
        f"{summary['network']}: {summary['num_train']:,} training, "
        f"{summary['num_validation']:,} validation and {summary['num_test']:,} test images of "
        f"{len(summary['classes'])} classes, made of {summary['num_references']:,} photographs",
        f"{'seed':>4} {'epoch':>6} {'train':>7} {'test':>7} {'minutes':>8}",
    ]
    for row in summary["runs"]:
        lines.append(
            f"{row['seed']:>4} {row['best_epoch']:>6} {row['train_accuracy']:>7.1%} "
            f"{row['test']['accuracy']:>7.1%} {row['minutes']:>8.1f}"
        )
    for name in ("train_accuracy", "test_accuracy"):
        figure = summary[name]
        spread = "" if figure["sd"] is None else f" ± {figure['sd']:.1%}"
        lines.append(f"{name.replace('_', ' ')}: {figure['mean']:.1%}{spread}")
    lines.append(format_evaluation(summary["runs"][0]["test"]))
    files = f"{TRAINING_FILE} and {FIGURE_FILE}"
    lines.append(f"written: {summary['workspace']}/{MODEL_FILE}, {files}")
    return "\n".join(lines)


def describe_evaluate(summary: dict[str, Any]) -> str:
    """The figures of a test for people."""
    written = f"written: {summary['workspace']}/{EVALUATION_FILE}"
    return f"{format_evaluation(summary)}\n{written}"


def describe_apply(summary: dict[str, Any]) -> str:
    """The summary for people."""
    found = summary["distortions"]
    counts = ", ".join(f"{name} {found[name]:,}" for name in sorted(found, key=found.get)[::-1])
    return (
        f"{summary['num_images']:,} images, {summary['num_applied']:,} looked at now "
        f"({summary['images_per_s']:.1f} images/s), {summary['num_failed']:,} that cannot be "
        f"decoded: {counts}\nwritten: {summary['workspace']}/{DISTORTIONS_FILE}"
    )
