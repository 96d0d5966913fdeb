"""Ray: connecting, and what a cluster has room for."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray._private.state import available_resources_per_node

from iqa_ray.cluster.capacity import Resources, describe_amounts, has_labels, room_on
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.progress import log
from iqa_ray.storage.files import one_line

# tries of a shard or run whose actor, worker or node dies
MAX_TRIES = 3
_ANSWER_TIMEOUT_S = 10.0


@contextmanager
def connect(address: str | None) -> Iterator[None]:
    """Use the Ray that this process already has, the cluster at `address`, or a local one.

    A Ray started or joined here is left again at the end.

    Raises:
        UsageError: no cluster answers at `address`.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's own new default
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    options: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        options |= {"include_dashboard": False, "address": "local"}
    else:
        options["address"] = address
    try:
        if address:
            _check_answer(address)
        ray.init(**options)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"--address {address}: no Ray cluster answers: {one_line(error)}"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_answer(address: str) -> None:
    """Raise OSError unless something listens at `address`; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_TIMEOUT_S).close()


def count_actors(asked: int | None, resources: Resources, num_shards: int) -> int:
    """How many actors to start: `asked`, or as many as the cluster has room for now.

    Raises:
        IncompleteError: none is asked for, and the only machine has room for none.
    """
    if asked is None:
        check_room(resources)
    room = sum(room_on(node, resources) for node in list_nodes(resources.placement.labels))
    return max(1, min(asked or room, num_shards))


def check_room(resources: Resources) -> None:
    """Make sure that a lone machine has room for one actor; more nodes may bring more.

    Raises:
        IncompleteError: it has not.
    """
    if list_nodes_with_room(resources):
        return
    nodes = list_nodes()
    if len(nodes) == 1:
        have = describe_amounts(nodes[0], resources.amounts)
        if not list_nodes(resources.placement.labels):
            have += ", and not this label"
        raise IncompleteError(
            f"an actor needs {resources}, but this machine has {have}; where an autoscaler brings "
            "more, say how many with --num-actors"
        )
    log(f"no node that is up has room for an actor, which needs {resources}: waiting for one")


def list_nodes(labels: Mapping[str, str] | None = None) -> list[dict[str, float]]:
    """The resources of each node that is up and, where selectors are given, has such labels."""
    return [node["Resources"] for node in _find_nodes(labels or {})]


def list_free_nodes() -> list[dict[str, float]]:
    """The free resources of each node that is up."""
    return list(available_resources_per_node().values())


def list_nodes_with_room(resources: Resources) -> list[str]:
    """The ids of those nodes that could hold an actor with such resources."""
    nodes = _find_nodes(resources.placement.labels)
    return [node["NodeID"] for node in nodes if room_on(node["Resources"], resources)]


def _find_nodes(labels: Mapping[str, str]) -> list[dict[str, Any]]:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [node for node in nodes if has_labels(node.get("Labels", {}), labels)]


def count_gpus() -> float:
    """GPUs of the cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def prefer_gpu(resources: Resources) -> Resources:
    """`resources` and a GPU, where a node that is up has room for both."""
    with_gpu = replace(resources, num_gpus=1.0)
    return with_gpu if list_nodes_with_room(with_gpu) else resources


def plan_single_worker() -> Resources:
    """What one worker may ask for and be sure of a place: as many CPUs as it can have, and a GPU.

    Without GPUs that is an even share of the free CPUs, since some node has at least as many free;
    with them, a GPU and its even share of its node's CPUs (of a node that has any). PyTorch takes a
    thread a CPU.
    """
    nodes = list_nodes()
    with_gpu = [node for node in nodes if room_on(node, Resources(1.0, 1.0))]
    if with_gpu:
        share = min(node.get("CPU", 0) / node["GPU"] for node in with_gpu)
    else:
        num_nodes = sum(node.get("CPU", 0) > 0 for node in nodes)
        share = ray.available_resources().get("CPU", 0) / max(num_nodes, 1)
    return Resources(num_cpus=float(max(1, int(share))), num_gpus=1.0 if with_gpu else 0.0)
