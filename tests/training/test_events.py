"""What passes between workers and the driver, and what becomes of workers when that fails."""

from __future__ import annotations

import time

import pytest
import ray

from iqa_ray.errors import IncompleteError
from iqa_ray.training.events import listen, register_worker

pytestmark = pytest.mark.usefixtures("ray_session")
GUARD_S = 60


@ray.remote(num_cpus=0)
class Worker:
    """Posts events for ever, as one in a long training does."""

    def work(self, queue):
        register_worker(queue)
        while True:
            queue.post.remote({"epoch": 1})
            time.sleep(0.05)


def test_what_is_posted_last_is_passed_on_too():
    events = []
    with listen(events.append) as queue:
        for number in range(100):
            queue.post.remote({"epoch": number})
        ray.get(queue.take_run.remote(0))
    assert events == [{"epoch": number} for number in range(100)]


def test_an_error_of_the_driver_s_callback_ends_the_workers_and_is_raised():
    """Also one that comes when the other is dead already."""

    def fail(queue, event):
        seen.append(event)
        raise OSError(28, "No space left on device")

    seen: list[dict] = []
    with pytest.raises(OSError, match="No space left"):
        work(fail, num_workers=2)
    assert seen == [{"epoch": 1}]


def test_a_worker_does_not_go_on_when_the_event_queue_is_lost():
    with pytest.raises(IncompleteError, match="run the same command again"):
        work(lambda queue, event: ray.kill(queue), num_workers=1)


def work(on_event, num_workers):
    """Let workers work, one after another; raises as Ray does for a group that loses one."""
    with listen(lambda event: on_event(queue, event)) as queue:
        for _ in range(num_workers):
            worker = Worker.remote()
            with pytest.raises(ray.exceptions.ActorDiedError):
                ray.get(worker.work.remote(queue), timeout=GUARD_S)
        raise RuntimeError("a worker was lost")
