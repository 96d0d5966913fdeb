"""Two nights of rescoring on photographs of real products.

    python -m benchmarks.nights --data DIR --out FOLDER

DIR as for `benchmarks.products`. Its images are copied and scored; before the second night 50 new
ones come (crops of others), 10 change (mirrored), 5 are deleted, 5 moved, and a batch of 100 new
ones is blurred (Gaussian, sigma 6 px), which trips the alerts. Prints the command lines, what they
printed with their exit codes, and the seconds that each took.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from benchmarks.machine import describe_machine
from iqa_ray.images.listing import list_images

CUTOFFS = {"lapv": 39.03, "lapm": 4.371, "wavs": 1.242}  # what `benchmarks.products` learnt
NUM_NEW, NUM_CHANGED, NUM_DELETED, NUM_MOVED, NUM_BLURRED = 50, 10, 5, 5, 100


def run(command: str) -> None:
    print(f"$ {command}", flush=True)
    start_s = time.monotonic()
    arguments = [sys.executable, "-m", "iqa_ray.cli", *shlex.split(command)[1:]]
    done = subprocess.run(arguments, check=False, stderr=subprocess.PIPE, text=True)
    said = [line for line in done.stderr.splitlines() if line.startswith("iqa-ray:")]
    print(*said, f"[exit code {done.returncode}, {time.monotonic() - start_s:.1f} s]", sep="\n")
    print(flush=True)
    if done.returncode not in (0, 3):
        sys.exit(done.stderr)


def change_images(folder: Path, seed: int) -> None:
    """What happens between the two nights."""
    rng = np.random.default_rng(seed)
    paths = [Path(path) for path in list_images(str(folder)).table.column("path").to_pylist()]
    paths = [paths[place] for place in rng.permutation(len(paths))]

    def take(number: int) -> list[Path]:
        taken, paths[:number] = paths[:number], []
        return taken

    for path in take(NUM_CHANGED):
        ImageOps.mirror(Image.open(path)).save(path, quality=95)
    for path in take(NUM_DELETED):
        path.unlink()
    for path in take(NUM_MOVED):
        path.rename(path.with_stem(f"{path.stem}-moved"))
    for path in take(NUM_NEW):
        image = Image.open(path)
        width, height = image.size
        image.crop((8, 8, width - 8, height - 8)).save(
            path.with_stem(f"{path.stem}-new"), quality=95
        )
    for path in take(NUM_BLURRED):
        image = Image.open(path).filter(ImageFilter.GaussianBlur(6))
        image.save(path.with_stem(f"{path.stem}-blurred"), quality=95)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder, place = arguments.out / "photos", arguments.out / "ws"
    for split in ("train", "val", "test"):
        shutil.copytree(arguments.data / split, folder / split)
    photos, ws = shlex.quote(str(folder)), shlex.quote(str(place))
    run(f"iqa-ray score {photos} --workspace {ws} --metrics {','.join(CUTOFFS)}")
    values = " ".join(f"--cutoff {name}={value}" for name, value in CUTOFFS.items())
    run(f"iqa-ray cutoffs --workspace {ws} {values}")
    run(f"iqa-ray select --workspace {ws}")
    night = (
        f"iqa-ray rescore {photos} --workspace {ws} --alert-drift 0.25 --alert-rejected 0.1 "
        "--alert-errors 0.02"
    )
    run(night)
    change_images(folder, arguments.seed)
    run(night)
    run(f"iqa-ray compact {ws}")
    print(json.dumps(describe_machine()))


if __name__ == "__main__":
    main()
