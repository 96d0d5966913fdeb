"""The settings of jobs that score images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator, model_validator

from iqa_ray.config import WorkspaceJob, positional
from iqa_ray.decoding import DEFAULT_MAX_PIXELS, LARGEST_MAX_PIXELS
from iqa_ray.images import LabelMode
from iqa_ray.metrics.deep import Precision
from iqa_ray.metrics.spec import CPU_METRICS, get_spec
from iqa_ray.metrics.weights import resolve_folder

if TYPE_CHECKING:
    from typing_extensions import Self


class ScoringJob(WorkspaceJob):
    """How images are scored."""

    metrics: tuple[str, ...] = Field(
        default=CPU_METRICS,
        description="metrics to score with, separated by commas: the five of the default, musiq, "
        "maniqa, hyperiqa, or any other no-reference metric of pyiqa",
    )
    max_pixels: int = Field(
        default=DEFAULT_MAX_PIXELS,
        ge=1,
        le=LARGEST_MAX_PIXELS,
        description="larger images are not decoded, but get the status too_large",
    )
    weights: str | None = Field(
        default=None,
        description="folder or URI with the files of deep metrics, made by `iqa-ray weights pull`; "
        "the network is then never used (default: $IQA_RAY_WEIGHTS, or this machine's own folder, "
        "into which missing files are fetched)",
        json_schema_extra={"metavar": "DIR"},
        validate_default=True,
    )
    precision: Precision = Field(
        default="fp32",
        description="of deep metrics; with bf16 and fp16 the summary says how far scores moved",
    )
    max_side: int | None = Field(
        default=None,
        ge=384,
        description="for musiq: shrink images whose longer side has more pixels to that first; "
        "recorded in the metric's version (default: never)",
    )
    num_actors: int | None = Field(
        default=None,
        ge=1,
        description="actors of each pool: the CPU metrics have one together, each deep metric has "
        "its own (default: as many as the cluster has room for)",
    )
    cpus_per_actor: float = Field(
        default=1.0,
        gt=0,
        description="CPUs that each actor of the CPU metrics asks of Ray; it computes on one "
        "thread",
    )
    gpus_per_actor: float | None = Field(
        default=None,
        ge=0,
        description="GPUs that each actor of a deep metric asks of Ray, such as 0.25; 0 for the "
        "CPU (default: an even share of the GPUs there are)",
    )
    shard_size: int | None = Field(
        default=None, ge=1, description="images a shard (default: by the number of images)"
    )

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one metric")
        for name in names:
            get_spec(name)
        return tuple(dict.fromkeys(names))

    @field_validator("weights")
    @classmethod
    def _resolve_weights(cls, folder: str | None) -> str | None:
        return resolve_folder(folder)  # here, since the run's record should have it

    @field_validator("gpus_per_actor")
    @classmethod
    def _check_gpus(cls, share: float | None) -> float | None:
        if share is not None and share > 1:
            raise ValueError("a model runs on one GPU at most")
        return share

    @model_validator(mode="after")
    def _check_max_side(self) -> Self:
        if self.max_side is not None and not any(map(takes_max_side, self.metrics)):
            raise ValueError("--max-side is for musiq, which is not among the metrics")
        return self


class ScoreJob(ScoringJob):
    """Score every image with no-reference quality metrics."""

    images: str = positional("folder, manifest (.csv, .parquet) or URI of the images", "IMAGES")
    labels: LabelMode = Field(
        default="parent",
        description="where labels come from if no manifest gives them: the name of an image's "
        "parent folder, of the top folder, or none",
    )


def takes_max_side(name: str) -> bool:
    return name.partition("-")[0] == "musiq"
