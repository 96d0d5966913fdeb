"""Memory and time of `layers` after some and after many batches, without Ray.

    python -m benchmarks.bench_layers --backbone resnet18 --image-size 224 --batches 4 40

Random pixels go through an untrained network, each with `--copies` other images in the place of
distorted copies, in this process and on one thread. Prints the peak resident memory of the process
after each number of batches, beside the features of a batch, and seconds per image.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch

from benchmarks.driver import read_peak_mb
from benchmarks.report import make_parser, print_result
from iqa_ray.layers.features import measure_batch, visit_layers
from iqa_ray.training import backbones


def count_features(network: torch.nn.Module, image_size: int) -> int:
    """Numbers in all layers' outputs of one image."""
    sizes: list[int] = []
    image = torch.zeros(1, 3, image_size, image_size)
    with (
        torch.inference_mode(),
        visit_layers(network, lambda _, __, out: sizes.append(out.numel())),
    ):
        network(image)
    return sum(sizes)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs=2, default=[4, 40])
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = backbones.create(options.backbone, 10).eval()
    side, size = options.image_size, options.batch_size
    features_mb = size * count_features(network, side) * 4 / 2**20
    shape = (1 + options.copies, size, side, side, 3)
    rows, start = [], perf_counter()
    for number in range(1, max(options.batches) + 1):
        clean, *copies = rng.integers(0, 256, shape, np.uint8)
        measure_batch(network, clean, copies, [0] * size, number)
        if number in options.batches:
            seconds = (perf_counter() - start) / (number * size)
            row = {"num_batches": number, "peak_mb": read_peak_mb()}
            rows.append({**row, "seconds_per_image": round(seconds, 4)})
    settings = {"backbone": options.backbone, "image_size": side, "batch_size": size}
    settings |= {"num_copies": options.copies, "features_mb": round(features_mb, 1)}
    print_result({"benchmark": "layers", **settings, "runs": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
