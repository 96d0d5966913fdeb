"""The findings in words: one paragraph on both expectations, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iqa_ray.layers.tables import ALL

Figure = Sequence[float | None]  # a value and the ends of its interval


def write_paragraph(summary: Mapping[str, Any]) -> str:
    """What the numbers say of both expectations of Cheraaqee (2022, section 3.2).

    Args:
        summary: what `run_layers` returns.
    """
    return " ".join(
        [
            f"{summary['num_measured']:,} images, {len(summary['distortions'])} distortions at "
            f"{len(summary['levels'])} levels, {summary['num_layers']} layers.",
            *_describe_depth(summary["depth"]),
            *_describe_dropout(summary["dropout"]),
            *_describe_errors(summary["errors"]),
        ]
    )


def _describe_depth(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    inactive = {row["distortion"]: row for row in rows if not row["dropout"]}
    whole = inactive[ALL]
    sentences = [
        f"Depth and L2 distance have a rank correlation of {show(whole['distance'])}, depth and "
        f"1 − CKA one of {show(whole['cka'])} (95% intervals over images): "
        + _judge(
            [whole["distance"], whole["cka"]],
            "early layers react more, as Cheraaqee (2022, section 3.2) expects",
            "late layers react more, against what Cheraaqee (2022, section 3.2) expects",
            "it is not clear which layers react more",
        )
        + "."
    ]
    single = [
        f"{name} {show(row['distance'])} and {show(row['cka'])}"
        for name, row in inactive.items()
        if name != ALL
    ]
    if len(single) > 1:
        sentences.append(f"By distortion: {'; '.join(single)}.")
    return sentences


def _describe_dropout(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["The network drops nothing out, so nothing can be said of dropout."]
    (whole,) = (row for row in rows if row["distortion"] == ALL)
    distance, cka = whole["distance"], whole["cka"]
    logs = [None if value is None else value - 1 for value in distance]
    return [
        f"With dropout active, from the first such layer on, L2 distances are {show(distance, 3)} "
        f"times those with it inactive, and 1 − CKA is higher by {show(cka, 3)}: "
        + _judge(
            [logs, cka],
            "dropout damps distortions, as Cheraaqee expects",
            "dropout makes more of distortions, against what Cheraaqee expects",
            "it is not clear that dropout does either",
        )
        + "."
    ]


def _judge(figures: Sequence[Figure], below: str, above: str, neither: str) -> str:
    """What L2 and CKA say together; each counts where its interval excludes 0."""
    signs = [_sign(figure) for figure in figures]
    words = {-1: below, 1: above, 0: neither}
    if signs[0] == signs[1]:
        return words[signs[0]]
    return f"by L2 {words[signs[0]]}; by CKA {words[signs[1]]}"


def _sign(figure: Figure) -> int:
    _, low, high = figure
    if low is None or high is None:
        return 0
    return (low > 0) - (high < 0)


def _describe_errors(errors: Sequence[Mapping[str, Any]]) -> list[str]:
    known = [row for row in errors if row["srcc_loss"][0] is not None]
    if not known:
        return ["No layer's distance could be correlated with the loss."]
    best = max(known, key=lambda row: row["srcc_loss"][0])
    first, last = known[0], known[-1]
    return [
        "The rank correlation of a layer's distance with the loss of the distorted image, mean "
        f"over distortions and levels, is {show(first['srcc_loss'])} in the first layer "
        f"({first['layer']}) and {show(last['srcc_loss'])} in the last ({last['layer']}); it is "
        f"highest in {best['layer']}, {show(best['srcc_loss'])} (the best of {len(known)}, so "
        "rather too high)."
    ]


def show(figure: Figure, digits: int = 2) -> str:
    """Such as `−0.62 [−0.70, −0.51]`."""
    value, low, high = (
        None if number is None else f"{number:.{digits}f}".replace("-", "−") for number in figure
    )
    if value is None:
        return "undefined"
    if low is None or high is None:
        return f"{value} (no interval: too few batches)"
    return f"{value} [{low}, {high}]"
