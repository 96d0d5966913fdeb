"""What a metrifier is to predict: a bounded number that says how well task networks do.

Cheraaqee 2022 (section 3.1) takes the network's error, loss(CNN(x), y), and asks for a model with a
bounded value, such as in [0, 1] (section 1). Cross-entropy has no upper bound, so that a few images
that a network is wrong and sure of would decide what is learnt. The target is exp(-loss): for
cross-entropy in nats, the probability of the true class. It is 1 where the network is sure and
right, falls with the loss, and nears 0 where it is sure and wrong; unlike right or wrong, it tells
a near miss from a gross error. Of several networks it is the mean of their targets, not the target
of their mean loss, which one network with a huge loss would pull to 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Outcome(NamedTuple):
    """How well networks do on images, (n,) each.

    Attributes:
        loss: mean cross-entropy of the networks, in nats.
        correct: whether the class of the largest mean probability is the true one.
        confidence: that probability.
        probability_true: the mean probability of the true class.
        target: in [0, 1], the mean of `transform_loss`.
    """

    loss: Floats
    correct: NDArray[np.bool_]
    confidence: Floats
    probability_true: Floats
    target: Floats


def transform_loss(loss: Floats) -> Floats:
    """Losses (0 and more, infinity included) to targets: exp(-loss), 1 for none, 0 for infinite."""
    return np.exp(-loss)


def judge_outputs(log_probabilities: Floats, labels: NDArray[np.int64]) -> Outcome:
    """Judge what networks say of images.

    Args:
        log_probabilities: (K, n, C) of K networks, natural logarithms.
        labels: (n,) places of the true classes.
    """
    losses = -log_probabilities[:, np.arange(len(labels)), labels]
    probabilities = np.exp(log_probabilities).mean(axis=0)
    return Outcome(
        loss=losses.mean(axis=0),
        correct=probabilities.argmax(axis=1) == labels,
        confidence=probabilities.max(axis=1),
        probability_true=probabilities[np.arange(len(labels)), labels],
        target=transform_loss(losses).mean(axis=0),
    )
