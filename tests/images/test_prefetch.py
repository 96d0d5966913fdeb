from __future__ import annotations

import threading
import time

import pytest

from iqa_ray.images.prefetch import run_ahead


def test_results_come_in_order():
    def work(item):
        time.sleep(0.01 * (item % 3))
        return item * item

    assert list(run_ahead(work, range(20), 4, 8)) == [item * item for item in range(20)]
    assert list(run_ahead(work, [], 4, 8)) == []


def test_no_more_is_begun_than_asked_for():
    begun = []
    results = run_ahead(begun.append, range(100), 2, 5)
    next(results)
    time.sleep(0.1)
    assert len(begun) <= 7
    results.close()
    assert len(begun) < 100


def test_work_overlaps():
    barrier = threading.Barrier(3, timeout=10)  # three at once, or it breaks
    assert list(run_ahead(lambda _: barrier.wait() >= 0, range(3), 3, 3)) == [True] * 3


def test_errors_come_at_their_turn():
    def work(item):
        if item == 2:
            raise OSError("gone")
        return item

    results = run_ahead(work, range(5), 2, 4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        next(results)
