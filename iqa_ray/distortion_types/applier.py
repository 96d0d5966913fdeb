"""Applying a model to the images of a workspace, with Ray actors."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa

from iqa_ray.cluster import connection
from iqa_ray.cluster.capacity import Resources
from iqa_ray.cluster.pools import Pool, run_shards
from iqa_ray.distortion_types.table import DISTORTIONS_SCHEMA, parts_folder
from iqa_ray.errors import IncompleteError
from iqa_ray.images.decoding import AbsentError, ImageError
from iqa_ray.images.source import ImageSource
from iqa_ray.progress import Progress
from iqa_ray.storage.parquet import Fingerprints
from iqa_ray.storage.parts import find_missing, make_fingerprints, mark_missing
from iqa_ray.storage.workspace import Workspace

# Images per shard: fewer make too many small files, more lose too much work when an actor dies.
_SHARD_SIZE = 64
_BATCH_SIZE = 8  # images in memory at once


class ShardApplier:
    """Applies a model to shards (images, fingerprints) and writes their parts."""

    def __init__(self, workspace: str, model: str | None, key: str, source: ImageSource) -> None:
        import torch

        from iqa_ray.distortion_types.model import load_model

        torch.set_num_threads(1)
        self._parts = Workspace(workspace).parts(parts_folder(key))
        self._model, found = load_model(model)
        if found != key:
            raise RuntimeError(f"the file of the model is another one here: {model}")
        self._source, self._key = source, key

    def __call__(self, shard: tuple[pa.Table, Fingerprints]) -> int:
        """Returns the number of images."""
        images, fingerprints = shard
        rows: list[dict[str, object]] = []
        is_absent: list[bool] = []
        waiting: list[tuple[int, np.ndarray]] = []
        paths = images.column("path").to_pylist()
        for place, data in enumerate(self._source.read_each(paths)):
            row: dict[str, object] = {"path": paths[place], "status": "ok", "error": ""}
            try:
                if isinstance(data, ImageError):
                    raise data
                waiting.append((place, self._source.decode(data)))
            except ImageError as error:
                row |= {"status": error.status, "error": str(error)}
            is_absent.append(isinstance(data, AbsentError))
            rows.append(row)
            if len(waiting) == _BATCH_SIZE:
                self._look(waiting, rows)
        self._look(waiting, rows)
        names = [name for name in DISTORTIONS_SCHEMA.names if name != "image_id"]
        columns = {name: [row.get(name) for row in rows] for name in names}
        ids = images.column("image_id").combine_chunks()
        table = pa.table({"image_id": ids, **columns}, DISTORTIONS_SCHEMA)
        fingerprints = mark_missing(fingerprints, images, np.array(is_absent), self._key)
        self._parts.write(table, fingerprints, self._key)
        return len(rows)

    def _look(self, waiting: list[tuple[int, np.ndarray]], rows: list[dict[str, object]]) -> None:
        """Judge the images that wait, enter it into their rows, and empty the list."""
        if not waiting:
            return
        found = self._model.find([pixels for _, pixels in waiting])
        size = self._model.card.crop_size
        for (place, pixels), finding in zip(waiting, found, strict=True):
            if min(pixels.shape[:2]) < size:
                rows[place]["error"] = f"smaller than {size} px: mirrored at its edges"
            rows[place] |= {
                "distortion": finding.distortion,
                "distortion_probability": finding.probability,
                "severity": finding.severity,
            }
        waiting.clear()


def apply_missing(
    workspace: Workspace,
    images: pa.Table,
    model: str | None,
    key: str,
    source: ImageSource,
    num_actors: int | None,
    address: str | None,
) -> int:
    """Have actors look at the images that the model has not seen as they are now.

    Returns the number of those.

    Raises:
        IncompleteError: some could not be done; the next run goes on.
    """
    parts = workspace.parts(parts_folder(key))
    fingerprints = make_fingerprints(images, key)
    parts.drop_stale(images.column("image_id").combine_chunks(), fingerprints)
    rows = np.flatnonzero(find_missing(parts.done(), fingerprints))
    if not len(rows):
        return 0
    columns = images.select(["image_id", "path"])
    pieces = [rows[start : start + _SHARD_SIZE] for start in range(0, len(rows), _SHARD_SIZE)]
    shards = [(columns.take(piece), fingerprints[piece]) for piece in pieces]
    with connection.connect(address):
        resources = connection.prefer_gpu(Resources(num_cpus=1.0))
        num_actors = connection.count_actors(num_actors, resources, len(shards))
        make = partial(ShardApplier, str(workspace), model, key, source)
        with Progress(len(rows), "distortions apply") as progress:
            pool = Pool(make, shards, num_actors, resources)
            failures = run_shards([pool], lambda _, __, done: progress.update(done))
    if failures:
        raise IncompleteError(
            f"{len(failures)} of {len(shards)} shards were not looked at: {failures[0].reason}; "
            "run the same command again to complete them"
        )
    parts.drop_repeated(fingerprints)  # another run may have done the same
    return len(rows)
