"""The settings of the jobs that make synthetic images: `make-data` and `demo`."""

from __future__ import annotations

from pydantic import Field

from iqa_ray.config import Job, WorkspaceJob, positional


class MakeDataJob(Job):
    """Make synthetic photographs of dot-matrix codes printed on bottles by two manufacturers.

    Writes OUT/<manufacturer>/<n>.jpg and OUT/labels.csv; the same seed gives the same bytes.
    """

    out: str = positional("folder to make", "OUT")
    num_images: int = Field(default=700, ge=2, description="images in all")
    image_size: int = Field(default=256, ge=64, description="pixels a side")
    seed: int = Field(default=0, ge=0, description="seed of everything random")


class DemoJob(WorkspaceJob):
    """Make synthetic images, score them, train a small classifier on a part of them, and select.

    Everything is written to the workspace; the images go to WORKSPACE/data.
    """

    num_images: int = Field(default=700, ge=100, description="synthetic images")
    image_size: int = Field(default=256, ge=192, description="pixels a side")
    seed: int = Field(default=0, ge=0, description="seed of everything random")
