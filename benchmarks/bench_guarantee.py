"""Does a certified vote keep its promise, and what does it cost beside the KDE cut-offs?

    python -m benchmarks.bench_guarantee [--images DIR] [--splits 1000] [--tables DIR]

Data sets: 4,000 synthetic codes and, with --images, labelled photographs (DIR/…/<label>/<file>),
some of them damaged; see `benchmarks.judged`. Votes: the majority of lapv, lapm, wavs and brisque,
and brisque alone. For every target accuracy, at confidence 0.95:

- `halves`: a random half of the images certifies. A violation is a vote whose accuracy on kept
  images is truly below the target; with no certificate there is none. `violations` takes all images
  for the truth, for of them the half is a random sample. `violations_other_half` takes what is
  observed on the other half, which is itself a sample and adds its own error.
- `draws`: as many images as a half, drawn with replacement, so that they are independent and the
  truth is the accuracy on all images exactly.
- `groups`, where images come in groups: half of the groups certifies, and the other half's
  images are the truth. Here the images are not independent, and nothing is promised.

`p` is of the one-sided binomial test that violations are more than 5%. `kde` are the cut-offs of
`iqa_ray.selection.cutoffs` on the same halves, which know no target: share and accuracy on the
other half, and in how many splits how many voters had one. `share_kept` is the mean over splits, 0
where nothing was certified; `accuracy_kept` is the median of the true accuracies where something
was. `num_more` is the median of the images that were said to be lacking, and `num_out_of_reach`
counts the splits where no keep set reached the target.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks.judged import VOTERS, judge_codes, judge_products
from benchmarks.report import make_parser, print_result
from iqa_ray.metrics import get_spec
from iqa_ray.selection.cutoffs import fit_cutoff
from iqa_ray.selection.guarantee import certify
from iqa_ray.selection.votes import votes_to_reject

NUM_CODES = 4000
TARGETS = (0.85, 0.9, 0.95)
VOTES = {"majority of four": VOTERS, "brisque alone": ("brisque",)}
CONFIDENCE = 0.95
IS_BETTER = {name: get_spec(name).higher_is_better for name in VOTERS}

Rows = NDArray[np.int64]
Splits = Iterator[tuple[Rows, Rows]]


def draw_halves(judged: pd.DataFrame, num_splits: int) -> Splits:
    for seed in range(num_splits):
        order = np.random.default_rng(seed).permutation(len(judged))
        yield order[: len(order) // 2], order[len(order) // 2 :]


def draw_with_replacement(judged: pd.DataFrame, num_splits: int) -> Splits:
    everything = np.arange(len(judged))
    for seed in range(num_splits):
        rng = np.random.default_rng(seed)
        yield rng.integers(len(judged), size=len(judged) // 2), everything


def draw_groups(judged: pd.DataFrame, num_splits: int) -> Splits:
    names, groups = np.unique(judged["group"], return_inverse=True)
    for seed in range(num_splits):
        chosen = np.random.default_rng(seed).permutation(len(names))[: len(names) // 2]
        inside = np.isin(groups, chosen)
        yield np.flatnonzero(inside), np.flatnonzero(~inside)


def find_kept(judged: pd.DataFrame, cutoffs: Mapping[str, float]) -> NDArray[np.bool_]:
    """(n,) what the majority of the voters in `cutoffs` keeps; all where there are none."""
    if not cutoffs:
        return np.ones(len(judged), bool)
    scores = {name: judged[name].to_numpy() for name in cutoffs}
    low = sum(
        ((scores[name] < value) if IS_BETTER[name] else (scores[name] > value)).astype(int)
        for name, value in cutoffs.items()
    )
    unscored = np.isnan(np.column_stack(list(scores.values()))).any(axis=1)
    kept: NDArray[np.bool_] = (low < votes_to_reject("majority", len(cutoffs))) & ~unscored
    return kept


def measure(
    judged: pd.DataFrame,
    voters: Sequence[str],
    draw: Callable[[pd.DataFrame, int], Splits],
    target: float,
    num_splits: int,
    truth: Rows | None,
) -> dict[str, Any]:
    """Certify on each split; `truth` are the rows that are the truth, or those of the split."""
    correct = judged["correct"].to_numpy(bool)
    scores = {name: judged[name].to_numpy(np.float64) for name in voters}
    needed = votes_to_reject("majority", len(voters))
    found: dict[str, list[float]] = {name: [] for name in ("share", "accuracy", "other", "more")}
    is_half = draw is draw_halves
    for seed, (rows, other) in enumerate(draw(judged, num_splits)):
        certificate = certify(
            {name: values[rows] for name, values in scores.items()},
            correct[rows],
            IS_BETTER,
            needed,
            target,
            CONFIDENCE,
            seed,
        )
        if certificate.cutoffs is None:
            found["share"].append(0.0)
            found["more"].append(certificate.num_more or np.nan)
            continue
        kept = find_kept(judged, certificate.cutoffs)
        judging = other if truth is None else truth
        found["share"].append(kept[judging].mean())
        found["accuracy"].append(correct[judging][kept[judging]].mean())
        found["other"].append(correct[other][kept[other]].mean())
    return {
        "num_certified": len(found["accuracy"]),
        **count_violations(found["accuracy"], target, num_splits, ""),
        **(count_violations(found["other"], target, num_splits, "_other_half") if is_half else {}),
        "share_kept": round(float(np.mean(found["share"])), 3),
        "accuracy_kept": summarise(found["accuracy"]),
        "num_more": summarise([more for more in found["more"] if not np.isnan(more)]),
        "num_out_of_reach": int(np.isnan(found["more"]).sum()),
    }


def count_violations(
    accuracies: list[float], target: float, num_splits: int, suffix: str
) -> dict[str, Any]:
    violations = int(np.sum(np.array(accuracies) < target))
    test = binomtest(violations, num_splits, 1 - CONFIDENCE, alternative="greater")
    return {f"violations{suffix}": violations, f"p{suffix}": round(float(test.pvalue), 4)}


def summarise(values: list[float]) -> float | None:
    """The median."""
    return round(float(np.median(values)), 4) if values else None


def measure_kde(judged: pd.DataFrame, voters: Sequence[str], num_splits: int) -> dict[str, Any]:
    correct = judged["correct"].to_numpy(bool)
    shares, accuracies, numbers = [], [], []
    for rows, other in draw_halves(judged, num_splits):
        cutoffs = {}
        for name in voters:
            part = judged.iloc[rows].dropna(subset=[name])
            fitted = fit_cutoff(
                part[name].to_numpy(np.float64),
                part["correct"].to_numpy(bool),
                IS_BETTER[name],
                num_resamples=0,
            )
            if fitted.value is not None:
                cutoffs[name] = fitted.value
        kept = find_kept(judged, cutoffs)[other]
        shares.append(kept.mean())
        accuracies.append(correct[other][kept].mean())
        numbers.append(len(cutoffs))
    return {
        "share_kept": round(float(np.mean(shares)), 3),
        "accuracy_kept": summarise(accuracies),
        "num_voters": {str(number): numbers.count(number) for number in sorted(set(numbers))},
    }


def describe(judged: pd.DataFrame) -> dict[str, Any]:
    by_damage = judged.groupby("damage")["correct"].agg(["size", "mean"]).round(3)
    return {
        "num_images": len(judged),
        "num_groups": judged["group"].nunique(),
        "accuracy": round(float(judged["correct"].mean()), 4),
        "by_damage": by_damage.to_dict("index"),
    }


def prove(judged: pd.DataFrame, num_splits: int) -> dict[str, Any]:
    result = describe(judged)
    everything = np.arange(len(judged))
    for vote, voters in VOTES.items():
        measured: dict[str, Any] = {"kde": measure_kde(judged, voters, num_splits)}
        for target in TARGETS:
            measured[f"target {target}"] = {
                "halves": measure(judged, voters, draw_halves, target, num_splits, everything),
                "draws": measure(
                    judged, voters, draw_with_replacement, target, num_splits, everything
                ),
            }
            if result["num_groups"] < len(judged):
                groups = measure(judged, voters, draw_groups, target, num_splits, None)
                measured[f"target {target}"]["groups"] = groups
        result[vote] = measured
    return result


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--tables", type=Path, help="keep the judged tables here, and use them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        makers = {"codes": lambda: judge_codes(Path(scratch) / "codes", NUM_CODES, seed=0)}
        if arguments.images:
            makers["photographs"] = lambda: judge_products(arguments.images, seed=0)
        result: dict[str, Any] = {"topic": "guarantee", "num_splits": arguments.splits}
        for name, make in makers.items():
            file = (arguments.tables or Path(scratch)) / f"judged-{name}.parquet"
            if not file.is_file():
                make().to_parquet(file)
            result[name] = prove(pd.read_parquet(file), arguments.splits)
    print_result(result)


if __name__ == "__main__":
    main()
