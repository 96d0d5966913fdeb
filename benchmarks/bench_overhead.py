"""What Ray costs: the same scorer over the same shards in bare processes and under Ray.

    python -m benchmarks.bench_overhead --images DIR --seconds 60 --rounds 3

The images of DIR (synthetic ones of 348x348 px without it) are linked under as many names as make
a bare run last `--seconds`, found by a short run first, and cut into shards of 512 for
lapv,lapm,wavs. Both sides run the package's `ShardScorer`, which reads, scores and writes parts
into an empty workspace, and each worker has scored a few images before its clock starts.

  bare   one plain process an actor, each with all shards in its hands; the next shard, by a counter
         that they share, goes to whoever asks, so that a core which others slow down gets fewer, as
         under Ray. Timed from the word to begin until the last process says that it is done. Ray
         is down meanwhile.
  ray    `iqa_ray.cluster.pools.run_shards` with Ray already up. Timed from the beginning of the
         first shard until the driver knows of the last one; where an actor comes up later than the
         first, that counts against Ray. `ray_with_actors_start` is the whole call: starting the
         actors, warming them up and ending them too. `ray_with_its_start` adds starting and ending
         Ray itself.

Not timed: imports, linking and listing the images, cutting shards. Rounds alternate; lost is
1 - bare/ray, for each round and of the medians.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from statistics import median
from time import monotonic
from typing import Any

from benchmarks.images import LinkedImages, open_source
from benchmarks.report import make_parser, print_result, summarise
from benchmarks.runs import METRICS, SHARD_SIZE, cut_shards, make_scorer
from iqa_ray.cluster import connection
from iqa_ray.cluster.capacity import Resources
from iqa_ray.cluster.pools import Pool, run_shards
from iqa_ray.progress import log
from iqa_ray.scoring.cpu_scorer import Shard

MakeWorker = Callable[[], Callable[[Shard], dict[str, Any]]]

CALIBRATION_SHARDS = 4  # for each process


def make_warm_scorer(workspace: str, warm_up: Shard) -> Callable[[Shard], dict[str, Any]]:
    """A scorer that has worked already; it says when it began a shard, by the machine's clock."""
    make_scorer(f"{workspace}/warm-up")(warm_up)
    work = make_scorer(f"{workspace}/measured")

    def score(shard: Shard) -> dict[str, Any]:
        start_s = monotonic()
        return {**work(shard), "start_s": start_s}

    return score


def work_bare(make: MakeWorker, shards: list[Shard], next_shard: Any, parent: Connection) -> None:
    """Do shards until the counter that the processes share is past the last one."""
    work = make()
    parent.send("ready")
    parent.recv()
    num_done = 0
    while (index := take_next(next_shard)) < len(shards):
        num_done += work(shards[index])["num_images"]
    parent.send(num_done)


def take_next(counter: Any) -> int:
    with counter.get_lock():
        counter.value += 1
        return int(counter.value) - 1


def time_bare(make: MakeWorker, shards: list[Shard], num_processes: int) -> float:
    spawn = multiprocessing.get_context("spawn")
    next_shard = spawn.Value("l", 0)
    pipes, processes = [], []
    for _ in range(num_processes):
        pipe, far_end = spawn.Pipe()
        process = spawn.Process(target=work_bare, args=(make, shards, next_shard, far_end))
        process.start()
        far_end.close()  # so that a process that dies ends the wait for its word
        pipes.append(pipe)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    start = monotonic()
    for pipe in pipes:
        pipe.send("begin")
    num_done = sum(pipe.recv() for pipe in pipes)
    seconds = monotonic() - start
    for process in processes:
        process.join()
    assert num_done == count_images(shards)
    return seconds


def time_ray(make: MakeWorker, shards: list[Shard], num_actors: int) -> dict[str, float]:
    """Seconds of the shards alone, of the whole call, and of that with starting and ending Ray."""
    done: list[tuple[dict[str, Any], float]] = []
    ray_start = monotonic()
    with connection.connect(None):
        start = monotonic()
        failures = run_shards(
            [Pool(make, shards, num_actors, Resources())],
            lambda _, __, summary: done.append((summary, monotonic())),
        )
        end = monotonic()
    ray_end = monotonic()
    assert not failures
    assert sum(summary["num_images"] for summary, _ in done) == count_images(shards)
    first_start = min(summary["start_s"] for summary, _ in done)
    last_end = max(done_s for _, done_s in done)
    return {
        "ray": last_end - first_start,
        "ray_with_actors_start": end - start,
        "ray_with_its_start": ray_end - ray_start,
    }


def count_images(shards: list[Shard]) -> int:
    return sum(shard.images.num_rows for shard in shards)


def link_enough(source: LinkedImages, seconds: float, num_workers: int) -> list[Shard]:
    """As many whole shards a worker as bare processes do in `seconds`."""
    shards = cut_shards(source.link(CALIBRATION_SHARDS * num_workers * SHARD_SIZE))
    shard_s = in_new_workspace(time_bare, source, shards, num_workers) / CALIBRATION_SHARDS
    num_shards = max(1, round(seconds / shard_s))
    return cut_shards(source.link(num_shards * num_workers * SHARD_SIZE))


def in_new_workspace(
    time_side: Callable[..., Any], source: LinkedImages, shards: list[Shard], num_workers: int
) -> Any:
    warm_up = Shard(shards[0].images.slice(0, 32), METRICS, shards[0].fingerprints[:32])
    with tempfile.TemporaryDirectory(dir=source.folder) as workspace:
        return time_side(partial(make_warm_scorer, workspace, warm_up), shards, num_workers)


def measure(
    source: LinkedImages, seconds: float, num_rounds: int, num_workers: int
) -> dict[str, Any]:
    shards = link_enough(source, seconds, num_workers)
    num_images = count_images(shards)
    bare_s: list[float] = []
    ray_s: list[dict[str, float]] = []
    for number in range(1, num_rounds + 1):
        log(f"round {number} of {num_rounds}: {num_images:,} images")
        bare_s.append(in_new_workspace(time_bare, source, shards, num_workers))
        ray_s.append(in_new_workspace(time_ray, source, shards, num_workers))
    return {
        "topic": "overhead",
        "metrics": METRICS,
        "source": source.name,
        "num_workers": num_workers,
        "num_shards": len(shards),
        "rounds": num_rounds,
        "bare": summarise(bare_s, num_images),
        **{
            side: compare(bare_s, [seconds[side] for seconds in ray_s], num_images)
            for side in ray_s[0]
        },
    }


def compare(bare_s: list[float], ray_s: list[float], num_images: int) -> dict[str, Any]:
    pairs = zip(bare_s, ray_s, strict=True)
    return {
        **summarise(ray_s, num_images),
        "lost_in_rounds": [round(1 - bare / ray, 4) for bare, ray in pairs],
        "lost": round(1 - median(bare_s) / median(ray_s), 4),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", help="folder of images (default: synthetic ones)")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-actors", type=int, default=2)
    arguments = parser.parse_args()
    with open_source(arguments.images, image_size=348) as source:
        print_result(measure(source, arguments.seconds, arguments.rounds, arguments.num_actors))


if __name__ == "__main__":
    main()
