"""The settings of `metrify build`, `metrify train` and `metrify evaluate`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from iqa_ray.config import WorkspaceJob, positional
from iqa_ray.images.settings import DEFAULT_MAX_PIXELS, LARGEST_MAX_PIXELS, LabelMode
from iqa_ray.metrics.spec import get_spec
from iqa_ray.training.settings import Normalise, ParallelRunsJob

# `iqa_ray.distortions.DISTORTIONS`, whose import takes long; a test holds them together
DistortionName = Literal[
    "gaussian_blur",
    "defocus",
    "motion_blur",
    "noise",
    "jpeg",
    "jpeg2000",
    "fast_fading",
    "underexposure",
    "overexposure",
    "contrast_loss",
]
MetrifierBackbone = Literal["resnet18", "simplenet_norm", "efficientnet_lite0"]

PRETRAINED = ("efficientnet_lite0",)

_NETWORKS = (
    "separated by commas: a model of `predict` (WS/models/KEY.pt), a checkpoint of torchvision's "
    "with its architecture (resnet18:FILE), TorchScript, or a program of torch.export"
)


class TaskJob(WorkspaceJob):
    """How task networks are read, and applied with actors."""

    normalise: Normalise = Field(
        default="imagenet",
        description="pixels that TorchScript and exported programs expect: less ImageNet's mean, "
        "over its deviation (imagenet), or 0 to 1 (none)",
    )
    classes: str | None = Field(
        default=None,
        description="text file with a class a line in the order of the outputs, for task networks "
        "whose files do not name them (default: the labels in alphabetical order)",
        json_schema_extra={"metavar": "FILE"},
    )
    batch_size: int = Field(
        default=32, ge=1, description="distorted images that a network is given at once"
    )
    num_actors: int | None = Field(
        default=None, ge=1, description="actors at most (default: one a GPU, or one a CPU)"
    )
    cpus_per_actor: float = Field(
        default=1.0,
        gt=0,
        description="CPUs that each actor asks of Ray; as many threads distort images beside its "
        "network",
    )


class BuildJob(TaskJob):
    """Make the data set of a metrifier: how well task networks do on distorted images.

    Every labelled image is distorted in every way and given to the task networks, which should not
    have been trained on it. Writes WORKSPACE/metrifier/dataset.parquet, one row a distorted image.
    """

    images: str = positional("folder, manifest or URI of labelled images", "IMAGES")
    task_networks: tuple[str, ...] = Field(
        description=f"classifiers whose errors are to be predicted, {_NETWORKS}; several are "
        "averaged",
        json_schema_extra={"metavar": "FILES"},
    )
    labels: LabelMode = Field(
        default="parent", description="where labels come from if no manifest gives them"
    )
    distortions: tuple[DistortionName, ...] = Field(
        default=("gaussian_blur", "motion_blur", "noise", "jpeg", "underexposure", "contrast_loss"),
        description="distortions, separated by commas",
    )
    levels: tuple[int, ...] = Field(
        default=(1, 2, 3, 4, 5),
        description="levels of each distortion, 1 (just visible) to 5 (severe); every image is "
        "also taken as it is",
    )
    image_size: int | None = Field(
        default=None,
        ge=32,
        description="pixels a side of the squares that are distorted, to which images are scaled "
        "first (default: those of the first task network that says its size, else 224)",
    )
    max_pixels: int = Field(
        default=DEFAULT_MAX_PIXELS,
        ge=1,
        le=LARGEST_MAX_PIXELS,
        description="larger images are not decoded",
    )
    split_seed: int = Field(
        default=0,
        ge=0,
        description="seed of noise, and of the split into training, validation and test images "
        "where the manifest has no column `split`",
    )

    @field_validator("task_networks")
    @classmethod
    def _check_networks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one file")
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _check_distortions(self) -> BuildJob:
        if not self.distortions or not self.levels:
            raise ValueError("give at least one of --distortions and one of --levels")
        if not all(1 <= level <= 5 for level in self.levels):
            raise ValueError("--levels: levels are 1 to 5")
        return self


class TrainMetrifierJob(ParallelRunsJob):
    """Train the metrifier: a network that predicts how well task networks do on an image.

    Reads what `metrify build` wrote. Writes WORKSPACE/metrifier/: runs, training.json, and the
    network of the best seed, model.safetensors, for `iqa-ray score --metrics metrifier:FILE`.
    """

    backbone: MetrifierBackbone = Field(
        default="resnet18",
        description="resnet18 and simplenet_norm (1.4 million parameters) are trained from "
        "scratch unless --weights is given, efficientnet_lite0 from ImageNet's weights",
    )
    weights: str | None = Field(
        default=None,
        description="initial weights: imagenet, none, a file or a folder (default: none, and "
        "imagenet for efficientnet_lite0)",
    )
    seeds: tuple[int, ...] = Field(default=(0,), description="one run a seed, separated by commas")
    epochs: int = Field(default=20, ge=1, description="passes over the training rows")
    batch_size: int = Field(default=32, ge=2, description="distorted images a training step")
    lr: float = Field(default=1e-3, gt=0, description="learning rate of Adam")
    freeze_backbone: bool = Field(
        default=False, description="compute features once and train only a linear head"
    )
    leave_out: tuple[DistortionName, ...] = Field(
        default=(),
        description="distortions that are not trained on, separated by commas, so that `metrify "
        "evaluate` shows how the network does on ones that it never saw",
    )


class EvaluateMetrifierJob(TaskJob):
    """Say how well a metrifier predicts, on the test images of the data set.

    Beside it stand the metrics that the workspace has scores of, computed on the same distorted
    images, and the task networks' own confidence. Writes WORKSPACE/metrifier/evaluation.json,
    risk_coverage.parquet and risk_coverage.png.
    """

    model: str | None = Field(
        default=None,
        description="file that `metrify train` wrote (default: this workspace's)",
        json_schema_extra={"metavar": "FILE"},
    )
    metrics: tuple[str, ...] = Field(
        default=(),
        description="metrics to compare with, separated by commas (default: those with scores in "
        "this workspace, else the five that are computed on the CPU)",
    )
    weights: str | None = Field(
        default=None,
        description="folder or URI with the files of deep metrics",
        json_schema_extra={"metavar": "DIR"},
    )
    task_networks: tuple[str, ...] = Field(
        default=(),
        description="also say how well it predicts the errors of these networks, on which it was "
        f"not trained, {_NETWORKS}",
        json_schema_extra={"metavar": "FILES"},
    )

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(get_spec(name).name for name in names))
