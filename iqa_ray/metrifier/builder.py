"""How well task networks do on distorted images: Ray actors, and the rows that they write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from iqa_ray.cluster.missing import Shard, do_missing
from iqa_ray.metrifier.copies import CopyPlan, Measured, Problem, measure_copies, to_lists
from iqa_ray.metrifier.settings import TaskJob
from iqa_ray.metrifier.targets import Floats, Outcome, judge_outputs
from iqa_ray.predictions.predictor import name_labels
from iqa_ray.storage.parquet import Fingerprints
from iqa_ray.storage.parts import make_fingerprints, mark_missing
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training.network_files import NetworkSource
from iqa_ray.training.pixels import Pixels
from iqa_ray.training.task_networks import TaskNetwork, load_networks

# A change by which an image would get other rows: raise this so that they are made anew.
BUILD_VERSION = 1

# One row an image, as parts are; the lists have an entry a distorted copy.
ROWS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("content_hash", pa.string()),
        ("distortion", pa.list_(pa.string())),
        ("level", pa.list_(pa.int64())),
        ("loss", pa.list_(pa.float64())),
        ("correct", pa.list_(pa.bool_())),
        ("confidence", pa.list_(pa.float64())),
        ("probability_true", pa.list_(pa.float64())),
        ("target", pa.list_(pa.float64())),
        ("status", pa.list_(pa.string())),
        ("error", pa.list_(pa.string())),
    ]
)
_NO_NUMBERS = Problem("undefined", "the outputs of a task network are not numbers")


@dataclass(frozen=True)
class BuildPlan:
    """What decides the rows of an image: its copies, and what the task networks are.

    Attributes:
        copies: which are made.
        sources: of the networks.
        network_keys: says which they are (`TaskNetwork.key`), in the order of `sources`.
        classes: of the networks, in the order of the first one's outputs.
    """

    copies: CopyPlan
    sources: tuple[NetworkSource, ...]
    network_keys: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def key(self) -> str:
        text = json.dumps(
            {
                "version": BUILD_VERSION,
                **self.copies.describe(),
                "networks": self.network_keys,
                "classes": self.classes,
            }
        )
        return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()

    @property
    def parts_folder(self) -> str:
        """Where the workspace keeps the rows."""
        return f"metrifier/rows/key={self.key}"

    def make_fingerprints(self, images: pa.Table) -> Fingerprints:
        """One an image of `images` (image_id, label, size_bytes, mtime_ns)."""
        return make_fingerprints(name_labels(images), self.key)


def plan_build(
    copies: CopyPlan, sources: Sequence[NetworkSource], networks: Sequence[TaskNetwork]
) -> BuildPlan:
    """The plan with networks that were read from `sources`."""
    keys = tuple(network.key for network in networks)
    return BuildPlan(copies, tuple(sources), keys, networks[0].classes)


class ShardBuilder:
    """Gives the distorted images of shards to task networks and writes the parts of their rows."""

    def __init__(self, workspace: str, plan: BuildPlan, batch_size: int, num_threads: int) -> None:
        import cv2
        import torch

        torch.set_num_threads(num_threads)
        cv2.setNumThreads(1)
        self._parts = Workspace(workspace).parts(plan.parts_folder)
        self._plan, self._batch_size, self._num_threads = plan, batch_size, num_threads
        self._networks = load_networks(plan.sources)
        if tuple(network.key for network in self._networks) != plan.network_keys:
            raise RuntimeError("the file of a task network is another one here")

    def __call__(self, shard: Shard) -> int:
        """Returns the number of images."""
        images, fingerprints = shard
        classes = list(self._plan.classes)
        labels = np.array([classes.index(name) for name in images.column("label").to_pylist()])
        measured = measure_copies(
            self._plan.copies,
            images.column("path").to_pylist(),
            Outcome._fields,
            partial(self._judge, labels),
            self._num_threads,
            self._batch_size,
        )
        rows = tabulate_rows(images, self._plan.copies.distortions, measured)
        named = name_labels(images)
        prints = mark_missing(fingerprints, named, measured.is_absent, self._plan.key)
        self._parts.write(rows, prints, self._plan.key)
        return images.num_rows

    def _judge(
        self, labels: NDArray[np.int64], pixels: Pixels, rows: NDArray[np.int64]
    ) -> dict[str, Floats]:
        found = []
        for network in self._networks:
            order = [network.classes.index(name) for name in self._plan.classes]
            found.append(network.compute_log_probabilities(pixels)[:, order])
        outputs = np.stack(found)
        is_fine = np.asarray(~np.isnan(outputs).any(axis=(0, 2)), bool)
        outcome = judge_outputs(np.where(is_fine[:, None], outputs, 0.0), labels[rows])
        return {
            name: np.where(is_fine, values, np.nan) for name, values in outcome._asdict().items()
        }


def tabulate_rows(
    images: pa.Table, distortions: Sequence[tuple[str, int]], measured: Measured
) -> pa.Table:
    """The rows (ROWS_SCHEMA) of a shard's images (image_id, path)."""
    number = images.num_rows
    is_known = ~np.isnan(measured.values["target"])
    problems = [
        [each or (None if fine else _NO_NUMBERS) for each, fine in zip(row, known, strict=True)]
        for row, known in zip(measured.problems, is_known, strict=True)
    ]
    names, levels = zip(*distortions, strict=True)
    columns: dict[str, Any] = {
        "image_id": images.column("image_id").to_pylist(),
        "path": images.column("path").to_pylist(),
        "content_hash": measured.hashes,
        "distortion": [names] * number,
        "level": [levels] * number,
        "status": [[each.status if each else "ok" for each in row] for row in problems],
        "error": [[each.error if each else "" for each in row] for row in problems],
    }
    for name, values in measured.values.items():
        columns[name] = to_lists(values == 1 if name == "correct" else values, is_known)
    return pa.table({name: columns[name] for name in ROWS_SCHEMA.names}, ROWS_SCHEMA)


def build_missing(workspace: Workspace, plan: BuildPlan, images: pa.Table, job: TaskJob) -> int:
    """Have actors make the rows of images that have none as they are now.

    Args:
        workspace: that keeps the rows.
        plan: of the rows.
        images: image_id, path, label, size_bytes and mtime_ns; labels are classes of the networks.
        job: how many actors, with how many CPUs, and of what batches.

    Returns the number of those images.

    Raises:
        IncompleteError: some could not be done; the next run goes on.
    """
    num_threads = max(1, int(job.cpus_per_actor))
    return do_missing(
        workspace.parts(plan.parts_folder),
        images.select(["image_id", "path", "label"]),
        plan.make_fingerprints(images),
        partial(ShardBuilder, str(workspace), plan, job.batch_size, num_threads),
        job.num_actors,
        job.address,
        title="metrify",
        problem="have no rows",
        cpus_per_actor=job.cpus_per_actor,
    )
