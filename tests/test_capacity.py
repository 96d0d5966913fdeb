from __future__ import annotations

import pytest

from iqa_ray.capacity import Placement, Resources, has_labels, room_on, share_nodes


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
        ([{"CPU": 4}, {}], 1, True, 1, (2, 1), (1, 2, 1)),
        # no actor asks for more than a node has
        ([{"CPU": 2}] * 10, 1, True, None, (10, 1), (5, 2, 0)),
        ([{"CPU": 64}, {"CPU": 4, "GPU": 1}], 1, False, None, None, (1, 4, 1)),
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
    if total:  # all of them fit at the same time
        assert asked + with_cpu * cpu.num_actors * cpu.resources.num_cpus <= total


SLOTS = [{"CPU": 64, "slot": 3}] * 2
ONE_SCORER = [{"CPU": 4}, {"CPU": 4, "scorer": 2}]


@pytest.mark.parametrize(
    ("nodes", "chosen", "num_models", "amounts", "cpu_pool", "model_pool"),
    [
        # all nodes, those with the labels, models, amounts -> (actors, CPUs), (actors, CPUs)
        (ONE_SCORER, ONE_SCORER, 1, {"scorer": 1}, (6, 1), (1, 2)),
        (ONE_SCORER, ONE_SCORER, 2, {"scorer": 1}, (6, 1), (1, 1)),
        (ONE_SCORER, ONE_SCORER, 2, {"scorer": 2}, (6, 1), (1, 1)),  # they take turns
        (SLOTS, SLOTS, 1, {"slot": 2}, (120, 1), (2, 4)),
        # labels leave one node, or none yet
        ([{"CPU": 8}, {"CPU": 2}], [{"CPU": 2}], 1, {}, (9, 1), (1, 1)),
        ([{"CPU": 8}, {"CPU": 2}], [], 1, {}, (9, 1), (1, 1)),
    ],
)
def test_models_go_where_they_may(nodes, chosen, num_models, amounts, cpu_pool, model_pool):
    placement = Placement(amounts, {"zone": "a"})
    cpu, model = share_nodes(nodes, chosen, num_models, True, 1.0, None, placement)
    assert (model.num_actors, model.resources.num_cpus) == model_pool
    assert (cpu.num_actors, cpu.resources.num_cpus) == cpu_pool
    assert (model.resources.placement, cpu.resources.placement) == (placement, Placement())


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
