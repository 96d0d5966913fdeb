"""The settings of the job `layers`."""

from __future__ import annotations

from pydantic import Field, field_validator

from iqa_ray.config import WorkspaceJob


class LayersJob(WorkspaceJob):
    """Show where in a network distortions bite: how far they move the features of each layer.

    Clean images are held against distorted copies, layer by layer, with dropout inactive and
    active. Writes WORKSPACE/layers/: layers.parquet, layers.png and findings.json.
    """

    network: str | None = Field(
        default=None,
        description="a classifier's file: one that `predict --backbone` wrote, or a state dict of "
        "torchvision's --architecture (default: the one that made this workspace's predictions)",
        json_schema_extra={"metavar": "FILE"},
    )
    architecture: str | None = Field(
        default=None,
        description="what the state dict is of, as torchvision calls it (such as resnet50)",
        json_schema_extra={"metavar": "NAME"},
    )
    classes: str | None = Field(
        default=None,
        description="text file that names the outputs of a state dict's network, a line each "
        "(default: the images' labels in alphabetical order)",
        json_schema_extra={"metavar": "FILE"},
    )
    distortions: tuple[str, ...] = Field(
        default=("gaussian_blur", "noise", "jpeg"),
        description="which of iqa_ray.distortions, separated by commas",
    )
    levels: tuple[int, ...] = Field(
        default=(1, 2, 3, 4, 5), description="from 1, just visible, to 5, severe"
    )
    num_images: int = Field(
        default=200, ge=8, description="labelled images that are measured, drawn at random"
    )
    batch_size: int = Field(
        default=16,
        ge=4,
        description="images whose features are in memory at the same time",
    )
    seed: int = Field(
        default=0, ge=0, description="seed of the draw, of noise, of dropout and of intervals"
    )
    num_actors: int | None = Field(
        default=None, ge=1, description="measuring actors (default: one a GPU, or one a CPU)"
    )

    @field_validator("distortions")
    @classmethod
    def _check_distortions(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("give at least one")
        return tuple(dict.fromkeys(names))

    @field_validator("levels")
    @classmethod
    def _check_levels(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if not levels or not set(levels) <= {1, 2, 3, 4, 5}:
            raise ValueError("give whole numbers from 1 to 5")
        return tuple(sorted(set(levels)))
