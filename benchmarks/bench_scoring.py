"""Scoring on Ray actors beside a plain loop over the same functions in one process.

    python -m benchmarks.bench_scoring --images DIR --num-images 30000

The images of DIR (synthetic ones without it) are linked under many names until there are
`--num-images`. The loop is `score_shard` over all of them, on one thread, writing nothing. The
Ray run is `iqa_ray.scoring.run_score` into an empty workspace: timed end to end (connecting,
listing, actors, parts) and again with Ray already up. A third row spreads the same shards with Ray
Data instead of our pool.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.machine import describe_machine
from iqa_ray import cluster, metrics, scoring
from iqa_ray.data.dotcodes import make_dataset
from iqa_ray.decoding import DEFAULT_MAX_PIXELS
from iqa_ray.images import list_images
from iqa_ray.store import make_fingerprints

METRICS = ("lapv", "lapm", "wavs")


def link_images(source: Path, target: Path, num_images: int) -> None:
    paths = [str(path) for path in list_images(str(source)).table.column("path").to_pylist()]
    for number in range(num_images):
        path = paths[number % len(paths)]
        folder = target / f"{number // 1000:03}"
        folder.mkdir(parents=True, exist_ok=True)
        os.link(path, folder / f"{number:06}{Path(path).suffix}")


def time_loop(images: Path) -> float:
    scoring.ShardScorer("unused", DEFAULT_MAX_PIXELS, "", "")  # one thread, as in an actor
    listing = list_images(str(images))
    computed = [metrics.create(name) for name in METRICS]
    start = perf_counter()
    scoring.score_shard(listing.table, computed, DEFAULT_MAX_PIXELS)
    return perf_counter() - start


def time_ray(images: Path, workspace: Path, num_actors: int) -> float:
    job = scoring.ScoreJob(
        images=str(images), workspace=str(workspace), metrics=METRICS, num_actors=num_actors
    )
    start = perf_counter()
    summary = scoring.run_score(job)
    seconds = perf_counter() - start
    assert summary["num_scored"] == summary["num_images"]
    assert summary["num_failed"] == 0
    return seconds


def time_ray_data(images: Path, workspace: Path, num_actors: int) -> float:
    """The same shards and the same scorer through `map_batches`, one shard a batch."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    start = perf_counter()
    listing = list_images(str(images))
    prints = make_fingerprints(listing.table, "")
    rows = range(0, listing.table.num_rows, scoring.LARGEST_SHARD)
    columns = listing.table.select(["image_id", "path"])
    size = scoring.LARGEST_SHARD
    shards = [
        scoring.Shard(columns.slice(row, size).combine_chunks(), METRICS, prints[row : row + size])
        for row in rows
    ]
    make = partial(scoring.ShardScorer, str(workspace), DEFAULT_MAX_PIXELS, "", "")

    class Scorer:
        def __init__(self) -> None:
            self.work = make()

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {"done": [self.work(shard)["num_images"] for shard in batch["item"]]}

    done = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
        Scorer,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=num_actors, max_size=num_actors),
        num_cpus=0.9,
    )
    assert sum(row["done"] for row in done.iter_rows()) == listing.table.num_rows
    return perf_counter() - start


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = Path(arguments.images) if arguments.images else folder / "synthetic"
    if not arguments.images:
        make_dataset(source, num_images=200)
    images = folder / "images"
    link_images(source, images, arguments.num_images)
    num_actors = arguments.num_actors
    end_to_end_s = time_ray(images, folder / "end-to-end", num_actors)
    loop_s = time_loop(images)
    with cluster.connect(None):
        time_ray(folder / "images" / "000", folder / "warm-up", num_actors)
        ray_s = time_ray(images, folder / "ray", num_actors)
        loop_again_s = time_loop(images)
        ray_again_s = time_ray(images, folder / "ray-again", num_actors)
        ray_data_s = time_ray_data(images, folder / "ray-data", num_actors)
    loop_mean_s, ray_mean_s = (loop_s + loop_again_s) / 2, (ray_s + ray_again_s) / 2
    return {
        "topic": "scoring",
        "metrics": METRICS,
        "source": "synthetic, 256x256 px" if not arguments.images else Path(arguments.images).name,
        "num_images": arguments.num_images,
        "num_actors": num_actors,
        "loop_s": [round(loop_s, 2), round(loop_again_s, 2)],
        "ray_s": [round(ray_s, 2), round(ray_again_s, 2)],
        "ray_end_to_end_s": round(end_to_end_s, 2),
        "ray_data_s": round(ray_data_s, 2),
        "loop_images_per_s": round(arguments.num_images / loop_mean_s, 1),
        "ray_images_per_s": round(arguments.num_images / ray_mean_s, 1),
        "ratio": round(loop_mean_s / ray_mean_s, 3),
        "ratio_end_to_end": round(loop_mean_s / end_to_end_s, 3),
        "ratio_ray_data": round(loop_mean_s / ray_data_s, 3),
        "machine": describe_machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", help="folder of images (default: synthetic ones)")
    parser.add_argument("--num-images", type=int, default=30_000)
    parser.add_argument("--num-actors", type=int, default=2)
    arguments = parser.parse_args()
    # hard links need the images' own file system
    beside = Path(arguments.images).parent if arguments.images else None
    with tempfile.TemporaryDirectory(dir=beside) as folder:
        print(json.dumps(measure(arguments, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
