"""Whether dropping low quality drops some classes more than others."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from iqa_ray.selection.significance import adjust_holm

CLASS_BALANCE_SCHEMA = pa.schema(
    [
        ("label", pa.string()),
        ("num_images", pa.int64()),
        ("num_rejected", pa.int64()),
        ("share", pa.float64()),
        ("p_value", pa.float64()),
    ]
)
CLASS_BALANCE_FILE = "class_balance.parquet"
_LEVEL = 0.05  # classes with a smaller p value are named
_MOST_NAMED = 5


def measure_balance(selection: pd.DataFrame) -> pd.DataFrame:
    """How many images of each class are rejected, for whatever reason.

    Args:
        selection: one row an image with label (null: of no class, left out) and keep.

    Returns:
        The rows of `class_balance.parquet` (CLASS_BALANCE_SCHEMA), by label; share is the rejected
        one. p_value: if as many images were rejected blindly to their classes, how often a class
        would lose a number as far from what it should, or farther (exact hypergeometric test,
        twice the smaller tail), adjusted for the number of classes by Holm.
    """
    kept = selection.groupby("label")["keep"].agg(["size", "sum"])
    num_images = kept["size"].to_numpy(np.int64)
    num_rejected = num_images - kept["sum"].to_numpy(np.int64)
    blindly = stats.hypergeom(num_images.sum(), num_rejected.sum(), num_images)
    tails = np.minimum(blindly.cdf(num_rejected), blindly.sf(num_rejected - 1))
    columns = {
        "label": kept.index.to_numpy(),
        "num_images": num_images,
        "num_rejected": num_rejected,
        "share": num_rejected / num_images,
        "p_value": adjust_holm(np.minimum(2 * tails, 1)),
    }
    return pd.DataFrame(columns)


def describe_imbalance(balance: pd.DataFrame) -> list[str]:
    """A warning about the classes that lost every image, and one about those that lost too many.

    Too many: the rejected share is above that of all classes together, and p_value is below 5%.
    """
    is_empty = balance["num_rejected"] == balance["num_images"]
    overall = balance["num_rejected"].sum() / max(balance["num_images"].sum(), 1)
    is_hit = (balance["share"] > overall) & (balance["p_value"] < _LEVEL) & ~is_empty
    warnings = []
    if is_empty.any():
        names = _name_classes(balance[is_empty])
        warnings.append(f"no image is kept of {names}: --min-per-class N keeps the best ones")
    if is_hit.any():
        names = _name_classes(balance[is_hit].sort_values("share", ascending=False))
        warnings.append(
            f"rejected more often than the other classes (all: {overall:.1%}): {names}: their "
            "images are worse, or the metrics mistake what they show for low quality"
        )
    return warnings


def _name_classes(rows: pd.DataFrame) -> str:
    named = [
        f"{row.label} ({row.num_rejected:,} of {row.num_images:,})"
        for row in rows.head(_MOST_NAMED).itertuples()
    ]
    more = len(rows) - len(named)
    return ", ".join(named) + (f" and {more:,} more classes" if more else "")


def keep_best(
    selection: pd.DataFrame, ranks: NDArray[np.float64], min_per_class: int
) -> pd.DataFrame:
    """Keep outvoted images of the classes that have fewer than `min_per_class` kept ones.

    The best ones by rank are kept, until the class has so many or no scored image is left: one
    that is unscored is never kept. Equal ranks: the one that comes first.

    Args:
        selection: as `cast_votes` gives it.
        ranks: row for row, as `rank_images` gives them; NaN for an unscored image.

    Returns:
        The selection with other `keep` and `reason`: that of an image which is kept though
        outvoted says so, with the votes against it. Votes stay as they are.
    """
    labels, keep = selection["label"], selection["keep"]
    num_kept = keep.groupby(labels).transform("sum")
    candidates = pd.Series(ranks, selection.index)[~keep]
    # NaN, which is no place, for an image without a rank or a label
    place = candidates.groupby(labels).rank(method="first", ascending=False)
    saved = place.index[place <= min_per_class - num_kept[place.index]]
    selection = selection.copy()
    selection.loc[saved, "keep"] = True
    selection.loc[saved, "reason"] = (
        f"kept for --min-per-class {min_per_class}, though " + selection.loc[saved, "reason"]
    )
    return selection
