"""Scoring on Ray actors beside a plain loop over the same functions in one process.

    python -m benchmarks.bench_scoring --images DIR --num-images 30000

The images of DIR (synthetic ones of 256x256 px without it) are linked under many names until there
are `--num-images`. The loop is `score_shard` over all of them, on one thread, writing nothing. The
Ray run is `iqa_ray.scoring.jobs.run_score` into an empty workspace: timed end to end (connecting,
listing, actors, parts) and again with Ray already up. A third row spreads the same shards with Ray
Data instead of our pool. Ratios are of the loop's mean seconds to the others' means.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.images import LinkedImages, open_source
from benchmarks.report import make_parser, print_result
from benchmarks.runs import METRICS, cut_shards, make_scorer, time_run
from iqa_ray import metrics
from iqa_ray.cluster import connection
from iqa_ray.images.source import ImageSource
from iqa_ray.scoring.cpu_scorer import score_shard
from iqa_ray.storage.files import locate


def time_loop(images: Path) -> float:
    make_scorer(os.devnull)  # one thread, as in an actor
    source = ImageSource(locate(images))
    table = source.list().table
    computed = [metrics.Metric(metrics.get_spec(name)) for name in METRICS]
    start = perf_counter()
    score_shard(table, computed, source)
    return perf_counter() - start


def time_ray_data(images: Path, workspace: Path, num_actors: int) -> float:
    """The same shards and the same scorer through `map_batches`, one shard a batch."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    start = perf_counter()
    shards = cut_shards(images)
    make = partial(make_scorer, str(workspace))

    class Scorer:
        def __init__(self) -> None:
            self.work = make()

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {"done": [self.work(shard).num_images for shard in batch["item"]]}

    done = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
        Scorer,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=num_actors, max_size=num_actors),
        num_cpus=0.9,
    )
    num_done = sum(row["done"] for row in done.iter_rows())
    assert num_done == sum(shard.images.num_rows for shard in shards)
    return perf_counter() - start


def measure(source: LinkedImages, num_images: int, num_actors: int) -> dict[str, Any]:
    images, few = source.link(num_images), source.link(min(num_images, 1000))
    end_to_end_s = time_run(images, METRICS, num_actors)
    loop_s = time_loop(images)
    with connection.connect(None):
        time_run(few, METRICS, num_actors)  # warms Ray up
        ray_s = time_run(images, METRICS, num_actors)
        loop_again_s = time_loop(images)
        ray_again_s = time_run(images, METRICS, num_actors)
        ray_data_s = time_ray_data(images, source.folder / "ray-data", num_actors)
    loop_mean_s, ray_mean_s = (loop_s + loop_again_s) / 2, (ray_s + ray_again_s) / 2
    return {
        "topic": "scoring",
        "metrics": METRICS,
        "source": source.name,
        "num_images": num_images,
        "num_actors": num_actors,
        "loop_s": [round(loop_s, 2), round(loop_again_s, 2)],
        "ray_s": [round(ray_s, 2), round(ray_again_s, 2)],
        "ray_end_to_end_s": round(end_to_end_s, 2),
        "ray_data_s": round(ray_data_s, 2),
        "loop_images_per_s": round(num_images / loop_mean_s, 1),
        "ray_images_per_s": round(num_images / ray_mean_s, 1),
        "ratio": round(loop_mean_s / ray_mean_s, 3),
        "ratio_end_to_end": round(loop_mean_s / end_to_end_s, 3),
        "ratio_ray_data": round(loop_mean_s / ray_data_s, 3),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", help="folder of images (default: synthetic ones)")
    parser.add_argument("--num-images", type=int, default=30_000)
    parser.add_argument("--num-actors", type=int, default=2)
    arguments = parser.parse_args()
    with open_source(arguments.images, image_size=256) as source:
        print_result(measure(source, arguments.num_images, arguments.num_actors))


if __name__ == "__main__":
    main()
