"""Time the CPU metrics against pyiqa and PyWavelets: same images, same process, one thread.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m benchmarks.bench_metrics --images DIR

Prints JSON: for each metric the median milliseconds of both over all images and rounds, the ratio
of the sums over images of each image's fastest round, and the largest difference of the scores.
Times of ours include the conversion to luma; times of pyiqa do not include that to a tensor.
Rounds alternate between the two, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import pyiqa
import pywt
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat
from skimage import data

from benchmarks.machine import describe_machine
from iqa_ray import metrics
from iqa_ray.metrics.planes import Planes

BUNDLED = ("astronaut", "camera", "chelsea", "coffee", "rocket")
SUFFIXES = {".jpg", ".jpeg", ".png"}


def load_images(folder: Path | None, num_images: int) -> list[NDArray[np.uint8]]:
    if folder is None:
        images = [getattr(data, name)() for name in BUNDLED]
        return [image if image.ndim == 3 else np.dstack([image] * 3) for image in images]
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths[:num_images]]


def load_pyiqa(name: str, folder: Path) -> Any:
    path = files("iqa_ray.metrics") / "params" / f"{name}.npz"
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as params:
        weights = folder / name
        if name == "brisque":
            keys = ("coefficients", "support_vectors")
            torch.save(tuple(torch.from_numpy(params[key]) for key in keys), weights)
        else:
            model = {"mu_prisparam": params["mean"][None], "cov_prisparam": params["covariance"]}
            savemat(weights, model, appendmat=False)
    return pyiqa.create_metric(name, device="cpu", pretrained_model_path=str(weights))


def compute_wavs_with_pywavelets(grey: NDArray[np.float64]) -> float:
    height, width = grey.shape
    _, details = pywt.dwt2(grey, "db6", mode="symmetric")
    total = np.zeros_like(grey)
    for kept in range(3):
        alone = tuple(band if kept == i else None for i, band in enumerate(details))
        total += np.abs(pywt.idwt2((None, alone), "db6", mode="symmetric")[:height, :width])
    return float(total.mean())


def to_tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]


def time_call(function: Callable[[Any], Any], argument: Any) -> tuple[float, float]:
    start = perf_counter()
    score = float(function(argument))
    return 1000 * (perf_counter() - start), score


def compare(
    ours: Callable[[Any], float],
    theirs: Callable[[Any], Any],
    inputs: list[tuple[Any, Any]],
    num_rounds: int,
) -> dict[str, float]:
    ours_ms = np.zeros((num_rounds, len(inputs)))
    theirs_ms = np.zeros_like(ours_ms)
    difference = 0.0
    for round_index in range(-1, num_rounds):  # the first round warms up, and is overwritten
        for i, (image, argument) in enumerate(inputs):
            ours_ms[round_index, i], score = time_call(ours, image)
            theirs_ms[round_index, i], expected = time_call(theirs, argument)
            difference = max(difference, abs(score - expected))
    return {
        "ours_ms": round(median(ours_ms.ravel()), 3),
        "theirs_ms": round(median(theirs_ms.ravel()), 3),
        "speed_ratio": round(float(theirs_ms.min(0).sum() / ours_ms.min(0).sum()), 2),
        "largest_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder (default: photographs of scikit-image)")
    parser.add_argument("--num-images", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    images = load_images(options.images, options.num_images)
    tensors = [(image, to_tensor(image)) for image in images]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("brisque", "niqe"):
            model = load_pyiqa(name, Path(folder))
            results[name] = compare(metrics.create(name), model, tensors, options.rounds)
    greys = [(image, Planes(image).grey) for image in images]
    results["wavs"] = compare(
        metrics.create("wavs"), compute_wavs_with_pywavelets, greys, options.rounds
    )
    for name in ("lapv", "lapm"):
        metric = metrics.create(name)
        times = [time_call(metric, image)[0] for _ in range(options.rounds) for image in images]
        results[name] = {"ours_ms": round(median(times), 3)}
    result = {
        "topic": "metrics",
        "source": str(options.images.name) if options.images else "scikit-image's photographs",
        "num_images": len(images),
        "rounds": options.rounds,
        "metrics": results,
        "machine": describe_machine(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
