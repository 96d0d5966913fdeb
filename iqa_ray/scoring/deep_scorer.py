"""Score one shard of images with one deep metric: threads decode ahead, the network is kept fed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import cv2
import numpy as np
import pyarrow as pa

from iqa_ray.images.decoding import AbsentError, ImageError, hash_content
from iqa_ray.images.prefetch import run_ahead
from iqa_ray.images.source import ImageSource
from iqa_ray.metrics.deep import DeepMetric, Image
from iqa_ray.metrics.learnt import make_network_metric
from iqa_ray.metrics.spec import Device, MetricError, Precision, get_spec
from iqa_ray.scoring.cpu_scorer import (
    Score,
    ScoringRun,
    Shard,
    ShardReport,
    make_table,
    write_parts,
)
from iqa_ray.storage.files import one_line
from iqa_ray.weights.metric_files import Weights

# decoded images that wait for others of their size may take this much memory, 3 bytes a pixel
_MAX_WAITING_PIXELS = 100_000_000
_AHEAD_PER_THREAD = 4
_SAMPLE_SIZE = 32


@dataclass(frozen=True)
class DeepPlan:
    """How an actor runs its model; `num_threads` decode and, without a GPU, compute."""

    weights: Weights
    device: Device
    num_threads: int
    precision: Precision = "fp32"
    max_side: int | None = None


class DeepShardScorer:
    """Scores shards with one deep metric and writes their parts; one actor, one model."""

    def __init__(self, run: ScoringRun, plan: DeepPlan) -> None:
        import torch

        cv2.setNumThreads(1)
        torch.set_num_threads(plan.num_threads)
        self._run, self._plan = run, plan
        self._metric = make_network_metric(
            get_spec(plan.weights.metric),
            plan.weights,
            plan.device,
            plan.precision,
            plan.max_side,
        )
        # a reduced precision is compared with the full one on the first images
        self._sample_left = 0 if plan.precision == "fp32" else _SAMPLE_SIZE

    def __call__(self, shard: Shard) -> ShardReport:
        shard_run = _ShardRun(shard.images, self._metric, self._sample_left)
        decoded = run_ahead(
            partial(_decode, self._metric, self._run.images),
            shard.images.column("path").to_pylist(),
            self._plan.num_threads,
            _AHEAD_PER_THREAD * self._plan.num_threads,
        )
        shard_run.score(decoded)
        self._sample_left -= len(shard_run.shifts)
        tables = {self._metric.name: make_table(shard.images, shard_run.hashes, shard_run.scores)}
        return replace(
            write_parts(self._run, shard, [self._metric], tables, shard_run.is_absent),
            image_s=shard_run.seconds,
            compute_s=shard_run.compute_s,
            wait_s=shard_run.wait_s,
            shifts=shard_run.shifts,
        )


def _decode(
    metric: DeepMetric, source: ImageSource, path: str
) -> tuple[str | None, Image | ImageError | MetricError]:
    """Content hash and prepared image of a file, or what is wrong with it."""
    content_hash = None
    try:
        data = source.read(path)
        content_hash = hash_content(data)
        return content_hash, metric.prepare(source.decode(data))
    except (ImageError, MetricError) as error:
        return content_hash, error


class _ShardRun:
    """One pass over a shard: images wait in groups of one size until a batch is full."""

    def __init__(self, images: pa.Table, metric: DeepMetric, sample_size: int) -> None:
        self._metric, self._sample_left = metric, sample_size
        self.hashes: list[str | None] = [None] * images.num_rows
        self.scores: list[Score] = [(None, "undefined", "")] * images.num_rows
        self.is_absent = [False] * images.num_rows
        self.shifts: list[float] = []
        self.compute_s = self.wait_s = 0.0
        self.seconds = [0.0] * images.num_rows
        self._waiting: dict[tuple[int, int], list[tuple[int, Image]]] = {}
        self._num_pixels = 0

    def score(self, decoded: Iterator[tuple[str | None, Image | ImageError | MetricError]]) -> None:
        for row in range(len(self.scores)):
            start_s = perf_counter()
            self.hashes[row], image = next(decoded)
            self.seconds[row] = perf_counter() - start_s
            self.wait_s += self.seconds[row]
            if isinstance(image, np.ndarray):
                self._add(row, image)
            else:
                self.scores[row] = (None, image.status, str(image))
                self.is_absent[row] = isinstance(image, AbsentError)
        for size in list(self._waiting):
            self._flush(size)

    def _add(self, row: int, image: Image) -> None:
        height, width = image.shape[:2]
        group = self._waiting.setdefault((height, width), [])
        group.append((row, image))
        self._num_pixels += height * width
        if len(group) >= self._metric.batch_size(height, width):
            self._flush((height, width))
        while self._num_pixels > _MAX_WAITING_PIXELS:
            self._flush(max(self._waiting, key=self._count_pixels))

    def _count_pixels(self, size: tuple[int, int]) -> int:
        return len(self._waiting[size]) * size[0] * size[1]

    def _flush(self, size: tuple[int, int]) -> None:
        self._num_pixels -= self._count_pixels(size)
        group = self._waiting.pop(size)
        rows, images = zip(*group, strict=True)
        start_s = perf_counter()
        scores = self._metric.score_batch(images)
        compute_s = perf_counter() - start_s
        self.compute_s += compute_s
        note = self._metric.note(*size)
        for row, score in zip(rows, scores, strict=True):
            self.seconds[row] += compute_s / len(rows)
            if isinstance(score, MetricError):
                self.scores[row] = (None, score.status, one_line(score))
            else:
                self.scores[row] = (score, "ok", note)
        if self._sample_left > 0:
            self._compare(images[: self._sample_left], scores)

    def _compare(self, images: tuple[Image, ...], scores: list[float | MetricError]) -> None:
        self._sample_left -= len(images)
        exact = self._metric.score_batch(images, precision="fp32")
        self.shifts += [
            abs(score - value)
            for score, value in zip(scores, exact, strict=False)
            if not isinstance(score, MetricError) and not isinstance(value, MetricError)
        ]
