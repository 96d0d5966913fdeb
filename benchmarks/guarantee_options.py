"""How much do other ways to begin the walk of a guaranteed vote keep?

    python -m benchmarks.guarantee_options [--tables DIR] [--runs 400]

Simulated votes (three low votes of four reject; the voters are one hidden quality with noise) and,
with --tables, random halves of the tables that `benchmarks.bench_guarantee --tables` left there,
with the majority of four voters and with brisque alone. Prints, for each way, the mean share of
images that it keeps and in how many runs it certifies nothing, at confidence 0.95:

- `several`: as `iqa_ray.selection.guarantee` does it.
- `fixed`: its starts without the one that the path part's outcomes choose.
- `strict`: one start, at 3 times the images that would do if all were right.
- `whole`: one start, at the level that keeps everything: Bonferroni's loosest only.
- `bonferroni`: every level a start of its own, nothing handed on.
- `ordered 10%`, `20%`, `50%`: that share of the images chooses the only start; the rest is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, log
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binom

from benchmarks.bench_guarantee import IS_BETTER, VOTES
from benchmarks.report import make_parser
from iqa_ray.selection import guarantee

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Draw = Callable[[np.random.Generator], tuple[Floats, Bools]]

ERROR = 0.05


def simulate(num_images: int, accuracy: Callable[[Floats], Floats]) -> Draw:
    def draw(rng: np.random.Generator) -> tuple[Floats, Bools]:
        quality = rng.standard_normal(num_images)
        scores = quality[:, None] + 0.6 * rng.standard_normal((num_images, 4))
        return scores, rng.random(num_images) < accuracy(quality)

    return draw


def halve(file: Path, voters: Sequence[str]) -> Draw:
    judged = pd.read_parquet(file)
    signs = [1 if IS_BETTER[name] else -1 for name in voters]
    scores = signs * judged[list(voters)].to_numpy(np.float64)
    correct = judged["correct"].to_numpy(bool)

    def draw(rng: np.random.Generator) -> tuple[Floats, Bools]:
        rows = rng.permutation(len(correct))[: len(correct) // 2]
        return scores[rows], correct[rows]

    return draw


def choose_errors(way: str, expected: Floats, favourite: int | None, target: float) -> Floats:
    """(levels,) the error that is given to each level."""
    if way == "several":
        return guarantee._share_error(expected, favourite, target, ERROR)
    if way == "fixed":
        return guarantee._share_error(expected, None, target, ERROR)
    errors = np.zeros(len(expected))
    if way == "bonferroni":
        return errors + ERROR / len(errors)
    if way == "strict":
        size = 3 * log(ERROR) / log(target)
        errors[min(np.searchsorted(expected, size), len(errors) - 1)] = ERROR
    elif way == "whole" or favourite is None:
        errors[-1] = ERROR
    else:
        errors[favourite] = ERROR
    return errors


def walk(way: str, scores: Floats, correct: Bools, target: float) -> float:
    """The share of the tested images that is kept."""
    needed = 3 if scores.shape[1] == 4 else 1
    share = {"ordered 20%": 0.2, "ordered 50%": 0.5}.get(way, 0.1)
    num_path = ceil(share * len(correct))
    first, rest = slice(0, num_path), slice(num_path, None)
    path = guarantee._make_path(scores[first])

    def count(part: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        chosen, right = scores[part], correct[part]
        return tuple(guarantee._count_kept(path, s, needed) for s in (chosen, chosen[right]))

    kept_path, right_path = count(first)
    kept, right = count(rest)
    expected = kept_path / kept_path[-1] * len(scores[rest])
    favourite = guarantee._choose_start(kept_path, right_path, target)
    errors = choose_errors(way, expected, favourite, target)
    p_values = binom.sf(right - 1, kept, target)
    if way == "bonferroni":
        passed = np.flatnonzero(p_values <= errors)
        level = passed[-1] if len(passed) else None
    else:
        level = guarantee._walk(p_values, errors)
    return 0.0 if level is None else float(kept[level] / len(scores[rest]))


WAYS = ("several", "fixed", "strict", "whole", "bonferroni", "ordered 10%", "ordered 20%",
        "ordered 50%")  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--runs", type=int, default=400)
    arguments = parser.parse_args()

    def rise(low: float, high: float, slope: float) -> Callable[[Floats], Floats]:
        return lambda q: low + (high - low) / (1 + np.exp(-slope * (q + 0.3)))

    cases: list[tuple[str, Draw, float]] = [
        (f"{name}, {num_images:,} images", simulate(num_images, accuracy), target)
        for name, accuracy, num_images, target in (
            ("steep rise to 98%", rise(0.3, 0.98, 3), 300, 0.9),
            ("steep rise to 98%", rise(0.3, 0.98, 3), 1000, 0.9),
            ("steep rise to 98%", rise(0.3, 0.98, 3), 5000, 0.95),
            ("slow rise to 97%", rise(0.5, 0.97, 1.5), 1000, 0.85),
            ("slow rise to 97%", rise(0.5, 0.97, 1.5), 3000, 0.9),
            ("80% whatever the score", lambda q: np.full(len(q), 0.8), 1000, 0.75),
        )
    ]
    if arguments.tables:
        cases += [
            (f"{name}, {vote}", halve(arguments.tables / f"judged-{name}.parquet", voters), target)
            for name in ("codes", "photographs")
            for vote, voters in VOTES.items()
            for target in (0.9, 0.95)
        ]
    print(f"| case | target | {' | '.join(WAYS)} |\n|{'---|' * (len(WAYS) + 2)}")
    for name, draw, target in cases:
        rng = np.random.default_rng(0)
        shares: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(arguments.runs):
            scores, correct = draw(rng)
            for way in WAYS:
                shares[way].append(walk(way, scores, correct, target))
        cells = [
            f"{np.mean(values):.1%} ({np.mean(np.array(values) == 0):.0%})"
            for values in shares.values()
        ]
        print(f"| {name} | {target} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
