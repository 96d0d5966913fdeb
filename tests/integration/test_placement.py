"""What is planned for a cluster of several nodes is what Ray finds places for there."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest


def score_on_two_nodes(photos: str, weights: str, folder: Path) -> dict[str, Any]:
    """In a process of its own: on which nodes a deep metric's shards were done, for each choice.

    The first node has nothing special; the second a custom resource and a label.
    """
    import ray
    from ray.cluster_utils import Cluster

    from iqa_ray.cluster import pools
    from iqa_ray.config import make_job
    from iqa_ray.errors import IncompleteError
    from iqa_ray.scoring import spreading
    from iqa_ray.scoring.jobs import run_score
    from iqa_ray.scoring.settings import ScoreJob

    class NotingScorer(spreading.DeepShardScorer):
        notes: str

        def __call__(self, shard: Any) -> dict[str, Any]:
            with open(self.notes, "a") as file:
                file.write(ray.get_runtime_context().get_node_id() + "\n")
            return super().__call__(shard)

    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False},
    )
    nodes.add_node(num_cpus=2, resources={"scorer": 1}, labels={"zone": "a"})
    ray.init(address=nodes.address, logging_level="warning", log_to_driver=False)
    names = {node["NodeID"]: node["Labels"].get("zone", "head") for node in ray.nodes()}
    spreading.DeepShardScorer = NotingScorer  # type: ignore[misc]
    job = {"images": photos, "metrics": ("lapm", "cnniqa"), "weights": weights, "shard_size": 2}
    found: dict[str, Any] = {}
    for resources in ({"scorer": 1}, {"zone": "!a"}):
        name = next(iter(resources))
        NotingScorer.notes = str(folder / name)
        given = {**job, "workspace": str(folder / f"ws-{name}"), "resources": resources}
        summary = run_score(make_job(ScoreJob, given))
        done = (folder / name).read_text().split()
        found[name] = [summary["num_scored"], summary["num_failed"], [names[node] for node in done]]
    pools.START_TIMEOUT_S = 3.0
    nowhere = {**job, "workspace": str(folder / "ws-nowhere"), "resources": {"zone": "b"}}
    try:
        run_score(make_job(ScoreJob, {**nowhere, "metrics": ("cnniqa",)}))
    except IncompleteError as error:
        found["nowhere"] = str(error)
    ray.shutdown()
    nodes.shutdown()
    return found


def place_on_cards() -> dict[str, Any]:
    """In a process of its own: how many of the planned workers and actors get their GPUs at once.

    There are two nodes with two cards each, and one with a card and no CPU.
    """
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.placement_group import placement_group, remove_placement_group

    from iqa_ray.cluster.capacity import Placement, share_nodes
    from iqa_ray.cluster.connection import list_nodes
    from iqa_ray.training.parallel import plan_parallel_runs

    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "num_gpus": 2, "include_dashboard": False},
    )
    nodes.add_node(num_cpus=4, num_gpus=2)
    nodes.add_node(num_cpus=0, num_gpus=1)
    ray.init(address=nodes.address, logging_level="warning", log_to_driver=False)
    resources, num_parallel = plan_parallel_runs(0.4, 0.5)
    # as Ray Train does
    group = placement_group([{"CPU": 0.5, "GPU": resources.num_gpus}] * num_parallel)
    found: dict[str, Any] = {"runs": num_parallel, "all start": group.wait(30)}
    remove_placement_group(group)

    class Model:
        def run(self) -> bool:
            return True

    for num_models in (5, 10):
        up = list_nodes()
        _, plan = share_nodes(up, up, num_models, True, 1.0, None, Placement())
        asked = {"num_cpus": plan.resources.num_cpus, "num_gpus": plan.resources.num_gpus}
        make: Any = ray.remote(Model)
        actors = [make.options(**asked).remote() for _ in range(num_models * plan.num_actors)]
        ready, _ = ray.wait(
            [actor.run.remote() for actor in actors], num_returns=len(actors), timeout=60
        )
        found[str(num_models)] = [len(actors), len(ready)]
        for actor in actors:
            ray.kill(actor)
    ray.shutdown()
    nodes.shutdown()
    return found


def place_queues() -> dict[str, Any]:
    """In a process of its own: how many event queues are where the driver is, out of six.

    Two of three nodes were lost a moment ago, and Ray has not noticed.
    """
    import ray
    from clusters import QUICK_HEALTH_CHECKS
    from ray.cluster_utils import Cluster

    from iqa_ray.training.events import listen

    never = {**QUICK_HEALTH_CHECKS, "health_check_failure_threshold": 10_000}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": never}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level="warning", log_to_driver=False)
    here = ray.get_runtime_context().get_node_id()
    for node in nodes:
        cluster.remove_node(node, allow_graceful=False)

    def find_node(queue: Any) -> str:
        return ray.get_runtime_context().get_node_id()

    with ExitStack() as stack:
        queues = [stack.enter_context(listen(lambda event: None)) for _ in range(6)]
        places = ray.get([queue.__ray_call__.remote(find_node) for queue in queues])
    ray.shutdown()
    cluster.shutdown()
    return {"here": places.count(here)}


@pytest.mark.slow
def test_event_queues_are_where_the_driver_is():
    """No other node takes one along, and none has to be there for one to start."""
    result = subprocess.run(
        [sys.executable, __file__, "queues"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {"here": 6}


@pytest.mark.slow
def test_ray_finds_a_card_for_each_actor_that_is_planned():
    result = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found == {"runs": 8, "all start": True, "5": [5, 5], "10": [10, 10]}


@pytest.mark.slow
def test_models_run_where_the_resource_or_the_label_is(image_folder, weights_folder, tmp_path):
    arguments = [str(image_folder(6)), str(weights_folder), str(tmp_path)]
    result = subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "scorer": [6, 0, ["a", "a", "a"]],
        "zone": [6, 0, ["head", "head", "head"]],
        "nowhere": "no actor could be placed within 3 s: the cluster has no room for one, which "
        "needs 1 CPUs and 0 GPUs on a node with zone=b",
    }
    waiting = "no node that is up has room for an actor, which needs 1 CPUs and 0 GPUs on a node"
    assert waiting in result.stderr


if __name__ == "__main__":
    if sys.argv[1:] == ["queues"]:
        print(json.dumps(place_queues()))
    elif sys.argv[1:]:
        print(json.dumps(score_on_two_nodes(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
    else:
        print(json.dumps(place_on_cards()))
