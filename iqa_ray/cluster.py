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

from iqa_ray.capacity import Resources
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
class ShardFailure:
    """A shard that was given up: which of which pool, and the reason."""

    pool: int
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
    if asked is None:
        check_room(resources)
    room = sum(room_on(node, resources) for node in list_nodes())
    return max(1, min(asked or room, num_shards))


def check_room(resources: Resources) -> None:
    """Make sure that a lone machine has room for one actor; more nodes may bring more.

    Raises:
        IncompleteError: it has not.
    """
    nodes = list_nodes()
    if len(nodes) == 1 and not room_on(nodes[0], resources):
        have = f"{nodes[0].get('CPU', 0):g} CPUs and {nodes[0].get('GPU', 0):g} GPUs"
        raise IncompleteError(
            f"an actor needs {resources.num_cpus:g} CPUs and {resources.num_gpus:g} GPUs, but this "
            f"machine has {have}; where an autoscaler brings more, say how many with --num-actors"
        )


def list_nodes() -> list[dict[str, float]]:
    """The resources of each node that is up."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def count_gpus() -> float:
    """GPUs of the cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def plan_single_worker() -> Resources:
    """What one worker may ask for and be sure of a place: as many CPUs as it can have, and a GPU.

    Without GPUs that is an even share of the free CPUs, since some node has at least as many free;
    with them, a GPU and its even share of its node's CPUs. PyTorch takes a thread a CPU.
    """
    nodes = list_nodes()
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if with_gpu:
        share = min(node.get("CPU", 0) / node["GPU"] for node in with_gpu)
    else:
        num_nodes = sum(node.get("CPU", 0) > 0 for node in nodes)
        share = ray.available_resources().get("CPU", 0) / max(num_nodes, 1)
    return Resources(num_cpus=float(max(1, int(share))), num_gpus=1.0 if with_gpu else 0.0)


def list_nodes_with_room(resources: Resources) -> list[str]:
    """The ids of those nodes that could hold an actor with such resources."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [node["NodeID"] for node in nodes if room_on(node["Resources"], resources)]


def room_on(node: dict[str, float], resources: Resources) -> int:
    """How many actors with such resources a node with these has room for."""
    limits = [
        node.get(name, 0.0) / need
        for name, need in (("CPU", resources.num_cpus), ("GPU", resources.num_gpus))
        if need > 0
    ]
    return int(min(limits, default=1) + 1e-9)


@dataclass(frozen=True)
class Pool(Generic[ShardT, SummaryT]):
    """Shards and the actors that do them.

    Args:
        make_worker: called once in each actor; makes the callable that does a shard.
        shards: each is sent to one actor at a time.
        num_actors: how many at most; shards flow to whichever are up.
        resources: what each actor asks of Ray.
    """

    make_worker: Callable[[], Callable[[ShardT], SummaryT]]
    shards: Sequence[ShardT]
    num_actors: int
    resources: Resources


def run_shards(
    pools: Sequence[Pool[Any, SummaryT]], on_done: Callable[[int, int, SummaryT], None]
) -> list[ShardFailure]:
    """Run every shard of every pool, the pools side by side; returns the shards given up.

    Args:
        pools: each with shards and actors of its own.
        on_done: told of each finished shard: index of its pool, its own index there, and the
            worker's summary.

    A shard whose actor or node dies is tried again elsewhere, MAX_TRIES times in all; a shard
    whose worker raises is not, since it would raise again.

    Raises:
        IncompleteError: no actor could be started.
        UsageError: what a worker raised while it was made, if that.
    """
    crews = [_Crew(index, pool) for index, pool in enumerate(pools)]
    run = _Run(crews, on_done)
    try:
        run.run()
    finally:
        for crew in crews:
            crew.dismiss()
    return run.failures


class _Worker:
    """The actor: makes the worker once and does shards with it."""

    def __init__(self, make_worker: Callable[[], Callable[[Any], Any]]) -> None:
        self._make_worker = make_worker
        self._work: Callable[[Any], Any] | None = None

    def make(self) -> None:
        """Not done in __init__, of whose errors Ray gives only the text."""
        self._work = self._make_worker()

    def run(self, shard: Any) -> Any:
        assert self._work is not None
        return self._work(shard)


@dataclass(eq=False)
class _Member:
    """An actor and the shard that it does; before the first one, its worker is being made.

    One shard at a time: with a second one queued, a death could not be laid at one shard's door.
    `reference` is Ray's to what it is doing; None while it waits for a shard.
    """

    actor: Any
    crew: _Crew
    reference: Any
    is_up: bool = False
    shard: int | None = None


class _Crew:
    """A pool at work: its actors, and the shards that wait."""

    def __init__(self, index: int, pool: Pool[Any, Any]) -> None:
        self.index, self.pool = index, pool
        self.waiting = deque(range(len(pool.shards)))
        self.tries = [0] * len(pool.shards)
        self.members: list[_Member] = []
        self.num_failed_starts = 0
        actor_class: Any = ray.remote(_Worker)
        self._actor_class = actor_class.options(
            num_cpus=pool.resources.num_cpus, num_gpus=pool.resources.num_gpus
        )

    @property
    def is_done(self) -> bool:
        return not self.waiting and all(member.shard is None for member in self.members)

    def hire(self) -> None:
        """Start an actor and have it make its worker."""
        actor = self._actor_class.remote(self.pool.make_worker)
        self.members.append(_Member(actor, self, actor.make.remote()))

    def hand_out(self) -> None:
        """Give a shard to every actor that waits for one."""
        for member in self.members:
            if member.reference is None and self.waiting:
                member.shard = self.waiting.popleft()
                member.reference = member.actor.run.remote(self.pool.shards[member.shard])

    def dismiss(self) -> None:
        """End all actors, so that others get their place."""
        for member in self.members:
            ray.kill(member.actor)
        self.members = []


class _Run:
    def __init__(self, crews: list[_Crew], on_done: Callable[[int, int, Any], None]) -> None:
        self._crews, self._on_done = crews, on_done
        self.failures: list[ShardFailure] = []

    def run(self) -> None:
        for crew in self._crews:
            for _ in range(min(crew.pool.num_actors, len(crew.waiting))):
                crew.hire()
        last_up_s = time.monotonic()
        while at_work := [crew for crew in self._crews if not crew.is_done]:
            for crew in at_work:
                crew.hand_out()
            members = [member for crew in at_work for member in crew.members]
            running = {
                member.reference: member for member in members if member.reference is not None
            }
            finished, _ = ray.wait(list(running), num_returns=1, timeout=_TICK_S)
            for reference in finished:
                self._collect(running[reference])
            for crew in at_work:
                if crew.is_done:
                    crew.dismiss()
            if any(member.is_up for crew in at_work for member in crew.members):
                last_up_s = time.monotonic()
            elif time.monotonic() - last_up_s > START_TIMEOUT_S:
                raise IncompleteError(
                    f"no actor could be placed within {START_TIMEOUT_S:.0f} s: the cluster has no "
                    "room for one"
                )

    def _collect(self, member: _Member) -> None:
        crew, shard, reference = member.crew, member.shard, member.reference
        member.shard = member.reference = None
        try:
            result = ray.get(reference)
        except ray_errors.RayTaskError as error:
            if shard is not None:
                self.failures.append(
                    ShardFailure(crew.index, shard, one_line(error.cause or error))
                )
            elif isinstance(error.cause, UsageError):
                raise error.cause from None
            else:
                self._replace(member, None, one_line(error.cause or error))
        except ray_errors.RayError as error:
            self._replace(member, shard, _last_line(error))
        else:
            if shard is None:
                member.is_up = True
                crew.num_failed_starts = 0
            else:
                self._on_done(crew.index, shard, result)

    def _replace(self, member: _Member, shard: int | None, reason: str) -> None:
        """Start another actor in place of a dead one, and try its shard again or give it up."""
        crew = member.crew
        crew.members.remove(member)
        ray.kill(member.actor)  # it may only have been out of reach
        if not member.is_up:
            crew.num_failed_starts += 1
            if crew.num_failed_starts >= MAX_TRIES:
                raise IncompleteError(f"actors cannot be started: {reason}")
        if shard is not None:
            crew.tries[shard] += 1
            if crew.tries[shard] < MAX_TRIES:
                crew.waiting.append(shard)
            else:
                reason = f"its actor died on each of {MAX_TRIES} tries: {reason}"
                self.failures.append(ShardFailure(crew.index, shard, reason))
        log(f"an actor was lost and is being replaced: {reason}")
        crew.hire()


def _last_line(error: BaseException) -> str:
    """The line of a Ray error that says what happened: its text is a trace and many notes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "Error:" in line or "died" in line.lower()]
    return one_line(causes[-1] if causes else (lines[0] if lines else type(error).__name__))
