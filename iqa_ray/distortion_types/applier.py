"""Applying a model to the images of a workspace, with Ray actors."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa

from iqa_ray.cluster.missing import do_missing
from iqa_ray.distortion_types.table import DISTORTIONS_SCHEMA, parts_folder
from iqa_ray.images.decoding import AbsentError, ImageError
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.parquet import Fingerprints
from iqa_ray.storage.parts import make_fingerprints, mark_missing
from iqa_ray.storage.workspace import Workspace

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
    return do_missing(
        workspace.parts(parts_folder(key)),
        images.select(["image_id", "path"]),
        make_fingerprints(images, key),
        partial(ShardApplier, str(workspace), model, key, source),
        num_actors,
        address,
        title="distortions apply",
        problem="were not looked at",
    )
