"""Which images train, validate and test each arm (Smith et al., sections 3.2 and 3.3).

An arm is one way to choose training images. All arms of an experiment have as many of them, and
share the validation and the test part. Copies of an image (equal content hashes) count as one where
parts are drawn and never stand in two parts. A split depends on the images and on its own seed,
not on the order of the rows, nor on what is trained with it. Pure: tables in, tables out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from iqa_ray.errors import UsageError
from iqa_ray.experiments.settings import SHARES

TestOn = Literal["high", "all"]
Seed = int | np.random.SeedSequence

SPLITS_FILE = "splits.parquet"
COLUMNS = ["arm", "part", "image_id", "path", "label"]
# `seed` is null where all seeds share their parts
SPLITS_SCHEMA = pa.schema([*((name, pa.string()) for name in COLUMNS), ("seed", pa.int64())])
SMALLEST_CLASS = 10  # different high-quality images; with fewer, a tenth is less than one image
SMALLEST_PROBLEM = 2  # classes

REMOVED = "removed-"  # begins the names of the arms of `split_varying`
HIGH = "high"  # the arm of high-quality images alone
# arms of every image: as it is, with labels that follow quality, with losses that do
EVERYTHING, SMOOTHED, WEIGHTED = KEEPING = ("everything", "smoothed", "weighted")
_MOST_NAMES = 10  # in a note


@dataclass(frozen=True)
class Splits:
    """The parts of each arm.

    Attributes:
        table: one row an arm and image: arm, part (`train`, `validation` or `test`), image_id,
            path, label. The rows of validation and test are repeated for each arm. Where every seed
            has its own parts, also seed, and all rows for each.
        notes: what was left out, and why, in plain words.
        num_fitted: test images that the cut-offs were fitted on; None where that is not on record.
        num_unusable: images left out because a voter has no score of them or they cannot be
            decoded.
    """

    table: pd.DataFrame
    notes: list[str]
    num_unusable: int
    num_fitted: int | None = None


@dataclass(frozen=True)
class _Parts:
    """What is shared by the arms, and what they draw from.

    Attributes:
        validation, test: shared by all arms.
        train: the high-quality images outside the two.
        pool: all images outside the two.
        notes, num_unusable: as in `Splits`.
    """

    validation: pd.DataFrame
    test: pd.DataFrame
    train: pd.DataFrame
    pool: pd.DataFrame
    notes: list[str]
    num_unusable: int


def split_quality(
    images: pd.DataFrame,
    seed: Seed,
    num_train: int | None = None,
    test_on: TestOn = "high",
    keeping: Sequence[str] = (),
) -> Splits:
    """Split into the arms `high` and `all` (Smith et al., section 3.2).

    High-quality images are split 80/10/10 into training, validation and test, stratified by label.
    The other arm draws as many training images from all images outside validation and test: first
    one of each class, so that no class of the test part is unknown to it, then at random.

    Args:
        images: one row an image: image_id (unique), path, label, content_hash, status, keep
            (whether it is of high quality). Rows with another status than `ok` (such as an image
            that cannot be decoded), rows without a label, copies under different labels, and
            classes of fewer than ten different high-quality images are left out, with a note.
        seed: of the draws.
        num_train: training images of each arm; by default as many as the high-quality arm can have.
        test_on: `high` tests on a tenth of the high-quality images; `all` adds a tenth of each
            class's others, which leaves the high-quality parts as they are.
        keeping: further arms, each of all images outside validation and test.

    Raises:
        UsageError: fewer than two classes remain, there are fewer than `num_train` images, or they
            are fewer than the classes.
    """
    rng = np.random.default_rng(seed)
    parts = _draw_parts(images, rng, test_on)
    size = _check_size(num_train, len(parts.train), parts.test["label"].nunique())
    high = _lead_with_classes(_shuffle(parts.train, rng)).head(size)
    everything = _lead_with_classes(_shuffle(parts.pool, rng)).head(size)
    notes = list(parts.notes)
    if parts.pool["keep"].all():
        notes.append("no rejected image is left to train on: both arms draw from the same images")
    if keeping:
        notes.append(f"{len(parts.pool):,} training images in {', '.join(keeping)}")
    arms = {HIGH: high, "all": everything} | dict.fromkeys(keeping, parts.pool)
    table = _assemble(arms, parts, images)
    return Splits(table, notes, parts.num_unusable)


def join_seeds(splits: Mapping[int, Splits]) -> Splits:
    """Splits of the same images, one a seed, as one: its table says the seed."""
    tables = [each.table.assign(seed=seed) for seed, each in splits.items()]
    notes = list(dict.fromkeys(note for each in splits.values() for note in each.notes))
    first = next(iter(splits.values()))
    return Splits(pd.concat(tables, ignore_index=True), notes, first.num_unusable)


def split_varying(
    images: pd.DataFrame,
    quality: pd.Series[float],
    seed: int,
    num_train: int | None = None,
    shares: Sequence[int] = SHARES,
) -> Splits:
    """Split into one arm a share of removed images, and one of high quality alone.

    The shares are those of Smith et al. (section 3.3), who set their results beside that of the
    high-quality arm (abstract: "1.3% of classification precision sacrificed").

    Validation and test are those of `split_quality` with the same seed. For a share p, n / (1 - p)
    of the other images are drawn and the lowest p removed, which leaves n. A draw holds
    those of all smaller shares. The best image of a class is spared where the class would vanish
    with it; a note says so.

    Args:
        images: as for `split_quality`.
        quality: by image_id, higher is better (what `rank_quality` returns); of each image whose
            status is `ok`.
        seed: of the draws.
        num_train: n; by default the largest for which the images suffice at the largest share and
            in the high-quality arm.
        shares: per cent, each at least 0 and below 100.

    Returns:
        The arms `removed-<share>`, in the order of `shares`, and `high`. Where more than the
        high-quality images are asked for, `high` is left out, with a note.

    Raises:
        UsageError: a share is out of range, or as for `split_quality`.
    """
    if not shares or not all(0 <= share < 100 for share in shares):
        raise UsageError(f"shares {list(shares)}: give per cents of at least 0 and below 100")
    rng = np.random.default_rng(seed)
    parts = _draw_parts(images, rng, "high")
    pool = parts.pool.assign(quality=parts.pool["image_id"].map(quality).astype("float64"))
    assert pool["quality"].notna().all(), "an image whose status is ok has a quality"
    notes = list(parts.notes)
    sizes = range(len(pool) + 1)
    most = max(size for size in sizes if _size_draw(size, max(shares)) <= len(pool))
    if num_train is None:
        most = min(most, len(parts.train))
    size = _check_size(num_train, most, parts.test["label"].nunique())
    draws = _lead_with_classes(_shuffle(pool, rng))
    arms = {f"{REMOVED}{share}": _remove_lowest(draws, share, size, notes) for share in shares}
    if size <= len(parts.train):
        arms[HIGH] = _lead_with_classes(_shuffle(parts.train, rng)).head(size)
    else:
        notes.append(
            f"no high-quality arm: {size} training images asked for, {len(parts.train)} of high "
            "quality are there"
        )
    return Splits(_assemble(arms, parts, images), notes, parts.num_unusable)


def _remove_lowest(draws: pd.DataFrame, share: int, size: int, notes: list[str]) -> pd.DataFrame:
    """The best `size` of the first draws, which are all of these but `share` per cent."""
    drawn = draws.head(_size_draw(size, share))
    ranked = drawn.sort_values("quality", ascending=False, kind="stable")
    kept = _lead_with_classes(ranked).head(size)
    spared = sorted(kept.loc[~kept.index.isin(ranked.head(size).index), "label"])
    if spared:
        notes.append(f"{share}% removed: the best image of {_name_some(spared)} was spared")
    return kept


def rank_quality(scores: pd.DataFrame, higher_is_better: Mapping[str, bool]) -> pd.Series[float]:
    """The quality of an image: its mean rank over the metrics that vote.

    Args:
        scores: (n, m) one row an image, indexed by image_id, one column a metric, NaN without.
        higher_is_better: of each metric.

    Returns:
        (n,) in [1, n], higher is better, equal scores share their mean rank; NaN for an image that
        lacks a score, which takes no rank from the others either.
    """
    signs = pd.Series({name: 1.0 if higher_is_better[name] else -1.0 for name in scores.columns})
    return (scores.dropna() * signs).rank().mean(axis=1).reindex(scores.index)


def find_leaks(
    table: pd.DataFrame, content_hashes: Mapping[str, str] | pd.Series[str]
) -> list[str]:
    """Find what stands in more than one part of a seed, of whichever arms.

    Args:
        table: as in `Splits`; a seed that is null stands for all.
        content_hashes: by image_id; an image without one is compared by its id alone.

    Returns:
        One line an image or content that leaks; empty for a sound split.
    """
    if "seed" in table and table["seed"].notna().any():
        of_seeds = [rows.drop(columns="seed") for _, rows in table.groupby("seed")]
        return list(
            dict.fromkeys(leak for rows in of_seeds for leak in find_leaks(rows, content_hashes))
        )
    rows = table[["part", "image_id"]].drop_duplicates()
    rows["content"] = rows["image_id"].map(content_hashes)
    leaks = []
    for key, name in (("image_id", "image"), ("content", "content")):
        parts = rows.dropna(subset=[key]).drop_duplicates(["part", key])
        for value, found in parts[parts.duplicated(key, keep=False)].groupby(key)["part"]:
            leaks.append(f"{name} {value} is in {' and '.join(sorted(found))}")
    return leaks


def _admit(images: pd.DataFrame) -> tuple[pd.DataFrame, list[str], int]:
    """The images that can take part, by id, notes on the others, and how many are unusable."""
    assert images["image_id"].is_unique
    images = images.reset_index(drop=True).sort_values("image_id", ignore_index=True)
    notes = []
    unusable = images.loc[images["status"] != "ok", "status"].value_counts().sort_index()
    num_unusable = int(unusable.sum())
    if num_unusable:
        reasons = ", ".join(f"{count} {status}" for status, count in unusable.items())
        notes.append(f"{num_unusable} images left out: without a score of every voter ({reasons})")
    images = images[images["status"] == "ok"]
    unlabelled = images["label"].isna() | (images["label"] == "")
    if unlabelled.any():
        notes.append(f"{unlabelled.sum()} images left out: without a label")
    images = images[~unlabelled]
    torn = images.groupby("content_hash")["label"].transform("nunique") > 1
    if torn.any():
        labels = _name_some(sorted(set(images.loc[torn, "label"])))
        notes.append(f"{torn.sum()} images left out: copies of them have other labels ({labels})")
    images = images[~torn]
    counts = images[images["keep"]].groupby("label")["content_hash"].nunique()
    counts = counts.reindex(sorted(set(images["label"])), fill_value=0)
    small = [f"{label} ({count})" for label, count in counts.items() if count < SMALLEST_CLASS]
    needed = f"{SMALLEST_CLASS} different high-quality images"
    if small:
        notes.append(f"{len(small)} classes left out: fewer than {needed}: {_name_some(small)}")
    if len(counts) - len(small) < SMALLEST_PROBLEM:
        raise UsageError(
            f"{len(counts) - len(small)} classes have {needed}, at least {SMALLEST_PROBLEM} are "
            "needed: add labelled images, or select with a milder rule"
            + "".join(f"; {note}" for note in notes)
        )
    return images[images["label"].map(counts) >= SMALLEST_CLASS], notes, num_unusable


def _draw_parts(images: pd.DataFrame, rng: np.random.Generator, test_on: TestOn) -> _Parts:
    admitted, notes, num_unusable = _admit(images)
    high = admitted[admitted["keep"]]
    test, validation = _draw_tenths(high, 2, rng)
    tested = high
    if test_on == "all":
        others = admitted[~admitted["content_hash"].isin(high["content_hash"])]
        test |= _draw_tenths(others, 1, rng)[0]
        tested = admitted
    outside = ~admitted["content_hash"].isin(test | validation)
    return _Parts(
        validation=high[high["content_hash"].isin(validation)],
        test=tested[tested["content_hash"].isin(test)],
        train=admitted[outside & admitted["keep"]],
        pool=admitted[outside],
        notes=notes,
        num_unusable=num_unusable,
    )


def _draw_tenths(images: pd.DataFrame, num_tenths: int, rng: np.random.Generator) -> list[set[str]]:
    """Draw disjoint tenths of each class: sets of content hashes."""
    tenths: list[set[str]] = [set() for _ in range(num_tenths)]
    for _, group in images.groupby("label"):
        copies = group.groupby("content_hash").size()
        num_contents, num_images = round(len(copies) / 10), round(len(group) / 10)
        copies = copies.iloc[rng.permutation(len(copies))]
        for tenth in tenths:
            chosen = _choose_contents(copies, num_contents, num_images)
            copies = copies.drop(chosen)
            tenth.update(chosen)
    return tenths


def _choose_contents(copies: pd.Series[int], num_contents: int, num_images: int) -> list[str]:
    """The first contents that fit; the one of fewest copies where each has too many."""
    chosen: list[str] = []
    for content, size in copies.items():
        if len(chosen) == num_contents:
            return chosen
        if size <= num_images:
            chosen.append(str(content))
            num_images -= size
    return chosen or [str(copies.idxmin())]


def _shuffle(images: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    return images.iloc[rng.permutation(len(images))]


def _lead_with_classes(images: pd.DataFrame) -> pd.DataFrame:
    """Move the first image of each class to the front, so that the head has every class."""
    return images.iloc[np.argsort(images["label"].duplicated().to_numpy(), kind="stable")]


def _size_draw(num_train: int, share: int) -> int:
    """How many images to draw so that `num_train` remain without the lowest `share` per cent."""
    return round(100 * num_train / (100 - share))


def _check_size(num_train: int | None, most: int, num_classes: int) -> int:
    size = most if num_train is None else num_train
    if size > most:
        raise UsageError(f"{size} training images asked for, {most} are there: ask for fewer")
    if size < num_classes:
        raise UsageError(f"{size} training images are too few for {num_classes} classes")
    return size


def _assemble(
    arms: Mapping[str, pd.DataFrame], parts: _Parts, images: pd.DataFrame
) -> pd.DataFrame:
    shared = {"validation": parts.validation, "test": parts.test}
    frames = [
        rows.sort_index().assign(arm=arm, part=part)
        for arm, train in arms.items()
        for part, rows in ({"train": train} | shared).items()
    ]
    table = pd.concat(frames, ignore_index=True)[COLUMNS]
    assert not find_leaks(table, images.set_index("image_id")["content_hash"])
    return table


def _name_some(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
