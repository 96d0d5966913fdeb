"""Label smoothing by image quality on CIFAR-10, at the size that two cores take.

    python -m benchmarks.smoothing --images DIR --out FOLDER [--score ssim,brisque]

DIR holds train/CLASS and test/CLASS. The nine strategies of Chen et al.'s Table 2 are trained on
20,000 images for 6 epochs, a thousandth of what they print; the optimiser is therefore Adam at a
constant rate, while network, loss, weight decay, versions and shares are theirs. Before
that, the versions and SSIM of 10,000 images are made, and the time for 50,000 is reckoned from it.
Prints the command lines, what they printed, the seconds, and the machine.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.products import run
from iqa_ray.cluster import connection
from iqa_ray.smoothing.dataset import draw_parts, read_set
from iqa_ray.smoothing.settings import TABLE_STRATEGIES
from iqa_ray.smoothing.versions import make_versions
from iqa_ray.storage.files import locate

NUM_TIMED, NUM_WHOLE = 10_000, 50_000
OPTIMISATION = "--optimiser adam --lr 1e-3 --schedule constant --batch-size 32"


def time_versions(images: str, out: Path) -> dict[str, float]:
    """Seconds for the versions and SSIM of some images with Ray up, and so for all of CIFAR-10."""
    drawn = draw_parts(read_set(images), NUM_TIMED - 1, 1, with_validation=False, seed=0)
    with tempfile.TemporaryDirectory(dir=out) as folder, connection.connect(None):
        start_s = time.monotonic()
        make_versions(drawn, 0, locate(folder), None)
        seconds = time.monotonic() - start_s
    return {
        "num_images": NUM_TIMED,
        "seconds": round(seconds, 1),
        f"seconds_for_{NUM_WHOLE}": round(seconds * NUM_WHOLE / NUM_TIMED, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-train", type=int, default=20_000)
    parser.add_argument("--num-test", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--score", default="ssim")
    parser.add_argument("--strategies", default=",".join(TABLE_STRATEGIES))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(time_versions(arguments.images, arguments.out)), flush=True)
    start_s = time.monotonic()
    run(
        f"iqa-ray smooth {shlex.quote(arguments.images)} "
        f"--workspace {shlex.quote(str(arguments.out / 'ws'))} --num-train {arguments.num_train} "
        f"--num-test {arguments.num_test} --epochs {arguments.epochs} --seeds {arguments.seeds} "
        f"--score {arguments.score} --strategies {arguments.strategies} {OPTIMISATION}"
    )
    seconds = round(time.monotonic() - start_s, 1)
    print(json.dumps({"seconds": seconds, **describe_machine()}))


if __name__ == "__main__":
    main()
