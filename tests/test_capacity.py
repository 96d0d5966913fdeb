from __future__ import annotations

import pytest

from iqa_ray.capacity import share_nodes


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
    ],
)
def test_pools_share_what_there_is(nodes, num_models, with_cpu, gpus, cpu_pool, model_pool):
    cpu, model = share_nodes(nodes, num_models, with_cpu, 1.0, gpus)
    assert (model.num_actors, model.resources.num_cpus, model.resources.num_gpus) == model_pool
    if with_cpu:
        assert (cpu.num_actors, cpu.resources.num_cpus) == cpu_pool
        assert cpu.resources.num_gpus == 0
    total = sum(node.get("CPU", 0) for node in nodes)
    asked = model.num_actors * num_models * model.resources.num_cpus
    if total:  # all of them fit at the same time
        assert asked + with_cpu * cpu.num_actors * cpu.resources.num_cpus <= total
