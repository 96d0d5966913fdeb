"""How far features moved: a normalised L2 distance per image, and linear CKA over images.

CKA compares what two sets of features say of how alike images are (Kornblith et al. 2019, section
3): 1 where one is the other turned and scaled, 0 where they have nothing in common. It is computed
from sums over batches (Nguyen et al. 2021): of each batch an unbiased estimate of HSIC (Song et al.
2012), three numbers a layer. So memory does not grow with images, and the sums' expected values do
not depend on how large the batches are, as those of the usual, biased estimate do.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

SMALLEST_BATCH = 4  # images that the unbiased estimate of HSIC needs


def measure_distances(clean: Tensor, distorted: Tensor) -> Floats:
    """(N,) L2 distances of features, as shares of the norm of the clean ones.

    Args:
        clean, distorted: (N, F) features of the same images.

    Returns:
        0 where nothing moved; NaN where clean features are all 0 and distorted ones are not.
    """
    moved = torch.linalg.vector_norm(distorted - clean, dim=1).double().cpu().numpy()
    norms = torch.linalg.vector_norm(clean, dim=1).double().cpu().numpy()
    return np.where(moved == 0, 0.0, moved / np.where(norms > 0, norms, np.nan))


def compute_gram(features: Tensor) -> Floats:
    """(N, N) inner products of (N, F) features, less their mean.

    HSIC does not depend on the mean, but its differences of large numbers would lose digits.
    """
    centred = features - features.mean(dim=0)
    return np.asarray((centred @ centred.T).double().cpu().numpy())


def measure_hsic(first: Floats, second: Floats) -> float:
    """The unbiased estimate of HSIC from two Gram matrices of the same images.

    Args:
        first, second: (N, N) inner products.

    Returns:
        NaN with fewer than four images.
    """
    num = len(first)
    if num < SMALLEST_BATCH:
        return float("nan")
    is_other = ~np.eye(num, dtype=bool)
    k, m = first * is_other, second * is_other
    k_sums, m_sums = k.sum(axis=0), m.sum(axis=0)
    total = (
        (k * m).sum()
        + k_sums.sum() * m_sums.sum() / ((num - 1) * (num - 2))
        - 2 * (k_sums @ m_sums) / (num - 2)
    )
    return float(total / (num * (num - 3)))


def compute_cka(sums: Floats) -> Floats:
    """Linear CKA from sums of HSIC over batches.

    Args:
        sums: (..., 3) of clean with distorted features, of clean, and of distorted ones with
            themselves.

    Returns:
        (...): 1 for features that are alike; NaN where some features do not differ between images.
        Of few images it may lie a little outside 0 to 1.
    """
    both, clean, distorted = np.moveaxis(np.asarray(sums), -1, 0)
    known = (clean > 0) & (distorted > 0)
    product = np.where(known, clean * distorted, np.nan)
    return np.asarray(both / np.sqrt(product))
