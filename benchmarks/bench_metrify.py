"""`metrify build` beside the bare forward passes of its task network, at the same batch size.

    python -m benchmarks.bench_metrify --images DIR

Both sides have the same network with random weights, and as many distorted images. Bare: batches
that lie ready as uint8 on the network's device go through it, and nothing else is done. Build: the
package's `ShardBuilder`, from files to the part with its rows: reading, decoding, scaling and
distorting on --num-threads threads beside the network, judging and writing. Rounds alternate; the
ratio is that of the medians, bare over build. On a CPU both are done with the network on one
thread, where the other cores are left for distortions, and on as many as there are cores, where it
has to share them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.images import open_source
from benchmarks.report import make_parser, print_result, summarise
from iqa_ray.distortions import DISTORTIONS
from iqa_ray.images.source import ImageSource
from iqa_ray.metrifier.builder import BuildPlan, ShardBuilder, plan_build
from iqa_ray.metrifier.copies import CopyPlan, make_copies
from iqa_ray.metrifier.settings import BuildJob
from iqa_ray.storage.files import locate
from iqa_ray.training import backbones
from iqa_ray.training.loop import dump_checkpoint, full_precision, pick_device
from iqa_ray.training.network_files import NetworkSource
from iqa_ray.training.task_networks import load_networks


def save_network(file: Path, name: str, classes: list[str], image_size: int) -> None:
    """A network with random weights, as `predict` keeps one."""
    torch.manual_seed(0)
    state = backbones.create(name, len(classes)).state_dict()
    record = {"state": state, "classes": classes, "backbone": name, "image_size": image_size}
    file.write_bytes(dump_checkpoint(record))


def make_batches(plan: BuildPlan, paths: list[str], batch_size: int) -> list[torch.Tensor]:
    """The images' copies as the network gets them, on its device."""
    copies = np.concatenate([make_copies(plan.copies, path).copies for path in paths])
    images = torch.from_numpy(copies).permute(0, 3, 1, 2).to(pick_device())
    return list(images.split(batch_size))


@torch.inference_mode()
def pass_bare(network: torch.nn.Module, batches: list[torch.Tensor], num_rounds: int) -> None:
    """`num_rounds` times all batches; their outputs come back to main memory."""
    with full_precision():
        for _ in range(num_rounds):
            for batch in batches:
                network(batch).cpu()


def time_call(call: Callable[[], Any]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def compare(
    arguments: argparse.Namespace, folder: Path, images: Path, num_threads: int
) -> dict[str, Any]:
    source = ImageSource(locate(images))
    table = source.list("top").table
    labels = sorted(set(table.column("label").to_pylist()))
    file = folder / "network.pt"
    save_network(file, arguments.backbone, labels, arguments.image_size)
    sources = [NetworkSource(str(file), None, tuple(labels))]
    graded = [(name, level) for name in arguments.distortions for level in arguments.levels]
    copies = CopyPlan(source, arguments.image_size, (("", 0), *graded), 0)
    plan = plan_build(copies, sources, load_networks(sources))
    build = ShardBuilder(str(folder / "ws"), plan, arguments.batch_size, arguments.num_threads)
    torch.set_num_threads(num_threads)
    shard = (table, plan.make_fingerprints(table))
    # the same few images over and over: batches of all would not fit into memory
    paths = table.column("path").to_pylist()[: min(4, table.num_rows)]
    batches = make_batches(plan, paths, arguments.batch_size)
    network = backbones.create(arguments.backbone, len(labels)).to(pick_device()).eval()
    num_rounds = max(1, round(table.num_rows / len(paths)))
    num_bare = num_rounds * len(paths) * len(copies.distortions)
    num_built = table.num_rows * len(copies.distortions)
    pass_bare(network, batches, 1)
    bare_s, build_s = [], []
    for _ in range(arguments.rounds):
        bare_s.append(time_call(lambda: pass_bare(network, batches, num_rounds)))
        build_s.append(time_call(lambda: build(shard)))
    return {
        "network_threads": num_threads,
        "bare": summarise(bare_s, num_bare),
        "build": summarise(build_s, num_built),
        "ratio": round(median(bare_s) / num_bare / (median(build_s) / num_built), 3),
    }


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--images", help="folder of images (default: synthetic ones of 348 px)")
    parser.add_argument("--num-images", type=int, default=24)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-threads", type=int, default=1, help="that distort")
    default = BuildJob.model_fields["distortions"].default
    parser.add_argument("--distortions", nargs="+", default=default, choices=list(DISTORTIONS))
    parser.add_argument("--levels", nargs="+", type=int, default=[1, 3, 5])
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    is_gpu = torch.cuda.is_available()
    threads = [1] if is_gpu else sorted({1, os.cpu_count() or 1})
    with open_source(arguments.images, 348) as linked, tempfile.TemporaryDirectory() as folder:
        images = linked.link(arguments.num_images)
        result = {
            "topic": "metrify",
            "device": torch.cuda.get_device_name() if is_gpu else "cpu",
            "images": linked.name,
            **{name: getattr(arguments, name) for name in ("backbone", "image_size", "batch_size")},
            "distortions": list(arguments.distortions),
            "levels": arguments.levels,
            "distorting_threads": arguments.num_threads,
            "runs": [compare(arguments, Path(folder), images, number) for number in threads],
        }
    print_result(result)


if __name__ == "__main__":
    main()
