"""Script of test_parallel: train runs on a cluster of its own, one node of which is lost.

python tests/helpers/lose_node.py IMAGES OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ray
from clusters import QUICK_HEALTH_CHECKS
from ray.cluster_utils import Cluster
from trainings import make_material, make_runs

from iqa_ray.cluster.capacity import Resources
from iqa_ray.storage.files import locate
from iqa_ray.training.parallel import plan_parallel_runs, train_runs


def main(images: Path, out: str) -> None:
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK_HEALTH_CHECKS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    # a driver does not outlive its own node
    here = ray.get_runtime_context().get_node_id()
    other = next(node for node in nodes if node.node_id != here)
    lost: list[str] = []
    events = []

    def lose_node(event):
        events.append({name: event[name] for name in ("key", "finished") if name in event})
        if "epoch" in event and event["epoch"]["epoch"] == 2 and not lost:
            lost.append(other.node_id)
            cluster.remove_node(other, allow_graceful=False)

    plan = plan_parallel_runs(None, 1.0)
    assert plan == (Resources(1.0), 2), plan
    failures = train_runs(make_runs(), make_material(images), locate(out), plan, lose_node)
    said = {"lost": lost, "failures": list(map(str, failures)), "events": events}
    Path(out, "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
