"""Ray: connecting, capacity, and spreading shards over a pool of actors that may die.

`run_shards` is the one place where work is handed out. It knows nothing of images: a worker is
any callable that takes a shard and returns a small summary. We hand shards out ourselves rather
than through Ray Data, which ends the run on a shard that keeps killing its actor or, told to bear
errors, drops it without saying which and why. Here such a shard is tried a finite number of times
and named with its reason, and the others are finished.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray import exceptions as ray_errors

from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.files import one_line
from iqa_ray.progress import log

ShardT = TypeVar("ShardT")
SummaryT = TypeVar("SummaryT")

MAX_TRIES = 3
# how long a pool may be without any running actor before the run gives up
START_TIMEOUT_S = 600.0
_ANSWER_TIMEOUT_S = 10.0
_TICK_S = 1.0


@dataclass(frozen=True)
class Resources:
    """What one actor asks of Ray."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0


@dataclass(frozen=True)
class ShardFailure:
    """A shard that was given up: its index and the reason."""

    index: int
    reason: str


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
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_room_on(node, resources) for node in alive)
    if room == 0 and len(alive) == 1 and asked is None:
        have = f"{alive[0].get('CPU', 0):g} CPUs and {alive[0].get('GPU', 0):g} GPUs"
        raise IncompleteError(
            f"an actor needs {resources.num_cpus:g} CPUs and {resources.num_gpus:g} GPUs, but this "
            f"machine has {have}; where an autoscaler brings more, say how many with --num-actors"
        )
    return max(1, min(asked or room, num_shards))


def count_gpus() -> float:
    """GPUs of the cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def plan_single_worker() -> Resources:
    """What one worker may ask for and be sure of a place: as many CPUs as it can have, and a GPU.

    Without GPUs that is an even share of the free CPUs, since some node has at least as many free;
    with them, a GPU and its even share of its node's CPUs. PyTorch takes a thread a CPU.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if with_gpu:
        share = min(node.get("CPU", 0) / node["GPU"] for node in with_gpu)
    else:
        num_nodes = sum(node.get("CPU", 0) > 0 for node in nodes)
        share = ray.available_resources().get("CPU", 0) / max(num_nodes, 1)
    return Resources(num_cpus=float(max(1, int(share))), num_gpus=1.0 if with_gpu else 0.0)


def _room_on(node: dict[str, float], resources: Resources) -> int:
    limits = [
        node.get(name, 0.0) / need
        for name, need in (("CPU", resources.num_cpus), ("GPU", resources.num_gpus))
        if need > 0
    ]
    return int(min(limits, default=1) + 1e-9)


def run_shards(
    make_worker: Callable[[], Callable[[ShardT], SummaryT]],
    shards: Sequence[ShardT],
    num_actors: int,
    resources: Resources,
    on_done: Callable[[int, SummaryT], None],
) -> list[ShardFailure]:
    """Run every shard on a pool of actors and return those that were given up.

    Args:
        make_worker: called once in each actor; makes the callable that does a shard.
        shards: each is sent to one actor at a time.
        num_actors: size of the pool; shards flow to whichever actors are up.
        resources: what each actor asks of Ray.
        on_done: told of each finished shard: its index and the worker's summary.

    A shard whose actor or node dies is tried again elsewhere, MAX_TRIES times in all; a shard
    whose worker raises is not, since it would raise again.

    Raises:
        IncompleteError: no actor could be started.
    """
    pool = _Pool(make_worker, shards, resources, on_done)
    try:
        pool.run(num_actors)
    finally:
        pool.close()
    return pool.failures


class _Worker:
    """The actor: makes the worker once and does shards with it."""

    def __init__(self, make_worker: Callable[[], Callable[[Any], Any]]) -> None:
        self._work = make_worker()

    def ready(self) -> None:
        """Answers once the worker is made."""

    def run(self, shard: Any) -> Any:
        return self._work(shard)


@dataclass
class _Member:
    """An actor of the pool and the shard that it does.

    One at a time: with a second one queued, a death could not be laid at one shard's door.
    """

    actor: Any
    is_up: bool = False
    shard: int | None = None


class _Pool(Generic[ShardT, SummaryT]):
    def __init__(
        self,
        make_worker: Callable[[], Callable[[ShardT], SummaryT]],
        shards: Sequence[ShardT],
        resources: Resources,
        on_done: Callable[[int, SummaryT], None],
    ) -> None:
        self._make_worker = make_worker
        self._shards = shards
        self._on_done = on_done
        self._actor_class = ray.remote(_Worker).options(
            num_cpus=resources.num_cpus, num_gpus=resources.num_gpus
        )
        self._waiting = deque(range(len(shards)))
        self._tries = [0] * len(shards)
        self._members: list[_Member] = []
        # a reference is either a member's start (no shard index) or one of its shards
        self._running: dict[Any, tuple[_Member, int | None]] = {}
        self._num_failed_starts = 0
        self.failures: list[ShardFailure] = []

    def run(self, num_actors: int) -> None:
        for _ in range(num_actors):
            self._start_member()
        last_up_s = time.monotonic()
        while self._waiting or any(index is not None for _, index in self._running.values()):
            self._hand_out()
            finished, _ = ray.wait(list(self._running), num_returns=1, timeout=_TICK_S)
            for reference in finished:
                self._collect(reference)
            if any(member.is_up for member in self._members):
                last_up_s = time.monotonic()
            elif time.monotonic() - last_up_s > START_TIMEOUT_S:
                raise IncompleteError(
                    f"no actor could be placed within {START_TIMEOUT_S:.0f} s: the cluster has no "
                    "room for one"
                )

    def close(self) -> None:
        for member in self._members:
            ray.kill(member.actor)

    def _start_member(self) -> None:
        member = _Member(self._actor_class.remote(self._make_worker))
        self._members.append(member)
        self._running[member.actor.ready.remote()] = (member, None)

    def _hand_out(self) -> None:
        for member in self._members:
            if member.is_up and member.shard is None and self._waiting:
                member.shard = self._waiting.popleft()
                reference = member.actor.run.remote(self._shards[member.shard])
                self._running[reference] = (member, member.shard)

    def _collect(self, reference: Any) -> None:
        if reference not in self._running:  # its actor died, so it was handed back already
            return
        member, index = self._running[reference]
        try:
            result = ray.get(reference)
        except ray_errors.RayTaskError as error:
            del self._running[reference]
            self._give_up(member, index, one_line(error.cause or error))
        except ray_errors.RayError as error:
            self._lose_member(member, error)
        else:
            del self._running[reference]
            if index is None:
                member.is_up = True
                self._num_failed_starts = 0
            else:
                member.shard = None
                self._on_done(index, result)

    def _give_up(self, member: _Member, index: int | None, reason: str) -> None:
        assert index is not None, "an actor's ready() cannot raise"
        member.shard = None
        self.failures.append(ShardFailure(index, reason))

    def _lose_member(self, member: _Member, error: ray_errors.RayError) -> None:
        """Replace a dead actor, and try its shard again or give it up."""
        self._members.remove(member)
        ray.kill(member.actor)  # it may only have been out of reach
        for reference in [r for r, (owner, _) in self._running.items() if owner is member]:
            del self._running[reference]
        if not member.is_up:
            self._num_failed_starts += 1
            if self._num_failed_starts >= MAX_TRIES:
                raise IncompleteError(f"actors cannot be started: {_last_line(error)}")
        if member.shard is not None:
            self._tries[member.shard] += 1
            if self._tries[member.shard] < MAX_TRIES:
                self._waiting.append(member.shard)
            else:
                reason = f"its actor died on each of {MAX_TRIES} tries: {_last_line(error)}"
                self.failures.append(ShardFailure(member.shard, reason))
        log(f"an actor was lost and is being replaced: {_last_line(error)}")
        self._start_member()


def _last_line(error: BaseException) -> str:
    """The line of a Ray error that says what happened: its text is a trace and many notes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "Error:" in line or "died" in line.lower()]
    return one_line(causes[-1] if causes else (lines[0] if lines else type(error).__name__))
