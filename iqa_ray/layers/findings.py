"""What distances in layers say: along depth, with dropout, and of the network's error.

Cheraaqee (2022, section 3.2) expects distortions to show more in early layers than in late ones,
and dropout to keep them from spreading. Intervals are of 95% and over images: of means from 1,000
bootstrap resamples, of rank correlations with the loss from influences (`selection.confidence`).
Where images of a batch share something, batches are resampled: CKA is of batches, and dropout drops
the same units for all images of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from iqa_ray.layers.distances import Floats, compute_cka
from iqa_ray.layers.measurer import Measured
from iqa_ray.layers.tables import ALL, LAYERS_SCHEMA
from iqa_ray.selection.confidence import MIN_IMAGES, bound_correlation, correlate_ranks

_NUM_RESAMPLES = 1000
_MIN_LAYERS = 3
_MIN_BATCHES = 5  # with fewer there is no interval worth its name
_ENDS = (0.025, 0.975)
_MAX_UNKNOWN = 0.05
_NONE = (float("nan"),) * 3

Copies = Sequence[tuple[str, int]]


@dataclass(frozen=True)
class _Means:
    """Values of V copies in L layers, of all images, and of R resamples of them.

    Attributes:
        whole: (V, L).
        resampled: (R, V, L); NaN where there are too few units to draw from.
    """

    whole: Floats
    resampled: Floats


def _draw(num: int, seed: int) -> Floats:
    """(R, num) how often each of `num` units is in a resample."""
    if num < _MIN_BATCHES:
        return np.full((_NUM_RESAMPLES, num), np.nan)
    draws = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), _NUM_RESAMPLES)
    return draws.astype(np.float64)


def _average(distances: Floats, weights: Floats) -> _Means:
    """Mean (V, L, n) distances; of those that are numbers."""
    flat = distances.reshape(-1, distances.shape[-1]).T.astype(np.float64)
    is_known = ~np.isnan(flat)
    flat = np.where(is_known, flat, 0)
    rows = np.vstack([np.ones(len(flat)), weights])
    with np.errstate(invalid="ignore"):
        means = (rows @ flat / (rows @ is_known)).reshape(-1, *distances.shape[:2])
    return _Means(means[0], means[1:])


def _align(hsic: Floats, weights: Floats) -> _Means:
    """CKA from (num_batches, V, L, 3) estimates of HSIC."""
    rows = np.vstack([np.ones(len(hsic)), weights])
    cka = compute_cka(np.tensordot(rows, hsic, axes=1))
    return _Means(cka[0], cka[1:])


def _bound(whole: Floats, resampled: Floats) -> Floats:
    """(..., 3): a figure, and the ends of its interval; (R, ...) are the resamples'.

    There is no interval where more than a twentieth of the resamples have no figure.
    """
    is_known = np.isnan(resampled).mean(axis=0) < _MAX_UNKNOWN
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of figures that no resample has
        ends = np.where(is_known, np.nanquantile(resampled, _ENDS, axis=0), np.nan)
    return np.stack([whole, *ends], axis=-1)


class Findings:
    """All figures of a measurement.

    Args:
        measured: of M modes, V copies and L layers.
        copies: distortion and level of each copy.
        seed: of the bootstrap.
    """

    def __init__(self, measured: Measured, copies: Copies, seed: int) -> None:
        self._measured, self._copies = measured, copies
        num_images, batches = len(measured.batches), measured.batches
        by_batch = _draw(len(measured.hsic), seed)
        by_image = _draw(num_images, seed)
        of_batches = by_batch[:, batches]
        self._distances = [
            _average(values, of_batches if mode else by_image)
            for mode, values in enumerate(measured.distances)
        ]
        # resampled as with dropout active, for ratios of the two
        self._paired = _average(measured.distances[0], of_batches)
        self._cka = [
            _align(measured.hsic[:, mode], by_batch) for mode in range(len(measured.distances))
        ]

    @property
    def has_dropout(self) -> bool:
        return len(self._distances) > 1

    def make_table(self) -> pd.DataFrame:
        """The rows of LAYERS_SCHEMA."""
        rows = []
        for mode in range(len(self._distances)):
            correlations = self._correlate_with_loss(mode)
            for distortion, level, places in self._choose():
                distance, cka = (
                    _bound(means.whole[places].mean(0), means.resampled[:, places].mean(1))
                    for means in (self._distances[mode], self._cka[mode])
                )
                errors = correlations[distortion, level]
                for depth, layer in enumerate(self._measured.layers):
                    row: dict[str, Any] = {
                        "layer": layer,
                        "depth": depth + 1,
                        "kind": self._measured.kinds[depth],
                        "dropout": bool(mode),
                        "distortion": distortion,
                        "level": level,
                        "num_images": self._count(mode, places, depth),
                    }
                    figures = {"distance": distance, "cka": cka, "srcc_loss": errors}
                    for name, found in figures.items():
                        for end, value in zip(("", "_low", "_high"), found[depth], strict=True):
                            row[f"{name}{end}"] = float(value)
                    rows.append(row)
        frame = pd.DataFrame(rows, columns=LAYERS_SCHEMA.names)
        return frame.astype({"level": "Int64"})

    def _choose(self) -> list[tuple[str, int | None, list[int]]]:
        """Distortion, level and copies that make a row: each copy, then all together."""
        single = [(name, level, [place]) for place, (name, level) in enumerate(self._copies)]
        return [*single, (ALL, None, list(range(len(self._copies))))]

    def _count(self, mode: int, places: list[int], depth: int) -> int:
        values = self._measured.distances[mode][places, depth]
        return int((~np.isnan(values).any(axis=0)).sum())

    def _correlate_with_loss(self, mode: int) -> dict[tuple[str, int | None], Floats]:
        """(L, 3) rank correlations of distance and loss over images, by distortion and level.

        Those of `all` are means over the copies, so that they do not say that more of a distortion
        moves features more and makes more errors.
        """
        measured = self._measured
        found: dict[tuple[str, int | None], Floats] = {}
        parts: list[list[tuple[float, Floats]]] = [[] for _ in measured.layers]
        for place, (name, level) in enumerate(self._copies):
            losses = measured.losses[mode, 1 + place]
            rows = []
            for depth, distances in enumerate(measured.distances[mode, place]):
                part = _relate(distances.astype(np.float64), losses)
                if part is not None:
                    parts[depth].append(part)
                rows.append(_NONE if part is None else _list(*part))
            found[name, level] = np.array(rows)
        found[ALL, None] = np.array([_list(*_join(group)) if group else _NONE for group in parts])
        return found

    def relate_depth(self) -> list[dict[str, Any]]:
        """Spearman's correlation of depth with distance and with 1 - CKA, by mode and distortion.

        Each is of the mean over levels (and, for `all`, over distortions). Below 0 early layers
        react more.
        """
        rows = []
        for mode in range(len(self._distances)):
            for name, places in self._group():
                row: dict[str, Any] = {"dropout": bool(mode), "distortion": name}
                for measure, means, sign in (
                    ("distance", self._distances[mode], 1),
                    ("cka", self._cka[mode], -1),
                ):
                    whole = sign * means.whole[places].mean(0)
                    resampled = sign * means.resampled[:, places].mean(1)
                    is_known = ~np.isnan(whole)
                    curves = np.vstack([whole, resampled])[:, is_known]
                    correlations = _rank(curves)
                    row[measure] = _bound(correlations[0], correlations[1:]).tolist()
                rows.append(row)
        return rows

    def compare_dropout(self) -> list[dict[str, Any]]:
        """How dropout changes distances, from the first layer that drops something on.

        `distance` is the ratio of distances with dropout active and inactive, the geometric mean
        over layers and levels; `cka` the difference of the means of 1 - CKA. Ratios below 1 and
        differences below 0 say that dropout damps. Empty for a network without dropout.
        """
        if not self.has_dropout:
            return []
        first = next(i for i, kind in enumerate(self._measured.kinds) if kind.startswith("Dropout"))
        rows = []
        for name, places in self._group():
            row: dict[str, Any] = {"distortion": name}
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = [
                    np.log(getattr(self._distances[1], of) / getattr(self._paired, of))
                    for of in ("whole", "resampled")
                ]
            differences = [
                getattr(self._cka[0], of) - getattr(self._cka[1], of)
                for of in ("whole", "resampled")
            ]
            row["distance"] = np.exp(_bound(*_average_cells(ratios, places, first))).tolist()
            row["cka"] = _bound(*_average_cells(differences, places, first)).tolist()
            rows.append(row)
        return rows

    def list_losses(self) -> list[dict[str, Any]]:
        """Mean loss in nats, of clean images (level 0) and of each copy, by mode."""
        copies = [("none", 0), *self._copies]
        return [
            {"dropout": bool(mode), "distortion": name, "level": level, "loss": float(loss)}
            for mode, losses in enumerate(self._measured.losses.mean(axis=-1))
            for (name, level), loss in zip(copies, losses, strict=True)
        ]

    def _group(self) -> list[tuple[str, list[int]]]:
        """The copies of each distortion, and all."""
        names = [name for name, _ in self._copies]
        groups = [(n, [i for i, m in enumerate(names) if m == n]) for n in dict.fromkeys(names)]
        return [*groups, (ALL, list(range(len(names))))]


def _average_cells(values: Sequence[Floats], places: list[int], first: int) -> list[Floats]:
    """Means over copies and layers from `first` on, of (V, L) and (R, V, L) values.

    A cell that has no finite value of all images is left out.
    """
    cells = [value[..., places, first:].reshape(*value.shape[:-2], -1) for value in values]
    is_known = np.isfinite(cells[0])
    if not is_known.any():
        return [np.full(value.shape[:-2], np.nan) for value in values]
    return [cell[..., is_known].mean(axis=-1) for cell in cells]


def _relate(distances: Floats, losses: Floats) -> tuple[float, Floats] | None:
    """Rank correlation over images, and the influence of each; None where there is none."""
    is_known = ~np.isnan(distances) & np.isfinite(losses)
    x, y = distances[is_known], losses[is_known]
    if len(x) < MIN_IMAGES or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    value, influence = correlate_ranks(x, y)
    spread = np.zeros(len(distances))
    spread[is_known] = influence * len(distances) / len(x)
    return value, spread


def _join(parts: Sequence[tuple[float, Floats]]) -> tuple[float, Floats]:
    values, influences = zip(*parts, strict=True)
    return float(np.mean(values)), np.mean(influences, axis=0)


def _list(value: float, influence: Floats) -> tuple[float, float, float]:
    found = bound_correlation(value, influence)
    return found.value, found.low, found.high


def _rank(curves: Floats) -> Floats:
    """(R,) Spearman's correlations of (R, L) curves with depth; NaN for one that is flat."""
    if curves.shape[1] < _MIN_LAYERS:
        return np.full(len(curves), np.nan)
    ranks = stats.rankdata(curves, axis=1)  # NaN for a curve with one
    ranks -= ranks.mean(axis=1, keepdims=True)
    depth = np.arange(ranks.shape[1]) - (ranks.shape[1] - 1) / 2
    with np.errstate(invalid="ignore"):
        return np.asarray(ranks @ depth / np.sqrt((ranks**2).sum(axis=1) * (depth**2).sum()))
