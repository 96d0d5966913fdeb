"""Deep metrics in batches beside pyiqa's one-at-a-time call, on the same device.

    python -m benchmarks.bench_deep --images IMAGES [--weights DIR]

Both sides have the same network and the same images, all of one size (each image of IMAGES is cut
or, if smaller, resized to --size). pyiqa: its own metric is called with one tensor after the other,
already on the device. Ours: `DeepMetric.score_batch`, from uint8 arrays in main memory. Rounds
alternate; the ratio is that of the medians. Then the same images go through `DeepShardScorer` as
files, decoded ahead by --num-threads threads, for the share of time that the model waits for them.
Without --weights they are random, and the networks as fast as with real ones; scores mean nothing.
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

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.random_weights import make_random_weights
from benchmarks.report import make_parser, print_result, summarise
from iqa_ray.images.listing import list_images
from iqa_ray.images.source import ImageSource
from iqa_ray.metrics.deep import DeepMetric
from iqa_ray.metrics.spec import Device, get_spec
from iqa_ray.scoring.cpu_scorer import ScoringRun, Shard
from iqa_ray.scoring.deep_scorer import DeepPlan, DeepShardScorer
from iqa_ray.storage.files import locate
from iqa_ray.storage.parts import make_fingerprints
from iqa_ray.synthetic.dotcodes import make_dataset
from iqa_ray.weights.metric_files import Weights, build_model
from iqa_ray.weights.pulling import prepare_weights

DEFAULT_METRICS: dict[Device, str] = {"cpu": "musiq", "cuda": "musiq,maniqa,hyperiqa"}
DEFAULT_NUM_IMAGES: dict[Device, int] = {"cpu": 8, "cuda": 256}


def write_images(source: Path, target: Path, num_images: int, width: int, height: int) -> None:
    paths = list_images(str(source)).table.column("path").to_pylist()
    for number in range(num_images):
        image = np.asarray(Image.open(paths[number % len(paths)]).convert("RGB"))
        if image.shape[0] < height or image.shape[1] < width:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(image[:height, :width]).save(target / f"{number:05}.jpg", quality=92)


def load_images(folder: Path) -> list[NDArray[np.uint8]]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.jpg"))]


def time_call(call: Callable[[], Any], device: Device) -> float:
    start = perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def make_pyiqa(weights: Weights, device: Device) -> Callable[[torch.Tensor], torch.Tensor]:
    """pyiqa's own metric object around the network, as `pyiqa.create_metric` gives it."""
    from pyiqa.models.inference_model import InferenceModel

    inference = InferenceModel.__new__(InferenceModel)
    torch.nn.Module.__init__(inference)
    inference.metric_name, inference.metric_mode = weights.metric, "NR"
    inference.as_loss, inference.check_input_range, inference.eps = False, True, 1e-6
    inference.net = build_model(weights).to(device).eval()
    inference.dummy_param = torch.nn.Parameter(torch.empty(0)).to(device)
    return inference


def compare(weights: Weights, images: Path, device: Device, num_rounds: int) -> dict[str, Any]:
    arrays = load_images(images)
    tensors = [
        torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float().div(255).to(device)
        for array in arrays
    ]
    peer = make_pyiqa(weights, device)
    metric = DeepMetric(get_spec(weights.metric), weights, device)
    expected = [float(peer(tensor)) for tensor in tensors[:2]]
    scores = metric.score_batch(arrays)  # warm, and as large a batch as memory allows
    peer_s, ours_s = [], []
    for _ in range(num_rounds):
        peer_s.append(time_call(lambda: [float(peer(tensor)) for tensor in tensors], device))
        ours_s.append(time_call(lambda: metric.score_batch(arrays), device))
    low, high = metric.spec.range
    return {
        "pyiqa": summarise(peer_s, len(arrays)),
        "ours": summarise(ours_s, len(arrays)),
        "ratio": round(median(peer_s) / median(ours_s), 2),
        "batch_size": metric.batch_size(*arrays[0].shape[:2]),
        "largest_difference_of_range": max(
            abs(float(score) - value)
            for score, value in zip(scores[:2], expected, strict=True)
        ) / (high - low),
    }  # fmt: skip


def measure_waiting(
    weights: Weights, images: Path, device: Device, num_threads: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as workspace:
        scorer = DeepShardScorer(
            ScoringRun(workspace, ImageSource(locate(images))),
            DeepPlan(weights, device, num_threads),
        )
        table = list_images(str(images)).table
        shard = Shard(
            table.select(["image_id", "path"]), (weights.metric,), make_fingerprints(table, "")
        )
        scorer(shard)
        start = perf_counter()
        done = scorer(shard)
        seconds = perf_counter() - start
    total_s = done.compute_s + done.wait_s
    return {
        "num_images": done.num_images,
        "num_failed": done.num_failed,
        "images_per_s": round(done.num_images / seconds, 1),
        "waiting_share": round(done.wait_s / total_s, 4),
        "num_threads": num_threads,
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--weights", help="weights folder (default: random weights)")
    parser.add_argument("--images", help="folder of images (default: synthetic ones)")
    parser.add_argument("--metrics", help="default: musiq,maniqa,hyperiqa; on a CPU musiq")
    parser.add_argument("--num-images", type=int, help="default: 256, on a CPU 8")
    parser.add_argument("--size", default="512x384", metavar="WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-threads", type=int, default=min(8, os.cpu_count() or 1))
    arguments = parser.parse_args()
    print_result(measure(arguments))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(arguments.num_threads)
    width, height = map(int, arguments.size.split("x"))
    names = (arguments.metrics or DEFAULT_METRICS[device]).split(",")
    num_images = arguments.num_images or DEFAULT_NUM_IMAGES[device]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = arguments.weights
        if weights is None:
            weights = str(Path(folder, "weights"))
            make_random_weights(names, Path(weights))
        source = Path(arguments.images) if arguments.images else Path(folder, "synthetic")
        if not arguments.images:
            make_dataset(source, num_images=min(num_images, 100))
        images = Path(folder, "images")
        images.mkdir()
        write_images(source, images, num_images, width, height)
        for name, prepared in prepare_weights(names, weights).items():
            results[name] = compare(prepared, images, device, arguments.rounds)
            results[name]["files"] = measure_waiting(
                prepared, images, device, arguments.num_threads
            )
    return {
        "topic": "deep",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "weights": "random" if arguments.weights is None else "given",
        "size": arguments.size,
        "metrics": results,
    }


if __name__ == "__main__":
    main()
