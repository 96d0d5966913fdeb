"""Sharing a cluster's CPUs and GPUs between pools of actors; pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor

# more threads feed or run one model hardly faster
_MAX_THREADS_WITH_GPU = 8
_MAX_THREADS_WITHOUT = 4


@dataclass(frozen=True)
class Resources:
    """What one actor asks of Ray."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0

    @property
    def num_threads(self) -> int:
        """Threads that it may compute on: one a CPU."""
        return max(1, int(self.num_cpus))


@dataclass(frozen=True)
class PoolPlan:
    """How many actors a pool has, and what each asks for."""

    num_actors: int
    resources: Resources


def share_nodes(
    nodes: Sequence[Mapping[str, float]],
    num_models: int,
    with_cpu_pool: bool,
    cpus_per_actor: float,
    gpus_per_actor: float | None,
) -> tuple[PoolPlan, PoolPlan]:
    """Plan a pool of CPU actors and `num_models` equal pools of actors with a model each.

    All of them are to run at the same time. With GPUs, models share those evenly and take up to
    half of the CPUs for decoding; without, every pool has an even share of the CPUs.

    Args:
        nodes: resources of the nodes that are up, such as {"CPU": 16, "GPU": 1}.
        num_models: deep metrics, at least one.
        with_cpu_pool: whether there are CPU metrics as well.
        cpus_per_actor: asked for by each CPU actor, at most.
        gpus_per_actor: asked for by each actor with a model; None for a share of what there is.

    Returns the plan of the CPU pool and that of each model's.
    """
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    num_pools = num_models + with_cpu_pool
    if gpus_per_actor is None:
        gpus_per_actor = min(1.0, _round_down(gpus / num_models))
    if gpus_per_actor > 0:
        num_actors = max(1, floor(gpus / num_models / gpus_per_actor + 1e-9))
        for_models = cpus / 2 if with_cpu_pool else cpus
        share = min(_MAX_THREADS_WITH_GPU, for_models / (num_models * num_actors))
    else:
        share = min(_MAX_THREADS_WITHOUT, cpus / num_pools)
        num_actors = max(1, floor(cpus / num_pools / share)) if share else 1
    model_cpus = _round_down(share) or 1.0  # none yet: an autoscaler may bring some
    left = cpus - model_cpus * num_actors * num_models
    cpu_actor = min(cpus_per_actor, _round_down(left)) if left > 0 else cpus_per_actor
    return (
        PoolPlan(max(1, floor(left / cpu_actor + 1e-9)), Resources(cpu_actor)),
        PoolPlan(num_actors, Resources(model_cpus, gpus_per_actor)),
    )


def _round_down(share: float) -> float:
    """Whole numbers, or hundredths below one: Ray's fractions."""
    return float(floor(share)) if share >= 1 else floor(share * 100 + 1e-9) / 100
