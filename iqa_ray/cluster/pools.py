"""Spreading shards over pools of actors that may die.

`run_shards` is the one place where work is handed out. It knows nothing of images: a worker is
any callable that takes a shard and returns a small summary. We hand shards out ourselves rather
than through Ray Data, which ends the run on a shard that keeps killing its actor or, if told to
tolerate errors, drops it without saying which and why. Here such a shard is tried a finite number
of times and named with its reason, and the others are finished.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray import exceptions as ray_errors

from iqa_ray.cluster.capacity import Resources
from iqa_ray.cluster.connection import MAX_TRIES
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.progress import log
from iqa_ray.storage.files import one_line

ShardT = TypeVar("ShardT")
SummaryT = TypeVar("SummaryT")

# how long a pool may be without any running actor before the run gives up
START_TIMEOUT_S = 600.0
_TICK_S = 1.0


@dataclass(frozen=True)
class ShardFailure:
    """A shard that was given up: which of which pool, and the reason."""

    pool: int
    index: int
    reason: str


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

    A shard whose actor or node dies is tried again elsewhere, MAX_TRIES times in all; so is one
    that ran out of memory, when nothing else of its pool runs. A shard whose worker raises
    anything else is not, since it would raise again.

    Raises:
        IncompleteError: no actor could be started.
        UsageError: what a worker raised while it was made, if that.
    """
    actor_pools = [_ActorPool(index, pool) for index, pool in enumerate(pools)]
    run = _Run(actor_pools, on_done)
    try:
        run.run()
    finally:
        for actor_pool in actor_pools:
            actor_pool.end_all()
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
class _Actor:
    """An actor and the shard that it does; before the first one, its worker is being made.

    One shard at a time: with a second one queued, nothing would tell which of them killed it.
    `reference` is Ray's to what it is doing; None while it waits for a shard.
    """

    handle: Any
    pool: _ActorPool
    reference: Any
    is_up: bool = False
    shard: int | None = None


class _ActorPool:
    """A pool at work: its actors, and the shards that wait."""

    def __init__(self, index: int, plan: Pool[Any, Any]) -> None:
        self.index, self.plan = index, plan
        self.waiting = deque(range(len(plan.shards)))
        # Shards whose actor ran out of memory. Ray may have ended it for a neighbour's use, since
        # it ends several at once. These are tried one at a time: each then has the most room, and
        # one that needs too much ends no others.
        self.waiting_alone: deque[int] = deque()
        self.tries = [0] * len(plan.shards)
        self.actors: list[_Actor] = []
        self.num_failed_starts = 0
        actor_class: Any = ray.remote(_Worker)
        self._actor_class = actor_class.options(
            num_cpus=plan.resources.num_cpus,
            num_gpus=plan.resources.num_gpus,
            resources=dict(plan.resources.placement.amounts),
            label_selector=dict(plan.resources.placement.labels),
        )

    @property
    def is_done(self) -> bool:
        return not self.waiting and not self.waiting_alone and not self._num_busy

    @property
    def _num_busy(self) -> int:
        return sum(actor.shard is not None for actor in self.actors)

    @property
    def _num_open(self) -> int:
        """Shards that may be begun now."""
        return len(self.waiting) or int(bool(self.waiting_alone) and not self._num_busy)

    def hand_out(self) -> None:
        """Give a shard to every actor that waits for one, and have as many actors as are needed.

        An actor without a shard is ended: it would keep others from its place, and if it died
        unnoticed, the shard that it is given later would be blamed.
        """
        for actor in list(self.actors):
            if actor.reference is not None:
                continue
            if self._num_open:
                actor.shard = (self.waiting or self.waiting_alone).popleft()
                actor.reference = actor.handle.run.remote(self.plan.shards[actor.shard])
            else:
                self.end(actor)
        while len(self.actors) < min(self.plan.num_actors, self._num_busy + self._num_open):
            handle = self._actor_class.remote(self.plan.make_worker)
            self.actors.append(_Actor(handle, self, handle.make.remote()))

    def end(self, actor: _Actor) -> None:
        """End an actor, so that others get its place."""
        self.actors.remove(actor)
        ray.kill(actor.handle)

    def end_all(self) -> None:
        for actor in list(self.actors):
            self.end(actor)


class _Run:
    def __init__(self, pools: list[_ActorPool], on_done: Callable[[int, int, Any], None]) -> None:
        self._pools, self._on_done = pools, on_done
        self.failures: list[ShardFailure] = []

    def run(self) -> None:
        last_up_s = time.monotonic()
        while at_work := [pool for pool in self._pools if not pool.is_done]:
            for pool in at_work:
                pool.hand_out()
            actors = [actor for pool in at_work for actor in pool.actors]
            running = {actor.reference: actor for actor in actors if actor.reference is not None}
            finished, _ = ray.wait(list(running), num_returns=1, timeout=_TICK_S)
            for reference in finished:
                self._collect(running[reference])
            for pool in at_work:
                if pool.is_done:
                    pool.end_all()
            if any(actor.is_up for pool in at_work for actor in pool.actors):
                last_up_s = time.monotonic()
            elif time.monotonic() - last_up_s > START_TIMEOUT_S:
                needs = " or ".join(str(pool.plan.resources) for pool in at_work)
                raise IncompleteError(
                    f"no actor could be placed within {START_TIMEOUT_S:.0f} s: the cluster has no "
                    f"room for one, which needs {needs}"
                )

    def _collect(self, actor: _Actor) -> None:
        pool, shard, reference = actor.pool, actor.shard, actor.reference
        actor.shard = actor.reference = None
        try:
            result = ray.get(reference)
        except ray_errors.RayTaskError as error:
            cause = error.cause or error
            if isinstance(cause, MemoryError):
                self._replace(actor, shard, f"not enough memory: {one_line(cause)}", True)
            elif shard is not None:
                self.failures.append(ShardFailure(pool.index, shard, one_line(cause)))
            elif isinstance(cause, UsageError):
                raise cause from None
            else:
                self._replace(actor, None, one_line(cause))
        except ray_errors.RayError as error:
            is_memory = isinstance(error, ray_errors.OutOfMemoryError)
            self._replace(actor, shard, _describe_death(error), is_memory)
        else:
            if shard is None:
                actor.is_up = True
                pool.num_failed_starts = 0
            else:
                self._on_done(pool.index, shard, result)

    def _replace(
        self, actor: _Actor, shard: int | None, reason: str, is_memory: bool = False
    ) -> None:
        """Make room for another actor, and try the lost one's shard again or give it up."""
        pool = actor.pool
        pool.end(actor)  # it may only have been out of reach
        if not actor.is_up:
            pool.num_failed_starts += 1
            if pool.num_failed_starts >= MAX_TRIES:
                raise IncompleteError(f"actors cannot be started: {reason}")
        if shard is not None:
            pool.tries[shard] += 1
            if pool.tries[shard] >= MAX_TRIES:
                reason = f"its actor died on each of {MAX_TRIES} tries: {reason}"
                self.failures.append(ShardFailure(pool.index, shard, reason))
            elif is_memory:
                pool.waiting_alone.append(shard)
            else:
                pool.waiting.append(shard)
        log(f"an actor was lost: {reason}")


def _describe_death(error: BaseException) -> str:
    """What a Ray error says happened, on one line: its text is a trace and many notes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ray_errors.OutOfMemoryError):
        causes = [line for line in lines if line.startswith("OOM kill reason:")]
        reason = causes[0].partition(":")[2].strip() if causes else lines[0]
        return one_line(f"ended by Ray, since its node ran short of memory: {reason}")
    if any("OOM killer" in line for line in lines):  # one of three guesses of Ray's
        return "its process was killed, as the system does when memory runs out, or crashed"
    causes = [line for line in lines if "Error:" in line or "died" in line.lower()]
    return one_line(causes[-1] if causes else (lines[0] if lines else type(error).__name__))
