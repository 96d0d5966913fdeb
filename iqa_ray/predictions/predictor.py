"""Applying a trained classifier to images, with Ray actors, and where the workspace keeps it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc

from iqa_ray.cluster.missing import do_missing
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.files import read_bytes
from iqa_ray.storage.parquet import Fingerprints
from iqa_ray.storage.parts import make_fingerprints, mark_missing
from iqa_ray.storage.workspace import Workspace

if TYPE_CHECKING:
    from iqa_ray.training.backbones import Classifier


def model_file(key: str) -> str:
    """Where the workspace keeps a model."""
    return f"models/{key}.pt"


def parts_folder(key: str) -> str:
    """Where the workspace keeps a model's predictions; version 1 had no `probability_true`."""
    return f"predictions/model={key}/version=2"


def name_labels(images: pa.Table) -> pa.Table:
    """`images` with ids that say the labels as well, for fingerprints of what depends on them.

    A prediction holds the probability of the label that the image had. So one of an image that
    has another label now does not count as done.
    """
    labels = pc.fill_null(images.column("label"), "")
    ids = pc.binary_join_element_wise(images.column("image_id"), labels, " ")
    return images.set_column(images.schema.get_field_index("image_id"), "image_id", ids)


def load_model(workspace: Workspace, key: str) -> tuple[Classifier, list[str], int]:
    """The classifier that the workspace keeps, its classes, and its images' pixels a side."""
    from iqa_ray.training import loop
    from iqa_ray.training.network_files import build_classifier

    loaded = loop.load_checkpoint(read_bytes(workspace.location / model_file(key)))
    model = build_classifier(loaded)
    return model.to(loop.pick_device()).eval(), loaded["classes"], loaded["image_size"]


class ShardPredictor:
    """Applies a trained classifier to shards (images, fingerprints) and writes their parts."""

    def __init__(self, workspace: str, key: str, source: ImageSource) -> None:
        import torch

        torch.set_num_threads(1)
        self._parts = Workspace(workspace).parts(parts_folder(key))
        self._model, self._classes, self._image_size = load_model(Workspace(workspace), key)
        self._source, self._key = source, key

    def __call__(self, shard: tuple[pa.Table, Fingerprints]) -> int:
        """Returns the number of images."""
        from iqa_ray.training import loop, pixels

        images, fingerprints = shard
        paths = images.column("path").to_pylist()
        unread: list[int] = []
        loaded, hashes = pixels.load_pixels(self._source, paths, self._image_size, 2, unread.append)
        unreadable = np.array([content is None for content in hashes])
        probabilities = loop.predict_probabilities(self._model, loaded)
        names = np.array(self._classes, dtype=object)[probabilities.argmax(1)]
        true = pc.index_in(images.column("label"), value_set=pa.array(self._classes, pa.string()))
        of_true = probabilities[np.arange(len(paths)), pc.fill_null(true, 0).to_numpy()]
        is_unknown = unreadable | pc.is_null(true).to_numpy()
        columns = {
            "image_id": images.column("image_id"),
            "path": images.column("path"),
            "predicted": pa.array(names, pa.string(), mask=unreadable),
            "confidence": pa.array(probabilities.max(1).astype(np.float64), mask=unreadable),
            "probability_true": pa.array(of_true.astype(np.float64), mask=is_unknown),
            "content_hash": pa.array(hashes, pa.string()),
        }
        is_unread = np.isin(np.arange(len(paths)), unread)
        fingerprints = mark_missing(fingerprints, name_labels(images), is_unread, self._key)
        self._parts.write(pa.table(columns), fingerprints, self._key)
        return len(paths)


def predict_missing(
    workspace: Workspace,
    images: pa.Table,
    key: str,
    source: ImageSource,
    num_actors: int | None,
    address: str | None,
) -> None:
    """Have the images that lack a prediction by the model `key` predicted by Ray actors.

    Raises:
        IncompleteError: some have none; the next run goes on.
    """
    do_missing(
        workspace.parts(parts_folder(key)),
        images.select(["image_id", "path", "label"]),
        make_fingerprints(name_labels(images), key),
        partial(ShardPredictor, str(workspace), key, source),
        num_actors,
        address,
        title="predict",
        problem="have no predictions",
    )
