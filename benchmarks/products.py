"""The main job on photographs of real products, with a share of the test images blurred.

    python -m benchmarks.products --data DIR --out FOLDER [--sigmas 1 2 3 5]

DIR holds train/, val/ and test/ with one folder a class (the Packages part of the Grocery Store
dataset, Klasson et al., WACV 2019). Every second test image is replaced by a copy with Gaussian
blur of sigma 4, 6 or 8 px (--sigmas), drawn at random. Then the command lines are run as a user
would type them: score everything, train on train, predict the rest, learn cut-offs, select. Prints
the command lines, what they printed, and the table by blur, with each image voted on by cut-offs
that it did not choose (cross-fitted) and by those of `select`, which it did (in-sample).
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.machine import describe_machine
from iqa_ray.images.listing import list_images
from iqa_ray.predictions.table import read_predictions
from iqa_ray.selection.crossfit import keep_by_folds
from iqa_ray.selection.fitting import read_cutoffs
from iqa_ray.selection.judged import read_folds
from iqa_ray.selection.table import read_selection
from iqa_ray.storage.workspace import Workspace

SIGMAS = (4.0, 6.0, 8.0)


def write_manifest(
    data: Path,
    out: Path,
    seed: int,
    blurred: Sequence[str] = ("test",),
    blurs: Sequence[float] = SIGMAS,
) -> pd.DataFrame:
    """All images of the three splits; every second one of those in `blurred` as a blurred copy."""
    rng = np.random.default_rng(seed)
    rows = []
    for split in ("train", "val", "test"):
        table = list_images(str(data / split)).table.to_pandas()
        sigmas = np.zeros(len(table))
        if split in blurred:
            sigmas[rng.permutation(len(table))[: len(table) // 2]] = -1
            sigmas[sigmas < 0] = rng.choice(blurs, int((sigmas < 0).sum()))
        for path, label, sigma in zip(table["path"], table["label"], sigmas, strict=True):
            used = blur_copy(Path(path), data, out, sigma) if sigma else path
            rows.append((str(used), label, split, sigma))
    frame = pd.DataFrame(rows, columns=["path", "label", "split", "blur_sigma"])
    frame.to_csv(out / "images.csv", index=False)
    return frame


def blur_copy(path: Path, data: Path, out: Path, sigma: float) -> Path:
    target = out / "blurred" / path.relative_to(data)
    target.parent.mkdir(parents=True, exist_ok=True)
    image = np.asarray(Image.open(path).convert("RGB"))
    Image.fromarray(cv2.GaussianBlur(image, (0, 0), sigma)).save(target, quality=95)
    return target


def run(command: str) -> None:
    print(f"$ {command}", flush=True)
    arguments = [sys.executable, "-m", "iqa_ray.cli", *shlex.split(command)[1:]]
    subprocess.run(arguments, check=True)
    print(flush=True)


def tabulate(workspace: Workspace, manifest: pd.DataFrame) -> pd.DataFrame:
    """By blur, of the test images: how many, how often right, how many kept."""
    selection, voters = read_selection(workspace)
    predictions, _ = read_predictions(workspace)
    folds, _ = read_folds(workspace)
    tested = manifest.loc[manifest["split"] == "test", ["path", "blur_sigma"]]
    joined = (
        tested.merge(predictions[["path", "correct"]].dropna(), on="path")
        .merge(selection, on="path")
        .merge(folds[["image_id", "fold"]], "left", "image_id")
    )
    joined["correct"] = joined["correct"].astype(float)
    joined["blur"] = joined["blur_sigma"].map("sigma {:g}".format)
    cutoffs = {name: cutoff for name, cutoff in read_cutoffs(workspace).items() if name in voters}
    fitted = keep_by_folds(joined, cutoffs, "majority", joined["fold"].to_numpy(float))
    assert fitted is not None
    joined["fitted"] = fitted
    groups = [(name, part) for name, part in joined.groupby("blur", sort=True)]
    groups += [
        ("kept", joined[joined["fitted"]]),
        ("rejected", joined[~joined["fitted"]]),
        ("kept in-sample", joined[joined["keep"]]),
        ("rejected in-sample", joined[~joined["keep"]]),
        ("all", joined),
    ]
    rows = [
        {
            "test images": name,
            "number": len(part),
            "right": f"{part['correct'].mean():.1%}",
            "kept": f"{part['fitted'].mean():.1%}",
            "kept in-sample": f"{part['keep'].mean():.1%}",
        }
        for name, part in groups
    ]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sigmas", type=float, nargs="+", default=SIGMAS, metavar="PX")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    manifest = write_manifest(arguments.data, arguments.out, arguments.seed, blurs=arguments.sigmas)
    ws = shlex.quote(str(arguments.out / "ws"))
    images = shlex.quote(str(arguments.out / "images.csv"))
    run(f"iqa-ray score {images} --workspace {ws}")
    run(
        f"iqa-ray predict --workspace {ws} --backbone efficientnet_lite0 --freeze-backbone "
        "--split train --epochs 40 --lr 1e-3"
    )
    run(f"iqa-ray cutoffs --workspace {ws}")
    run(f"iqa-ray select --workspace {ws}")
    print(tabulate(Workspace(str(arguments.out / "ws")), manifest).to_string(index=False))
    print(json.dumps(describe_machine()))


if __name__ == "__main__":
    main()
