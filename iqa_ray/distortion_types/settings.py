"""The settings of `distortions train`, `distortions evaluate` and `distortions apply`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from iqa_ray.config import WorkspaceJob, positional
from iqa_ray.training.settings import ParallelRunsJob

# Elaraby et al., Table 1, in its order, with the number of images of each class
PAPER_COUNTS = {
    "bad_lighting": 22,
    "fastfading": 174,
    "gblur": 207,
    "jp2k": 227,
    "jpeg": 233,
    "refimgs": 128,
    "wn": 174,
}
MOTION_BLUR = "motion_blur"

NetworkName = Literal["simplenet", "simplenet_norm", "efficientnet_lite0", "inception_resnet_v2"]
Mix = Literal["paper", "balanced"]
Outputs = Literal["softmax", "sigmoid"]

FROM_SCRATCH = ("simplenet", "simplenet_norm")


class LabelledJob(WorkspaceJob):
    """Where labelled images come from."""

    data: str | None = positional(
        "folder or manifest of images labelled bad_lighting, fastfading, gblur, jp2k, jpeg, "
        "refimgs, wn, motion_blur; a manifest may have the columns reference and severity",
        "DATA",
        default=None,
    )
    synthesise_from: tuple[str, ...] = Field(
        default=(),
        description="instead of DATA: folders or manifests of clean photographs, separated by "
        "commas, of which distorted ones are made in WORKSPACE/distortion_types",
    )
    num_images: int = Field(
        default=sum(PAPER_COUNTS.values()), ge=14, description="images to make, in all"
    )
    mix: Mix = Field(
        default="paper",
        description="of the images that are made: the shares of Elaraby et al.'s Table 1 (paper), "
        "or as many of each class (balanced)",
    )
    motion_blur: bool = Field(default=False, description="make motion_blur as an eighth class")
    split_seed: int = Field(
        default=0, ge=0, description="seed by which images are made and references are split"
    )

    @model_validator(mode="after")
    def _check_data(self) -> LabelledJob:
        if (self.data is None) == (not self.synthesise_from):
            raise ValueError("give either DATA or --synthesise-from IMAGES")
        return self


class TrainTypesJob(LabelledJob, ParallelRunsJob):
    """Train a network to say what is wrong with an image, and how badly (Elaraby et al.).

    Images are split by the photograph that they were made of: 65% train the network, 15% choose
    the epoch and calibrate it, 20% test it. Writes WORKSPACE/distortion_types/: runs, tables, and
    the network of the best seed, model.safetensors.
    """

    num_leaves: int = Field(
        default=0,
        ge=0,
        description="with --synthesise-from: so many images of random leaves that cover one "
        "another beside the photographs, for textures that these lack",
    )
    network: NetworkName = Field(
        default="simplenet_norm",
        description="simplenet and simplenet_norm are trained from scratch; of the others, which "
        "are pretrained, only the last layer is trained",
    )
    weights: str | None = Field(
        default=None,
        description="initial weights: a file (default: none for simplenet, ImageNet's for "
        "efficientnet_lite0)",
    )
    seeds: tuple[int, ...] = Field(default=(0,), description="one run a seed, separated by commas")
    epochs: int = Field(default=50, ge=1, description="passes over the training images")
    batch_size: int = Field(default=64, ge=2, description="images a training step")
    lr: float = Field(
        default=2e-3,
        gt=0,
        description="highest learning rate of Adam; it rises to it and falls to 0",
    )
    crop_size: int | None = Field(
        default=None,
        ge=64,
        description="pixels a side of the crops that the network sees, at full resolution "
        "(default: 96, and 256 for simplenet, 224 for efficientnet_lite0, 299 for "
        "inception_resnet_v2)",
    )
    num_crops: int = Field(
        default=5,
        ge=1,
        le=9,
        description="crops of an image over which the network's outputs are averaged",
    )
    outputs: Outputs = Field(
        default="softmax",
        description="softmax with cross-entropy; or sigmoid with binary cross-entropy, as Elaraby "
        "et al. print",
    )
    class_weights: bool = Field(
        default=False, description="weight classes in the loss by one over their number of images"
    )


class EvaluateTypesJob(LabelledJob):
    """Say how good a network is at naming distortions: accuracy, confusion, calibration.

    All of the images are tested: they should be of photographs that it was not trained on. Writes
    WORKSPACE/distortion_types/evaluation.json.
    """

    model: str | None = Field(
        default=None,
        description="file that `distortions train` wrote (default: the package's, if it has one)",
        json_schema_extra={"metavar": "FILE"},
    )


class ApplyTypesJob(WorkspaceJob):
    """Say what is wrong with each scored image: type and severity of its distortion.

    Writes WORKSPACE/distortions.parquet. `select` then adds to the reason of a rejected image what
    it looks like.
    """

    model: str | None = Field(
        default=None,
        description="file that `distortions train` wrote (default: the package's, if it has one)",
        json_schema_extra={"metavar": "FILE"},
    )
    num_actors: int | None = Field(
        default=None, ge=1, description="applying actors (default: one a GPU, or one a CPU)"
    )
