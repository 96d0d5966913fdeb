"""The settings of the jobs that train on parts of the images: `compare` and `vary`."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from iqa_ray.training.recipe import Augment, Recipe
from iqa_ray.training.settings import BackboneName, ParallelRunsJob, TrainingJob

ArmName = Literal["high", "all", "everything", "smoothed", "weighted"]

SHARES = (0, 10, 20, 30, 40, 50)  # per cent of the images that are removed (Smith et al., Table 3)


class ArmsJob(TrainingJob, ParallelRunsJob):
    """What the experiments have in common."""

    augment: Augment = Field(
        default=Recipe.augment,
        description="of training images: flip; standard: flip, and cut out half to all of the area",
    )
    num_train: int | None = Field(
        default=None,
        ge=2,
        description="training images of each arm (default: as many as there are)",
    )
    split_seed: int = Field(
        default=0, ge=0, description="seed by which images are drawn; the same for every run"
    )

    @model_validator(mode="after")
    def _check_augment(self) -> ArmsJob:
        if self.freeze_backbone and self.augment != "none":
            raise ValueError("--augment changes images, and --freeze-backbone sees each only once")
        return self


class CompareJob(ArmsJob):
    """Compare training on high-quality images with training on images of all qualities.

    Both arms have the same number of training images, share validation and test images, seeds and
    initial heads, and are compared seed by seed. Further arms keep every image.
    """

    arms: tuple[ArmName, ...] = Field(
        default=("high", "all"),
        description="high and all; and of all images outside validation and test: everything as "
        "it is, smoothed (labels as sure as quality says), weighted (losses weighted by quality)",
    )

    split_per_seed: bool = Field(
        default=False,
        description="draw training, validation and test images anew for every seed (by that and "
        "--split-seed), so that the verdict is not on one split alone",
    )
    backbones: tuple[BackboneName, ...] = Field(
        default=("alexnet", "vgg19", "resnet18", "resnet34"),
        description="networks to train, separated by commas",
    )
    test_on: str = Field(
        default="high",
        description="high: a tenth of the high-quality images; all: also a tenth of the others; "
        "or a folder, manifest or URI of other labelled images",
    )

    @field_validator("arms")
    @classmethod
    def _check_arms(cls, names: tuple[ArmName, ...]) -> tuple[ArmName, ...]:
        if not {"high", "all"} <= set(names):
            raise ValueError("high and all are what the others are compared with: name them too")
        return tuple(name for name in get_args(ArmName) if name in names)

    @field_validator("backbones")
    @classmethod
    def _check_backbones(cls, names: tuple[BackboneName, ...]) -> tuple[BackboneName, ...]:
        if not names:
            raise ValueError("name at least one backbone")
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _check_split(self) -> CompareJob:
        if self.split_per_seed and self.test_on not in ("high", "all"):
            raise ValueError(
                "--split-per-seed draws the test images anew, and --test-on names them: give one"
            )
        return self


class VaryJob(ArmsJob):
    """Remove more and more images of the lowest quality and train on equally many of the rest.

    Each share is compared, seed by seed, with removing nothing and with the high-quality images.
    """

    backbone: BackboneName = Field(default="resnet34", description="the network to train")
    removed: tuple[int, ...] = Field(
        default=SHARES, description="per cents of the images to remove, separated by commas"
    )

    @field_validator("removed")
    @classmethod
    def _check_removed(cls, shares: tuple[int, ...]) -> tuple[int, ...]:
        if not shares or not all(0 <= share < 100 for share in shares):
            raise ValueError("give per cents of at least 0 and below 100")
        return tuple(sorted(set(shares)))
