"""Scores of metrics for distorted copies of images: Ray actors, and the rows that they write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from iqa_ray import metrics
from iqa_ray.cluster.missing import Shard, do_missing
from iqa_ray.metrics.deep import DeepMetric, make_version
from iqa_ray.metrics.learnt import make_network_metric, prepare_metric
from iqa_ray.metrics.planes import Planes
from iqa_ray.metrics.spec import Device, MetricError, MetricSpec, get_spec
from iqa_ray.metrifier.copies import CopyPlan, measure_copies, to_lists
from iqa_ray.metrifier.settings import TaskJob
from iqa_ray.metrifier.targets import Floats
from iqa_ray.scoring.cpu_scorer import score_planes
from iqa_ray.storage.parts import make_fingerprints, mark_missing
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training.loop import pick_device
from iqa_ray.training.pixels import Pixels
from iqa_ray.weights.metric_files import Weights


@dataclass(frozen=True)
class Raters:
    """Metrics that look at copies together: those of the CPU, or one network with its files."""

    specs: tuple[MetricSpec, ...]
    weights: Weights | None = None

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    def make_key(self, copies: CopyPlan) -> str:
        """What decides their scores of copies."""
        versions = [make_version(self.weights)] if self.weights else []
        versions += [f"{spec.name} {spec.version}" for spec in self.specs]
        text = json.dumps({**copies.describe(), "metrics": versions})
        return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()

    def parts_folder(self, copies: CopyPlan) -> str:
        """Where the workspace keeps the scores."""
        return f"metrifier/scores/key={self.make_key(copies)}"

    def make_schema(self) -> pa.Schema:
        """Of the parts: a list a metric, with the score of each copy."""
        lists = [(name, pa.list_(pa.float64())) for name in self.names]
        return pa.schema([("image_id", pa.string()), *lists])


def gather_raters(names: Sequence[str], folder: str | None) -> list[Raters]:
    """Metrics in groups, the files of networks made sure of.

    Raises:
        UsageError: files are missing or damaged.
    """
    specs = [get_spec(name) for name in names]
    cpu = tuple(spec for spec in specs if spec.backend == "cpu")
    networks = [spec for spec in specs if spec.backend != "cpu"]
    groups = [Raters((spec,), prepare_metric(spec, folder)) for spec in networks]
    return [*groups, Raters(cpu)] if cpu else groups


class ShardRater:
    """Scores the distorted copies of shards' images and writes the parts."""

    def __init__(
        self, workspace: str, raters: Raters, copies: CopyPlan, batch_size: int, num_threads: int
    ) -> None:
        import cv2
        import torch

        torch.set_num_threads(num_threads)
        cv2.setNumThreads(1)
        self._parts = Workspace(workspace).parts(raters.parts_folder(copies))
        self._raters, self._copies = raters, copies
        self._batch_size, self._num_threads = batch_size, num_threads
        self._network: DeepMetric | None = None
        if raters.weights is not None:
            device: Device = "cuda" if pick_device().type == "cuda" else "cpu"
            self._network = make_network_metric(raters.specs[0], raters.weights, device)
        self._computed = [metrics.Metric(spec) for spec in raters.specs if spec.function]

    def __call__(self, shard: Shard) -> int:
        """Returns the number of images."""
        images, fingerprints = shard
        measured = measure_copies(
            self._copies,
            images.column("path").to_pylist(),
            self._raters.names,
            self._rate,
            self._num_threads,
            self._batch_size,
        )
        scores = {
            name: to_lists(values, ~np.isnan(values)) for name, values in measured.values.items()
        }
        columns = {"image_id": images.column("image_id").to_pylist(), **scores}
        key = self._raters.make_key(self._copies)
        prints = mark_missing(fingerprints, images, measured.is_absent, key)
        self._parts.write(pa.table(columns, self._raters.make_schema()), prints, key)
        return images.num_rows

    def _rate(self, pixels: Pixels, _rows: NDArray[np.int64]) -> dict[str, Floats]:
        if self._network is not None:
            return {self._network.name: self._rate_with_network(self._network, pixels)}
        scores = [score_planes(Planes(copy), self._computed) for copy in pixels]
        return {
            metric.name: np.array(
                [np.nan if row[place][0] is None else row[place][0] for row in scores]
            )
            for place, metric in enumerate(self._computed)
        }

    @staticmethod
    def _rate_with_network(network: DeepMetric, pixels: Pixels) -> Floats:
        try:
            prepared = [network.prepare(copy) for copy in pixels]
        except MetricError:  # copies have one size: none of them is large enough
            return np.full(len(pixels), np.nan)
        scores = network.score_batch(prepared)
        return np.array([np.nan if isinstance(score, MetricError) else score for score in scores])


def rate_copies(
    workspace: Workspace, raters: Raters, copies: CopyPlan, images: pa.Table, job: TaskJob
) -> dict[str, Floats]:
    """The scores that metrics give the copies of images, computed by actors where missing.

    Args:
        workspace: that keeps them.
        raters: the metrics.
        copies: which copies.
        images: image_id, path, size_bytes and mtime_ns of n images.
        job: how many actors, with how many CPUs, and of what batches.

    Returns:
        By metric (n, V), oriented so that higher is better; NaN where there is none.

    Raises:
        IncompleteError: some could not be done; the next run goes on.
    """
    key = raters.make_key(copies)
    fingerprints = make_fingerprints(images, key)
    parts = workspace.parts(raters.parts_folder(copies))
    num_threads = max(1, int(job.cpus_per_actor))
    do_missing(
        parts,
        images.select(["image_id", "path"]),
        fingerprints,
        partial(ShardRater, str(workspace), raters, copies, job.batch_size, num_threads),
        job.num_actors,
        job.address,
        title="metrify: scores of metrics",
        problem="have no scores",
        cpus_per_actor=job.cpus_per_actor,
    )
    found = parts.read_listed(fingerprints, raters.make_schema())
    absent = [None] * len(copies.distortions)
    qualities = {}
    for spec in raters.specs:
        lists = [cells or absent for cells in found.column(spec.name).to_pylist()]
        sign = 1.0 if spec.higher_is_better else -1.0
        qualities[spec.name] = sign * np.array(lists, np.float64)
    return qualities
