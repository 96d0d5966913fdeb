"""Kernel densities of the scores of two classes, and where they cross.

Both classes are binned on one grid, so that a density is one cosine transform, whatever the number
of images. Everything here works on oriented scores (higher is better), on the scale that densities
are estimated on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from iqa_ray.selection.settings import Bandwidth, Weighting
from iqa_ray.selection.significance import Floats

# images of one class in each cell of a grid, whole or shared between cells
Masses = NDArray[Any]

# The grid has this many points a kernel width: density errors stay below 1e-4 of the peak.
_POINTS_PER_WIDTH = 32
_MAX_POINTS = 1 << 14
# The grid ends this many widths beyond the data, and beyond this many spreads from the quartiles:
# scores still farther out count in the shares of each class, but have no density.
_MARGIN_WIDTHS = 5.0
_MAX_SPREADS = 12.0
# Where both curves are below this share of their peak, their difference is rounding error.
_FLOOR = 1e-4
_NORMAL_IQR = 1.34  # interquartile range of a normal distribution of standard deviation 1


@dataclass(frozen=True)
class Crossings:
    """Where two densities cross, ascending.

    Attributes:
        values: (k,) oriented scores.
        is_rising: (k,) whether `correct` takes over there as quality rises.
        youden: (k,) share of the incorrect below minus share of the correct below, in [-1, 1]:
            the Youden index of a cut-off there.
    """

    values: Floats
    is_rising: NDArray[np.bool_]
    youden: Floats

    @property
    def best(self) -> int | None:
        """The rising one with the largest Youden index, if that is above 0."""
        gain = np.where(self.is_rising, self.youden, 0.0)
        return int(np.argmax(gain)) if (gain > 0).any() else None

    @property
    def best_youden(self) -> float:
        """Of the best one; 0 without one."""
        return 0.0 if self.best is None else float(self.youden[self.best])


def measure_spread(scores: Floats) -> float:
    """The smaller of standard deviation and IQR/1.34 (Silverman 1986, eq. 3.30).

    Outliers do not widen it. With most scores equal, the IQR is 0 and the deviation counts.
    """
    low, high = np.quantile(scores, [0.25, 0.75])
    deviation = float(np.std(scores, ddof=1))
    return min(deviation, float(high - low) / _NORMAL_IQR) if high > low else deviation


def choose_width(spread: float, size: float, rule: Bandwidth) -> float:
    """Kernel width in score units: the rule's factor for one dimension, times the spread."""
    if rule == "scott":
        return spread * float(size ** (-1 / 5))
    if rule == "silverman":
        return spread * float((size * 3 / 4) ** (-1 / 5))
    return spread * float(rule)


class Curves:
    """The two classes on one grid.

    Args:
        right, wrong: oriented finite scores of the two classes, at least two each, not all equal.
        bounds: no score can lie beyond these; a density has no mass there (its kernels are
            reflected). A bound that the scores themselves exceed does not count.
        rule: of the kernel widths.
        weighting: `equal` compares densities of equal area, `prior` weights each by its class.
    """

    def __init__(
        self,
        right: Floats,
        wrong: Floats,
        *,
        bounds: tuple[float, float] = (-np.inf, np.inf),
        rule: Bandwidth = "scott",
        weighting: Weighting = "equal",
    ) -> None:
        self.classes = right, wrong
        self._rule, self._weighting = rule, weighting
        spreads = [measure_spread(scores) for scores in self.classes]
        self.widths = (
            choose_width(spreads[0], len(right), rule),
            choose_width(spreads[1], len(wrong), rule),
        )
        low, high = self._find_window(spreads, bounds)
        points = int(np.ceil((high - low) / min(self.widths) * _POINTS_PER_WIDTH))
        self._size = min(max(points, 1024), _MAX_POINTS)
        self._step = (high - low) / self._size
        # cell centres: cosine transforms of type 2 reflect at the outer edges of the end cells
        self.grid = low + (np.arange(self._size) + 0.5) * self._step
        self._frequencies = np.pi * np.arange(self._size) / (high - low)

    @property
    def extent(self) -> float:
        """How many kernel widths the scores spread over."""
        return float(np.ptp(np.concatenate(self.classes))) / min(self.widths)

    @property
    def is_fine(self) -> bool:
        """Whether the grid resolves both kernels."""
        return self._step < min(self.widths) / 4

    def _find_window(
        self, spreads: list[float], bounds: tuple[float, float]
    ) -> tuple[float, float]:
        ends = []
        for scores, spread in zip(self.classes, spreads, strict=True):
            quartiles = np.quantile(scores, [0.25, 0.75])
            reach = _MAX_SPREADS * spread
            low, high = quartiles[0] - reach, quartiles[1] + reach
            ends.append((max(scores.min(), low), min(scores.max(), high)))
        margin = _MARGIN_WIDTHS * max(self.widths)
        low, high = min(end[0] for end in ends) - margin, max(end[1] for end in ends) + margin
        lowest, highest = (pick(map(pick, self.classes)) for pick in (min, max))
        low = max(low, bounds[0]) if bounds[0] <= lowest else low
        high = min(high, bounds[1]) if bounds[1] >= highest else high
        return float(low), float(high)

    def bin_linearly(self) -> tuple[Masses, Masses]:
        """Each class's mass in every cell, shared between the two nearest cell centres.

        Two arrays of (size + 2,): below the grid, its cells, above it.
        """

        def bin_class(position: Floats) -> Masses:
            cell = np.minimum(position.astype(np.int64), self._size - 2)
            fraction = position - cell
            mass = np.bincount(cell + 1, 1 - fraction, self._size + 2)
            return mass + np.bincount(cell + 2, fraction, self._size + 2)

        return self._bin(bin_class)

    def bin_whole(self) -> tuple[Masses, Masses]:
        """The same with each score in the one cell that it lies in: counts."""

        def bin_class(position: Floats) -> Masses:
            return np.bincount(np.rint(position).astype(np.int64) + 1, minlength=self._size + 2)

        return self._bin(bin_class)

    def _bin(self, bin_class: Callable[[Floats], Masses]) -> tuple[Masses, Masses]:
        low, high = self.grid[0] - self._step / 2, self.grid[-1] + self._step / 2
        masses = []
        for scores in self.classes:
            inside = scores[(scores >= low) & (scores <= high)]
            mass = bin_class(np.clip((inside - self.grid[0]) / self._step, 0, self._size - 1))
            mass[0], mass[-1] = (scores < low).sum(), (scores > high).sum()
            masses.append(mass)
        return masses[0], masses[1]

    def choose_widths(self, right: Masses, wrong: Masses) -> tuple[float, float] | None:
        """Kernel widths of binned classes; None where the grid is too coarse for them."""
        widths = []
        for mass in (right, wrong):
            inside = mass[1:-1]
            cumulative = np.cumsum(inside)
            size = cumulative[-1]
            if size < 2:
                return None
            quartiles = np.interp([0.25 * size, 0.75 * size], cumulative, self.grid)
            # no matrix products: their threads wait for each other on busy cores
            mean = (inside * self.grid).sum() / size
            deviation = np.sqrt((inside * (self.grid - mean) ** 2).sum() / (size - 1))
            iqr = quartiles[1] - quartiles[0]
            # equal scores lie in one cell, or in two neighbours
            spread = min(deviation, iqr / _NORMAL_IQR) if iqr > 2 * self._step else deviation
            widths.append(choose_width(float(spread), float(mass.sum()), self._rule))
        return (widths[0], widths[1]) if min(widths) > self._step else None

    def estimate_density(self, mass: Masses, width: float) -> Floats:
        """The kernel density of one binned class at the cell centres; its area is 1."""
        kernel = np.exp(-0.5 * (self._frequencies * width) ** 2)
        smooth = fft.idct(fft.dct(mass[1:-1].astype(np.float64)) * kernel)
        return np.asarray(smooth) / (mass.sum() * self._step)

    def find_crossings(
        self, right: Masses, wrong: Masses, widths: tuple[float, float]
    ) -> Crossings:
        """Where the densities of two binned classes cross."""
        num_right, num_wrong = right.sum(), wrong.sum()
        curve_right = self.estimate_density(right, widths[0])
        curve_wrong = self.estimate_density(wrong, widths[1])
        if self._weighting == "prior":
            curve_right *= num_right
            curve_wrong *= num_wrong
        higher = np.maximum(curve_right, curve_wrong)
        difference = curve_right - curve_wrong
        # cells in which a density matters; both are rounding errors in a gap between two of them
        used = np.flatnonzero(higher > _FLOOR * higher.max())
        is_ahead = difference[used] >= 0
        change = np.flatnonzero(is_ahead[1:] != is_ahead[:-1])
        before, after = used[change], used[change + 1]
        share = difference[before] / (difference[before] - difference[after])
        share[after > before + 1] = 0.5  # the middle of the gap
        values = self.grid[before] + share * (self.grid[after] - self.grid[before])
        # the mass of the cells up to the crossing's, and of all that lies below the grid
        below = (np.cumsum(wrong) / num_wrong - np.cumsum(right) / num_right)[before + 1]
        return Crossings(values, difference[after] >= 0, below)

    def find_best(self, right: Masses, wrong: Masses) -> tuple[float | None, float]:
        """The best crossing of two binned classes, None without one, and its Youden index."""
        widths = self.choose_widths(right, wrong)
        if widths is None:
            return None, 0.0
        crossings = self.find_crossings(right, wrong, widths)
        best = crossings.best
        return None if best is None else float(crossings.values[best]), crossings.best_youden
