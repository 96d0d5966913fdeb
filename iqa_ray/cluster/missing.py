"""Rows that a table of parts lacks, done by actors that write the parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from iqa_ray.cluster import connection
from iqa_ray.cluster.capacity import Resources
from iqa_ray.cluster.pools import Pool, run_shards
from iqa_ray.errors import IncompleteError
from iqa_ray.progress import Progress
from iqa_ray.storage.parquet import Fingerprints
from iqa_ray.storage.parts import Parts, find_missing

# Images per shard: fewer make too many small files, more lose too much work when an actor dies.
_SHARD_SIZE = 64

Shard = tuple[pa.Table, Fingerprints]


def do_missing(
    parts: Parts,
    images: pa.Table,
    fingerprints: Fingerprints,
    make_worker: Callable[[], Callable[[Shard], int]],
    num_actors: int | None,
    address: str | None,
    *,
    title: str,
    problem: str,
    shard_size: int = _SHARD_SIZE,
    unit: str = "images",
    cpus_per_actor: float = 1.0,
) -> int:
    """Have actors do the images that `parts` have no valid row of.

    Each asks for a GPU where there is one, and for CPUs. Without a missing row Ray is not used.

    Args:
        parts: of the table; rows of images that changed are removed first.
        images: what a worker gets of each image, image_id among it.
        fingerprints: (n,) one an image.
        make_worker: makes a worker, which does a shard, writes its part and returns the number
            of images.
        num_actors: at most; None for one a GPU, or one a CPU.
        address: of the Ray cluster.
        title: of the progress line.
        problem: what a shard is that could not be done, such as "have no predictions".
        shard_size: rows of a shard.
        unit: what a row is, if not an image.
        cpus_per_actor: that each asks of Ray.

    Returns:
        The number of images that were done.

    Raises:
        IncompleteError: some could not be done; the next run goes on.
    """
    parts.drop_stale(images.column("image_id").combine_chunks(), fingerprints)
    rows = np.flatnonzero(find_missing(parts.done(), fingerprints))
    if not len(rows):
        return 0
    pieces = [rows[start : start + shard_size] for start in range(0, len(rows), shard_size)]
    shards = [(images.take(piece), fingerprints[piece]) for piece in pieces]
    with connection.connect(address):
        resources = connection.prefer_gpu(Resources(num_cpus=cpus_per_actor))
        num_actors = connection.count_actors(num_actors, resources, len(shards))
        with Progress(len(rows), title, unit) as progress:
            pool = Pool(make_worker, shards, num_actors, resources)
            failures = run_shards([pool], lambda _, __, done: progress.update(done))
    if failures:
        raise IncompleteError(
            f"{len(failures)} of {len(shards)} shards {problem}: {failures[0].reason}; run the "
            "same command again to complete them"
        )
    parts.drop_repeated(fingerprints)  # another run may have done the same
    return len(rows)
