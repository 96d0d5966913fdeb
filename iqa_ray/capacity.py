"""What actors ask for, and sharing a cluster's nodes between pools of them; pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor

# more threads feed or run one model hardly faster
_MAX_THREADS_WITH_GPU = 8
_MAX_THREADS_WITHOUT = 4


@dataclass(frozen=True)
class Placement:
    """Which nodes an actor may be on.

    Args:
        amounts: of custom resources that it takes up there.
        labels: that such a node has, as Ray's label selectors: `a`, `!a`, `in(a,b)` or `!in(a,b)`.
    """

    amounts: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """What one actor asks of Ray."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    placement: Placement = Placement()

    @property
    def num_threads(self) -> int:
        """Threads that it may compute on: one a CPU."""
        return max(1, int(self.num_cpus))

    @property
    def amounts(self) -> dict[str, float]:
        """Everything that it takes up on a node, under Ray's names."""
        return {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.placement.amounts}

    def __str__(self) -> str:
        labels = [f"{name}={selector}" for name, selector in self.placement.labels.items()]
        where = f" on a node with {', '.join(labels)}" if labels else ""
        return describe_amounts(self.amounts, self.amounts) + where


@dataclass(frozen=True)
class PoolPlan:
    """How many actors a pool has, and what each asks for."""

    num_actors: int
    resources: Resources


def room_on(node: Mapping[str, float], resources: Resources) -> int:
    """How many actors with such resources a node with these has room for."""
    limits = [node.get(name, 0.0) / need for name, need in resources.amounts.items() if need > 0]
    return int(min(limits, default=1) + 1e-9)


def describe_amounts(amounts: Mapping[str, float], names: Iterable[str]) -> str:
    """What there is of at least two resources, for people."""
    units = {"CPU": "CPUs", "GPU": "GPUs"}
    *first, last = [f"{amounts.get(name, 0.0):g} {units.get(name, name)}" for name in names]
    return f"{', '.join(first)} and {last}"


def has_labels(labels: Mapping[str, str], selectors: Mapping[str, str]) -> bool:
    """Whether a node with such labels is one that Ray's label selectors mean."""
    for name, selector in selectors.items():
        wanted = selector.removeprefix("!")
        if wanted.startswith("in("):
            values = [value.strip() for value in wanted[3:-1].split(",")]
        else:
            values = [wanted]
        if (labels.get(name) in values) == selector.startswith("!"):
            return False
    return True


def share_nodes(
    nodes: Sequence[Mapping[str, float]],
    model_nodes: Sequence[Mapping[str, float]],
    num_models: int,
    with_cpu_pool: bool,
    cpus_per_actor: float,
    gpus_per_actor: float | None,
    placement: Placement,
) -> tuple[PoolPlan, PoolPlan]:
    """Plan a pool of CPU actors and `num_models` equal pools of actors with a model each.

    All of them are to run at the same time. With GPUs, models share those evenly and take up to
    half of the CPUs for decoding; without, every pool has an even share of the CPUs.

    Args:
        nodes: resources of the nodes that are up, such as {"CPU": 16, "GPU": 1}.
        model_nodes: those of them that have the labels of `placement`.
        num_models: deep metrics, at least one.
        with_cpu_pool: whether there are CPU metrics as well.
        cpus_per_actor: asked for by each CPU actor, at most.
        gpus_per_actor: asked for by each actor with a model; None for a share of what there is.
        placement: of each actor with a model.

    Returns the plan of the CPU pool and that of each model's.
    """
    hosts = [node for node in model_nodes if room_on(node, Resources(0.0, 0.0, placement))]
    if gpus_per_actor is None:
        gpus_per_actor = min(1.0, _round_down(_sum(hosts, "GPU") / num_models))
    bare = Resources(0.0, gpus_per_actor, placement)
    hosts = [node for node in hosts if room_on(node, bare)] or list(model_nodes)
    cpus, largest = _sum(hosts, "CPU"), max((node.get("CPU", 0.0) for node in hosts), default=0.0)
    num_pools = num_models + with_cpu_pool
    if gpus_per_actor > 0:
        num_actors = max(1, _count_room(hosts, bare) // num_models)
        for_models = cpus / 2 if with_cpu_pool else cpus
        share = min(_MAX_THREADS_WITH_GPU, largest, for_models / (num_models * num_actors))
    else:
        share = min(_MAX_THREADS_WITHOUT, largest, cpus / num_pools)
        num_actors = max(1, floor(cpus / num_pools / share)) if share else 1
    model_cpus = _round_down(share) or 1.0  # none yet: an autoscaler may bring some
    model = Resources(model_cpus, gpus_per_actor, placement)
    num_actors = max(1, min(num_actors, _count_room(hosts, model) // num_models))
    left = _sum(nodes, "CPU") - model_cpus * num_actors * num_models
    cpu_actor = min(cpus_per_actor, _round_down(left)) if left > 0 else cpus_per_actor
    return (
        PoolPlan(max(1, floor(left / cpu_actor + 1e-9)), Resources(cpu_actor)),
        PoolPlan(num_actors, model),
    )


def _sum(nodes: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(node.get(name, 0.0) for node in nodes)


def _count_room(nodes: Sequence[Mapping[str, float]], resources: Resources) -> int:
    return sum(room_on(node, resources) for node in nodes)


def _round_down(share: float) -> float:
    """Whole numbers, or hundredths below one: Ray's fractions."""
    return float(floor(share)) if share >= 1 else floor(share * 100 + 1e-9) / 100
