"""Cutting shards of what is missing and spreading them over pools of actors, one pool a group."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from iqa_ray import cluster
from iqa_ray.capacity import PoolPlan, Resources, share_nodes
from iqa_ray.deep_shards import DeepPlan, DeepShardScorer
from iqa_ray.errors import IncompleteError
from iqa_ray.metrics.deep import Device, Precision
from iqa_ray.metrics.spec import MetricSpec
from iqa_ray.metrics.weights import Weights
from iqa_ray.part_files import Fingerprints
from iqa_ray.pools import Pool, ShardFailure, run_shards
from iqa_ray.progress import Progress, log
from iqa_ray.score_job import ScoreJob
from iqa_ray.shards import ScoringRun, Shard
from iqa_ray.telemetry import MeasuredScorer

# a part should be worth a file, and a lost shard not worth a tear
SMALLEST_SHARD, LARGEST_SHARD = 32, 512
# a network without a GPU takes up to a minute an image
_SMALLEST_SLOW_SHARD, _LARGEST_SLOW_SHARD = 8, 64
_SHARDS_PER_ACTOR = 16
_NUM_NAMED = 5


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
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)


@dataclass
class GroupWork:
    """What a group has to do, and what its actors said of it."""

    group: Group
    shards: list[Shard]
    rows: list[NDArray[np.int64]]  # of each shard, in the listing
    compute_s: float = 0.0
    wait_s: float = 0.0
    shifts: list[float] = field(default_factory=list)

    def note(self, done: dict[str, Any]) -> None:
        self.compute_s += done.get("compute_s", 0.0)
        self.wait_s += done.get("wait_s", 0.0)
        self.shifts += done.get("shifts", [])


MakeWorker = Callable[..., Callable[[Shard], dict[str, Any]]]


def _cut_shards(
    group: Group,
    images: pa.Table,
    fingerprints: Fingerprints,
    missing: NDArray[np.int64],
    plan: PoolPlan,
    shard_size: int | None,
) -> GroupWork:
    """Shards of images that lack the same metrics, so that each is decoded once for all of them."""
    num_missing = int((missing > 0).sum())
    fair = -(-num_missing // (plan.num_actors * _SHARDS_PER_ACTOR))
    smallest, largest = SMALLEST_SHARD, LARGEST_SHARD
    if group.weights and not plan.resources.num_gpus:
        smallest, largest = _SMALLEST_SLOW_SHARD, _LARGEST_SLOW_SHARD
    size = shard_size or min(max(fair, smallest), largest)
    columns = images.select(["image_id", "path"])
    work = GroupWork(group, [], [])
    for mask in np.unique(missing[missing > 0]):
        lacking = tuple(name for bit, name in enumerate(group.names) if mask >> bit & 1)
        rows = np.flatnonzero(missing == mask)
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            work.shards.append(Shard(columns.take(chosen), lacking, fingerprints[chosen]))
            work.rows.append(chosen)
    return work


def spread_groups(
    job: ScoreJob,
    run: ScoringRun,
    images: pa.Table,
    fingerprints: Fingerprints,
    missing: dict[Group, NDArray[np.int64]],
    make_worker: MakeWorker,
) -> list[GroupWork]:
    """Score what is missing, each group in a pool of its own, all of them at the same time."""
    missing = {group: mask for group, mask in missing.items() if mask.any()}
    num_left = np.sum([mask > 0 for mask in missing.values()], axis=0)  # groups an image waits for
    works, pools = [], []
    for group, (plan, make) in _plan(job, run, missing, make_worker).items():
        work = _cut_shards(group, images, fingerprints, missing[group], plan, job.shard_size)
        works.append(work)
        name = group.names[0] if group.weights else "cpu"
        make_measured = partial(MeasuredScorer, make, name)
        pools.append(Pool(make_measured, work.shards, plan.num_actors, plan.resources))

    with Progress(int((num_left > 0).sum()), "score") as progress:

        def count(pool: int, index: int, done: dict[str, Any]) -> None:
            rows = works[pool].rows[index]
            num_left[rows] -= 1
            works[pool].note(done)
            progress.update(int((num_left[rows] == 0).sum()), done["num_failed"])

        failures = run_shards(pools, count)
    if failures:
        raise IncompleteError(_describe_lost(works, failures))
    return works


def _plan(
    job: ScoreJob,
    run: ScoringRun,
    missing: dict[Group, NDArray[np.int64]],
    make_worker: MakeWorker,
) -> dict[Group, tuple[PoolPlan, Any]]:
    """For each group: its actors and what each asks for, and what makes their workers."""
    num_models = sum(group.weights is not None for group in missing)
    # models first: actors of CPU metrics can go anywhere, and would take their places
    groups = sorted(missing, key=lambda group: group.weights is None)
    num_images = {group: int((missing[group] > 0).sum()) for group in groups}
    make_cpu = partial(make_worker, run)
    if num_models == 0:
        resources = Resources(num_cpus=job.cpus_per_actor)
        return {
            group: (
                PoolPlan(cluster.count_actors(job.num_actors, resources, number), resources),
                make_cpu,
            )
            for group, number in num_images.items()
        }
    cpu_plan, model_plan = share_nodes(
        cluster.list_nodes(),
        cluster.list_nodes(job.placement.labels),
        num_models,
        len(missing) > num_models,
        job.cpus_per_actor,
        job.gpus_per_actor,
        job.placement,
    )
    device: Device = "cuda" if model_plan.resources.num_gpus else "cpu"
    if device == "cpu":
        log("deep metrics run on the CPU" + (": no GPU" if job.gpus_per_actor is None else ""))
    if job.num_actors is None:
        cluster.check_room(model_plan.resources)
    plans: dict[Group, tuple[PoolPlan, Any]] = {}
    for group, number in num_images.items():
        plan = model_plan if group.weights else cpu_plan
        plan = replace(plan, num_actors=min(job.num_actors or plan.num_actors, number))
        plans[group] = plan, make_cpu
        if group.weights is not None:
            deep_plan = DeepPlan(
                group.weights,
                device,
                plan.resources.num_threads,
                group.precision,
                group.max_side,
            )
            plans[group] = plan, partial(DeepShardScorer, run, deep_plan)
    return plans


def _describe_lost(works: list[GroupWork], failures: list[ShardFailure]) -> str:
    lost = [works[failure.pool].shards[failure.index] for failure in failures]
    named = "; ".join(
        f"shard {failure.index} of {', '.join(shard.metrics)} ({_first_path(shard)!r} and "
        f"{shard.images.num_rows - 1} more): {failure.reason}"
        for failure, shard in itertools.islice(zip(failures, lost, strict=True), _NUM_NAMED)
    )
    rest = len(failures) - _NUM_NAMED
    num_images = sum(shard.images.num_rows for shard in lost)
    return (
        f"{num_images:,} images could not be scored: {named}"
        + (f"; and {rest} more shards" if rest > 0 else "")
        + "; the other scores are kept, run the same command again to complete them"
    )


def _first_path(shard: Shard) -> str:
    return str(shard.images.column("path")[0])


def summarise_models(works: list[GroupWork]) -> dict[str, Any]:
    """For each deep metric: how busy its model was, and how far its precision moved scores."""
    summary = {}
    for work in works:
        total_s = work.compute_s + work.wait_s
        if work.group.weights is None or not total_s:
            continue
        entry: dict[str, Any] = {"waiting_share": round(work.wait_s / total_s, 4)}
        if work.shifts:
            entry["shift"] = {
                "num_images": len(work.shifts),
                "mean": float(np.mean(work.shifts)),
                "max": float(np.max(work.shifts)),
            }
        summary[work.group.names[0]] = entry
    return summary
