"""The job `smooth`: strategies of training on distorted images, side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from iqa_ray.errors import IncompleteError
from iqa_ray.experiments.live import check_log_dir, train_missing
from iqa_ray.progress import log
from iqa_ray.report.smoothing_figures import draw_accuracies, draw_confidences, draw_reliability
from iqa_ray.smoothing.dataset import LabelledSet, draw_parts, read_set
from iqa_ray.smoothing.evaluation import (
    CONFIDENCE_SCHEMA,
    DIFFERENCES_SCHEMA,
    RELIABILITY_SCHEMA,
    RESULTS_SCHEMA,
    TABLE_SCHEMA,
    Answers,
    compare_strategies,
    format_differences,
    format_table,
    measure_leads,
    measure_results,
    summarise_results,
    tabulate_confidence,
    tabulate_reliability,
    to_probabilities,
)
from iqa_ray.smoothing.labels import (
    Scores,
    fit_transform,
    is_calibrated,
    plan_rows,
    transform_scores,
)
from iqa_ray.smoothing.settings import SmoothJob
from iqa_ray.smoothing.strategies import (
    BASELINE,
    TEST_SETS,
    VERSIONS,
    Strategy,
    list_strategies,
    share_versions,
)
from iqa_ray.smoothing.versions import Versions, make_versions, measure_versions, read_array
from iqa_ray.storage.files import delete_folder, write_bytes
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training.pixels import CHUNK_SIZE

if TYPE_CHECKING:  # PyTorch is for those that train
    from iqa_ray.smoothing.training import Bench
    from iqa_ray.training.runs import Run

FOLDER = "smoothing"
VERSIONS_FOLDER = f"{FOLDER}/versions"
VERSIONS_FILE = f"{FOLDER}/versions.parquet"
RESULTS_FILE = f"{FOLDER}/results.parquet"
TABLE_FILE = f"{FOLDER}/table.parquet"
DIFFERENCES_FILE = f"{FOLDER}/differences.parquet"
RELIABILITY_FILE = f"{FOLDER}/reliability.parquet"
CONFIDENCE_FILE = f"{FOLDER}/confidence.parquet"
TRANSFORMS_FILE = f"{FOLDER}/transforms.parquet"
RUNS_FILE = f"{FOLDER}/runs.parquet"
VERSIONS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("image_id", "path", "label", "part")),
        *((name, pa.string()) for name in ("content_hash", "error")),
    ]
)
TRANSFORMS_SCHEMA = pa.schema(
    [
        ("score", pa.string()),
        ("training_set", pa.string()),
        ("quality", pa.float64()),
        ("certainty", pa.float64()),
    ]
)
_EPOCH = [("epoch", pa.int64()), ("loss", pa.float64()), ("accuracy", pa.float64()),
          ("seconds", pa.float64())]  # fmt: skip
RUNS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("strategy", "method", "training_set", "score")),
        ("seed", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("history", pa.list_(pa.struct(_EPOCH))),
        ("seconds", pa.float64()),
        ("device", pa.string()),
        ("num_train", pa.int64()),
    ]
)


@dataclass(frozen=True)
class _Planned:
    """A run, and what it is of."""

    strategy: Strategy
    seed: int
    run: Run


def run_smooth(job: SmoothJob) -> dict[str, Any]:
    """Make what is missing of versions, scores and runs, and write `WS/smoothing/`.

    Raises:
        UsageError: images, scores or a network that cannot be used.
        IncompleteError: no room for a run, or some run gave no result.
    """
    from iqa_ray.smoothing.training import prepare_bench

    start_s = time.monotonic()
    if job.log_dir is not None:
        check_log_dir(job.log_dir)
    workspace = Workspace(job.workspace)
    workspace.prepare()
    strategies = list_strategies(job.strategies, job.score)
    with_validation = any(is_calibrated(score, job.transform) for score in job.score)
    images = draw_parts(
        read_set(job.images), job.num_train, job.num_test, with_validation, job.split_seed
    )
    workspace.record_config("smooth", job)
    if job.restart:
        for name in ("runs", "checkpoints", "outputs"):
            delete_folder(workspace.location / f"{FOLDER}/{name}")
    place = workspace.location / VERSIONS_FOLDER
    versions = make_versions(images, job.split_seed, place, job.address)
    scores = {name: measure_versions(versions, name, job.address) for name in job.score}
    _write_versions(workspace, images, versions, scores)
    bench = prepare_bench(job, images, versions)
    _log_parts(job, bench)
    certainties = _make_certainties(workspace, job, bench, scores, strategies)
    planned = _plan_runs(job, bench, strategies, certainties, with_validation)
    _train_missing(workspace, job, bench, planned)
    runs, answers = _read_runs(workspace, planned, bench)
    workspace.write_frame(RUNS_FILE, runs, RUNS_SCHEMA)
    summary: dict[str, Any] = {
        **{f"num_{part}": len(places) for part, places in bench.rows.items()},
        "num_classes": len(bench.classes),
        "image_size": bench.material.image_size,
        "epochs": job.epochs,
        "seeds": list(job.seeds),
        "num_runs": len(planned),
        "text": "",
    }
    if answers:
        summary |= _write_results(workspace, job, bench, strategies, answers, versions, images)
    bad = runs[runs["status"] != "ok"]
    if len(bad):
        log(summary["text"])
        first = bad.iloc[0]
        raise IncompleteError(
            f"{len(bad)} of {len(runs)} runs gave no result (strategy {first['strategy']} seed "
            f"{first['seed']}: {first['error']}); the tables hold the others, and the same command "
            "tries again those that failed"
        )
    return {
        **summary,
        "workspace": str(workspace),
        "seconds": round(time.monotonic() - start_s, 3),
    }


def _log_parts(job: SmoothJob, bench: Bench) -> None:
    sizes = ", ".join(
        f"{len(places):,} {part}" for part, places in bench.rows.items() if len(places)
    )
    log(f"{sizes} images of {len(bench.classes)} classes, {bench.material.image_size} px a side")


def _write_versions(
    workspace: Workspace, images: LabelledSet, versions: Versions, scores: dict[str, Scores]
) -> None:
    """Write VERSIONS_FILE: one row an image, with a column for each score and version."""
    table = images.frame[["image_id", "path", "label", "part"]].copy()
    table["content_hash"], table["error"] = versions.content_hashes, versions.errors
    columns = {
        f"{score}_{version}": values[:, place]
        for score, values in scores.items()
        for place, version in enumerate(VERSIONS)
    }
    table = pd.concat([table, pd.DataFrame(columns)], axis=1)
    schema = VERSIONS_SCHEMA
    for name in columns:
        schema = schema.append(pa.field(name, pa.float64()))
    record = {
        "versions": {name: list(made or ("none",)) for name, made in VERSIONS.items()},
        "jpeg_chroma": "4:2:0",
        "ssim": "mean over 11x11 Gaussian windows (1.5 px) of BT.601 luma",
    }
    workspace.write_frame(VERSIONS_FILE, table, schema, record)


def _make_certainties(
    workspace: Workspace,
    job: SmoothJob,
    bench: Bench,
    scores: dict[str, Scores],
    strategies: Sequence[Strategy],
) -> dict[tuple[str, str], Scores]:
    """Of each score and mix, the (N, V) certainties T(s); writes each T that was fitted."""
    wanted = dict.fromkeys((each.score, each.mix) for each in strategies if each.score)
    fitted = [score for score in scores if is_calibrated(score, job.transform)]
    correct = _judge_validation(workspace, job, bench) if fitted and wanted else None
    found: dict[tuple[str, str], Scores] = {}
    curves = []
    for score, mix in wanted:
        curve = None
        if score in fitted:
            assert correct is not None
            of_validation = scores[score][bench.rows["validation"]]
            curve = fit_transform(of_validation, correct, score, share_versions(mix))
            points = {"quality": curve.qualities, "certainty": curve.accuracies}
            curves.append(pd.DataFrame({"score": score, "training_set": f"MIX_{mix}", **points}))
        found[score, mix] = transform_scores(scores[score], score, curve, len(bench.classes))
    if curves:
        workspace.write_frame(TRANSFORMS_FILE, pd.concat(curves), TRANSFORMS_SCHEMA)
    return found


def _judge_validation(workspace: Workspace, job: SmoothJob, bench: Bench) -> Any:
    """(n, V) whether strategy 1, with the first seed, is right on versions of validation images."""
    judge = _plan_runs(job, bench, [BASELINE], {}, with_judge=True)[0]
    _train_missing(workspace, job, bench, [judge])
    outputs = _read_outputs(workspace, judge)
    if outputs is None:
        raise IncompleteError(
            "scores cannot be calibrated: strategy 1 gave no result; try a lower --lr"
        )
    places = bench.rows["validation"]
    own = outputs[len(bench.rows["test"]) * len(VERSIONS) :]
    predicted = own.argmax(axis=1).reshape(len(VERSIONS), len(places))
    return (predicted == bench.labels[places]).T


def _plan_runs(
    job: SmoothJob,
    bench: Bench,
    strategies: Sequence[Strategy],
    certainties: dict[tuple[str, str], Scores],
    with_judge: bool,
) -> list[_Planned]:
    """All seeds of a strategy, then the next one."""
    from iqa_ray.smoothing.training import make_run

    planned = []
    for strategy in strategies:
        own = certainties.get((strategy.score, strategy.mix))
        # one for all seeds: what runs share is sent to workers once
        plan = plan_rows(strategy, bench.num_images, own, bench.rows["train"])
        for seed in job.seeds:
            is_judge = with_judge and strategy == BASELINE and seed == job.seeds[0]
            run = make_run(job, bench, strategy, seed, plan, is_judge)
            planned.append(_Planned(strategy, seed, run))
    return planned


def _train_missing(
    workspace: Workspace, job: SmoothJob, bench: Bench, planned: Sequence[_Planned]
) -> None:
    """Do the runs that have no result. What --restart forgets was forgotten before the judge."""
    runs = [each.run for each in planned]
    going_on = job.model_copy(update={"restart": False})
    train_missing(runs, bench.material, workspace.location / FOLDER, going_on)


def _read_outputs(workspace: Workspace, planned: _Planned) -> Any:
    """The logits of a run; None where it gave no result."""
    from iqa_ray.training.runs import RunFiles

    files = RunFiles(workspace.location / FOLDER)
    result = files.read_result(planned.run)
    if result is None or result["status"] != "ok":
        return None
    return files.read_outputs(planned.run)


def _read_runs(
    workspace: Workspace, planned: Sequence[_Planned], bench: Bench
) -> tuple[pd.DataFrame, list[Answers]]:
    """A row a run (RUNS_SCHEMA), and the answers of those that gave a result."""
    from iqa_ray.training.runs import RunFiles

    files, rows, answers = RunFiles(workspace.location / FOLDER), [], []
    num_test = len(bench.rows["test"])
    for each in planned:
        result = files.read_result(each.run) or {"status": "failed", "error": "its worker died"}
        history = [{name: row[name] for name, _ in _EPOCH} for row in result.get("history", [])]
        strategy = each.strategy
        rows.append(
            {
                "strategy": strategy.name,
                "method": strategy.method,
                "training_set": strategy.training_set,
                "score": strategy.score,
                **{name: result.get(name) for name in RUNS_SCHEMA.names[4:]},
                "seed": each.seed,
                "history": history,
            }
        )
        outputs = _read_outputs(workspace, each)
        if outputs is not None:
            own = outputs[: num_test * len(TEST_SETS)]
            answers.append(Answers(strategy, each.seed, to_probabilities(own, num_test)))
    return pd.DataFrame(rows, columns=RUNS_SCHEMA.names), answers


def _write_results(
    workspace: Workspace,
    job: SmoothJob,
    bench: Bench,
    strategies: list[Strategy],
    answers: list[Answers],
    versions: Versions,
    images: LabelledSet,
) -> dict[str, Any]:
    """Write tables and figures; returns what the summary says of them."""
    tested = bench.rows["test"]
    labels = bench.labels[tested]
    results = measure_results(answers, labels)
    table = summarise_results(results)
    differences = compare_strategies(results, strategies)
    reliability = tabulate_reliability(answers, labels)
    shown = images.frame.iloc[tested].reset_index(drop=True)
    confidence = tabulate_confidence(answers, shown, labels, job.split_seed)
    for name, frame, schema in (
        (RESULTS_FILE, results, RESULTS_SCHEMA),
        (TABLE_FILE, table, TABLE_SCHEMA),
        (DIFFERENCES_FILE, differences, DIFFERENCES_SCHEMA),
        (RELIABILITY_FILE, reliability, RELIABILITY_SCHEMA),
        (CONFIDENCE_FILE, confidence, CONFIDENCE_SCHEMA),
    ):
        workspace.write_frame(name, frame, schema)
    place, pixels = workspace.location / FOLDER, _read_shown(confidence, images, versions)
    write_bytes(place / "accuracy.png", draw_accuracies(table))
    write_bytes(place / "confidence.png", draw_confidences(confidence, pixels))
    write_bytes(place / "reliability.png", draw_reliability(reliability))
    leads = measure_leads(table)
    parts = [format_table(table, leads), format_differences(differences)]
    named = table.astype(object).where(table.notna(), None)
    return {
        "table": named.to_dict("records"),
        "leads_on_level_3": leads,
        "text": "\n\n".join(part for part in parts if part),
    }


def _read_shown(confidence: pd.DataFrame, images: LabelledSet, versions: Versions) -> Any:
    """(m, V, S, S, 3) uint8 RGB of the images of a table, in the order of their appearance."""
    place_of = {name: place for place, name in enumerate(images.frame["image_id"])}
    found = []
    for name in confidence["image_id"].unique():
        chunk, row = divmod(place_of[name], CHUNK_SIZE)
        found.append(read_array(versions.chunks[chunk].pixels_file)[row])
    return np.stack(found)


def describe_smooth(summary: dict[str, Any]) -> str:
    """Table 2 with differences and calibration, for people."""
    held_out = f"{summary['num_validation']:,} validation and " if summary["num_validation"] else ""
    return (
        f"{summary['text']}\n\n{summary['num_train']:,} training, {held_out}"
        f"{summary['num_test']:,} test images of {summary['num_classes']} classes, "
        f"{summary['image_size']} px; {summary['num_runs']} runs of {summary['epochs']} epochs, "
        f"{summary['seconds']:.0f} s\nwritten: {summary['workspace']}/{TABLE_FILE}, "
        f"differences.parquet, results.parquet, reliability.parquet, confidence.parquet, "
        "accuracy.png, confidence.png, reliability.png"
    )
