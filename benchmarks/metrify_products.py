"""A metrifier on photographs of real products, beside metrics and the classifier's confidence.

    python -m benchmarks.metrify_products --data DIR --out FOLDER

DIR as for `benchmarks.products`. No image has two uses:

  task      half of train: the task network, EfficientNet-Lite0 with frozen ImageNet weights, is
            trained on these; another one, of which all layers are trained at 160 px, as well
  train     the other half: the metrifier's training images
  val       choose its epoch
  test      all figures are of these

1. `predict` trains both task networks; `metrify build`, `train` and `evaluate` do the rest. Motion
   blur is left out of training. The other network says how well another one's errors are predicted.
2. The main job: every second test image is replaced by a copy with Gaussian blur, and the metrifier
   votes beside the five metrics. The last table has the accuracy of the classifier on the images
   that each voter puts first, as many as the vote of the five keeps: a voter's order needs no
   labels, so nothing is fitted for it. `select` prints the cross-fitted accuracies of votes.

Prints the command lines, what they printed and how long each took.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd

from benchmarks.machine import describe_machine
from benchmarks.products import run, write_manifest
from iqa_ray.selection.fitting import read_cutoffs
from iqa_ray.storage.workspace import Workspace

FIVE = "lapv,lapm,wavs,brisque,niqe"
FROZEN = "--backbone efficientnet_lite0 --freeze-backbone --epochs 40 --lr 1e-3"
WHOLE = "--backbone efficientnet_lite0 --epochs 10 --lr 1e-3 --image-size 160"


def halve_train(manifest: pd.DataFrame, seed: int) -> pd.Series:
    """The use of each image: its split, but `task` for half of each label's training images."""
    uses = manifest["split"].copy()
    rng = np.random.default_rng(seed)
    for _, rows in manifest[manifest["split"] == "train"].groupby("label"):
        chosen = rng.permutation(rows.index)[: -(-len(rows) // 2)]
        uses[chosen] = "task"
    return uses


def time_run(command: str) -> None:
    start = perf_counter()
    run(command)
    print(f"({perf_counter() - start:.0f} s)\n", flush=True)


def find_model(workspace: Path) -> str:
    (model,) = (workspace / "models").glob("*.pt")
    return shlex.quote(str(model))


def compare_at(workspace: Path, share: float) -> pd.DataFrame:
    """The accuracy of each voter's best images, at the share kept that is nearest to `share`."""
    curves = pd.read_parquet(workspace / "risk_coverage.parquet")
    nearest = curves.loc[(curves["coverage"] - share).abs().groupby(curves["voter"]).idxmin()]
    table = nearest.sort_values("accuracy", ascending=False)
    table["voter"] = table["voter"].str.replace(r":.*", "", regex=True)
    return table[["voter", "coverage", "num_images", "accuracy", "accuracy_low", "accuracy_high"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backbone", default="efficientnet_lite0 --freeze-backbone --lr 1e-3")
    parser.add_argument("--epochs", type=int, default=40, help="of the metrifier")
    parser.add_argument("--every", type=int, default=1, help="use one image of so many, for a try")
    arguments = parser.parse_args()
    start = perf_counter()
    out, data = arguments.out.resolve(), arguments.data.resolve()
    out.mkdir(parents=True, exist_ok=True)
    # as the photographs are, then with every second test image blurred
    clean = write_manifest(data, out, arguments.seed, blurred=())
    mixed = write_manifest(data, out, arguments.seed)
    uses = halve_train(clean, arguments.seed)
    chosen = np.arange(len(clean)) % arguments.every == 0
    is_task = (uses == "task").to_numpy()
    clean.assign(split=uses)[chosen & ~is_task].to_csv(out / "learn.csv", index=False)
    judged = mixed.assign(split=uses)[chosen & (is_task | (uses == "test").to_numpy())]
    judged.to_csv(out / "judged.csv", index=False)
    learn, scored, ws, other = (
        shlex.quote(str(out / name)) for name in ("learn.csv", "judged.csv", "ws", "other")
    )
    time_run(f"iqa-ray score {scored} --workspace {ws} --metrics {FIVE}")
    time_run(f"iqa-ray predict --workspace {ws} --split task {FROZEN}")
    time_run(f"iqa-ray score {scored} --workspace {other} --metrics lapm")
    time_run(f"iqa-ray predict --workspace {other} --split task {WHOLE}")
    time_run(
        f"iqa-ray metrify build {learn} --workspace {ws} --task-networks {find_model(out / 'ws')} "
        "--distortions gaussian_blur,noise,jpeg,underexposure,motion_blur --levels 1,3,5"
    )
    time_run(
        f"iqa-ray metrify train --workspace {ws} --backbone {arguments.backbone} "
        f"--epochs {arguments.epochs} --leave-out motion_blur"
    )
    time_run(
        f"iqa-ray metrify evaluate --workspace {ws} --task-networks {find_model(out / 'other')}"
    )
    metric = shlex.quote(f"metrifier:{(out / 'ws/metrifier/model.safetensors').resolve()}")
    time_run(f"iqa-ray score {scored} --workspace {ws} --metrics {metric}")
    time_run(f"iqa-ray cutoffs --workspace {ws}")
    cutoffs = read_cutoffs(Workspace(str(out / "ws")))
    voters = [name for name, cutoff in cutoffs.items() if cutoff.value is not None]
    of_the_five = [name for name in voters if name in FIVE.split(",")]
    others = [name for name in voters if name not in of_the_five]
    share = 0.5  # where none of the five has a cut-off
    for names in filter(None, (of_the_five, others, voters)):
        time_run(f"iqa-ray select --workspace {ws} --metrics {shlex.quote(','.join(names))}")
        if names == of_the_five:
            kept = pd.read_parquet(out / "ws/selection.parquet", columns=["path", "keep"])
            is_judged = kept["path"].isin(judged.loc[judged["split"] == "test", "path"])
            share = float(kept.loc[is_judged, "keep"].mean())
    print(compare_at(out / "ws", share).to_string(index=False))
    print(f"{perf_counter() - start:.0f} s in all")
    print(json.dumps(describe_machine()))


if __name__ == "__main__":
    main()
