"""Does selection help? The experiments, on real products, half of the photographs blurred.

    python -m benchmarks.product_arms --data DIR --out FOLDER [--scratch]

DIR as for `benchmarks.products`. Every second image of all three splits is replaced by a copy with
Gaussian blur of sigma 4, 6 or 8 px. The cut-offs are those that `benchmarks.products` learnt. Then
`compare` and `vary` are run with frozen EfficientNet-Lite0 features or, with --scratch, with
ResNet18 from random weights at 64 px. Prints the command lines and what they printed.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.products import run, write_manifest

CUTOFFS = {"lapv": 152, "lapm": 5.892, "wavs": 1.71}
FROZEN = "efficientnet_lite0 --freeze-backbone --epochs 40 --lr 1e-3"
SCRATCH = "resnet18 --weights none --image-size 64 --epochs 12 --lr 1e-3 --augment standard"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    splits = ("train", "val", "test")
    manifest = write_manifest(arguments.data, arguments.out, arguments.seed, splits)
    print(manifest["blur_sigma"].value_counts().sort_index().to_string(), end="\n\n")
    ws = shlex.quote(str(arguments.out / "ws"))
    images = shlex.quote(str(arguments.out / "images.csv"))
    run(f"iqa-ray score {images} --workspace {ws} --metrics {','.join(CUTOFFS)}")
    values = " ".join(f"--cutoff {name}={value}" for name, value in CUTOFFS.items())
    run(f"iqa-ray cutoffs --workspace {ws} {values}")
    run(f"iqa-ray select --workspace {ws}")
    if arguments.scratch:
        run(f"iqa-ray compare --workspace {ws} --backbones {SCRATCH}")
    else:
        run(f"iqa-ray compare --workspace {ws} --backbones {FROZEN}")
        run(f"iqa-ray compare --workspace {ws} --backbones {FROZEN} --test-on all")
        run(f"iqa-ray vary --workspace {ws} --backbone {FROZEN}")
    print(json.dumps(describe_machine()))


if __name__ == "__main__":
    main()
