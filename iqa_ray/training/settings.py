"""The settings of jobs that train classifiers."""

from __future__ import annotations

from dataclasses import fields
from typing import Literal

from pydantic import Field

from iqa_ray.config import WorkspaceJob
from iqa_ray.training.recipe import Recipe

BackboneName = Literal[
    "resnet34", "resnet18", "alexnet", "vgg19", "efficientnet_lite0", "simplenet"
]


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
        description="pixels a side that the network sees (default: 224, and 256 for simplenet)",
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
