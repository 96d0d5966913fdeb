"""How a model of distortion types does on corruptions that it was not trained on, and how fast.

    python -m benchmarks.distortion_types --photographs DIR [--model FILE] [--num-images 200]

Corruptions are those of ImageNet-C (Hendrycks and Dietterich, ICLR 2019) at levels 1 to 5, made by
the package `imagecorruptions` where it is installed; those of its kinds that fail with today's
NumPy or scikit-image are named and left out. Speed is that of `distortions apply`'s work on each
core beside forward passes of the same network on crops that are in memory, in turns. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import describe_machine
from iqa_ray.distortion_types.model import TypesModel, load_model
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.files import locate
from iqa_ray.training.pixels import Pixels, cut_crops

LEVELS = range(1, 6)
BATCH_SIZE = 8
NUM_ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", required=True, help="folder or manifest")
    parser.add_argument("--model", help="default: the package's")
    parser.add_argument("--num-images", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(", ".join(f"{name} {value}" for name, value in describe_machine().items()))
    model, key = load_model(arguments.model)
    source = ImageSource(locate(arguments.photographs))
    paths = source.list("none").table.column("path").to_pylist()[: arguments.num_images]
    print(f"model {key}, {len(paths)} photographs of {Path(arguments.photographs).name}\n")
    print_speeds(model, source, paths)
    images = [source.decode(source.read(path)) for path in paths]
    print_corruptions(model, images)


def print_speeds(model: TypesModel, source: ImageSource, paths: list[str]) -> None:
    """Images a second of reading, decoding, cutting and judging, and of forward passes alone."""
    crops = [
        np.concatenate(
            [
                cut_crops(source.decode(source.read(path)), model.card.crop_size, 1)
                for path in paths[:BATCH_SIZE]
            ]
        )
    ] * model.card.num_crops
    batch = torch.from_numpy(np.concatenate(crops)).permute(0, 3, 1, 2)

    def apply() -> int:
        for start in range(0, len(paths), BATCH_SIZE):
            chosen = paths[start : start + BATCH_SIZE]
            model.find([source.decode(source.read(path)) for path in chosen])
        return len(paths)

    def forward() -> int:
        with torch.inference_mode():
            for _ in range(0, len(paths), BATCH_SIZE):
                for part in batch.split(32):
                    model.network(part)
        return -(-len(paths) // BATCH_SIZE) * BATCH_SIZE

    speeds = [[measure(work) for work in (apply, forward)] for _ in range(NUM_ROUNDS)]
    ratios = [whole / bare for whole, bare in speeds]
    whole, bare = np.median(speeds, axis=0)
    print(
        f"one core, {NUM_ROUNDS} rounds in turns: applied {whole:.1f} images/s, forward passes "
        f"alone {bare:.1f}, ratio {np.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})\n"
    )


def measure(work: Callable[[], int]) -> float:
    start_s = time.perf_counter()
    return work() / (time.perf_counter() - start_s)


def print_corruptions(model: TypesModel, images: list[Pixels]) -> None:
    """What each corruption is called most often, and how the severity goes with its level."""
    print("| corruption | called, of all levels | mean severity at levels 1 to 5 |\n|---|---|---|")
    for name, corrupt in list_corruptions():
        calls: Counter[str] = Counter()
        severities = []
        try:
            for level in LEVELS:
                found = model.find([corrupt(image, level) for image in images])
                calls.update(finding.distortion for finding in found)
                severities.append(np.mean([finding.severity or 0 for finding in found]))
        except (AttributeError, TypeError) as error:
            print(f"| {name} | not measured: {error} | |")
            continue
        total = sum(calls.values())
        shares = ", ".join(f"{kind} {num / total:.0%}" for kind, num in calls.most_common(3))
        print(f"| {name} | {shares} | {' '.join(f'{value:.1f}' for value in severities)} |")


def list_corruptions() -> Iterator[tuple[str, Callable[[Pixels, int], Pixels]]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from imagecorruptions import corrupt, get_corruption_names
    except ImportError:
        print("| (imagecorruptions is not installed) | | |")
        return
    for name in get_corruption_names():
        yield name, lambda image, level, name=name: corrupt(image, level, name)


if __name__ == "__main__":
    main()
