"""The rule for cut-offs beside the one before it: speed, heavy tails, photographs.

    python -m benchmarks.bench_cutoff_rule [--packages DIR]

The rule before is that of commit PREVIOUS, read with `git show`, so this needs the repository.

  speed        Process CPU seconds of one fit of a metric with 1,000,000 predictions and 1,000
               resamples, with and without the permutation test, on log-normal scores; the rule
               before does 20 resamples, and `before_extrapolated_s` is for 1,000. Medians of
               three rounds.
  heavy_tails  Ten draws of log-normal scores of log-sd 1.6, 2,000 images, 60% right. The log-means
               are one log-sd apart, so the true crossing is at exp(0.8) = 2.226.
  photographs  DIR holds train/, val/ and test/ of the Packages part of the Grocery Store dataset
               (Klasson et al., WACV 2019). A linear head on frozen EfficientNet-Lite0 features at
               160 px learns from train/; val/ and test/ are predicted, and half of them mildly
               blurred before (Gaussian, sigma 1 to 2.5 px, drawn from the content). Each rule's
               cut-off is fitted on all predicted images (`value`, `in_sample`), and on four of
               five folds at a time to vote on the fifth (`cross_fitted`; a fold without a cut-off
               is kept). `best_youden` is the largest Youden index that any cut-off reaches, which
               is found knowing all images.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.damaged import extract_features, read_folders, score_images
from benchmarks.heads import find_correct
from benchmarks.report import make_parser, print_result
from iqa_ray.images.decoding import hash_content
from iqa_ray.metrics import get_spec
from iqa_ray.progress import log
from iqa_ray.selection.crossfit import assign_folds
from iqa_ray.selection.cutoffs import Cutoff, fit_cutoff

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

PREVIOUS = "1aa6ab3"
POSITIVE = (0.0, np.inf)
NUM_LARGE, NUM_RESAMPLES, NUM_RESAMPLES_BEFORE = 1_000_000, 1000, 20
NUM_ROUNDS = 3
LOG_SD, NUM_DRAWS, NUM_HEAVY = 1.6, 10, 2000


Rule = Callable[..., Any]


def load_previous() -> Rule:
    """`fit_cutoff` as it was before; a module of its own."""
    shown = subprocess.run(
        ["git", "show", f"{PREVIOUS}:iqa_ray/selection/cutoffs.py"],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parent,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "previous_cutoffs.py"
        file.write_bytes(shown.stdout)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    rule: Rule = module.fit_cutoff
    return rule


def draw_lognormal(size: int, share_right: float, log_sd: float, seed: int) -> tuple[Floats, Bools]:
    """Scores whose log-means are one log-sd apart, 0 for wrong ones, and who is right."""
    rng = np.random.default_rng(seed)
    correct = rng.random(size) < share_right
    return np.exp(log_sd * (rng.standard_normal(size) + correct)), correct


def measure_speed(before: Rule) -> dict[str, Any]:
    scores, correct = draw_lognormal(NUM_LARGE, 0.8, 0.5, seed=0)
    fit_cutoff(scores[:1000], correct[:1000], True, value_range=POSITIVE)  # imports and plans

    def time_fit(rule: Rule, **settings: Any) -> float:
        seconds = []
        for _ in range(NUM_ROUNDS):
            start = time.process_time()
            rule(scores, correct, True, **settings)
            seconds.append(time.process_time() - start)
        return median(seconds)

    without = time_fit(before, num_resamples=0)
    few = time_fit(before, num_resamples=NUM_RESAMPLES_BEFORE)
    a_resample = (few - without) / NUM_RESAMPLES_BEFORE
    seconds = {
        "with_test_s": time_fit(fit_cutoff, value_range=POSITIVE, num_resamples=NUM_RESAMPLES),
        "without_test_s": time_fit(
            fit_cutoff, value_range=POSITIVE, num_resamples=NUM_RESAMPLES, num_permutations=0
        ),
        "before_20_resamples_s": few,
        "before_extrapolated_s": without + NUM_RESAMPLES * a_resample,
    }
    return {name: round(value, 2) for name, value in seconds.items()}


def list_rules(before: Rule) -> dict[str, Rule]:
    """What is compared: each takes scores, who is right, direction, and the metric's range."""

    def fit_before(scores: Floats, correct: Bools, higher: bool, value_range: Any) -> Any:
        return before(scores, correct, higher)

    def fit_on(scale: str) -> Rule:
        def fit(scores: Floats, correct: Bools, higher: bool, value_range: Any) -> Cutoff:
            return fit_cutoff(scores, correct, higher, value_range=value_range, scale=scale)  # type: ignore[arg-type]

        return fit

    return {"before": fit_before, "raw": fit_on("raw"), "log": fit_on("log")}


def draw_heavy_tails(before: Rule) -> dict[str, Any]:
    """The cut-offs of ten draws by each rule; None for none."""
    found: dict[str, Any] = {"true_crossing": round(float(np.exp(LOG_SD / 2)), 3)}
    for name, rule in list_rules(before).items():
        values = []
        for seed in range(NUM_DRAWS):
            scores, correct = draw_lognormal(NUM_HEAVY, 0.6, LOG_SD, seed)
            values.append(rule(scores, correct, True, POSITIVE).value)
        found[name] = [value and round(value, 3) for value in values]
        log(f"heavy tails, {name}: {sum(value is not None for value in values)} of {NUM_DRAWS}")
    return found


def measure_photographs(folder: Path, before: Rule) -> dict[str, Any]:
    images = read_folders(folder, [("train", None), ("val", None), ("test", None)])
    hashes = [hash_content(image.tobytes()) for image in images.pixels]
    draws = [np.random.default_rng(int(value, 16)) for value in hashes]
    sigmas = np.array([rng.uniform(1, 2.5) * (rng.random() < 0.5) for rng in draws])
    sigmas[images.is_train] = 0
    pixels = [
        cv2.GaussianBlur(image, (0, 0), sigma).astype(np.uint8) if sigma else image
        for image, sigma in zip(images.pixels, sigmas, strict=True)
    ]
    features = extract_features(pixels, 160)
    train, predicted = np.flatnonzero(images.is_train), np.flatnonzero(~images.is_train)
    right = find_correct(features, images.labels, train, lr=1e-3, seed=0)[predicted]
    scores = score_images([pixels[row] for row in predicted])
    folds = assign_folds(pd.Series(hashes)[predicted], seed=0)
    found: dict[str, Any] = {
        "num_train": len(train),
        "num_predicted": len(predicted),
        "blurred": round(float((sigmas[predicted] > 0).mean()), 4),
        "right": round(float(right.mean()), 4),
        "right_on_clean": round(float(right[sigmas[predicted] == 0].mean()), 4),
        "right_on_blurred": round(float(right[sigmas[predicted] > 0].mean()), 4),
    }
    for metric in scores:
        values = scores[metric].to_numpy()
        found[str(metric)] = compare_rules(str(metric), values, right, folds, before)
        log(f"photographs: {metric}")
    return found


def compare_rules(
    metric: str, scores: Floats, right: Bools, folds: NDArray[np.int64], before: Rule
) -> dict[str, Any]:
    """One metric's cut-off by each rule, and what it is worth; scores are finite."""
    spec = get_spec(metric)
    oriented = scores if spec.higher_is_better else -scores
    best = max(find_youden(oriented >= cut, right) for cut in np.unique(oriented))
    found: dict[str, Any] = {"best_youden": round(best, 3)}
    for name, rule in list_rules(before).items():
        if name == "log" and spec.range != POSITIVE:
            continue
        whole = rule(scores, right, spec.higher_is_better, spec.range)
        keep = np.ones(len(scores), bool)
        num_fitted = 0
        for fold in np.unique(folds):
            inside = folds == fold
            fitted = rule(scores[~inside], right[~inside], spec.higher_is_better, spec.range)
            if fitted.value is not None:
                num_fitted += 1
                keep[inside] = ~fitted.is_low(scores[inside])
        found[name] = {"value": whole.value and round(whole.value, 3), "reason": whole.reason}
        found[name]["folds_with_cutoff"] = num_fitted
        if num_fitted:
            found[name]["cross_fitted"] = describe_vote(keep, right, best)
        if whole.value is not None:
            found[name]["in_sample"] = describe_vote(~whole.is_low(scores), right, best)
    return found


def describe_vote(keep: Bools, right: Bools, best_youden: float) -> dict[str, float]:
    """What a cut-off rejects, how often the classifier is right on the rest, its Youden index."""
    return {
        "rejected": round(float((~keep).mean()), 3),
        "right_on_kept": round(float(right[keep].mean()), 3),
        "share_of_best_youden": round(find_youden(keep, right) / best_youden, 3),
    }


def find_youden(keep: Bools, right: Bools) -> float:
    """Share of the wrong that is rejected less share of the right that is rejected."""
    return float(keep[right].mean() - keep[~right].mean())


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--packages", type=Path, help="folder of the grocery packages")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = load_previous()
    result: dict[str, Any] = {"topic": "cutoff-rule", "speed": measure_speed(before)}
    log(f"speed: {result['speed']}")
    result["heavy_tails"] = draw_heavy_tails(before)
    if arguments.packages:
        result["photographs"] = measure_photographs(arguments.packages, before)
    print_result(result)


if __name__ == "__main__":
    main()
