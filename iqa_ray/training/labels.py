"""Labels that are as sure as they are said to be."""

from __future__ import annotations

import torch
from torch import Tensor


def smooth_labels(classes: Tensor, certainties: Tensor, num_classes: int) -> Tensor:
    """q' of Chen et al. (equation 2): the certainty for the true class, equal shares for the rest.

    Args:
        classes: (N,) true class indices.
        certainties: (N,) T(s) in (0, 1] of each; 1 gives the one-hot label.
        num_classes: K, at least 2.

    Returns:
        (N, K): T(s) for the true class, (1 − T(s)) / (K − 1) for each other one.
    """
    assert num_classes > 1, "there is no other class to share with"
    others = (1 - certainties) / (num_classes - 1)
    labels = others.unsqueeze(1).repeat(1, num_classes)
    return torch.scatter(labels, 1, classes.unsqueeze(1), certainties.unsqueeze(1))
