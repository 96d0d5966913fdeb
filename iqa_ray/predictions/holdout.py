"""Which images a classifier is trained on, and which must therefore get no prediction."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute as pc

from iqa_ray.errors import UsageError
from iqa_ray.images.source import ImageSource


def find_split(images: pa.Table, split: str, seed: int) -> NDArray[np.bool_]:
    """(n,) which images the split names: by the manifest's word, or a stratified random share.

    Raises:
        UsageError: it is neither.
    """
    words = images.column("split").to_pylist()
    if split in words:
        return np.array([word == split for word in words])
    try:
        share = float(split)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        known = sorted({word for word in words if word}) or ["none"]
        raise UsageError(
            f"--split {split}: neither a share between 0 and 1 nor a value of the split column "
            f"({', '.join(known)})"
        )
    return draw_share(images.column("label").to_pylist(), share, seed)


def draw_share(labels: list[str | None], share: float, seed: int) -> NDArray[np.bool_]:
    """A random `share` of each class, at least one image of it; unlabelled ones are not drawn."""
    rng = np.random.default_rng(seed)
    names = np.array([label or "" for label in labels])
    drawn = np.zeros(len(names), bool)
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        if name:
            drawn[rng.permutation(rows)[: max(1, round(share * len(rows)))]] = True
    return drawn


def find_same_images(
    images: pa.Table, source: ImageSource, others: pa.Table, other_source: ImageSource
) -> NDArray[np.bool_]:
    """Which of `images` are also in `others`, by path or by content, each with its source.

    Only files of equal size are read and hashed.
    """
    paths = set(others.column("path").to_pylist())
    same = np.array([path in paths for path in images.column("path").to_pylist()], bool)
    sizes = others.column("size_bytes").drop_null()
    alike = pc.is_in(images.column("size_bytes"), value_set=sizes.combine_chunks())
    candidates = np.flatnonzero(alike.to_numpy() & ~same)
    if not len(candidates):
        return same
    wanted = images.column("size_bytes").take(candidates).combine_chunks()
    twins = others.filter(pc.is_in(others.column("size_bytes"), value_set=wanted))
    hashes = {other_source.hash(path) for path in twins.column("path").to_pylist()} - {None}
    for row in candidates:
        same[row] = source.hash(images.column("path")[int(row)].as_py()) in hashes
    return same
