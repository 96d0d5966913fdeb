"""The job `study`: make or read series of images, score them, and judge the metrics by them."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from iqa_ray.cluster import connection
from iqa_ray.cluster.capacity import Resources
from iqa_ray.cluster.pools import Pool, run_shards
from iqa_ray.config import make_job
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.images.decoding import ImageError
from iqa_ray.images.listing import IMAGES_FILE, IMAGES_SCHEMA, relative_name
from iqa_ray.images.source import ImageSource
from iqa_ray.progress import Progress, log
from iqa_ray.report.figures import draw_series
from iqa_ray.scoring.jobs import describe_failures, run_score
from iqa_ray.scoring.settings import ScoreJob, ScoringJob
from iqa_ray.scoring.tables import find_spec, read_scores
from iqa_ray.storage.files import delete_file, list_files, locate, write_bytes
from iqa_ray.storage.parts import make_fingerprints
from iqa_ray.storage.workspace import Workspace
from iqa_ray.study.effects import summarise_effects
from iqa_ray.study.series import (
    SERIES_VERSION,
    Sample,
    SeriesMaker,
    load_sample,
    read_series,
)
from iqa_ray.study.settings import SMALLEST_SIDE, SMALLEST_STUDY, StudyJob, Thresholds
from iqa_ray.study.tables import (
    AGREEMENT_FILE,
    MANIFEST_FILE,
    MANIFEST_SCHEMA,
    SCORES_FILE,
    SERIES_FILE,
    SERIES_SCHEMA,
    TABLE_FILE,
    TABLE_SCHEMA,
    agreement_schema,
    scores_schema,
)
from iqa_ray.study.verdicts import (
    ROBUST,
    SENSITIVE,
    STUDY_FOLDER,
    VERDICTS_FILE,
    choose_voters,
    judge_metrics,
    measure_agreement,
    summarise,
)

FIGURE_FILE = f"{STUDY_FOLDER}/series.png"
_SERIES_FOLDER = f"{STUDY_FOLDER}/series"


def run_study(job: StudyJob) -> dict[str, Any]:
    """Make series unless they are given, score them, judge the metrics, and write `WS/study/`.

    Returns the run's summary: verdicts, voters, and the rows of the table.

    Raises:
        UsageError: unusable images or series, or fewer than two samples.
        IncompleteError: some series could not be made or scored; the next run goes on.
    """
    start_s = time.monotonic()
    workspace = Workspace(job.workspace)
    workspace.prepare()
    workspace.record_config("study", job)
    if job.series is not None:
        series = _score_series(workspace, read_series(job.series), job)
    else:
        series = _make_and_score(workspace, job)
    scored_in = _nested(workspace)
    specs = {name: find_spec(scored_in, name) for name in job.metrics}
    directions = {name: spec.higher_is_better for name, spec in specs.items()}
    log_metrics = [name for name, spec in specs.items() if spec.range == (0.0, inf)]
    effects = summarise_effects(series, log_metrics, job.seed)
    table = summarise(series, directions, job.seed).merge(effects, on=["metric", "configuration"])
    pixels = series.drop_duplicates(["metric", "path"])
    scores = pixels.pivot(index="path", columns="metric", values="score")[list(job.metrics)]
    agreement = measure_agreement(scores, directions)
    thresholds = Thresholds(
        job.min_srcc, job.max_srcc, job.max_agreement, job.max_effect, job.judge
    )
    judgements = judge_metrics(table, agreement, thresholds)
    voters = choose_voters(judgements, job.keep)
    for name in ("verdict", "reason"):
        table[name] = [getattr(judgements[metric], name) for metric in table["metric"]]
    _write_tables(workspace, series, table, agreement)
    verdicts = {name: asdict(entry) for name, entry in judgements.items()}
    workspace.write_json(
        VERDICTS_FILE, {"thresholds": asdict(thresholds), "voters": voters, "metrics": verdicts}
    )
    return {
        "num_samples": int(series["sample"].nunique()),
        "num_images": len(scores),
        "num_failed": int(scores.isna().any(axis=1).sum()),
        "judge": job.judge,
        "voters": list(voters),
        "metrics": verdicts,
        "table": _without_nan(table.drop(columns=["verdict", "reason"])).to_dict("records"),
        "agreement": _without_nan(agreement).to_dict(),
        "seconds": round(time.monotonic() - start_s, 3),
        "workspace": str(workspace),
    }


@dataclass(frozen=True)
class _Plan:
    """Series to be made: of these samples of a data set."""

    samples: list[Sample]
    source: ImageSource
    key: str


def _plan_series(workspace: Workspace, job: StudyJob) -> _Plan:
    """Draw samples that can be read and are large enough.

    Raises:
        UsageError: there are fewer than two.
    """
    assert job.images is not None
    source = ImageSource(locate(job.images), job.max_pixels)
    listing = source.list(exclude=[workspace.location])
    rows, num_unusable = [], 0
    for row in np.random.default_rng(job.seed).permutation(listing.table.num_rows):
        path = str(listing.table.column("path")[int(row)])
        try:
            image = load_sample(source, path, job.image_size)
        except ImageError:
            num_unusable += 1
            continue
        if min(image.shape[:2]) < SMALLEST_SIDE:
            num_unusable += 1
            continue
        rows.append(int(row))
        if len(rows) == job.num_samples:
            break
    if num_unusable:
        log(
            f"{num_unusable:,} images are no samples: unreadable, over --max-pixels, or a side has "
            f"fewer than {SMALLEST_SIDE} pixels, too few to crop ten times"
        )
    if len(rows) < SMALLEST_STUDY:
        raise UsageError(
            f"{job.images}: a study needs at least {SMALLEST_STUDY} usable images, and there are "
            f"{len(rows)}"
        )
    if len(rows) < job.num_samples:
        log(f"only {len(rows)} samples, not {job.num_samples}: there are no more usable images")
    table = listing.table.take(sorted(rows))
    samples = [
        Sample(row["image_id"], relative_name(row["path"], listing.root), row["path"])
        for row in table.to_pylist()
    ]
    settings = json.dumps([SERIES_VERSION, job.image_size, job.max_pixels, job.seed])
    key = hashlib.blake2b(make_fingerprints(table, settings).tobytes(), digest_size=10).hexdigest()
    return _Plan(samples, source, key)


def _make_and_score(workspace: Workspace, job: StudyJob) -> pd.DataFrame:
    plan = _plan_series(workspace, job)
    made = _find_made_series(workspace, plan.key)
    if made is not None:
        return _score_series(workspace, made, job)
    with connection.connect(job.address):
        log(f"making series of {len(plan.samples)} samples")
        made = _make_series(workspace, plan, job)
        workspace.write_frame(SERIES_FILE, made, SERIES_SCHEMA, {"key": plan.key})
        return _score_series(workspace, _open_paths(workspace, made), job)


def _find_made_series(workspace: Workspace, key: str) -> pd.DataFrame | None:
    """The series that an earlier run made by the same plan, if all of their images are there."""
    if (workspace.read_record(SERIES_FILE) or {}).get("key") != key:
        return None
    table = workspace.read_table(SERIES_FILE, "study IMAGES", SERIES_SCHEMA)
    made = _open_paths(workspace, table.select(SERIES_SCHEMA.names).to_pandas())
    folder = workspace.location / f"{_SERIES_FOLDER}/{key}"
    there = {file.prefix + file.path for file in list_files(folder, ".png")}
    num_lost = len(set(made["path"]) - there)
    if num_lost:
        log(f"{num_lost:,} images of the series are gone from {folder}")
        return None
    return made


def _open_paths(workspace: Workspace, made: pd.DataFrame) -> pd.DataFrame:
    """Series with paths as they are opened: a workspace may be moved with its series.

    They are without the options of the workspace's URI, as in any manifest.
    """
    files = [workspace.location / path for path in made["path"]]
    return made.assign(path=[file.prefix + file.path for file in files])


def _make_series(workspace: Workspace, plan: _Plan, job: StudyJob) -> pd.DataFrame:
    """Make the images of the series; returns rows with their paths in the workspace."""
    folder = f"{_SERIES_FOLDER}/{plan.key}"
    make = partial(SeriesMaker, str(workspace), folder, plan.source, job.image_size, job.seed)
    resources = Resources(num_cpus=job.cpus_per_actor)
    num_actors = connection.count_actors(job.num_actors, resources, len(plan.samples))
    rows: dict[int, list[dict[str, Any]]] = {}
    with Progress(len(plan.samples), "series", "samples") as progress:

        def collect(_: int, index: int, made: list[dict[str, Any]]) -> None:
            rows[index] = made
            progress.update(1)

        failures = run_shards([Pool(make, plan.samples, num_actors, resources)], collect)
    if failures:
        first = failures[0]
        raise IncompleteError(
            f"no series of {len(failures)} samples, such as {plan.samples[first.index].path!r}: "
            f"{first.reason}; run the same command again"
        )
    return pd.DataFrame([row for index in sorted(rows) for row in rows[index]])


def _nested(workspace: Workspace) -> Workspace:
    """The workspace of the series' own scores."""
    return Workspace(str(workspace.location / STUDY_FOLDER))


def _score_series(workspace: Workspace, series: pd.DataFrame, job: StudyJob) -> pd.DataFrame:
    """Score the images as `score` does; one row a metric and image of a series."""
    paths = series[["path"]].drop_duplicates()  # a sample may begin several of its series
    workspace.write_frame(MANIFEST_FILE, paths, MANIFEST_SCHEMA)
    scored_in = _nested(workspace)
    settings = {name: getattr(job, name) for name in ScoringJob.model_fields}
    settings |= {"images": str(workspace.location / MANIFEST_FILE), "workspace": str(scored_in)}
    # `score` refuses a workspace that was moved or had other limits, though its rows say what for
    delete_file(scored_in.location / IMAGES_FILE)
    summary = run_score(make_job(ScoreJob, {**settings, "labels": "none"}))
    for line in describe_failures(summary["failures"]):
        log(line)
    listed = scored_in.read_table(IMAGES_FILE, "study", IMAGES_SCHEMA)
    series = series.merge(
        listed.select(["image_id", "path"]).to_pandas(),
        on="path",
        how="left",
        validate="many_to_one",
    )
    columns = ["image_id", "score", "status", "error"]
    frames = []
    for name in job.metrics:
        # by id: rows that were scored before the workspace was moved have other paths
        scores = read_scores(scored_in, name).select(columns).to_pandas()
        frame = series.merge(scores, on="image_id", how="left", validate="many_to_one")
        frames.append(frame.drop(columns="image_id").assign(metric=name))
    return pd.concat(frames, ignore_index=True)


def _write_tables(
    workspace: Workspace, series: pd.DataFrame, table: pd.DataFrame, agreement: pd.DataFrame
) -> None:
    index = pa.from_numpy_dtype(series["index"].dtype)
    workspace.write_frame(TABLE_FILE, table, TABLE_SCHEMA)
    workspace.write_frame(SCORES_FILE, series, scores_schema(index))
    metrics = list(agreement.columns)
    workspace.write_frame(AGREEMENT_FILE, agreement.reset_index(), agreement_schema(metrics))
    write_bytes(workspace.location / FIGURE_FILE, draw_series(series))


def _without_nan(frame: pd.DataFrame) -> pd.DataFrame:
    """What JSON can hold: None for what is undefined or infinite."""
    frame = frame.replace([np.inf, -np.inf], np.nan)
    return frame.astype(object).where(frame.notna(), None)


def describe_study(summary: dict[str, Any]) -> str:
    """The study laid out as Table 1 of Smith et al., and the verdicts, for people."""
    metrics = list(summary["metrics"])
    rows = {(row["configuration"], row["metric"]): row for row in summary["table"]}
    configurations = list(dict.fromkeys(row["configuration"] for row in summary["table"]))
    lines = [f"{'configuration':14} {'':7}" + "".join(f" {name:>12}" for name in metrics)]
    for configuration in configurations:
        cells = [rows.get((configuration, metric), {}) for metric in metrics]
        lines.append(_show_row(configuration, "pcc", cells))
        lines.append(_show_row("", "srcc", cells))
        if configuration not in SENSITIVE:
            lines.append(_show_row("", "effect", cells))
    best = "" if len(metrics) == 1 else ", * the best of a row"
    lines += [
        f"mean of the absolute correlations over {summary['num_samples']} samples ± their standard "
        f"deviation{best}",
        "effect: the standard deviation of a series' scores (of their logarithms where a metric's "
        "range is 0 to ∞) as a share of that along blurring, median over samples",
        "",
    ]
    for metric in metrics:
        entry = summary["metrics"][metric]
        rank = f" {entry['rank']}" if entry["rank"] else ""
        lines.append(f"{metric:10} {entry['verdict'] + rank:12} {entry['reason']}")
    voters = ", ".join(summary["voters"]) or "none: no metric qualified"
    lines += [
        "",
        f"voters: {voters}",
        f"written: {summary['workspace']}/{TABLE_FILE}, {FIGURE_FILE} and others "
        f"({summary['num_images']:,} images, {summary['seconds']:.1f} s)",
    ]
    return "\n".join(lines)


def _show_row(label: str, name: str, cells: list[dict[str, Any]]) -> str:
    values = [cell.get(name) for cell in cells]
    configuration = next(cell["configuration"] for cell in cells if cell)
    arrow, choose = " ", None
    if configuration in SENSITIVE:
        arrow, choose = "↑", max
    elif configuration in ROBUST:
        arrow, choose = "↓", min
    known = [round(value, 3) for value in values if value is not None]
    best = choose(known) if choose and len(known) > 1 else None
    title = name if name == "effect" else name.upper()
    text = f"{label:14} {title + arrow:7}"
    for value, cell in zip(values, cells, strict=True):
        if value is None:
            text += f" {'undefined':>12}"
        else:
            mark = "*" if round(value, 3) == best else " "
            spread = "" if name == "effect" else f"±{cell[name + '_std']:.2f}"
            text += f" {value:.3f}{spread}{mark}".rjust(13)
    return text.rstrip()
