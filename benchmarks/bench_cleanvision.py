"""Scoring end to end on two cores beside cleanvision's blur check of the same images.

    python -m benchmarks.bench_cleanvision --images DIR --num-images 20000 --rounds 3

The images of DIR (synthetic ones of 348x348 px without it) are linked under many names, so that
after the first round they are read from memory. Timed in every round, in turns:

  cleanvision  `Imagelab(data_path=...)` and `find_issues({"blurry": {}}, n_jobs=...)`: listing and
               one score an image. With n_jobs=1, on one core, over all images. With n_jobs=2 over a
               fifth of them, which is in its favour: it pickles the list of all paths with every
               few images that it hands to a job, so its rate falls as the list grows.
  end_to_end   `iqa_ray.scoring.jobs.run_score` with two actors of one thread each into an empty
               workspace: starting Ray, listing, actors, scores, parts, ending Ray.
  ray_up       the same with Ray started before, and warmed up by one short run.

Ours runs once with lapv,lapm,wavs over all images, and once with all five CPU metrics over a fifth.
Not timed: imports, linking the images, removing the workspace. cleanvision runs in a process of its
own, while Ray is down. Rates are of the median round; `ratio` is our rate over the rate of the
faster of cleanvision's two ways.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.images import LinkedImages, open_source
from benchmarks.machine import find_version
from benchmarks.report import make_parser, print_result, summarise
from benchmarks.runs import METRICS, time_run
from iqa_ray.cluster import connection
from iqa_ray.metrics.spec import CPU_METRICS
from iqa_ray.progress import log
from iqa_ray.scoring.planning import SMALLEST_SHARD

NUM_WORKERS = 2
FEWER = 5


def check_blur(images: str, num_images: int, num_jobs: int) -> float:
    """Seconds of cleanvision's blur check; runs in a process that never knew Ray."""
    # a spawned process would spawn its own, but cleanvision's jobs are to be forked as usual
    multiprocessing.set_start_method(None, force=True)
    with contextlib.redirect_stdout(sys.stderr):
        from cleanvision import Imagelab

        start = perf_counter()
        lab = Imagelab(data_path=images, verbose=False)
        lab.find_issues({"blurry": {}}, n_jobs=num_jobs, verbose=False)
        seconds = perf_counter() - start
    assert lab.issues["blurry_score"].count() == num_images
    return seconds


def time_cleanvision(images: Path, num_images: int, num_jobs: int) -> float:
    spawn = multiprocessing.get_context("spawn")  # Ray's threads do not survive a fork
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(check_blur, str(images), num_images, num_jobs).result()


def measure(source: LinkedImages, num_images: int, num_rounds: int) -> dict[str, Any]:
    num_fewer = num_images // FEWER
    many, fewer = source.link(num_images), source.link(num_fewer)
    few = source.link(NUM_WORKERS * SMALLEST_SHARD)
    theirs: dict[str, list[float]] = {"1 job": [], "2 jobs": []}
    three: dict[str, list[float]] = {"end_to_end": [], "ray_up": []}
    five: dict[str, list[float]] = {"end_to_end": [], "ray_up": []}
    for number in range(1, num_rounds + 1):
        log(f"round {number} of {num_rounds}")
        theirs["1 job"].append(time_cleanvision(many, num_images, 1))
        three["end_to_end"].append(time_run(many, METRICS, NUM_WORKERS))
        theirs["2 jobs"].append(time_cleanvision(fewer, num_fewer, NUM_WORKERS))
        five["end_to_end"].append(time_run(fewer, CPU_METRICS, NUM_WORKERS))
        with connection.connect(None):
            time_run(few, CPU_METRICS, NUM_WORKERS)
            three["ray_up"].append(time_run(many, METRICS, NUM_WORKERS))
            five["ray_up"].append(time_run(fewer, CPU_METRICS, NUM_WORKERS))
    peers = {
        "1 job": summarise(theirs["1 job"], num_images),
        "2 jobs": summarise(theirs["2 jobs"], num_fewer),
    }
    best = max(peer["images_per_s"] for peer in peers.values())
    return {
        "topic": "cleanvision",
        "source": source.name,
        "num_workers": NUM_WORKERS,
        "rounds": num_rounds,
        "cleanvision_blurry": peers,
        ",".join(METRICS): compare(three, num_images, best),
        ",".join(CPU_METRICS): compare(five, num_fewer, best),
    }


def compare(rounds: dict[str, list[float]], num_images: int, peer_per_s: float) -> dict[str, Any]:
    rows = {name: summarise(seconds, num_images) for name, seconds in rounds.items()}
    for row in rows.values():
        row["ratio"] = round(row["images_per_s"] / peer_per_s, 3)
    return rows


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", help="folder of images (default: synthetic ones)")
    parser.add_argument("--num-images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if find_version("cleanvision") is None:
        parser.exit(2, "bench_cleanvision needs cleanvision: pip install cleanvision\n")
    with open_source(arguments.images, image_size=348) as source:
        print_result(measure(source, arguments.num_images, arguments.rounds))


if __name__ == "__main__":
    main()
