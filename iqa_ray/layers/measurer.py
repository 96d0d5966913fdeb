"""Measuring batches of images with Ray actors, and reading what they measured.

Batches are independent, and the sums of CKA are over batches: so actors do them side by side as
shards of other jobs, each batch a row of a table of parts, and a run that was ended goes on with
the batches that lack one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute as pc

from iqa_ray.cluster.missing import Shard, do_missing
from iqa_ray.distortions import distort
from iqa_ray.errors import UsageError
from iqa_ray.images.decoding import AbsentError, ImageError, hash_content
from iqa_ray.images.source import ImageSource
from iqa_ray.layers.distances import SMALLEST_BATCH, Floats
from iqa_ray.storage.files import one_line
from iqa_ray.storage.parquet import Fingerprints
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training.network_files import NetworkSource
from iqa_ray.training.pixels import Pixels, cut_square
from iqa_ray.training.task_networks import load_network

_BATCH_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # of the batch
        ("image_ids", pa.list_(pa.string())),
        ("statuses", pa.list_(pa.string())),
        ("errors", pa.list_(pa.string())),
        ("layers", pa.list_(pa.string())),
        ("kinds", pa.list_(pa.string())),
        ("skipped", pa.list_(pa.string())),
        ("losses", pa.list_(pa.float64())),
        ("distances", pa.list_(pa.float32())),
        ("hsic", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class Plan:
    """What is measured of every image.

    Attributes:
        source: of the classifier.
        copies: distortions with levels, one a distorted copy.
        seed: of noise and of dropout.
    """

    source: NetworkSource
    copies: tuple[tuple[str, int], ...]
    seed: int


@dataclass(frozen=True)
class Measured:
    """What is known of n images in M modes, V copies and L layers, from all batches.

    Attributes:
        images: image_id, path, status and error, one row an image; n have the status ok.
        layers, kinds: names and classes of the layers, in the order in which they ran.
        skipped: names and reasons of the layers that were not measured.
        losses: (M, 1 + V, n).
        distances: (M, V, L, n).
        hsic: (num_batches, M, V, L, 3).
        batches: (n,) which row of `hsic` is of an image's batch.
    """

    images: pd.DataFrame
    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    skipped: tuple[str, ...]
    losses: Floats
    distances: Floats
    hsic: Floats
    batches: NDArray[np.int64]


def deal_batches(images: pa.Table, targets: Sequence[int], size: int, settings: str) -> pa.Table:
    """Deal images into batches of at most `size`, nearly equally many each.

    Args:
        images: image_id, path, size_bytes and mtime_ns, in the order in which they are dealt.
        targets: the true class of each.
        size: images in a batch.
        settings: whatever else decides what is measured.

    Returns:
        One row a batch: image_id (a hash of all of it), image_ids, paths, targets.
    """
    rows = images.append_column("target", pa.array(targets, pa.int64())).to_pylist()
    pieces = np.array_split(np.arange(len(rows)), -(-len(rows) // size))
    batches = []
    for piece in pieces:
        members = [rows[row] for row in piece]
        text = repr([settings, *(sorted(member.items()) for member in members)])
        batches.append(
            {
                "image_id": hashlib.blake2b(text.encode(), digest_size=8).hexdigest(),
                "image_ids": [member["image_id"] for member in members],
                "paths": [member["path"] for member in members],
                "targets": [member["target"] for member in members],
            }
        )
    return pa.Table.from_pylist(batches)


def _make_fingerprints(batches: pa.Table) -> Fingerprints:
    return np.array([int(name, 16) for name in batches.column("image_id").to_pylist()], np.uint64)


class BatchMeasurer:
    """Measures the batches of a shard one after the other and writes their part."""

    def __init__(
        self, workspace: str, folder: str, plan: Plan, key: str, source: ImageSource
    ) -> None:
        import torch

        torch.set_num_threads(1)
        self._parts = Workspace(workspace).parts(folder)
        network = load_network(plan.source)
        if network.content_hash != key:
            raise RuntimeError(f"the file of the network is another one here: {plan.source.file}")
        self._module, self._image_size = network.module, network.input_size
        self._plan, self._source, self._key = plan, source, key

    def __call__(self, shard: Shard) -> int:
        """Returns the number of batches."""
        batches, fingerprints = shard
        rows, is_absent = [], []
        for batch in batches.to_pylist():
            row, lacks_some = self._measure(batch)
            rows.append(row)
            is_absent.append(lacks_some)
        # with another fingerprint a batch does not count as done: it is tried again
        fingerprints = np.where(is_absent, ~fingerprints, fingerprints)
        self._parts.write(pa.Table.from_pylist(rows, _BATCH_SCHEMA), fingerprints, self._key)
        return len(rows)

    def _measure(self, batch: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The batch's row, and whether a file of it was away."""
        from iqa_ray.layers.features import measure_batch

        statuses, errors, seen, is_absent = [], [], [], False
        for data in self._source.read_each(batch["paths"]):
            try:
                if isinstance(data, ImageError):
                    raise data
                seen.append(self._make_copies(self._source.decode(data)))
                statuses.append("ok")
                errors.append("")
            except ImageError as error:
                is_absent |= isinstance(error, AbsentError)
                statuses.append(error.status)
                errors.append(str(error))
        row = {name: batch[name] for name in ("image_id", "image_ids")}
        row |= {"statuses": statuses, "errors": errors}
        if seen:
            clean, *copies = np.stack(seen, axis=1)
            pairs = zip(batch["targets"], statuses, strict=True)
            targets = [target for target, status in pairs if status == "ok"]
            text = " ".join([str(self._plan.seed), *batch["image_ids"]])
            seed = int(hash_content(text.encode())[:15], 16)
            found = measure_batch(self._module, clean, copies, targets, seed)
            row |= {"layers": found.layers, "kinds": found.kinds}
            row |= {"skipped": [f"{name}: {why}" for name, why in found.skipped.items()]}
            for name in ("losses", "distances", "hsic"):
                row[name] = getattr(found, name).ravel()
        return row, is_absent

    def _make_copies(self, image: Pixels) -> Pixels:
        """(1 + V, S, S, 3): the image and its copies, distorted at full resolution, then scaled."""
        copies = [image]
        for name, level in self._plan.copies:
            try:
                copies.append(distort(image, name, level=level, rng=self._plan.seed))
            except (ValueError, OSError, MemoryError) as error:  # as codecs do of odd shapes
                raise ImageError("undefined", f"{name} {level}: {one_line(error)}") from None
        return np.stack([cut_square(copy, self._image_size) for copy in copies])


def measure_missing(
    workspace: Workspace,
    folder: str,
    batches: pa.Table,
    plan: Plan,
    key: str,
    source: ImageSource,
    num_actors: int | None,
    address: str | None,
) -> int:
    """Have actors measure the batches that were not measured yet.

    Args:
        folder: of the parts.
        batches: as `deal_batches` gives them.
        key: the hash of the network's file.

    Returns:
        The number of those.

    Raises:
        IncompleteError: some could not be measured; the next run goes on.
    """
    return do_missing(
        workspace.parts(folder),
        batches,
        _make_fingerprints(batches),
        partial(BatchMeasurer, str(workspace), folder, plan, key, source),
        num_actors,
        address,
        title="layers",
        problem="could not be measured",
        shard_size=1,
        unit="batches",
    )


def read_measured(workspace: Workspace, folder: str, batches: pa.Table, plan: Plan) -> Measured:
    """What was measured of all `batches`.

    Raises:
        UsageError: no image could be measured.
    """
    names = batches.column("image_id").combine_chunks()
    table = workspace.parts(folder).read(
        choose=lambda rows: pc.is_in(rows.column("image_id"), value_set=names)
    )
    assert table is not None, "every batch has a row"
    table = table.take(pc.index_in(names, value_set=table.column("image_id").combine_chunks()))
    images = pd.DataFrame(
        {
            "image_id": pc.list_flatten(batches.column("image_ids")),
            "path": pc.list_flatten(batches.column("paths")),
            "status": pc.list_flatten(table.column("statuses")),
            "error": pc.list_flatten(table.column("errors")),
        }
    )
    layers = [names for names in table.column("layers").to_pylist() if names]
    if not layers:
        first = images.iloc[0]
        raise UsageError(f"no image could be measured: {first['path']!r}: {first['error']}")
    if any(names != layers[0] for names in layers):
        raise UsageError("--network: other layers of it run for other images: they have no order")
    table = table.filter(pc.is_valid(table.column("layers")))
    parts = [_unfold(table.slice(row, 1), plan, len(layers[0])) for row in range(len(layers))]
    return Measured(
        images=images,
        layers=tuple(layers[0]),
        kinds=tuple(table.column("kinds")[0].as_py()),
        skipped=tuple(table.column("skipped")[0].as_py()),
        losses=np.concatenate([part[0] for part in parts], axis=-1),
        distances=np.concatenate([part[1] for part in parts], axis=-1),
        hsic=np.stack([part[2] for part in parts]),
        batches=np.repeat(np.arange(len(parts)), [part[0].shape[-1] for part in parts]),
    )


def _unfold(row: pa.Table, plan: Plan, num_layers: int) -> tuple[Floats, Floats, Floats]:
    """Losses, distances and HSIC of a batch, shaped as `BatchMeasures` has them."""
    losses, distances, hsic = (
        pc.list_flatten(row.column(name)).to_numpy() for name in ("losses", "distances", "hsic")
    )
    num_copies = len(plan.copies)
    num_images = row.column("statuses")[0].as_py().count("ok")
    if num_images < SMALLEST_BATCH:
        hsic = np.zeros_like(hsic)  # too few images add nothing to the sums
    return (
        losses.reshape(-1, 1 + num_copies, num_images),
        distances.reshape(-1, num_copies, num_layers, num_images),
        hsic.reshape(-1, num_copies, num_layers, 3),
    )
