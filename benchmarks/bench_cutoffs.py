"""Cut-offs that others ship against learnt ones, on images of which a known half is damaged.

    python -m benchmarks.bench_cutoffs --packages DIR --cifar DIR

DIR of --packages holds train/, val/ and test/ of the Packages part of the Grocery Store dataset
(Klasson et al., WACV 2019), DIR of --cifar holds train/ and test/ of CIFAR-10; each has a folder a
class. Without them the synthetic codes stand alone, and no constant comes from other data.

Damage is drawn from each image's content: half of them, at mixed levels, either blur alone
(Gaussian or motion) or one of blur, noise, JPEG, under- and overexposure. Codes are defocused by
their generator. Five times, with split and seeds drawn anew, each set is cut into four parts:

  judge   trains the classifier that is right or wrong;
  judged  chooses the cut-offs: from its predictions, or from scores alone (percentile);
  pool    is selected from, and what is kept trains a second classifier;
  test    clean and damaged images, by which that one is measured.

`judge` and `pool` come from the set's training side, `judged` and `test` from the other one. So no
figure is in-sample. File names do not tell which shots are of one object. For the packages, the
boundary that their authors drew keeps those apart; `sides at random` shows what a classifier is
worth that has seen other shots of the same objects. Both classifiers are linear heads on frozen
EfficientNet-Lite0 features.

Arms: `all images`; `known damage removed`, which nobody has; cleanvision's checks at its defaults;
the worst 5% of each metric; the KDE cut-offs of another set; the set's own KDE cut-offs; those
certified for a target accuracy on kept images, which asks for a quarter fewer mistakes than the
judge of a sixth split makes on its judged images. The vote is the majority of all metrics that have
a cut-off. An arm that has none (no metric has a cut-off, or nothing could be certified) has no
figures for that split: `num_splits`. One that keeps fewer than 32 images trains no classifier:
`num_trained`. Selections are measured on the pool, and the judge's accuracy on kept images on the
test part, which lies on the side of the judged ones.

Each arm is measured beside a random subset of the pool of equal size, and once more with 30% of the
pool's number of images drawn from what it keeps. Intervals are 95% of the paired difference over
the five splits (t distribution); the splits share images, so they are somewhat too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats

from benchmarks.damaged import BLURS, MIXED, DamagedSet, damage_images, make_codes, read_folders
from benchmarks.heads import find_correct
from benchmarks.machine import find_version
from benchmarks.report import make_parser, print_result
from iqa_ray.metrics import get_spec
from iqa_ray.progress import log
from iqa_ray.selection.cutoffs import Cutoff, fit_cutoff, name_direction
from iqa_ray.selection.guarantee import certify
from iqa_ray.selection.votes import cast_votes, votes_to_reject

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Cutoffs = Mapping[str, Cutoff]

NUM_SPLITS = 5
PERCENTILE = 5
FEWER_MISTAKES = 0.25
EQUAL_SHARE = 0.3
LEARNING_RATE = 1e-3
MIN_KEPT = 32  # fewer are no batch, and train nothing
ANY_SIDE = ", sides at random"


def split_parts(labels: Ints, is_train: Bools, seed: int) -> dict[str, Ints]:
    """Halve each side at random within each class: rows of judge, pool, judged and test."""
    rng = np.random.default_rng(seed)
    parts: dict[str, Ints] = {}
    for side, names in ((is_train, ("judge", "pool")), (~is_train, ("judged", "test"))):
        rows = rng.permutation(np.flatnonzero(side))
        ranks = pd.Series(labels[rows]).groupby(labels[rows]).cumcount().to_numpy()
        # classes in turns give their odd image to the one or to the other half
        is_first = (ranks + labels[rows]) % 2 == 0
        parts[names[0]], parts[names[1]] = rows[is_first], rows[~is_first]
    return parts


def balance_error(keep: Bools, is_damaged: Bools) -> float:
    """The mean of the share of clean images rejected and the share of damaged ones kept."""
    return float(((~keep)[~is_damaged].mean() + keep[is_damaged].mean()) / 2)


class Heads:
    """Linear heads on the features of one set; the same rows and seed are trained once."""

    def __init__(self, data: DamagedSet) -> None:
        self._data = data
        self._done: dict[tuple[int, bytes], Bools] = {}

    def find_correct(self, train: Ints, seed: int) -> Bools:
        """(n,) whether a head that was trained on the rows `train` is right about each image."""
        train = np.sort(train)
        key = (seed, train.tobytes())
        if key not in self._done:
            features, labels = self._data.features, self._data.labels
            self._done[key] = find_correct(features, labels, train, LEARNING_RATE, seed)
        return self._done[key]


def fit_learnt(scores: pd.DataFrame, correct: Bools) -> dict[str, Cutoff]:
    """The KDE cut-offs of the metrics that have one."""
    fitted = {}
    for name in scores:
        spec = get_spec(str(name))
        values = scores[name].to_numpy()
        valid = np.isfinite(values)
        fitted[str(name)] = fit_cutoff(
            values[valid], correct[valid], spec.higher_is_better, value_range=spec.range
        )
    return {name: cutoff for name, cutoff in fitted.items() if cutoff.value is not None}


def set_by_hand(values: Mapping[str, float]) -> dict[str, Cutoff]:
    directions = {name: name_direction(get_spec(name).higher_is_better) for name in values}
    return {name: Cutoff(value, directions[name], "manual") for name, value in values.items()}


def cut_percentile(scores: pd.DataFrame) -> dict[str, Cutoff]:
    """The worst PERCENTILE of each metric are low."""
    return set_by_hand(
        {
            str(name): float(
                np.nanpercentile(
                    scores[name],
                    PERCENTILE if get_spec(str(name)).higher_is_better else 100 - PERCENTILE,
                )
            )
            for name in scores
        }
    )


def certify_vote(scores: pd.DataFrame, correct: Bools, target: float) -> dict[str, Cutoff]:
    directions = {str(name): get_spec(str(name)).higher_is_better for name in scores}
    found = certify(
        {str(name): scores[name].to_numpy() for name in scores},
        correct,
        directions,
        votes_to_reject("majority", scores.shape[1]),
        target,
    )
    return set_by_hand(found.cutoffs or {})


def vote(scores: pd.DataFrame, cutoffs: Cutoffs) -> Bools | None:
    """Which images the vote keeps; None without a voter."""
    voters = {name: cutoff for name, cutoff in cutoffs.items() if name in scores}
    if not voters:
        return None
    frame = scores.assign(
        image_id=scores.index, path="", label="", **{f"{name}_error": "" for name in voters}
    )
    return cast_votes(frame, voters)["keep"].to_numpy(bool)


@dataclass
class Split:
    """One set, cut by one seed, and its own cut-offs."""

    data: DamagedSet
    heads: Heads
    seed: int
    parts: dict[str, Ints]
    right: Bools  # the judge, about each image
    learnt: dict[str, Cutoff]

    @classmethod
    def draw(cls, data: DamagedSet, heads: Heads, seed: int) -> Split:
        parts = split_parts(data.labels, data.is_train, seed)
        right = heads.find_correct(parts["judge"], seed)
        judged = parts["judged"]
        learnt = fit_learnt(data.scores.iloc[judged], right[judged])
        return cls(data, heads, seed, parts, right, learnt)

    def choose(self, others: Mapping[str, Split], target: float) -> dict[str, Bools | None]:
        """Which of all images each arm keeps; None where it has no cut-off."""
        scores, issues = self.data.scores, self.data.issues.to_numpy()
        judged = self.parts["judged"]
        certified = certify_vote(scores.iloc[judged], self.right[judged], target)
        return {
            "all images": np.ones(len(scores), bool),
            "known damage removed": self.data.damage == "",
            "cleanvision, blurry": ~issues[:, 0],
            "cleanvision, any of four checks": ~issues.any(axis=1),
            f"worst {PERCENTILE}% of each metric": vote(
                scores, cut_percentile(scores.iloc[judged])
            ),
            **{f"constants from {name}": vote(scores, o.learnt) for name, o in others.items()},
            "KDE": vote(scores, self.learnt),
            "guaranteed": vote(scores, certified),
        }

    def measure(self, keep: Bools) -> dict[str, float]:
        """What one arm rejects, and what training on what it keeps is worth."""
        pool, test = self.parts["pool"], self.parts["test"]
        kept, kept_test = pool[keep[pool]], test[keep[test]]
        keep, damage = keep[pool], self.data.damage[pool]
        rng = np.random.default_rng(self.seed)
        shuffled, num_equal = rng.permutation(pool), round(EQUAL_SHARE * len(pool))
        found = {
            "balanced_error": balance_error(keep, damage != ""),
            "rejected": float((~keep).mean()),
            **{
                f"rejected_{kind or 'clean'}": float((~keep)[damage == kind].mean())
                for kind in np.unique(damage)
            },
        }
        if len(kept_test):
            found["judge_right_on_kept"] = float(self.right[kept_test].mean())
        if len(kept) < MIN_KEPT:
            return found
        right = self.heads.find_correct(kept, self.seed)[test]
        is_clean = self.data.damage[test] == ""
        found["accuracy"] = float(right.mean())
        found["accuracy_clean"] = float(right[is_clean].mean())
        found["accuracy_damaged"] = float(right[~is_clean].mean())
        at_random = self.heads.find_correct(shuffled[: len(kept)], self.seed)[test]
        found["accuracy_random"] = float(at_random.mean())
        if len(kept) >= num_equal:
            chosen = rng.permutation(kept)[:num_equal]
            found["accuracy_equal"] = float(self.heads.find_correct(chosen, self.seed)[test].mean())
        return found


def summarise(
    rows: Sequence[Mapping[str, float]], everything: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Means and standard deviations over splits, and paired differences of accuracies.

    Args:
        rows: what an arm measured, a split each; empty ones have no cut-off.
        everything: the same of all images.
    """
    frame, whole = pd.DataFrame(list(rows)), pd.DataFrame(list(everything))
    found: dict[str, Any] = {"num_splits": sum(map(bool, rows))}
    for name in frame:
        values = frame[name].dropna()
        deviation = None if len(values) < 2 else round(float(values.std()), 4)
        found[str(name)] = {"mean": round(float(values.mean()), 4), "sd": deviation}
    found["num_trained"] = int(frame["accuracy"].count()) if "accuracy" in frame else 0
    if found["num_trained"] > 1:
        found["minus_random"] = bound_difference(frame["accuracy"] - frame["accuracy_random"])
        found["minus_all"] = bound_difference(frame["accuracy"] - whole["accuracy"])
        if "accuracy_equal" in frame:
            difference = frame["accuracy_equal"] - whole["accuracy_equal"]
            found["equal_minus_all"] = bound_difference(difference)
    return found


def bound_difference(differences: pd.Series[float]) -> list[float] | None:
    """The mean, and the ends of its 95% interval by the t distribution; None of fewer than two."""
    differences = differences.dropna()
    if len(differences) < 2:
        return None
    mean, error = float(differences.mean()), float(stats.sem(differences))
    reach = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return [round(value, 4) for value in (mean, mean - reach, mean + reach)]


def measure_sets(sets: Sequence[DamagedSet]) -> dict[str, Any]:
    """All arms on all sets; constants come from the sets of other images with the same damage."""
    splits: dict[str, list[Split]] = {}
    targets = {}
    for data in sets:
        heads = Heads(data)
        splits[data.name] = [Split.draw(data, heads, seed) for seed in range(NUM_SPLITS)]
        targets[data.name] = choose_target(data, heads)
        log(f"{data.name}: cut-offs learnt")
    return {data.name: measure_set(data.name, splits, targets[data.name]) for data in sets}


def choose_target(data: DamagedSet, heads: Heads) -> float:
    """An accuracy with FEWER_MISTAKES than the judge of a split that is not measured."""
    parts = split_parts(data.labels, data.is_train, NUM_SPLITS)
    right = heads.find_correct(parts["judge"], NUM_SPLITS)[parts["judged"]]
    return round(float(1 - (1 - FEWER_MISTAKES) * (1 - right.mean())), 3)


def measure_set(name: str, splits: Mapping[str, Sequence[Split]], target: float) -> dict[str, Any]:
    rows: dict[str, list[dict[str, float]]] = {}
    others = [other for other in splits if shares_damage(name, other)]
    for seed, split in enumerate(splits[name]):
        arms = split.choose({other: splits[other][seed] for other in others}, target)
        for arm, keep in arms.items():
            rows.setdefault(arm, []).append({} if keep is None else split.measure(keep))
        log(f"{name}: split {seed + 1} of {NUM_SPLITS}")
    everything = rows["all images"]
    judged = [split.right[split.parts["judged"]].mean() for split in splits[name]]
    return {
        "num_images": {part: len(rows) for part, rows in splits[name][0].parts.items()},
        "damaged": round(float(np.mean(splits[name][0].data.damage != "")), 4),
        "judge_right": [round(float(value), 4) for value in judged],
        "target": target,
        "learnt": {
            str(metric): [
                round(split.learnt[metric].value or 0, 4) if metric in split.learnt else None
                for split in splits[name]
            ]
            for metric in splits[name][0].data.scores
        },
        "arms": {arm: summarise(found, everything) for arm, found in rows.items()},
    }


def shares_damage(name: str, other: str) -> bool:
    """Whether constants of the set `other` are tried: other images, like damage or codes."""
    images, _, damage = name.partition(", ")
    other_images, _, other_damage = other.partition(", ")
    damage = damage.removesuffix(ANY_SIDE)
    return images != other_images and other_damage in ("", damage or "blur")


def deal_sides(data: DamagedSet) -> DamagedSet:
    """The same images with sides drawn at random: shots of one object come to lie on both."""
    is_train = np.random.default_rng(0).permutation(data.is_train)
    return replace(data, name=data.name + ANY_SIDE, is_train=is_train)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--packages", type=Path, help="folder of the grocery packages")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--num-codes", type=int, default=1400)
    arguments = parser.parse_args()
    if find_version("cleanvision") is None:
        parser.exit(2, "bench_cutoffs needs cleanvision: pip install cleanvision\n")
    torch.set_num_threads(1)
    sets = [make_codes(arguments.num_codes)]
    if arguments.packages:
        packages = read_folders(
            arguments.packages, [("train", None), ("val", None), ("test", None)]
        )
        for name, kinds in (("blur", BLURS), ("mixed", MIXED)):
            damaged = damage_images(f"packages, {name}", packages, kinds, (2, 3, 4, 5), 160)
            sets += [damaged, deal_sides(damaged)]
    if arguments.cifar:
        cifar = read_folders(arguments.cifar, [("train", 1800), ("test", 1200)])
        for name, kinds in (("blur", BLURS), ("mixed", MIXED)):
            sets.append(damage_images(f"cifar, {name}", cifar, kinds, (1, 2, 3), 96))
    print_result({"topic": "cutoffs", "splits": NUM_SPLITS, "sets": measure_sets(sets)})


if __name__ == "__main__":
    main()
