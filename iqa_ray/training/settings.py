"""The settings of jobs that train classifiers."""

from __future__ import annotations

from dataclasses import fields
from typing import Literal

from pydantic import Field, field_validator

from iqa_ray.cluster.capacity import check_share
from iqa_ray.config import WorkspaceJob
from iqa_ray.training.recipe import Recipe

BackboneName = Literal[
    "resnet34", "resnet18", "alexnet", "vgg19", "efficientnet_lite0", "simplenet", "cifarnet"
]
Normalise = Literal["imagenet", "none"]


class ParallelRunsJob(WorkspaceJob):
    """Several trainings side by side, one a seed."""

    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2, 3, 4), description="one run of each arm a seed, separated by commas"
    )
    gpus_per_run: float | None = Field(
        default=None,
        ge=0,
        description="GPUs that each run asks of Ray (default: 0.2 where there are GPUs)",
    )
    cpus_per_run: float = Field(
        default=1.0, gt=0, description="CPUs that each run asks of Ray; a thread each"
    )
    restart: bool = Field(default=False, description="forget this command's runs and begin again")
    log_dir: str | None = Field(
        default=None,
        description="write event files for TensorBoard into this folder",
        json_schema_extra={"metavar": "DIR"},
    )

    _share = field_validator("gpus_per_run")(check_share)

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or min(seeds) < 0:
            raise ValueError("give at least one seed, none below 0")
        return tuple(dict.fromkeys(seeds))


class TrainingJob(WorkspaceJob):
    """How classifiers are trained.

    ImageNet weights, Adam at 1e-4 and 40 epochs are those of Smith et al. (section 2.3, Table 2),
    who do not say how large images and batches are.
    """

    weights: str = Field(
        default=Recipe.weights,
        description="initial weights: imagenet, none, a file, or a folder or URI made by `iqa-ray "
        "weights pull --backbones …`",
    )
    epochs: int = Field(default=Recipe.epochs, ge=1, description="passes over the training images")
    image_size: int | None = Field(
        default=None,
        ge=16,
        description="pixels a side that the network sees (default: 224, 256 for simplenet, 32 for "
        "cifarnet)",
    )
    batch_size: int = Field(
        default=Recipe.batch_size,
        ge=2,
        description="images a training step; batch normalisation needs two or more",
    )
    lr: float = Field(default=Recipe.lr, gt=0, description="learning rate of Adam")
    freeze_backbone: bool = Field(
        default=Recipe.freeze_backbone,
        description="compute features once and train only a linear head",
    )

    def make_recipe(self, backbone: str, seed: int, image_size: int) -> Recipe:
        """How these settings train a classifier; what they do not name is as recipes have it."""
        chosen = {"backbone": backbone, "seed": seed, "image_size": image_size}
        names = {field.name for field in fields(Recipe)} & set(type(self).model_fields)
        return Recipe(**{**{name: getattr(self, name) for name in names}, **chosen})
