"""What actors ask for, and sharing a cluster's nodes between pools of them; pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor

# more threads feed or run one model hardly faster
_MAX_THREADS_WITH_GPU = 8
_MAX_THREADS_WITHOUT = 4

# Ray counts resources in ten-thousandths
_UNITS = 10_000
# what an actor with a model may ask for, the most first
_CPU_SHARES = (*range(_MAX_THREADS_WITH_GPU, 0, -1), *(share / 100 for share in range(99, 0, -1)))


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
    """How many actors with such resources a node with these has room for.

    A fraction of a GPU never spans two cards. Of what is free on a node, which Ray tells as a sum
    over the cards, the fraction is taken to be on one card.
    """
    limits = []
    for name, amount in resources.amounts.items():
        have, need = _to_units(node.get(name, 0.0)), _to_units(amount)
        if name == "GPU" and 0 < need < _UNITS:
            cards, rest = divmod(have, _UNITS)
            limits.append(cards * (_UNITS // need) + rest // need)
        elif need > 0:
            limits.append(have // need)
    return min(limits, default=1)


def check_share(share: float | None) -> float | None:
    """Make sure that Ray can give an actor such a share of a GPU.

    Raises:
        ValueError: it cannot.
    """
    if share is not None and share > 1:
        raise ValueError("one GPU at most, since a model runs on one")
    if share is not None and 0 < share < 1 / _UNITS:
        raise ValueError(f"0, or a share of at least {1 / _UNITS:g}: Ray gives no smaller one")
    return share


def raise_share(nodes: Iterable[Mapping[str, float]], share: float) -> float:
    """The GPUs to ask for so that Ray finds places for as many actors as `room_on` counts.

    Ray picks a node by the sum of what is free on its cards. Five actors with 0.4 go to a node of
    two cards, where the fifth waits for ever while other nodes have room, and a group of workers
    with such a node never starts (Ray 2.60). So a fraction is raised, where it must be, until the
    sum over a node's cards holds no more actors than the cards do. For shares below a twentieth
    that can cost an actor a card.
    """
    need = _to_units(share)
    if not 0 < need < _UNITS:
        return share
    most_cards = max((int(node.get("GPU", 0.0)) for node in nodes), default=0)
    while most_cards * _UNITS // need > most_cards * (_UNITS // need):
        need += 1
    return need / _UNITS


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

    All of them are to run at the same time; where there is no room for an actor of each model,
    models take turns. With GPUs, models share those evenly, a card at a time, and take up to half
    of the CPUs for decoding; without, every pool has an even share of the CPUs.

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
        gpus_per_actor = _share_gpus(hosts, num_models, placement)
    bare = Resources(0.0, raise_share(hosts, gpus_per_actor), placement)
    hosts = [node for node in hosts if room_on(node, bare)] or list(model_nodes)
    cpus, largest = _sum(hosts, "CPU"), max((node.get("CPU", 0.0) for node in hosts), default=0.0)
    num_pools = num_models + with_cpu_pool
    if gpus_per_actor > 0:
        num_actors = max(1, _count_room(hosts, bare) // num_models)
        for_models = cpus / 2 if with_cpu_pool else cpus
        most = min(_MAX_THREADS_WITH_GPU, largest, for_models / (num_models * num_actors))
        model = _share_cpus(hosts, num_models, bare, most)
    else:
        most = min(_MAX_THREADS_WITHOUT, largest, cpus / num_pools)
        model = _share_cpus(hosts, num_models, bare, most)
        num_actors = floor(cpus / num_pools / model.num_cpus + 1e-9)
    num_actors = max(1, min(num_actors, _count_room(hosts, model) // num_models))
    left = _list_left(nodes, hosts, model, num_actors * num_models)
    cpu_actor = min(cpus_per_actor, _round_down(max(left, default=0.0))) or cpus_per_actor
    room = _count_room([{"CPU": cpus} for cpus in left], Resources(cpu_actor))
    return PoolPlan(max(1, room), Resources(cpu_actor)), PoolPlan(num_actors, model)


def _share_gpus(
    hosts: Sequence[Mapping[str, float]], num_models: int, placement: Placement
) -> float:
    """The largest even share of a card that leaves room for each model, or for the most of them."""
    if not _sum(hosts, "GPU"):
        return 0.0
    shares = [max(_round_down(1 / number), 0.01) for number in range(1, num_models + 1)]

    def rate(share: float) -> tuple[int, float]:
        return min(_count_room(hosts, Resources(0.0, share, placement)), num_models), share

    return max(shares, key=rate)


def _share_cpus(
    hosts: Sequence[Mapping[str, float]], num_models: int, bare: Resources, most: float
) -> Resources:
    """`bare` with the most CPUs, up to `most`, that leave room for each model.

    With a GPU that may be none: Ray places such an actor also where there are no CPUs.
    """
    shares = [float(share) for share in _CPU_SHARES if share <= most + 1e-9]
    options = [replace(bare, num_cpus=share) for share in shares]
    if _count_room(hosts, bare) and bare.num_gpus:
        options.append(bare)

    def rate(option: Resources) -> tuple[int, float]:
        return min(_count_room(hosts, option), num_models), option.num_cpus

    # none yet: an autoscaler may bring some
    return max(options, key=rate, default=replace(bare, num_cpus=1.0))


def _list_left(
    nodes: Sequence[Mapping[str, float]],
    hosts: Sequence[Mapping[str, float]],
    model: Resources,
    number: int,
) -> list[float]:
    """The CPUs of each node that `number` actors with a model leave, which fill `hosts` in turn."""
    others, left = list(nodes), []
    for host in hosts:
        if host in others:
            others.remove(host)
        placed = min(number, room_on(host, model))
        number -= placed
        left.append(host.get("CPU", 0.0) - placed * model.num_cpus)
    return left + [node.get("CPU", 0.0) for node in others]


def _sum(nodes: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(node.get(name, 0.0) for node in nodes)


def _count_room(nodes: Sequence[Mapping[str, float]], resources: Resources) -> int:
    return sum(room_on(node, resources) for node in nodes)


def _to_units(amount: float) -> int:
    return round(amount * _UNITS)


def _round_down(share: float) -> float:
    """Whole numbers, or hundredths below one: Ray's fractions."""
    return float(floor(share)) if share >= 1 else floor(share * 100 + 1e-9) / 100
