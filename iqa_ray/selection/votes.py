"""Votes: each metric calls an image low or not; a rule rejects (Smith et al., section 3.1.1)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from iqa_ray.errors import UsageError
from iqa_ray.selection.cutoffs import Cutoff
from iqa_ray.selection.settings import Rule


def votes_to_reject(rule: Rule, num_metrics: int) -> int:
    """How many low votes reject an image: more than half, one, all, or the given number.

    Raises:
        UsageError: the rule asks for more votes than there are metrics, or for none.
    """
    needed = {"majority": num_metrics // 2 + 1, "any": 1, "all": num_metrics}.get(str(rule))
    if needed is None:
        needed = int(rule)
    if not 1 <= needed <= num_metrics:
        raise UsageError(f"--rule {rule}: {num_metrics} metrics vote, give 1 to {num_metrics}")
    return needed


def cast_votes(
    frame: pd.DataFrame, cutoffs: Mapping[str, Cutoff], rule: Rule = "majority"
) -> pd.DataFrame:
    """Let each metric of `cutoffs` vote on each image.

    Args:
        frame: one row an image with image_id, path, label, a column of scores a metric (NaN
            without a score) and a text `<metric>_error` that says why there is none.
        cutoffs: the voters; each has a value.
        rule: `majority` rejects an image that more than half of the voters call low, `any` one
            that any of them does, `all` one that all of them do, a number K one that K do.

    Returns:
        image_id, path, label, then for each voter its score and low_<metric> (null without a
        score), num_low, keep, reason (empty for a kept image). An image that a voter has no
        score for is rejected as unscored, whatever the others say.
    """
    needed = votes_to_reject(rule, len(cutoffs))
    selection = frame[["image_id", "path", "label"]].copy()
    low = pd.DataFrame(index=frame.index)
    unscored = pd.DataFrame(index=frame.index)
    for name, cutoff in cutoffs.items():
        scores = frame[name].to_numpy(np.float64)
        unscored[name] = np.isnan(scores)
        low[name] = cutoff.is_low(scores) & ~unscored[name]
        selection[name] = scores
        selection[f"low_{name}"] = low[name].astype("boolean").mask(unscored[name])
    selection["num_low"] = low.sum(axis=1).astype("int64")
    selection["keep"] = (selection["num_low"] < needed) & ~unscored.any(axis=1)
    selection["reason"] = _explain(frame, cutoffs, low, unscored, ~selection["keep"])
    return selection


def add_looks(selection: pd.DataFrame, looks: pd.Series[str]) -> list[str]:
    """The reasons, those of rejected images with what the image looks like.

    Args:
        selection: as `cast_votes` returns it.
        looks: of images, by id, in words; empty where nothing is known.
    """
    found = selection["image_id"].map(looks).fillna("")
    return [
        f"{reason}; {look}" if reason and look else reason
        for reason, look in zip(selection["reason"], found, strict=True)
    ]


def rank_images(selection: pd.DataFrame, cutoffs: Mapping[str, Cutoff]) -> NDArray[np.float64]:
    """The mean rank of each image over the voters, higher is better.

    Args:
        selection: (n) rows with each voter's score, as `cast_votes` gives them.
        cutoffs: the voters.

    Returns:
        (n,) values in [1, n]: scores rank in the voter's direction, and equal ones share the mean
        of their ranks. NaN for an unscored image, which ranks nowhere.
    """
    scores = selection[list(cutoffs)].to_numpy(np.float64)
    signs = [1.0 if cutoff.higher_is_better else -1.0 for cutoff in cutoffs.values()]
    is_scored = ~np.isnan(scores).any(axis=1)
    ranks = np.full(len(scores), np.nan)
    ranks[is_scored] = stats.rankdata(scores[is_scored] * signs, axis=0).mean(axis=1)
    return ranks


def _explain(
    frame: pd.DataFrame,
    cutoffs: Mapping[str, Cutoff],
    low: pd.DataFrame,
    unscored: pd.DataFrame,
    rejected: pd.Series[bool],
) -> list[str]:
    """Why each rejected image was rejected; empty for the others."""
    reasons = [""] * len(frame)
    votes = {name: low[name].to_numpy() for name in cutoffs}
    gaps = {name: unscored[name].to_numpy() for name in cutoffs}
    scores = {name: frame[name].to_numpy() for name in cutoffs}
    errors_of = {name: frame[f"{name}_error"].to_numpy() for name in cutoffs}
    for row in np.flatnonzero(rejected):
        lacking = [name for name in cutoffs if gaps[name][row]]
        if lacking:
            errors = "; ".join(f"{name}: {errors_of[name][row]}" for name in lacking)
            reasons[row] = f"unscored ({errors})"
        else:
            against = [name for name in cutoffs if votes[name][row]]
            described = (_describe_vote(n, scores[n][row], cutoffs[n]) for n in against)
            reasons[row] = f"low in {len(against)} of {len(cutoffs)}: {', '.join(described)}"
    return reasons


def _describe_vote(name: str, score: float, cutoff: Cutoff) -> str:
    sign = "<" if cutoff.higher_is_better else ">"
    return f"{name} {score:.4g} {sign} {cutoff.value:.4g}"
