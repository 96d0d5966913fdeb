"""Work done ahead on threads, its results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def run_ahead(
    work: Callable[[ItemT], ResultT], items: Iterable[ItemT], num_threads: int, num_ahead: int
) -> Iterator[ResultT]:
    """Give `work(item)` of each item in order, up to `num_ahead` of them begun before their turn.

    What `work` raises is raised at its item's turn; work that nobody waits for any more is not
    begun.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        running: deque[Future[ResultT]] = deque()
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) > num_ahead:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
