"""The settings of the job `smooth`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from iqa_ray.config import positional
from iqa_ray.training.settings import BackboneName, ParallelRunsJob

SSIM = "ssim"
# Chen et al.: 2,000 epochs, after each 350 of which the learning rate is a tenth
PAPER_EPOCHS, PAPER_DECAY_EPOCHS, PAPER_DECAY = 2000, 350, 0.1

# Table 2 of Chen et al.; with `-uniform` and `-shuffled`, what an IQA-LS strategy is held against
TABLE_STRATEGIES = ("1", "2", "3", "4", "5", "6", "7", "8", "9")
CONTROLS = tuple(f"{number}-{kind}" for number in (3, 5, 7, 9) for kind in ("uniform", "shuffled"))

Transform = Literal["auto", "identity", "calibrated"]


class SmoothJob(ParallelRunsJob):
    """Train on distorted images with labels that are as sure as the images are good (Chen et al.).

    Nine strategies, or some of them, with several seeds each, are tested on pristine images and on
    nine distorted versions. Writes WORKSPACE/smoothing/. Optimisation is as printed unless told
    otherwise; with other --epochs the learning rate falls at the same shares of the training.
    """

    images: str = positional(
        "labelled images: a folder with train/CLASS and test/CLASS, a manifest with the columns "
        "label and split (train, test), or cifar10:DIR with the original batches",
        "IMAGES",
    )
    backbone: BackboneName = Field(default="cifarnet", description="network to train")
    score: tuple[str, ...] = Field(
        default=(SSIM,),
        description="quality that labels follow: ssim, or no-reference metrics such as brisque, "
        "separated by commas",
    )
    transform: Transform = Field(
        default="auto",
        description="from score to certainty: identity; calibrated, the accuracy of strategy 1 on "
        "a held-out tenth of the training images at that score (isotonic); auto: identity for "
        "ssim, calibrated for metrics",
    )
    strategies: tuple[str, ...] = Field(
        default=(*TABLE_STRATEGIES, "9-uniform", "9-shuffled"),
        description="rows of Table 2, 1 to 9; N-uniform (all labels as sure, in the mean as those "
        "of strategy N) and N-shuffled (as sure, but not by quality) for 3, 5, 7, 9",
    )
    num_train: int | None = Field(
        default=None, ge=20, description="training images (default: all), drawn class by class"
    )
    num_test: int | None = Field(
        default=None, ge=1, description="test images (default: all), drawn class by class"
    )
    loss: Literal["brier", "cross_entropy"] = Field(
        default="brier", description="brier: the squared error of probabilities, as printed"
    )
    optimiser: Literal["sgd", "adam"] = Field(default="sgd", description="as printed: sgd")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of sgd")
    lr: float = Field(default=0.1, gt=0, description="learning rate in the first epoch")
    schedule: Literal["steps", "constant"] = Field(
        default="steps",
        description="of the learning rate; steps: a tenth after each 350 of 2,000 epochs",
    )
    batch_size: int = Field(default=100, ge=2, description="images a training step")
    epochs: int = Field(default=PAPER_EPOCHS, ge=1, description="passes over the training images")
    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2), description="one run of each strategy a seed, separated by commas"
    )
    split_seed: int = Field(
        default=0, ge=0, description="seed by which images are drawn and noise is made"
    )

    @field_validator("score", "strategies")
    @classmethod
    def _drop_repeated(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one")
        return tuple(dict.fromkeys(names))

    @field_validator("strategies")
    @classmethod
    def _check_strategies(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = (*TABLE_STRATEGIES, *CONTROLS)
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"no strategy {unknown[0]!r}: choose from {', '.join(known)}")
        return tuple(name for name in known if name in names)

    @model_validator(mode="after")
    def _check_momentum(self) -> SmoothJob:
        if self.momentum and self.optimiser != "sgd":
            raise ValueError("--momentum is for --optimiser sgd")
        return self
