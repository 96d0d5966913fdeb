from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iqa_ray.cluster.capacity import (
    Placement,
    Resources,
    has_labels,
    raise_share,
    room_on,
    share_nodes,
)
from iqa_ray.config import make_job
from iqa_ray.errors import UsageError
from iqa_ray.experiments.settings import CompareJob
from iqa_ray.scoring.settings import ScoreJob


@pytest.mark.parametrize(
    ("nodes", "num_models", "with_cpu", "gpus", "cpu_pool", "model_pool"),
    [
        # nodes, models, CPU metrics too, GPUs an actor -> (actors, CPUs), (actors, CPUs, GPUs)
        ([{"CPU": 2}], 1, True, None, (1, 1), (1, 1, 0)),
        ([{"CPU": 2}], 3, True, None, (1, 0.5), (1, 0.5, 0)),
        ([{"CPU": 2}], 1, False, None, (1, 1), (1, 2, 0)),
        ([{"CPU": 64}], 2, True, None, (24, 1), (5, 4, 0)),
        ([{"CPU": 16, "GPU": 1}], 1, True, None, (8, 1), (1, 8, 1)),
        ([{"CPU": 16, "GPU": 1}], 3, True, None, (10, 1), (1, 2, 0.33)),
        ([{"CPU": 16, "GPU": 1}], 1, True, 0.25, (8, 1), (4, 2, 0.25)),
        ([{"CPU": 16, "GPU": 1}], 1, True, 0, (8, 1), (2, 4, 0)),
        ([{"CPU": 2, "GPU": 1}], 3, True, None, (1, 1), (1, 0.33, 0.33)),
        ([{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 4}], 3, True, None, (10, 1), (2, 1, 1)),
        # nothing yet, an autoscaler may bring some
        ([{}], 1, True, None, (1, 1), (1, 1, 0)),
        ([{"CPU": 4}, {}], 1, True, 1, (4, 1), (1, 2, 1)),
        # no actor asks for more than a node has
        ([{"CPU": 2}] * 10, 1, True, None, (10, 1), (5, 2, 0)),
        ([{"CPU": 64}, {"CPU": 4, "GPU": 1}], 1, False, None, None, (1, 4, 1)),
        # a fraction is of one card
        ([{"CPU": 16, "GPU": 2}], 3, True, None, (10, 1), (1, 2, 0.5)),
        ([{"CPU": 16, "GPU": 2}], 1, True, 0.6, (8, 1), (2, 4, 0.6667)),
        # cards on a node without CPUs
        ([{"CPU": 4}, {"GPU": 1}], 1, True, None, (4, 1), (1, 0, 1)),
        ([{"CPU": 4, "GPU": 1}, {"GPU": 1}], 1, True, None, (3, 1), (1, 1, 1)),
        ([{"CPU": 4, "GPU": 1}, {"GPU": 1}], 2, True, None, (4, 1), (1, 0, 1)),
        # cards where few CPUs are
        ([{"CPU": 1, "GPU": 4}, {"CPU": 16, "GPU": 1}], 5, True, None, (15, 1), (1, 0.25, 1)),
    ],
)
def test_pools_share_what_there_is(nodes, num_models, with_cpu, gpus, cpu_pool, model_pool):
    cpu, model = share_nodes(nodes, nodes, num_models, with_cpu, 1.0, gpus, Placement())
    assert (model.num_actors, model.resources.num_cpus, model.resources.num_gpus) == model_pool
    if with_cpu:
        assert (cpu.num_actors, cpu.resources.num_cpus) == cpu_pool
        assert cpu.resources.num_gpus == 0
    total = sum(node.get("CPU", 0) for node in nodes)
    asked = model.num_actors * num_models * model.resources.num_cpus
    is_placed = any(room_on(node, model.resources) for node in nodes)
    if total and is_placed:  # all of them fit at the same time
        assert asked + with_cpu * cpu.num_actors * cpu.resources.num_cpus <= total


SLOTS = [{"CPU": 64, "slot": 3}] * 2
ONE_SCORER = [{"CPU": 4}, {"CPU": 4, "scorer": 2}]


@pytest.mark.parametrize(
    ("nodes", "chosen", "num_models", "amounts", "cpu_pool", "model_pool"),
    [
        # all nodes, those with the labels, models, amounts -> (actors, CPUs), (actors, CPUs)
        (ONE_SCORER, ONE_SCORER, 1, {"scorer": 1}, (6, 1), (1, 2)),
        (ONE_SCORER, ONE_SCORER, 2, {"scorer": 1}, (6, 1), (1, 1)),
        (ONE_SCORER, ONE_SCORER, 2, {"scorer": 2}, (7, 1), (1, 1)),  # they take turns
        (SLOTS, SLOTS, 1, {"slot": 2}, (120, 1), (2, 4)),
        # labels leave one node, or none yet
        ([{"CPU": 8}, {"CPU": 2}], [{"CPU": 2}], 1, {}, (9, 1), (1, 1)),
        ([{"CPU": 8}, {"CPU": 2}], [], 1, {}, (10, 1), (1, 1)),
    ],
)
def test_models_go_where_they_may(nodes, chosen, num_models, amounts, cpu_pool, model_pool):
    placement = Placement(amounts, {"zone": "a"})
    cpu, model = share_nodes(nodes, chosen, num_models, True, 1.0, None, placement)
    assert (model.num_actors, model.resources.num_cpus) == model_pool
    assert (cpu.num_actors, cpu.resources.num_cpus) == cpu_pool
    assert (model.resources.placement, cpu.resources.placement) == (placement, Placement())


# --- fractions of GPUs --------------------------------------------------------------------------


def fill_cards(cards: tuple[int, ...], need: int) -> int:
    """The most actors that cards with so many units free hold, by trying each card for each."""

    @lru_cache
    def fill(cards: tuple[int, ...]) -> int:
        after = (
            1 + fill(tuple(sorted((*cards[:place], free - need, *cards[place + 1 :]))))
            for place, free in enumerate(cards)
            if free >= need
        )
        return max(after, default=0)

    return fill(cards)


def count_exactly(node: dict[str, float], resources: Resources) -> int:
    """The most actors that fit on a node, as Ray gives its cards out."""
    limits = []
    if resources.num_cpus:
        limits.append(int(node.get("CPU", 0) / resources.num_cpus + 1e-9))
    cards = int(node.get("GPU", 0))
    if resources.num_gpus:
        limits.append(fill_cards((10_000,) * cards, round(resources.num_gpus * 10_000)))
    return min(limits)


def fit_together(nodes, model: Resources, num_models: int, cpu_actor: float) -> int:
    """The most CPU actors beside all models, over every way to place those; -1 if there is none."""

    def place(index: int, left: int) -> int:
        if index == len(nodes):
            return -1 if left else 0
        best = -1
        for number in range(min(left, count_exactly(nodes[index], model)) + 1):
            rest = place(index + 1, left - number)
            if rest >= 0:
                cpus = nodes[index].get("CPU", 0) - number * model.num_cpus
                best = max(best, rest + int(cpus / cpu_actor + 1e-9))
        return best

    return place(0, num_models)


NODES = st.lists(
    st.fixed_dictionaries({"CPU": st.integers(0, 6), "GPU": st.integers(0, 3)}),
    min_size=1,
    max_size=3,
)
SHARES = st.sampled_from([None, 0, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.45, 0.5, 0.6, 0.75, 1])


@given(NODES, st.integers(1, 5), st.booleans(), SHARES, st.sampled_from([0.5, 1.0, 3.0]))
@example([{"CPU": 8, "GPU": 2}], 3, True, None, 1.0)
@example([{"CPU": 8, "GPU": 2}], 5, False, 0.4, 1.0)
@example([{"CPU": 0, "GPU": 1}, {"CPU": 2, "GPU": 0}], 1, True, None, 1.0)
@example([{"CPU": 1, "GPU": 3}, {"CPU": 6, "GPU": 1}], 4, True, None, 1.0)
@example([{"CPU": 1, "GPU": 0}] * 3, 2, True, None, 3.0)
def test_what_is_planned_fits_at_the_same_time(nodes, num_models, with_cpu, gpus, cpus_per_actor):
    """Beside an exact packing of every small cluster."""
    cpu, model = share_nodes(nodes, nodes, num_models, with_cpu, cpus_per_actor, gpus, Placement())
    resources, number = model.resources, model.num_actors * num_models
    if gpus is not None:
        assert resources.num_gpus == pytest.approx(raise_share(nodes, gpus), abs=1e-4)
    # an actor of each model, with as little as they could do with
    has_gpus = gpus is None and any(node["GPU"] for node in nodes)
    least_gpus = 0.2 if has_gpus else resources.num_gpus
    least = Resources(0.0 if resources.num_gpus else 0.01, least_gpus)
    if fit_together(nodes, least, num_models, 1.0) < 0:
        assert model.num_actors == 1  # they take turns
        return
    beside = fit_together(nodes, resources, number, cpu.resources.num_cpus)
    assert beside >= 0
    assert not has_gpus or resources.num_gpus > 0
    if with_cpu and any(node["CPU"] for node in nodes):
        assert 1 <= cpu.num_actors <= beside
        assert cpu.resources.num_cpus <= cpus_per_actor
    if resources.num_gpus:  # and no actor more of each model would
        assert fit_together(nodes, resources, number + num_models, 1.0) < 0


@given(NODES, st.floats(0.01, 0.9999))
@example([{"CPU": 8, "GPU": 2}], 0.4)
@example([{"CPU": 0, "GPU": 2}], 0.0121)
def test_shares_that_ray_counts_as_the_cards_do(nodes, share):
    """Ray picks a node by the sum over its cards: that must not promise more than they hold."""

    def counts_alike(units: int) -> bool:
        return all(
            room_on({"GPU": node["GPU"]}, Resources(0.0, units / 10_000))
            == round(node["GPU"] * 10_000) // units
            for node in nodes
        )

    units, raised = round(share * 10_000), round(raise_share(nodes, share) * 10_000)
    assert raised >= units
    assert counts_alike(raised)
    assert not any(map(counts_alike, range(units, raised)))  # by no more than that
    if share >= 0.05:  # and no actor is lost by it
        for node in nodes:
            gpus = {"GPU": node["GPU"]}
            assert room_on(gpus, Resources(0.0, raised / 10_000)) == room_on(
                gpus, Resources(0.0, share)
            )


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1, 2])
def test_shares_that_need_not_be_raised(share):
    assert raise_share([{"GPU": 1}, {"GPU": 8}, {}], share) == share
    assert raise_share([{"GPU": 1}], 0.6) == 0.6  # the rest of a lone card is left to others


def test_room_on_what_others_leave_of_cards():
    assert room_on({"CPU": 9, "GPU": 1.4}, Resources(1.0, 0.4)) == 3
    assert room_on({"CPU": 9, "GPU": 1.3}, Resources(1.0, 0.4)) == 2
    assert room_on({"CPU": 9, "GPU": 2.7}, Resources(1.0, 1.0)) == 2
    assert room_on({"CPU": 9, "GPU": 5}, Resources(1.0, 2.0)) == 2
    assert room_on({"CPU": 9, "GPU": 1}, Resources(0.0, 1 / 3)) == 3  # Ray's 0.3333


@pytest.mark.parametrize(
    ("share", "problem"),
    [
        (0.00001, "a share of at least 0.0001"),
        (1.5, "one GPU at most"),
        (2, "one GPU at most"),
        (0, None),
        (0.0001, None),
        (0.4, None),
        (1, None),
    ],
)
def test_settings_refuse_shares_that_ray_cannot_give(tmp_path, share, problem):
    ws = {"workspace": str(tmp_path / "ws")}
    settings = [
        (ScoreJob, {**ws, "images": str(tmp_path), "gpus_per_actor": share}, "--gpus-per-actor"),
        (CompareJob, {**ws, "gpus_per_run": share}, "--gpus-per-run"),
    ]
    for job, given_settings, flag in settings:
        if problem is None:
            make_job(job, given_settings)
        else:
            with pytest.raises(UsageError, match=f"{flag}: .*{problem}"):
                make_job(job, given_settings)


# --- placement ----------------------------------------------------------------------------------


def test_room_counts_custom_resources():
    asked = Resources(1.0, 0.0, Placement({"scorer": 0.5}))
    assert room_on({"CPU": 8, "scorer": 1}, asked) == 2
    assert room_on({"CPU": 1, "scorer": 1}, asked) == 1
    assert room_on({"CPU": 8}, asked) == 0
    assert str(asked) == "1 CPUs, 0 GPUs and 0.5 scorer"


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        ("a", {"a"}),
        ("!a", {"b", None}),
        ("in(a)", {"a"}),
        ("in(a,b)", {"a", "b"}),
        ("!in(a, b)", {None}),
    ],
)
def test_labels(selector, fits):
    """As Ray's own label selectors; a node without the label is none of those that have it."""
    for value in ("a", "b", None):
        labels = {"zone": value} if value else {}
        assert has_labels(labels, {"zone": selector}) == (value in fits)
    assert has_labels({}, {})
    assert not has_labels({"zone": "a"}, {"zone": "a", "rack": "1"})
