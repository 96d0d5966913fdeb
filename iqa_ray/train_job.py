"""The settings of jobs that train classifiers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from iqa_ray.config import WorkspaceJob

BackboneName = Literal[
    "resnet34", "resnet18", "alexnet", "vgg19", "efficientnet_lite0", "simplenet"
]


class TrainingJob(WorkspaceJob):
    """How classifiers are trained.

    ImageNet weights, Adam at 1e-4 and 40 epochs are those of Smith et al. (section 2.3, Table 2),
    who do not say how large images and batches are.
    """

    weights: str = Field(
        default="imagenet",
        description="initial weights: imagenet, none, a file, or a folder or URI made by `iqa-ray "
        "weights pull --backbones …`",
    )
    epochs: int = Field(default=40, ge=1, description="passes over the training images")
    image_size: int | None = Field(
        default=None,
        ge=16,
        description="pixels a side that the network sees (default: 224, and 256 for simplenet)",
    )
    batch_size: int = Field(
        default=32,
        ge=2,
        description="images a training step; batch normalisation needs two or more",
    )
    lr: float = Field(default=1e-4, gt=0, description="learning rate of Adam")
    freeze_backbone: bool = Field(
        default=False, description="compute features once and train only a linear head"
    )
