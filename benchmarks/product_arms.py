"""Does selection help? The experiments, on real products, half of the photographs blurred.

    python -m benchmarks.product_arms --data DIR --out FOLDER [--scratch] [--keep]

DIR as for `benchmarks.products`. Every second image of all three splits is replaced by a copy with
Gaussian blur of sigma 4, 6 or 8 px. A classifier is trained on 40% of the test split and judged on
the rest of it, from which the cut-offs are learnt. With these the images of the other two splits
are selected, and `compare` and `vary` train and test on those alone: no image that they test on
chose a cut-off or trained the classifier. They are run with frozen EfficientNet-Lite0 features or,
with --scratch, with ResNet18 from random weights at 64 px; with --keep, `compare` has the arms that
keep every image, too, on test images of high and of all qualities, and nothing else is run. Prints
the command lines and what they printed.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.products import run, write_manifest

METRICS = "lapv,lapm,wavs"
FROZEN = "efficientnet_lite0 --freeze-backbone --epochs 40 --lr 1e-3"
KEEP = "--arms high,all,everything,smoothed,weighted --split-per-seed"
SCRATCH = "resnet18 --weights none --image-size 64 --epochs 12 --lr 1e-3 --augment standard"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", action="store_true")
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    splits = ("train", "val", "test")
    manifest = write_manifest(arguments.data, arguments.out, arguments.seed, splits)
    is_judged = manifest["split"] == "test"
    workspaces = []
    for name, rows in (("judged", manifest[is_judged]), ("unseen", manifest[~is_judged])):
        images = arguments.out / f"{name}.csv"
        # without the column `split`: `predict` draws its training images itself
        rows.drop(columns="split").to_csv(images, index=False)
        counts = rows["blur_sigma"].value_counts().sort_index().items()
        shares = ", ".join(f"{count} of sigma {sigma:g}" for sigma, count in counts)
        print(f"{name}: {len(rows):,} images, {shares}")
        workspaces.append(shlex.quote(str(arguments.out / name)))
    print()
    judged, ws = workspaces
    run(f"iqa-ray score {judged}.csv --workspace {judged} --metrics {METRICS}")
    run(
        f"iqa-ray predict --workspace {judged} --backbone efficientnet_lite0 --freeze-backbone "
        "--split 0.4 --epochs 40 --lr 1e-3"
    )
    run(f"iqa-ray cutoffs --workspace {judged}")
    run(f"iqa-ray select --workspace {judged}")
    run(f"iqa-ray score {ws}.csv --workspace {ws} --metrics {METRICS}")
    run(f"iqa-ray select --workspace {ws} --cutoffs-from {judged}")
    if arguments.keep:
        for tested in ("high", "all"):
            run(f"iqa-ray compare --workspace {ws} --backbones {FROZEN} {KEEP} --test-on {tested}")
    elif arguments.scratch:
        run(f"iqa-ray compare --workspace {ws} --backbones {SCRATCH}")
    else:
        run(f"iqa-ray compare --workspace {ws} --backbones {FROZEN}")
        run(f"iqa-ray compare --workspace {ws} --backbones {FROZEN} --split-per-seed")
        run(f"iqa-ray compare --workspace {ws} --backbones {FROZEN} --test-on all")
        run(f"iqa-ray vary --workspace {ws} --backbone {FROZEN}")
    print(json.dumps(describe_machine()))


if __name__ == "__main__":
    main()
