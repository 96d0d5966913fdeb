"""The settings of jobs that score images."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from iqa_ray.cluster.capacity import Placement, check_share
from iqa_ray.config import WorkspaceJob, positional
from iqa_ray.images.settings import DEFAULT_MAX_PIXELS, LARGEST_MAX_PIXELS, LabelMode
from iqa_ray.metrics.spec import DEFAULT_METRICS, Precision, get_spec

if TYPE_CHECKING:
    from typing_extensions import Self


# Ray's own syntax of labels and their selectors
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL_NAME = re.compile(rf"([a-zA-Z0-9.-]{{1,253}}/)?{_LABEL}")
_SELECTOR = re.compile(rf"!?({_LABEL}|in\({_LABEL}(, ?{_LABEL})*\))")
_SMALLEST_AMOUNT = 0.0001  # Ray's


class ScoringJob(WorkspaceJob):
    """How images are scored."""

    metrics: tuple[str, ...] = Field(
        default=DEFAULT_METRICS,
        description="metrics to score with, separated by commas: the five of the default, musiq, "
        "maniqa, hyperiqa, any other no-reference metric of pyiqa, or metrifier:FILE for a network "
        "that `metrify train` wrote",
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
    resources: dict[str, float | str] = Field(
        default={},
        description="where the actors of deep metrics are placed, repeatable: a number is an "
        "amount of a custom resource that each of them takes, such as scorer=1; a text is a label "
        "that their node has, such as ray.io/accelerator-type=H200, ray.io/market-type=!spot or "
        "zone=in(a,b)",
    )
    shard_size: int | None = Field(
        default=None, ge=1, description="images a shard (default: by the number of images)"
    )

    @property
    def placement(self) -> Placement:
        """Where actors of deep metrics may be."""
        pairs = self.resources.items()
        return Placement(
            {name: value for name, value in pairs if not isinstance(value, str)},
            {name: value for name, value in pairs if isinstance(value, str)},
        )

    _share = field_validator("gpus_per_actor")(check_share)

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one metric")
        return tuple(dict.fromkeys(get_spec(name).name for name in names))

    @field_validator("weights")
    @classmethod
    def _resolve_weights(cls, folder: str | None) -> str | None:
        from iqa_ray.weights.files import resolve_folder

        return resolve_folder(folder)  # here, since the run's record should have it

    @field_validator("resources", mode="before")
    @classmethod
    def _read_amounts(cls, pairs: Any) -> Any:
        return {n: _read_amount(v) for n, v in pairs.items()} if isinstance(pairs, dict) else pairs

    @field_validator("resources")
    @classmethod
    def _check_resources(cls, pairs: dict[str, float | str]) -> dict[str, float | str]:
        for name, value in pairs.items():
            _check_pair(name, value)
        return pairs

    @model_validator(mode="after")
    def _check_placed(self) -> Self:
        if self.resources and all(get_spec(name).backend == "cpu" for name in self.metrics):
            raise ValueError("--resources places deep metrics, and none is among the metrics")
        return self

    @model_validator(mode="after")
    def _check_max_side(self) -> Self:
        takes_max_side = any(get_spec(name).supports_max_side for name in self.metrics)
        if self.max_side is not None and not takes_max_side:
            raise ValueError("--max-side is for musiq, which is not among the metrics")
        return self


def _read_amount(value: Any) -> Any:
    """A number that was written as text, as on the command line."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _check_pair(name: str, value: float | str) -> None:
    if isinstance(value, str):
        if not _LABEL_NAME.fullmatch(name) or not _SELECTOR.fullmatch(value):
            raise ValueError(
                f"{name}={value}: write NAME=AMOUNT for a custom resource, or for a label "
                "NAME=VALUE, NAME=!VALUE, NAME=in(VALUE,VALUE) or NAME=!in(VALUE,VALUE)"
            )
    elif name in ("CPU", "GPU", "memory", "object_store_memory"):
        raise ValueError(f"{name} is no custom resource; --gpus-per-actor is for GPUs")
    elif not name or value < _SMALLEST_AMOUNT:
        raise ValueError(f"{name}={value:g}: an amount is a number from {_SMALLEST_AMOUNT} up")


class ScoreJob(ScoringJob):
    """Score every image with no-reference quality metrics."""

    images: str = positional("folder, manifest (.csv, .parquet) or URI of the images", "IMAGES")
    labels: LabelMode = Field(
        default="parent",
        description="where labels come from if no manifest gives them: the name of an image's "
        "parent folder, of the top folder, or none",
    )
