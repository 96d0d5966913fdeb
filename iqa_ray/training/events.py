"""The event queue, an actor between workers and driver.

PyTorch is not imported here, so that the actor starts quickly.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from iqa_ray.errors import IncompleteError
from iqa_ray.storage.files import one_line

_POLL_S = 0.5


class _EventQueue:
    """Keeps what workers say for the driver, and hands runs out to them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._waiting = deque(keys)
        self._in_flight: dict[int, str] = {}
        self._events: list[dict[str, Any]] = []

    def post(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def take_events(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    def take_run(self, rank: int) -> str | None:
        """The next run for a worker, which is done with its last; None if none waits."""
        self._in_flight.pop(rank, None)
        if not self._waiting:
            return None
        key = self._in_flight[rank] = self._waiting.popleft()
        self._events.append({"started": key})
        return key

    def list_in_flight(self) -> dict[int, str]:
        """The run of each worker."""
        return self._in_flight


class _Relay(threading.Thread):
    """Passes events on; where that fails, it ends the workers and keeps the error."""

    def __init__(self, queue: Any, on_event: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._queue = queue
        self._on_event = on_event
        self._workers: list[Any] = []

    def run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self.stop.wait(_POLL_S)
            try:
                events = ray.get(self._queue.take_events.remote())
            except ray.exceptions.RayError as error:
                lost = f"the actor that workers report to was lost: {one_line(error)}"
                self._give_up(IncompleteError(f"{lost}; run the same command again to go on"))
                return
            for event in events:
                self._pass_on(event)

    def _pass_on(self, event: dict[str, Any]) -> None:
        if "worker" in event:
            self._workers.append(event["worker"])
            if self.error is not None:
                ray.kill(event["worker"])
        elif self.error is None:
            try:
                self._on_event(event)
            except BaseException as error:  # raised again in the caller's thread
                self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        self.error = self.error or error
        for worker in self._workers:
            ray.kill(worker)


def register_worker(queue: Any) -> None:
    """What each worker calls first, so that the driver can end it."""
    queue.post.remote({"worker": ray.get_runtime_context().current_actor})


@contextmanager
def listen(on_event: Callable[[dict[str, Any]], None], keys: Sequence[str] = ()) -> Iterator[Any]:
    """Pass on what workers post to the event queue that this gives; Ray Train carries nothing.

    `keys` are the runs that the queue hands out. It is ended at the end. `on_event` is called in
    a thread. If it raises, the workers are killed, since their events are no longer read. Their
    group then fails, and the error of `on_event` is raised instead of the group's.

    Raises:
        IncompleteError: the event queue was lost.
    """
    actor: Any = ray.remote(_EventQueue)
    # Where the driver is, so that no other node takes it along. Ray ignores a soft affinity of an
    # actor that asks for no resources, and places it on any node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = actor.options(num_cpus=0, scheduling_strategy=here).remote(list(keys))
    relay = _Relay(queue, on_event)
    relay.start()
    try:
        yield queue
    finally:
        relay.stop.set()
        relay.join()
        ray.kill(queue)
        if relay.error is not None:
            raise relay.error
