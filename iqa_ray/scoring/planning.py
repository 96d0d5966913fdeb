"""What a run of `score` has to do: groups of metrics, what lacks which score, pools and shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute as pc

from iqa_ray.cluster import connection
from iqa_ray.cluster.capacity import PoolPlan, Resources, share_nodes
from iqa_ray.images.source import ImageSource
from iqa_ray.metrics.deep import make_version
from iqa_ray.metrics.learnt import prepare_metrifier
from iqa_ray.metrics.spec import MetricSpec, Precision, get_spec
from iqa_ray.progress import log
from iqa_ray.scoring.cpu_scorer import Shard
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import HASH_SCHEMA, ListedScores, list_score_parts, open_parts
from iqa_ray.storage.parts import find_missing
from iqa_ray.storage.workspace import Workspace
from iqa_ray.weights.metric_files import Weights
from iqa_ray.weights.pulling import prepare_weights

# Images per shard: fewer make too many small files, more lose too much work when an actor dies.
SMALLEST_SHARD, LARGEST_SHARD = 32, 512
# a network without a GPU takes up to a minute an image
_SMALLEST_SLOW_SHARD, _LARGEST_SLOW_SHARD = 8, 64
_SHARDS_PER_ACTOR = 16

# precision and max_side of deep metrics, by name
DeepSettings = Mapping[str, tuple[Precision, int | None]]


@dataclass(frozen=True)
class Group:
    """Metrics that one pool of actors scores: the CPU metrics together, or one deep metric.

    `precision` and `max_side` are a deep metric's, as in its version.
    """

    specs: tuple[MetricSpec, ...]
    weights: Weights | None = None
    precision: Precision = "fp32"
    max_side: int | None = None

    @property
    def name(self) -> str:
        return self.specs[0].name if self.weights else "cpu"


# for each group (n, num_metrics): which images have no valid row of which of its metrics
Missing = dict[Group, NDArray[np.bool_]]


def make_groups(job: ScoreJob, recorded: DeepSettings) -> list[Group]:
    """The CPU metrics together and each deep metric, its weights made sure of."""
    specs = [get_spec(name) for name in job.metrics]
    groups = []
    if cpu := tuple(spec for spec in specs if spec.backend == "cpu"):
        groups.append(Group(cpu))
    pulled = [spec.name for spec in specs if spec.backend == "pyiqa"]
    prepared = prepare_weights(pulled, job.weights) if pulled else {}
    for spec in (spec for spec in specs if spec.backend != "cpu"):
        asked = job.precision, job.max_side if spec.supports_max_side else None
        precision, max_side = recorded.get(spec.name, asked)
        weights = prepared.get(spec.name) or prepare_metrifier(spec)
        version = make_version(weights, precision, max_side)
        groups.append(Group((replace(spec, version=version),), weights, precision, max_side))
    return groups


def drop_former_contents(workspace: Workspace, listed: ListedScores, source: ImageSource) -> None:
    """Where the metrics of an image saw different contents, leave only rows of the present one.

    The others are of a file that was replaced without another size or time. They go at every
    version, since a later run may ask for an earlier version again.
    """
    is_mixed = listed.find_mixed()
    if not is_mixed.any():
        return
    log(f"{is_mixed.sum():,} images have scores of different contents; scoring former ones again")
    images, fingerprints = listed.images.filter(pa.array(is_mixed)), listed.fingerprints[is_mixed]
    ids = images.column("image_id").combine_chunks()
    present = pa.array(source.hash_each(images.column("path").to_pylist()), pa.string())
    for parts in list_score_parts(workspace):
        hashes = parts.read_listed(fingerprints, HASH_SCHEMA).column("content_hash")
        is_former = pc.fill_null(pc.not_equal(hashes, present), True).combine_chunks()
        parts.drop_stale(ids.filter(is_former), fingerprints[~is_former.to_numpy(False)])


def find_missing_scores(
    workspace: Workspace, groups: Sequence[Group], listed: ListedScores
) -> Missing:
    """What has to be scored; groups that lack nothing are left out.

    Rows of images that changed are removed.
    """
    ids = listed.images.column("image_id").combine_chunks()
    missing = {
        group: np.column_stack(
            [_find_missing_rows(workspace, spec, ids, listed) for spec in group.specs]
        )
        for group in groups
    }
    return {group: lacks for group, lacks in missing.items() if lacks.any()}


def _find_missing_rows(
    workspace: Workspace, spec: MetricSpec, ids: pa.Array, listed: ListedScores
) -> NDArray[np.bool_]:
    parts = open_parts(workspace, spec)
    if num_dropped := parts.drop_stale(ids, listed.fingerprints):
        log(f"{num_dropped:,} {spec.name} scores were of images that changed since; scoring again")
    return find_missing(parts.done(), listed.fingerprints)


def plan_pools(job: ScoreJob, missing: Missing) -> dict[Group, PoolPlan]:
    """How many actors each group has, and what each of them asks for; deep metrics come first.

    Actors of CPU metrics can go anywhere, and would take the places of the models.
    """
    groups = sorted(missing, key=lambda group: group.weights is None)
    num_images = {group: int(missing[group].any(axis=1).sum()) for group in groups}
    num_models = sum(group.weights is not None for group in groups)
    if num_models == 0:
        resources = Resources(num_cpus=job.cpus_per_actor)
        return {
            group: PoolPlan(connection.count_actors(job.num_actors, resources, number), resources)
            for group, number in num_images.items()
        }
    cpu_plan, model_plan = share_nodes(
        connection.list_nodes(),
        connection.list_nodes(job.placement.labels),
        num_models,
        len(missing) > num_models,
        job.cpus_per_actor,
        job.gpus_per_actor,
        job.placement,
    )
    if not model_plan.resources.num_gpus:
        log("deep metrics run on the CPU" + (": no GPU" if job.gpus_per_actor is None else ""))
    if job.num_actors is None:
        connection.check_room(model_plan.resources)
    plans = {group: model_plan if group.weights else cpu_plan for group in groups}
    return {
        group: replace(plan, num_actors=min(job.num_actors or plan.num_actors, num_images[group]))
        for group, plan in plans.items()
    }


def cut_shards(
    group: Group,
    listed: ListedScores,
    missing: NDArray[np.bool_],
    plan: PoolPlan,
    shard_size: int | None,
) -> Iterator[tuple[NDArray[np.int64], Shard]]:
    """Shards, each with the rows of its images in the listing.

    The images of a shard lack the same metrics, so that each is decoded once for all of them.

    Args:
        group: the metrics.
        listed: the images.
        missing: (n, num_metrics) which of them lacks which metric.
        plan: of the group's pool.
        shard_size: the most images of a shard (default: by their number).
    """
    fair = -(-int(missing.any(axis=1).sum()) // (plan.num_actors * _SHARDS_PER_ACTOR))
    smallest, largest = SMALLEST_SHARD, LARGEST_SHARD
    if group.weights and not plan.resources.num_gpus:
        smallest, largest = _SMALLEST_SLOW_SHARD, _LARGEST_SLOW_SHARD
    size = shard_size or min(max(fair, smallest), largest)
    columns = listed.images.select(["image_id", "path"])
    for lacking in np.unique(missing[missing.any(axis=1)], axis=0):
        names = tuple(spec.name for spec, lacks in zip(group.specs, lacking, strict=True) if lacks)
        rows = np.flatnonzero((missing == lacking).all(axis=1))
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            yield chosen, Shard(columns.take(chosen), names, listed.fingerprints[chosen])
