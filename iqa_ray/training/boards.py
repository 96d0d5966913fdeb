"""An actor between workers and driver. PyTorch is not needed here, so the actor starts quickly."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_POLL_S = 0.5


class _Board:
    """Keeps what workers say for the driver, and hands runs out to them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._waiting = deque(keys)
        self._in_hand: dict[int, str] = {}
        self._events: list[dict[str, Any]] = []

    def post(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def take_events(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    def take_run(self, rank: int) -> str | None:
        """The next run for a worker, which is done with its last; None if none waits."""
        self._in_hand.pop(rank, None)
        if not self._waiting:
            return None
        key = self._in_hand[rank] = self._waiting.popleft()
        self._events.append({"started": key})
        return key

    def list_in_hand(self) -> dict[int, str]:
        """The run of each worker."""
        return self._in_hand


@contextmanager
def listen(on_event: Callable[[dict[str, Any]], None], keys: Sequence[str] = ()) -> Iterator[Any]:
    """Pass on what workers post to the board that this gives; Ray Train itself carries nothing.

    `keys` are the runs that the board hands out. It is ended at the end.
    """
    actor: Any = ray.remote(_Board)
    # where the driver is, so that no other node takes it along
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board = actor.options(num_cpus=0, scheduling_strategy=here).remote(list(keys))
    stop = threading.Event()

    def relay() -> None:
        while True:
            is_last = stop.wait(_POLL_S)
            for event in ray.get(board.take_events.remote()):
                on_event(event)
            if is_last:
                return

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join(timeout=10)
        ray.kill(board)
