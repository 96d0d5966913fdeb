"""Spreading the shards of a run over pools of actors, one pool a group of metrics."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iqa_ray.cluster.capacity import PoolPlan
from iqa_ray.cluster.pools import Pool, ShardFailure, run_shards
from iqa_ray.errors import IncompleteError
from iqa_ray.metrics.spec import Device
from iqa_ray.progress import Progress
from iqa_ray.scoring.cpu_scorer import MakeScorer, Scorer, ScoringRun, Shard, ShardReport
from iqa_ray.scoring.deep_scorer import DeepPlan, DeepShardScorer
from iqa_ray.scoring.planning import Group, Missing, cut_shards, plan_pools
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import ListedScores
from iqa_ray.scoring.telemetry import MeasuredScorer

_NUM_NAMED = 5


@dataclass
class GroupWork:
    """What a group has to do, and what its actors said of it."""

    group: Group
    shards: list[Shard]
    rows: list[NDArray[np.int64]]  # of each shard, in the listing
    compute_s: float = 0.0
    wait_s: float = 0.0
    shifts: list[float] = field(default_factory=list)

    def note(self, report: ShardReport) -> None:
        self.compute_s += report.compute_s
        self.wait_s += report.wait_s
        self.shifts += report.shifts


def spread_groups(
    job: ScoreJob,
    run: ScoringRun,
    listed: ListedScores,
    missing: Missing,
    make_cpu_scorer: MakeScorer,
) -> list[GroupWork]:
    """Score what is missing, each group in a pool of its own, all of them at the same time."""
    # of each image, the groups that it waits for
    num_left = np.sum([lacks.any(axis=1) for lacks in missing.values()], axis=0)
    works, pools = [], []
    for group, plan in plan_pools(job, missing).items():
        cut = list(cut_shards(group, listed, missing[group], plan, job.shard_size))
        work = GroupWork(group, [shard for _, shard in cut], [rows for rows, _ in cut])
        works.append(work)
        make_scorer = _choose_scorer(run, group, plan, make_cpu_scorer)
        make_measured = partial(MeasuredScorer, make_scorer, group.name)
        pools.append(Pool(make_measured, work.shards, plan.num_actors, plan.resources))

    with Progress(int((num_left > 0).sum()), "score") as progress:

        def count(pool: int, index: int, report: ShardReport) -> None:
            rows = works[pool].rows[index]
            num_left[rows] -= 1
            works[pool].note(report)
            progress.update(int((num_left[rows] == 0).sum()), report.num_failed)

        failures = run_shards(pools, count)
    if failures:
        raise IncompleteError(_describe_lost(works, failures))
    return works


def _choose_scorer(
    run: ScoringRun, group: Group, plan: PoolPlan, make_cpu_scorer: MakeScorer
) -> Callable[[], Scorer]:
    """What makes the scorer of an actor."""
    if group.weights is None:
        return partial(make_cpu_scorer, run)
    resources = plan.resources
    device: Device = "cuda" if resources.num_gpus else "cpu"
    deep_plan = DeepPlan(
        group.weights, device, resources.num_threads, group.precision, group.max_side
    )
    return partial(DeepShardScorer, run, deep_plan)


def _describe_lost(works: Sequence[GroupWork], failures: Sequence[ShardFailure]) -> str:
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


def summarise_models(works: Sequence[GroupWork]) -> dict[str, Any]:
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
        summary[work.group.name] = entry
    return summary
