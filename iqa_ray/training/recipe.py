"""How a classifier is trained. Settings take their defaults from here, so PyTorch stays out."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Augment = Literal["none", "flip", "standard"]
Loss = Literal["cross_entropy", "binary_cross_entropy", "squared_error", "brier"]
Optimiser = Literal["adam", "sgd"]

# What keys of runs and models say of every recipe. Other fields were added later and are left out
# while they have their default, so that what was trained before them is still found.
_FIELDS_OF_ALL_KEYS = frozenset(
    "backbone weights epochs image_size batch_size lr freeze_backbone seed augment".split()
)


@dataclass(frozen=True)
class Steps:
    """A schedule: after each `every` epochs the learning rate is multiplied by `factor`."""

    every: int
    factor: float


@dataclass(frozen=True)
class Cosine:
    """A schedule: the learning rate rises evenly from 0, then falls along half a cosine to 0.

    It changes with every step; it rises over the share `warm_up` of training, in [0, 1).
    """

    warm_up: float


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained; optimiser, rate and epochs are Smith et al.'s (section 2.3).

    Attributes:
        lr: the learning rate; `schedule` says what becomes of it.
        loss: `cross_entropy` of logits, against class indices or probabilities;
            `binary_cross_entropy` of each class's logit, against class indices; `squared_error` of
            outputs, against targets of their shape; `brier`, the squared error of the softmax
            probabilities (Chen et al., equation 1), against what cross-entropy takes.
        optimiser: Adam, or stochastic gradient descent with `momentum`.
        weight_decay: times a parameter, is added to its gradient.
        layer_decays: (name, weight decay) of layers or parameters that have another one, by their
            names in the classifier (`head`, `features.conv1.weight`); the longest name counts.
        schedule: of the learning rate; None where it is constant.
        class_weights: of each class in the loss of class indices; none where all are 1.
        severity_weight: of the squared error of a further output, the severity. Where it is not 0,
            targets are (N, 2): class index, and severity, NaN where it is unknown.
        predicts_share: the further output is a share in [0, 1], and what the network is for. It
            passes a sigmoid, its loss is the binary cross-entropy, which is least at the mean of
            the shares as the squared error is and does not flatten at the sigmoid's ends, and the
            epoch that counts is that of its least squared error on validation images.
        random_crops: inputs are larger than the network sees. Training cuts a square of
            `image_size` out at random and mirrors half of them; evaluation takes the centre.
        bf16_on_cpu: training is in bf16 also on CPUs that compute in it.
    """

    backbone: str
    weights: str = "imagenet"
    epochs: int = 40
    image_size: int = 224
    batch_size: int = 32
    lr: float = 1e-4
    freeze_backbone: bool = False
    seed: int = 0
    augment: Augment = "none"
    loss: Loss = "cross_entropy"
    optimiser: Optimiser = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    layer_decays: tuple[tuple[str, float], ...] = ()
    schedule: Steps | Cosine | None = None
    class_weights: tuple[float, ...] = ()
    severity_weight: float = 0.0
    predicts_share: bool = False
    random_crops: bool = False
    bf16_on_cpu: bool = False

    def __post_init__(self) -> None:
        assert self.batch_size > 1, "no epoch would have a batch"
        assert self.severity_weight or not self.predicts_share, "there is no further output"
        assert self.optimiser == "sgd" or not self.momentum, "Adam has moments of its own"

    def find_lr(self, done: float) -> float:
        """The learning rate when `done` epochs are done, parts of epochs included."""
        if self.schedule is None:
            return self.lr
        if isinstance(self.schedule, Steps):
            return self.lr * self.schedule.factor ** (int(done) // self.schedule.every)
        warm_up = self.schedule.warm_up * self.epochs
        if done < warm_up:
            return self.lr * done / warm_up
        share = (done - warm_up) / (self.epochs - warm_up)
        return self.lr * (1 + math.cos(math.pi * share)) / 2

    def find_weight_decay(self, parameter: str) -> float:
        """The weight decay of the parameter of that name."""
        layers = [
            (len(layer), decay)
            for layer, decay in self.layer_decays
            if f"{parameter}.".startswith(f"{layer}.")
        ]
        return max(layers)[1] if layers else self.weight_decay

    def describe(self) -> dict[str, Any]:
        """The recipe in keys of runs and models."""
        defaults = {field.name: field.default for field in fields(self)}
        return {
            name: value
            for name, value in asdict(self).items()
            if name in _FIELDS_OF_ALL_KEYS or getattr(self, name) != defaults[name]
        }
