"""Five seeds side by side beside the same five one after another.

    python -m benchmarks.bench_seeds [--images DIR] [--backbone resnet18] [--epochs 3]

Both train the same runs (from random weights, DIR's images or synthetic ones, labelled at random,
scaled to `--image-size`): side by side in one call of `train_runs`, as `compare` does, with a CPU
(or a fifth of a GPU) a run; one after another in a call each, with all CPUs (or the GPU). A third
row trains them one after another in one worker, which is started once. Ray is up before. Ratios
are of the seconds one after another to the seconds side by side. `decoding_share` is the share of
the first row's seconds in which images were decoded, all of it before the first epoch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.images import open_source
from benchmarks.report import make_parser, print_result
from iqa_ray.cluster import connection
from iqa_ray.cluster.capacity import Resources
from iqa_ray.images.decoding import hash_content
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.files import locate
from iqa_ray.training.parallel import plan_parallel_runs, train_runs
from iqa_ray.training.recipe import Recipe
from iqa_ray.training.runs import Run
from iqa_ray.training.sharing import Material

NUM_CLASSES = 10


def make_runs(recipe: dict[str, Any], num_seeds: int, num_images: int) -> list[Run]:
    rows = np.arange(num_images)
    tenth = num_images // 10
    parts = (rows[2 * tenth :], rows[:tenth], rows[tenth : 2 * tenth])
    return [
        Run(f"seed-{seed}", "all", Recipe(weights="none", seed=seed, **recipe), *parts)
        for seed in range(num_seeds)
    ]


def time_groups(
    groups: Sequence[Sequence[Run]], material: Material, plan: tuple[Resources, int]
) -> tuple[float, float]:
    """Seconds to train the groups of runs one after another, and of them those of decoding."""
    decode_s = 0.0
    start = perf_counter()
    for runs in groups:
        with tempfile.TemporaryDirectory() as folder:
            began = perf_counter()

            def note(event: dict[str, Any], began: float = began) -> None:
                nonlocal decode_s
                if event.get("decoded") == event.get("of", -1):
                    decode_s += perf_counter() - began

            assert not train_runs(runs, material, locate(folder), plan, note)
    return perf_counter() - start, decode_s


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images")
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--num-seeds", type=int, default=5)
    arguments = parser.parse_args()
    recipe = {name: getattr(arguments, name) for name in ("backbone", "epochs", "image_size")}
    with open_source(arguments.images, 256) as source, connection.connect(None):
        paths = [source.paths[i % len(source.paths)] for i in range(arguments.num_images)]
        targets = np.random.default_rng(0).integers(NUM_CLASSES, size=len(paths))
        hashes = [hash_content(Path(path).read_bytes()) for path in paths]
        weights = {arguments.backbone: None}
        material = Material(
            paths,
            hashes,
            targets,
            NUM_CLASSES,
            weights,
            arguments.image_size,
            ImageSource(locate(source.folder)),
        )
        runs = make_runs(recipe, arguments.num_seeds, len(paths))
        shared, num_parallel = plan_parallel_runs(None, 1.0)
        cpus = max(node.get("CPU", 1.0) for node in connection.list_nodes())
        alone = Resources(cpus if not shared.num_gpus else 1.0, float(shared.num_gpus > 0))
        beside_s, decode_s = time_groups([runs], material, (shared, num_parallel))
        one_by_one_s, _ = time_groups([[run] for run in runs], material, (alone, 1))
        one_worker_s, _ = time_groups([runs], material, (alone, 1))
    print_result(
        {
            "topic": "seeds",
            "images": source.name,
            "recipe": recipe,
            "num_images": len(paths),
            "num_seeds": arguments.num_seeds,
            "num_parallel": min(num_parallel, len(runs)),
            "side_by_side_s": round(beside_s, 1),
            "one_after_another_s": round(one_by_one_s, 1),
            "one_worker_s": round(one_worker_s, 1),
            "ratio": round(one_by_one_s / beside_s, 2),
            "ratio_to_one_worker": round(one_worker_s / beside_s, 2),
            "decoding_share": round(decode_s / beside_s, 4),
        }
    )


if __name__ == "__main__":
    main()
