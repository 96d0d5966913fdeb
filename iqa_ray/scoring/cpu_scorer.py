"""Score one shard of images with CPU metrics and write its parts; nothing here knows of Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from pyarrow import compute as pc

from iqa_ray import metrics
from iqa_ray.errors import Status
from iqa_ray.images.decoding import AbsentError, ImageError, hash_content
from iqa_ray.images.source import ImageSource
from iqa_ray.metrics.planes import Planes
from iqa_ray.metrics.spec import MetricError
from iqa_ray.scoring.tables import SCORES_SCHEMA, make_row_settings, scores_folder
from iqa_ray.storage.files import one_line
from iqa_ray.storage.parquet import Fingerprints
from iqa_ray.storage.parts import mark_missing
from iqa_ray.storage.workspace import Workspace

Score = tuple[float | None, Status, str]  # score, status, error


@dataclass(frozen=True)
class Shard:
    """Images to be scored together, with the metrics that they lack."""

    images: pa.Table  # image_id, path
    metrics: tuple[str, ...]
    fingerprints: Fingerprints


@dataclass(frozen=True)
class ScoringRun:
    """What every scorer needs to know of the run: the images, and the workspace of their scores."""

    workspace: str
    images: ImageSource


@dataclass(frozen=True)
class ShardReport:
    """What a scorer says of a shard that it did.

    Attributes:
        num_images: of the shard.
        num_failed: images that some metric did not score.
        statuses: for each metric, how many images have which status.
        image_s: seconds that each image took.
        compute_s: seconds that a model computed.
        wait_s: seconds that it waited for images.
        shifts: how far a reduced precision moved the scores of some images.
    """

    num_images: int
    num_failed: int
    statuses: dict[str, dict[str, int]] = field(default_factory=dict)
    image_s: list[float] = field(default_factory=list)
    compute_s: float = 0.0
    wait_s: float = 0.0
    shifts: list[float] = field(default_factory=list)


class ScoredShard(NamedTuple):
    """What the images of a shard got.

    Attributes:
        tables: by metric, SCORES_SCHEMA, one row an image, in order.
        is_absent: of each image, whether its file was not there.
        seconds: that each image took: reading, decoding and all metrics.
    """

    tables: dict[str, pa.Table]
    is_absent: list[bool]
    seconds: list[float]


Scorer = Callable[[Shard], ShardReport]
MakeScorer = Callable[[ScoringRun], Scorer]


def score_image(
    data: bytes, computed: Sequence[metrics.Metric], source: ImageSource
) -> list[Score]:
    """Score the bytes of one image of `source` with CPU metrics, decoding it once.

    Returns (score, status, error) a metric; the score is None unless the status is `ok`.
    """
    try:
        planes = Planes(source.decode(data))
    except ImageError as error:
        return [(None, error.status, str(error))] * len(computed)
    except MemoryError:
        return [(None, "too_large", "not enough memory for its pixels")] * len(computed)
    return score_planes(planes, computed)


def score_planes(planes: Planes, computed: Sequence[metrics.Metric]) -> list[Score]:
    """Score one image with CPU metrics: (score, status, error) each, as `score_image`."""
    scores: list[Score] = []
    for metric in computed:
        try:
            scores.append((metric.measure(planes), "ok", ""))
        except MetricError as error:
            scores.append((None, error.status, str(error)))
        except Exception as error:  # one odd image must not cost the others of its shard
            if _is_for_memory(error):
                scores.append((None, "too_large", f"not enough memory for {metric.name}"))
            else:
                scores.append((None, "undefined", f"{type(error).__name__}: {one_line(error)}"))
    return scores


def _is_for_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem
    )


def score_shard(
    images: pa.Table, computed: Sequence[metrics.Metric], source: ImageSource
) -> ScoredShard:
    """Score the rows of `images` (image_id, path), which are images of `source`."""
    hashes: list[str | None] = []
    scores: list[list[Score]] = []
    is_absent: list[bool] = []
    seconds: list[float] = []
    start_s = perf_counter()
    for data in source.read_each(images.column("path").to_pylist()):
        is_absent.append(isinstance(data, AbsentError))
        if isinstance(data, ImageError):
            hashes.append(None)
            scores.append([(None, data.status, str(data))] * len(computed))
        else:
            hashes.append(hash_content(data))
            scores.append(score_image(data, computed, source))
        end_s = perf_counter()
        seconds.append(end_s - start_s)
        start_s = end_s
    tables = {
        metric.name: make_table(images, hashes, [row[place] for row in scores])
        for place, metric in enumerate(computed)
    }
    return ScoredShard(tables, is_absent, seconds)


def make_table(images: pa.Table, hashes: Sequence[str | None], scores: Sequence[Score]) -> pa.Table:
    """One metric's rows (SCORES_SCHEMA) of `images` (image_id, path)."""
    columns: list[Sequence[Any]] = [
        images.column("image_id").to_pylist(),
        images.column("path").to_pylist(),
        hashes,
        *zip(*scores, strict=True),
    ]
    arrays = [
        pa.array(cells, kind) for cells, kind in zip(columns, SCORES_SCHEMA.types, strict=True)
    ]
    return pa.table(arrays, schema=SCORES_SCHEMA)


def write_parts(
    run: ScoringRun,
    shard: Shard,
    computed: Sequence[Any],
    tables: dict[str, pa.Table],
    is_absent: Sequence[bool],
) -> ShardReport:
    """Write a shard's tables; `computed` are metrics, with name and version.

    Rows of files that were not there do not count as done. Returns the numbers of the report.
    """
    failed = np.zeros(shard.images.num_rows, bool)
    workspace, settings = Workspace(run.workspace), make_row_settings(run.images.max_pixels)
    fingerprints = mark_missing(
        shard.fingerprints, shard.images, np.asarray(is_absent, bool), settings
    )
    statuses = {}
    for metric in computed:
        table = tables[metric.name]
        status = table.column("status")
        failed |= pc.not_equal(status, "ok").to_numpy()
        counts = pc.value_counts(status).to_pylist()
        statuses[metric.name] = {entry["values"]: entry["counts"] for entry in counts}
        parts = workspace.parts(scores_folder(metric.name, metric.version))
        parts.write(table, fingerprints, settings)
    return ShardReport(len(failed), int(failed.sum()), statuses)


class ShardScorer:
    """Scores shards with CPU metrics and writes their parts; knows nothing of who spreads them."""

    def __init__(self, run: ScoringRun) -> None:
        cv2.setNumThreads(1)
        _keep_freed_memory()
        self._run = run

    def __call__(self, shard: Shard) -> ShardReport:
        computed = [metrics.Metric(metrics.get_spec(name)) for name in shard.metrics]
        scored = score_shard(shard.images, computed, self._run.images)
        report = write_parts(self._run, shard, computed, scored.tables, scored.is_absent)
        return replace(report, image_s=scored.seconds)


def _keep_freed_memory() -> None:
    """Let the allocator keep what a metric frees instead of handing it back to the system.

    glibc raises its thresholds for that to the size of the largest block that was freed. Without
    it every image faults its working memory in anew, which doubled the time of NIQE where
    measured.
    """
    np.empty(31 << 20, np.uint8)
