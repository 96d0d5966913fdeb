"""The job `layers`: how far distortions move the features of each layer of a classifier."""

from __future__ import annotations

import hashlib
import json
import math
import time
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import compute as pc

from iqa_ray.distortions import DISTORTIONS
from iqa_ray.errors import UsageError
from iqa_ray.images.listing import IMAGES_FILE, IMAGES_SCHEMA
from iqa_ray.images.source import ImageSource
from iqa_ray.layers.distances import SMALLEST_BATCH
from iqa_ray.layers.findings import Findings
from iqa_ray.layers.measurer import Measured, Plan, deal_batches, measure_missing, read_measured
from iqa_ray.layers.settings import LayersJob
from iqa_ray.layers.summary import write_paragraph
from iqa_ray.layers.tables import (
    ALL,
    FIGURE_FILE,
    FINDINGS_FILE,
    LAYERS_FILE,
    LAYERS_SCHEMA,
    parts_folder,
)
from iqa_ray.predictions.predictor import model_file
from iqa_ray.predictions.table import PREDICTIONS_FILE, read_predictions
from iqa_ray.progress import log
from iqa_ray.report.layer_figures import draw_layers
from iqa_ray.storage.files import locate, write_bytes
from iqa_ray.storage.parquet import record_of
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training.network_files import NetworkSource
from iqa_ray.training.task_networks import load_network, read_classes

# What measures depend on in the code: raise it when they change.
_MEASURES_VERSION = 1


def run_layers(job: LayersJob) -> dict[str, Any]:
    """Measure what is not measured yet, and write `WS/layers/`; returns the run's summary.

    Raises:
        UsageError: unusable images, network or distortions.
        IncompleteError: some batches could not be measured; the next run goes on.
    """
    start_s = time.monotonic()
    workspace = Workspace(job.workspace)
    images = workspace.read_table(IMAGES_FILE, "score IMAGES", IMAGES_SCHEMA)
    plan, images = _make_plan(workspace, images, job)
    network = load_network(plan.source)
    classes, key = list(network.classes), network.content_hash
    source = ImageSource.from_record(record_of(images.schema))
    chosen = _choose_images(images, classes, job)
    workspace.prepare()
    workspace.record_config("layers", job)
    targets = [classes.index(label) for label in chosen.column("label").to_pylist()]
    listed = chosen.select(["image_id", "path", "size_bytes", "mtime_ns"])
    # the network's hash, not where it lies
    settings = [
        _MEASURES_VERSION,
        key,
        plan.source.architecture,
        plan.copies,
        plan.seed,
        source.max_pixels,
    ]
    batches = deal_batches(listed, targets, job.batch_size, json.dumps(settings))
    folder = parts_folder(key)
    num_new = measure_missing(
        workspace, folder, batches, plan, key, source, job.num_actors, job.address
    )
    measured = read_measured(workspace, folder, batches, plan)
    findings = Findings(measured, plan.copies, job.seed)
    table = findings.make_table()
    summary = {
        "network": plan.source.file,
        "num_images": chosen.num_rows,
        "num_batches": batches.num_rows,
        "num_batches_new": num_new,
        "distortions": list(job.distortions),
        "levels": list(job.levels),
        **_summarise(measured, findings, table),
        "workspace": str(workspace),
    }
    summary["paragraph"] = write_paragraph(summary)
    summary["seconds"] = round(time.monotonic() - start_s, 3)
    record = {"network": plan.source.file, "key": key, "seed": job.seed}
    workspace.write_frame(LAYERS_FILE, table, LAYERS_SCHEMA, record)
    workspace.write_json(FINDINGS_FILE, summary)
    write_bytes(workspace.location / FIGURE_FILE, draw_layers(table))
    return summary


def _summarise(measured: Measured, findings: Findings, table: pd.DataFrame) -> dict[str, Any]:
    """What was measured, and what it says; notes what was left out."""
    for line in measured.skipped:
        log(f"layer left out: {line}")
    failed = measured.images[measured.images["status"] != "ok"]
    if len(failed):
        path, error = failed[["path", "error"]].iloc[0]
        log(f"{len(failed):,} images could not be measured, such as {path!r}: {error}")
    figures = {
        "num_measured": len(measured.batches),
        "num_failed": len(failed),
        "num_layers": len(measured.layers),
        "skipped": list(measured.skipped),
        "depth": findings.relate_depth(),
        "dropout": findings.compare_dropout(),
        "errors": _list_errors(table),
        "losses": findings.list_losses(),
    }
    return {name: _without_nan(figure) for name, figure in figures.items()}


def _make_plan(workspace: Workspace, images: pa.Table, job: LayersJob) -> tuple[Plan, pa.Table]:
    """What to measure, and the images that may be: none that the network was trained on."""
    for name in job.distortions:
        if name not in DISTORTIONS:
            raise UsageError(f"--distortions {name}: choose from {', '.join(DISTORTIONS)}")
    if job.network is not None:
        file = str(locate(job.network))  # as every node understands it
        is_trained = pc.equal(images.column("split"), "train")
        images = images.filter(pc.invert(pc.fill_null(is_trained, False)))
    else:
        model = None
        if workspace.has(PREDICTIONS_FILE):
            predictions, origins = read_predictions(workspace)
            model = origins.model if origins else None
        if model is None:
            raise UsageError(
                f"{workspace} has no predictions of a classifier that was trained here: give "
                f"--network FILE, or run `iqa-ray predict --backbone NAME --workspace {workspace}`"
            )
        file = str(workspace.location / model_file(model))
        images = images.filter(
            pc.is_in(images.column("image_id"), value_set=pa.array(predictions["image_id"]))
        )
    copies = tuple((name, level) for name in job.distortions for level in job.levels)
    classes = read_classes(job.classes, images.column("label").drop_null().to_pylist())
    return Plan(NetworkSource(file, job.architecture, classes), copies, job.seed), images


def _choose_images(images: pa.Table, classes: list[str], job: LayersJob) -> pa.Table:
    """Labelled images of the network's classes, drawn by seed and id: additions move few."""
    labels = images.column("label")
    known = images.filter(pc.is_in(labels, value_set=pa.array(classes, pa.string())))
    if known.num_rows < SMALLEST_BATCH:
        seen = sorted(set(labels.drop_null().to_pylist()))
        raise UsageError(
            f"{known.num_rows} images that the network was not trained on have labels of its "
            f"classes, and {SMALLEST_BATCH} are needed (its classes: {', '.join(classes[:3])}, …; "
            f"labels: {', '.join(seen[:3]) or 'none'}, …)"
        )
    if known.num_rows < images.num_rows:
        log(
            f"{images.num_rows - known.num_rows:,} images without a label of the network's "
            "classes are left out"
        )
    draws = [
        hashlib.blake2b(f"{job.seed} {name}".encode(), digest_size=8).hexdigest()
        for name in known.column("image_id").to_pylist()
    ]
    order = sorted(range(len(draws)), key=draws.__getitem__)[: job.num_images]
    return known.take(order)


def _list_errors(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The correlation of each layer's distance with the loss, with dropout inactive."""
    rows = table[(table["distortion"] == ALL) & ~table["dropout"]]
    columns = ["srcc_loss", "srcc_loss_low", "srcc_loss_high"]
    return [
        {"layer": name, "srcc_loss": figures}
        for name, figures in zip(rows["layer"], rows[columns].to_numpy().tolist(), strict=True)
    ]


def _without_nan(value: Any) -> Any:
    """What JSON can hold: None for what is undefined."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe_layers(summary: dict[str, Any]) -> str:
    """The paragraph for people, and where the tables are."""
    return (
        f"{summary['paragraph']}\n"
        f"{summary['num_batches']:,} batches, {summary['num_batches_new']:,} measured now, "
        f"{summary['num_failed']:,} images failed; {summary['seconds']:.1f} s\n"
        f"written: {summary['workspace']}/{LAYERS_FILE}, {FINDINGS_FILE} and {FIGURE_FILE}"
    )
