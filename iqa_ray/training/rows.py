"""Training images in an epoch: in which version, how sure of their labels, of what weight.

Pure NumPy: every draw depends on the seed and the epoch alone, so that a run that was interrupted
goes on with the same ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Values = NDArray[np.float32]

# one stream of random numbers for each use, so that none depends on another
_VERSIONS, _CERTAINTIES = 1, 2


@dataclass(frozen=True)
class Mix:
    """In which versions training images appear: in each epoch anew, in exact shares.

    Inputs hold all images in version 0, then all in version 1 and so on: the row of image i in
    version v is i + v · `num_images`.

    Attributes:
        shares: of each version; their sum is 1.
        num_images: of the inputs, in each version.
    """

    shares: tuple[float, ...]
    num_images: int

    def __post_init__(self) -> None:
        assert abs(sum(self.shares) - 1) < 1e-9, "shares sum to 1"

    def count(self, num_rows: int) -> list[int]:
        """How many of `num_rows` images appear in each version.

        What rounding down leaves goes to the versions with the largest remainders, the first of
        equal ones.
        """
        exact = [share * num_rows for share in self.shares]
        counts = [int(value + 1e-9) for value in exact]
        by_remainder = sorted(range(len(exact)), key=lambda place: counts[place] - exact[place])
        for place in by_remainder[: num_rows - sum(counts)]:
            counts[place] += 1
        return counts

    def draw(self, rows: Rows, seed: int, epoch: int) -> Rows:
        """The rows of images, given by those of version 0, in the versions of an epoch."""
        versions = np.repeat(np.arange(len(self.shares)), self.count(len(rows)))
        rng = np.random.default_rng([seed, epoch, _VERSIONS])
        return rows + rng.permutation(versions) * self.num_images


@dataclass(frozen=True)
class RowPlan:
    """How a run's training rows are treated; by default each is taken as it is.

    Attributes:
        mix: in which versions they appear.
        certainties: (N,) of all inputs, the probability that the label of a row gives to its true
            class, in (0, 1]; the others share the rest (see `smooth_labels`). None for labels that
            are certain.
        is_shuffled: deal the certainties of an epoch's rows out among these rows at random, anew
            in each epoch: as many labels are as sure, but for no reason.
        weights: (N,) of all inputs, by which the loss of a row is multiplied; None where all are 1.
    """

    mix: Mix | None = None
    certainties: Values | None = None
    is_shuffled: bool = False
    weights: Values | None = None

    def describe(self) -> list[Any]:
        """What keys of runs say of it; nothing where every row is taken as it is."""
        hashes = [
            None if values is None else hashlib.blake2b(values.tobytes()).hexdigest()
            for values in (self.certainties, self.weights)
        ]
        if self.mix is None and not any(hashes):
            return []
        return [None if self.mix is None else self.mix.shares, *hashes, self.is_shuffled]

    def draw(self, rows: Rows, seed: int, epoch: int) -> tuple[Rows, Values | None, Values | None]:
        """What is trained on in an epoch: rows of inputs, their certainties, and their weights."""
        if self.mix is not None:
            rows = self.mix.draw(rows, seed, epoch)
        certainties = None if self.certainties is None else self.certainties[rows]
        if certainties is not None and self.is_shuffled:
            rng = np.random.default_rng([seed, epoch, _CERTAINTIES])
            certainties = rng.permutation(certainties)
        return rows, certainties, None if self.weights is None else self.weights[rows]


AS_THEY_ARE = RowPlan()


def find_outside(certainties: Sequence[float] | NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which of (n,) certainties are not in (0, 1]; NaN is not."""
    values = np.asarray(certainties)
    return ~((values > 0) & (values <= 1))
