"""BRISQUE and NIQE: how far an image strays from the statistics of natural scenes.

Mittal, Moorthy, Bovik, "No-Reference Image Quality Assessment in the Spatial Domain", IEEE Trans.
Image Processing 21(12), 2012 (BRISQUE), and Mittal, Soundararajan, Bovik, "Making a 'Completely
Blind' Image Quality Analyzer", IEEE Signal Processing Letters 20(3), 2013 (NIQE). Parameters come
from the authors' releases (see params/README.md); borders, resizing and the grid of shape
parameters follow pyiqa's `brisque` and `niqe`, whose values these metrics reproduce. Lower is
better. A value that does not exist is NaN here; `Metric` turns it into an error.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from iqa_ray.metrics.planes import Planes

Floats = NDArray[np.float64]
Maps = NDArray[np.float32]

_BLOCK_SIDE = 96


def brisque(planes: Planes) -> float:
    """BRISQUE: support vector regression on 36 features of two scales; unclamped, 0-100 typical.

    NaN where a feature does not exist, as on a flat image.
    """
    if planes.is_flat:
        return np.nan
    luma = planes.luma
    features = np.concatenate(
        [_compute_brisque_features(normalise_for_brisque(scaled)) for scaled in (luma, halve(luma))]
    )
    model = _load_params("brisque")
    low, high = model["feature_min"], model["feature_max"]
    scaled_features = 2 * (features - low) / (high - low) - 1
    squared_distances = np.square(model["support_vectors"] - scaled_features).sum(axis=1)
    kernel = np.exp(-model["gamma"] * squared_distances)
    return float((model["coefficients"] * kernel).sum() - model["rho"])


def niqe(planes: Planes) -> float:
    """NIQE: distance of the features of 96×96 px blocks from those of pristine images (eq. 10).

    Pixels right of and below the last whole block are left out. NaN where a feature exists in no
    block, as on a flat image.
    """
    if planes.is_flat:
        return np.nan
    num_down, num_across = planes.height // _BLOCK_SIDE, planes.width // _BLOCK_SIDE
    cropped = planes.luma[: num_down * _BLOCK_SIDE, : num_across * _BLOCK_SIDE]
    luma = cropped.astype(np.float64)
    features = np.concatenate(
        [
            _compute_niqe_features(_cut_blocks(normalise_for_niqe(scaled), num_down, num_across))
            for scaled in (luma, halve(luma))
        ],
        axis=1,
    )
    # As in the release (nanmean, nancov), a block that lacks a feature still counts in the mean
    # of the others, and not at all in the covariance.
    exists = ~np.isnan(features)
    complete = features[exists.all(axis=1)]
    if not exists.any(axis=0).all() or len(complete) == 0:
        return np.nan
    mean = np.nanmean(features, axis=0)
    spread = complete - complete.mean(axis=0)
    covariance = np.einsum("bi,bj->ij", spread, spread) / max(len(complete) - 1, 1)

    model = _load_params("niqe")
    difference = model["mean"] - mean
    # by eigenvalues: the singular value decomposition of NumPy 2.5's OpenBLAS rounds differently
    # with another number of threads, and an actor has one
    precision = np.linalg.pinv(
        (model["covariance"] + covariance) / 2,
        rcond=len(mean) * np.finfo(np.float64).eps,
        hermitian=True,
    )
    return float(np.sqrt(np.einsum("i,ij,j->", difference, precision, difference)))


def _make_window() -> Floats:
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets**2) / (2 * (7 / 6) ** 2))
    return np.asarray(window / window.sum(), np.float64)


# The Gaussian window of local moments, 7×7 px, σ = 7/6, as a matrix in float32 and as one axis in
# float64. pyiqa rounds it to float32, and its weights then sum to 1 + 1.1e-8; the axis has the same
# sum. Rounding matters here: the coefficients of a flat area (a black frame, a blown-out sky) are
# zero but for rounding, and the fits count zeros on neither side. With another order of summation
# or precision BRISQUE is off by up to 2 points on photographs with such areas, NIQE by less.
_WINDOW = np.outer(_make_window(), _make_window()).astype(np.float32)
_WINDOW_AXIS = _make_window() * np.sqrt(_WINDOW.sum(dtype=np.float64))


def normalise_for_brisque(luma: Maps) -> Maps:
    """Mean-subtracted contrast-normalised coefficients: (luma − μ) / (σ + 1), zero border.

    luma: (H, W) float32, 0-255. Returns (H, W) float32. Source: Mittal et al. 2012, eq. 1-3.
    All in float32 and with the whole window at once, as pyiqa does.
    """
    mean = cv2.filter2D(luma, -1, _WINDOW, borderType=cv2.BORDER_CONSTANT)
    mean_square = cv2.filter2D(luma * luma, -1, _WINDOW, borderType=cv2.BORDER_CONSTANT)
    return _normalise(luma, mean, mean_square)


def normalise_for_niqe(luma: Floats) -> Maps:
    """As `normalise_for_brisque`, but with a replicated border and in float64.

    luma: (H, W) float64, 0-255. Returns (H, W) float32.
    """
    border = cv2.BORDER_REPLICATE
    axis = _WINDOW_AXIS
    mean = cv2.sepFilter2D(luma, -1, axis, axis, borderType=border)
    mean_square = cv2.sepFilter2D(luma * luma, -1, axis, axis, borderType=border)
    return _normalise(luma, mean, mean_square)


def _normalise(luma: Any, mean: Any, mean_square: Any) -> Maps:
    deviation = cv2.sqrt(cv2.absdiff(mean_square, mean * mean))
    return np.asarray((luma - mean) / (deviation + 1), np.float32)


def _make_halving_taps() -> Floats:
    distance = np.abs(np.arange(8) - 3.5) / 2
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    taps = np.where(distance <= 1, near, far)
    return np.asarray(taps / taps.sum(), np.float64).reshape(-1, 1)


_HALVING_TAPS = _make_halving_taps()


def halve(luma: Any) -> Any:
    """Half-size image, as MATLAB's imresize(luma, 0.5): bicubic (a = −1/2) with antialiasing.

    (H, W) to (⌈H/2⌉, ⌈W/2⌉) of the same floating type, symmetric border.
    """
    taps = _HALVING_TAPS.astype(luma.dtype)
    border = cv2.BORDER_REFLECT
    down = cv2.filter2D(luma, -1, taps, anchor=(0, 3), borderType=border)[::2]
    across = cv2.filter2D(down, -1, taps.T, anchor=(3, 0), borderType=border)
    return np.ascontiguousarray(across[:, ::2])


def _cut_blocks(coefficients: Maps, num_down: int, num_across: int) -> Maps:
    """(H, W) to (num_down * num_across, H / num_down, W / num_across)."""
    height, width = coefficients.shape
    sides = height // num_down, width // num_across
    blocks = coefficients.reshape(num_down, sides[0], num_across, sides[1]).swapaxes(1, 2)
    return np.ascontiguousarray(blocks.reshape(-1, *sides))


def _multiply_neighbours(blocks: Maps) -> list[Maps]:
    """Products of each coefficient with its neighbour in four directions, within its block.

    (B, H, W) to four of the same shape: horizontal, vertical, main and secondary diagonal. The
    neighbour of an edge is on the opposite edge, as in the releases (circshift).
    """
    below = np.roll(blocks, 1, axis=1)
    return [
        blocks * neighbours
        for neighbours in (
            np.roll(blocks, 1, axis=2),
            below,
            np.roll(below, 1, axis=2),
            np.roll(below, -1, axis=2),
        )
    ]


class _Shapes(NamedTuple):
    """Generalised Gaussian shapes and, for each, the functions of it that features need."""

    shape: Floats
    ratio: Floats  # (E|x|)² / E[x²] of the generalised Gaussian, rising with the shape
    scale_of_std: Floats  # β / σ
    mean_of_scale: Floats  # E[x] / (β_right − β_left) of the asymmetric one
    mean_of_std: Floats  # the same for σ


@lru_cache(maxsize=1)
def _tabulate_shapes() -> _Shapes:
    from scipy.special import gammaln  # late: importing it takes as long as all else here

    # The releases search this grid, of which pyiqa rounds the values to float32.
    shape = np.arange(0.2, 10.001, 0.001).astype(np.float32).astype(np.float64)
    one, two, three = (gammaln(k / shape) for k in (1, 2, 3))
    return _Shapes(
        shape=shape,
        ratio=np.exp(2 * two - one - three),
        scale_of_std=np.exp((one - three) / 2),
        mean_of_scale=np.exp(two - one),
        mean_of_std=np.exp(two - (one + three) / 2),
    )


@lru_cache(maxsize=2)
def _tabulate_midpoints(inverse: bool) -> Floats:
    ratio = _tabulate_shapes().ratio
    rising = -1 / ratio if inverse else ratio
    return np.asarray((rising[1:] + rising[:-1]) / 2, np.float64)


def _sum_rows(rows: Any) -> Floats:
    return np.asarray(cv2.reduce(rows, 1, cv2.REDUCE_SUM, dtype=cv2.CV_64F)[:, 0], np.float64)


def _count_rows(mask: NDArray[np.bool_]) -> Floats:
    counts = cv2.reduce(mask.view(np.uint8), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    return np.asarray(counts[:, 0], np.float64)


class _AsymmetricFit(NamedTuple):
    """Asymmetric generalised Gaussians, one entry each: which tabulated shape, and spreads."""

    nearest: NDArray[np.intp]
    left_std: Floats
    right_std: Floats


def fit_asymmetric_gaussians(samples: Maps) -> _AsymmetricFit:
    """Fit an asymmetric generalised Gaussian to each block by matching moments.

    samples: (B, H, W) float32. A side with no values has no spread: its `*_std` is NaN.
    Source: Mittal et al. 2012, section III-A and Lasmar, Stitou, Berthoumieu, ICIP 2009.
    """
    rows = samples.reshape(len(samples), -1)
    num_left, num_right = _count_rows(rows < 0), _count_rows(rows > 0)
    work = np.abs(rows)
    sum_magnitude = _sum_rows(work)
    work *= rows
    sum_signed_square = _sum_rows(work)
    np.multiply(rows, rows, out=work)
    sum_square = _sum_rows(work)

    num_samples = rows.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        # a side of next to nothing may come out below zero by a rounding error
        left_std = np.sqrt(np.maximum(sum_square - sum_signed_square, 0) / 2 / num_left)
        right_std = np.sqrt(np.maximum(sum_square + sum_signed_square, 0) / 2 / num_right)
        skew = left_std / right_std
        ratio = (sum_magnitude / num_samples) ** 2 / (sum_square / num_samples)
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    nearest = np.searchsorted(_tabulate_midpoints(inverse=False), ratio)
    # where there is no ratio the releases' minimum search stops at the first shape
    return _AsymmetricFit(np.where(np.isnan(ratio), 0, nearest), left_std, right_std)


def fit_gaussian(samples: Maps) -> tuple[float, float]:
    """Fit a zero-mean generalised Gaussian by matching moments: shape and variance.

    samples: any shape, float32, not all zero. Source: Mittal et al. 2012, section III-A and
    Sharifi, Leon-Garcia, IEEE Trans. Circuits and Systems for Video Technology 5(1), 1995.
    """
    variance = cv2.norm(samples, cv2.NORM_L2SQR) / samples.size
    magnitude = cv2.norm(samples, cv2.NORM_L1) / samples.size
    if magnitude == 0:
        return np.nan, 0.0
    # nearest in E[x²] / (E|x|)², the inverse of the ratio that the asymmetric fit compares
    index = np.searchsorted(_tabulate_midpoints(inverse=True), -variance / magnitude**2)
    return float(_tabulate_shapes().shape[index]), variance


def _compute_brisque_features(coefficients: Maps) -> Floats:
    """18 features of the coefficients of one scale (Mittal et al. 2012, table I)."""
    shapes = _tabulate_shapes()
    features = [*fit_gaussian(coefficients)]
    for products in _multiply_neighbours(coefficients[None]):
        nearest, left_std, right_std = fit_asymmetric_gaussians(products)
        mean = (right_std - left_std) * shapes.mean_of_std[nearest]
        features += [shapes.shape[nearest][0], mean[0], left_std[0] ** 2, right_std[0] ** 2]
    return np.array(features, np.float64)


def _compute_niqe_features(blocks: Maps) -> Floats:
    """18 features of each block of one scale: (B, H, W) to (B, 18) (Mittal et al. 2013, II-B)."""
    shapes = _tabulate_shapes()
    features: list[Floats] = []
    for position, samples in enumerate([blocks, *_multiply_neighbours(blocks)]):
        nearest, left_std, right_std = fit_asymmetric_gaussians(samples)
        left = left_std * shapes.scale_of_std[nearest]
        right = right_std * shapes.scale_of_std[nearest]
        if position == 0:
            features += [shapes.shape[nearest], (left + right) / 2]
        else:
            mean = (right - left) * shapes.mean_of_scale[nearest]
            features += [shapes.shape[nearest], mean, left, right]
    return np.stack(features, axis=1)


@lru_cache(maxsize=2)
def _load_params(name: str) -> dict[str, Floats]:
    path = files("iqa_ray.metrics") / "params" / f"{name}.npz"
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays}
