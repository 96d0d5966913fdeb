from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from iqa_ray.cluster import connection
from iqa_ray.cluster.capacity import Resources
from iqa_ray.cluster.pools import Pool, run_shards
from iqa_ray.errors import IncompleteError, UsageError

pytestmark = pytest.mark.usefixtures("ray_session")
HALF = Resources(num_cpus=0.5)


def make_doubler():
    return lambda shard: 2 * shard


def run(make_worker, shards, num_actors=2, resources=HALF):
    done: dict[int, object] = {}
    pool = Pool(make_worker, shards, num_actors, resources)
    failures = run_shards([pool], lambda _, index, result: done.__setitem__(index, result))
    return done, failures


def test_every_shard_once():
    done, failures = run(make_doubler, list(range(40)))
    assert done == {n: 2 * n for n in range(40)}
    assert failures == []


def test_no_shards():
    assert run(make_doubler, []) == ({}, [])


def make_raiser():
    def work(shard):
        if shard % 3 == 0:
            raise ValueError(f"shard {shard}\nis bad")
        return shard

    return work


def test_application_errors_are_not_retried_and_the_rest_goes_on():
    done, failures = run(make_raiser, list(range(10)))
    assert sorted(done) == [1, 2, 4, 5, 7, 8]
    assert sorted(failure.index for failure in failures) == [0, 3, 6, 9]
    assert all(failure.reason == f"shard {failure.index} is bad" for failure in failures)


def make_suicidal(folder: Path, deadly: int, num_deaths: int):
    def work(shard):
        with open(folder / f"{shard}", "a") as log:
            log.write("x")
        if shard == deadly and len((folder / f"{shard}").read_text()) <= num_deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return shard

    return work


def test_a_killed_actor_is_replaced_and_its_shard_tried_again(tmp_path):
    done, failures = run(partial(make_suicidal, tmp_path, 5, 2), list(range(12)))
    assert failures == []
    assert sorted(done) == list(range(12))
    assert (tmp_path / "5").read_text() == "xxx"


def test_a_shard_that_always_kills_is_given_up_alone(tmp_path):
    done, failures = run(partial(make_suicidal, tmp_path, 5, 99), list(range(12)))
    assert sorted(done) == [n for n in range(12) if n != 5]
    (failure,) = failures
    assert failure.index == 5
    assert "died on each of 3 tries" in failure.reason
    assert (tmp_path / "5").read_text() == "xxx"


def make_broken():
    raise RuntimeError("no such library")


def test_actors_that_cannot_start_end_the_run():
    with pytest.raises(IncompleteError, match="actors cannot be started: .*no such library"):
        run(make_broken, [1, 2, 3])


def test_a_pool_that_finds_no_room_gives_up(monkeypatch):
    monkeypatch.setattr("iqa_ray.cluster.pools.START_TIMEOUT_S", 2.0)
    start = time.monotonic()
    with pytest.raises(IncompleteError, match="no actor could be placed"):
        run(make_doubler, [1], resources=Resources(num_cpus=64))
    assert time.monotonic() - start < 20


def test_capacity():
    assert connection.count_actors(None, Resources(1.0), 100) == 2
    assert connection.count_actors(None, Resources(0.5), 100) == 4
    assert connection.count_actors(None, Resources(0.5), 3) == 3
    assert connection.count_actors(7, Resources(1.0), 100) == 7
    assert connection.count_actors(5, Resources(3.0), 100) == 5  # an autoscaler may come
    with pytest.raises(IncompleteError, match="needs 3 CPUs and 0 GPUs.*has 2 CPUs"):
        connection.count_actors(None, Resources(3.0), 100)
    with pytest.raises(IncompleteError, match="needs 1 CPUs and 1 GPUs"):
        connection.count_actors(None, Resources(1.0, 1.0), 100)


@pytest.mark.parametrize(
    ("nodes", "free_cpus", "expected"),
    [
        ([{"CPU": 2}], 2, (2, 0)),
        ([{"CPU": 16}], 5.5, (5, 0)),
        ([{"CPU": 16}, {"CPU": 4}], 20, (10, 0)),  # the larger node has at least as many
        ([{"CPU": 16}, {"CPU": 4}], 3, (1, 0)),
        ([{}, {"CPU": 8}], 8, (8, 0)),  # a head without CPUs
        ([{}], 0, (1, 0)),  # an autoscaler may bring one
        ([{"CPU": 64}, {"CPU": 8, "GPU": 2}], 72, (4, 1)),
        ([{"CPU": 8}, {"GPU": 2}], 8, (8, 0)),  # cards without a CPU beside them
    ],
)
def test_a_single_worker_asks_for_what_some_node_has(monkeypatch, nodes, free_cpus, expected):
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    dead = [{"Alive": False, "Resources": {"CPU": 999, "GPU": 9}}]
    monkeypatch.setattr(connection.ray, "nodes", lambda: alive + dead)
    monkeypatch.setattr(connection.ray, "available_resources", lambda: {"CPU": free_cpus})
    room = connection.plan_single_worker()
    assert (room.num_cpus, room.num_gpus) == expected


@pytest.mark.parametrize(
    ("node", "num_gpus"), [({"CPU": 2, "GPU": 1}, 1), ({"CPU": 2}, 0), ({"GPU": 4}, 0)]
)
def test_a_gpu_is_asked_for_where_one_can_be_had(monkeypatch, node, num_gpus):
    nodes = [{"Alive": True, "NodeID": str(n), "Resources": r} for n, r in enumerate([{}, node])]
    monkeypatch.setattr(connection.ray, "nodes", lambda: nodes)
    assert connection.prefer_gpu(Resources(1.0)) == Resources(1.0, num_gpus)


def test_connect_uses_the_ray_that_is_there():
    import ray

    with connection.connect(None):
        assert ray.is_initialized()
    assert ray.is_initialized()


def test_wrong_address():
    import subprocess
    import sys

    code = (
        "from iqa_ray.cluster.connection import connect\n"
        "from iqa_ray.errors import UsageError\n"
        "try:\n"
        "    with connect('127.0.0.1:1'): pass\n"
        "except UsageError as error:\n"
        "    print('caught:', error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert "caught: --address 127.0.0.1:1: no Ray cluster answers" in result.stdout, result.stderr
    assert issubclass(UsageError, ValueError)


def make_waiter(folder: Path, own: str, other: str):
    def work(shard):
        (folder / f"{own}{shard}").touch()
        deadline = time.monotonic() + 60
        while not list(folder.glob(f"{other}*")):
            assert time.monotonic() < deadline, "the other pool does not run"
            time.sleep(0.02)
        return own

    return work


def test_pools_run_side_by_side(tmp_path):
    """Each pool's shards end only when the other pool has begun."""
    done = []
    pools = [
        Pool(partial(make_waiter, tmp_path, "a", "b"), [0, 1, 2], 1, HALF),
        Pool(partial(make_waiter, tmp_path, "b", "a"), [0, 1], 1, HALF),
    ]
    failures = run_shards(pools, lambda *what: done.append(what))
    assert failures == []
    assert sorted(done) == [(0, 0, "a"), (0, 1, "a"), (0, 2, "a"), (1, 0, "b"), (1, 1, "b")]


def test_a_finished_pool_makes_room_for_one_that_waits():
    whole = Resources(num_cpus=2.0)
    pools = [
        Pool(make_doubler, [1, 2], 1, whole),
        Pool(make_doubler, [3], 1, whole),
    ]
    done = []
    assert run_shards(pools, lambda *what: done.append(what)) == []
    assert sorted(done) == [(0, 0, 2), (0, 1, 4), (1, 0, 6)]


def test_a_failure_names_its_pool():
    pools = [
        Pool(make_doubler, [1, 2], 1, HALF),
        Pool(make_raiser, [0, 1], 1, HALF),
    ]
    (failure,) = run_shards(pools, lambda *_: None)
    assert (failure.pool, failure.index) == (1, 0)


def make_unusable():
    raise UsageError("this file is damaged")


def test_what_a_worker_says_while_it_is_made_ends_the_run():
    with pytest.raises(UsageError, match="^this file is damaged$"):
        run(make_unusable, [1, 2])


def make_logger(folder: Path, deadly: int):
    """Works for a while at every shard; one kills its actor once, when no shard is left."""

    def work(shard):
        with open(folder / "pids", "a") as log:
            log.write(f"{os.getpid()}\n")
        if shard == deadly and not (folder / "died").exists():
            (folder / "died").touch()
            time.sleep(1)  # until the other actor has had nothing to do for a while
            os.kill(os.getpid(), signal.SIGKILL)
        return shard

    return work


def test_an_actor_without_a_shard_is_ended(tmp_path):
    """It would keep its place, and its death would be laid at the door of a later shard."""
    done, failures = run(partial(make_logger, tmp_path, 3), [0, 1, 2, 3])
    assert failures == []
    assert sorted(done) == [0, 1, 2, 3]
    pids = (tmp_path / "pids").read_text().split()
    assert pids[-1] not in pids[:-1]  # the last try had an actor of its own
