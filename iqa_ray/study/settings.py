"""The settings of the job `study`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from iqa_ray.config import positional
from iqa_ray.scoring.settings import ScoringJob

Judge = Literal["effect", "srcc"]

SMALLEST_STUDY = 2  # samples
SMALLEST_SIDE = 20  # so that each of ten crops takes at least a row and a column away


@dataclass(frozen=True)
class Thresholds:
    """What qualifies a metric; correlations are absolute ones of Spearman, in [0, 1].

    Attributes:
        min_sensitive: correlation with blurring, at least.
        max_robust: correlation with cropping and with rotating, at most.
        max_agreement: of two metrics' scores over images; above it one is a copy of the other.
        max_effect: of cropping and of rotating, at most: an effect up to this makes up for a
            correlation above `max_robust`.
        judge: `srcc` goes by the correlations alone, as Smith et al. do, and leaves effects out.
    """

    min_sensitive: float = 0.8
    max_robust: float = 0.5
    max_agreement: float = 0.95
    max_effect: float = 0.2
    judge: Judge = "effect"


class StudyJob(ScoringJob):
    """Find out which metrics answer to blur and not to cropping and rotation.

    Series of images are made from samples (or listed in --series) and scored; metrics qualify by
    how their scores correlate with the index.
    """

    images: str | None = positional(
        "folder, manifest (.csv, .parquet) or URI of sharp images to draw samples from",
        "IMAGES",
        default=None,
    )
    series: str | None = Field(
        default=None,
        description="study these series instead: CSV or Parquet with path, sample, index, "
        "configuration (cropping, rotating, blurring, or names of your own)",
        json_schema_extra={"metavar": "MANIFEST"},
    )
    num_samples: int = Field(
        default=14, ge=SMALLEST_STUDY, description="images to make series of, drawn at random"
    )
    image_size: int = Field(
        default=1024,
        ge=SMALLEST_SIDE,
        description="pixels: samples whose longer side has more are shrunk to that first",
    )
    min_srcc: float = Field(
        default=Thresholds.min_sensitive,
        ge=0,
        le=1,
        description="correlation (SRCC) with blurring that a metric needs to qualify",
    )
    max_srcc: float = Field(
        default=Thresholds.max_robust,
        ge=0,
        le=1,
        description="correlation (SRCC) with cropping and with rotating that it may have",
    )
    max_effect: float = Field(
        default=Thresholds.max_effect,
        ge=0,
        description="effect of cropping and of rotating that it may have whatever that correlation "
        "is: how far scores move, relative to blurring",
    )
    judge: Judge = Field(
        default=Thresholds.judge,
        description="effect: by --max-srcc or --max-effect; srcc: by --max-srcc alone, as Smith et "
        "al. do",
    )
    max_agreement: float = Field(
        default=Thresholds.max_agreement,
        ge=0,
        le=1,
        description="metrics whose scores agree more (SRCC over images) count as copies",
    )
    keep: int = Field(default=3, ge=1, description="how many of the best become voters")
    seed: int = Field(default=0, ge=0, description="seed of samples, noise and bootstrap")

    @model_validator(mode="after")
    def _check_source(self) -> StudyJob:
        if (self.images is None) == (self.series is None):
            raise ValueError("give either IMAGES or --series MANIFEST")
        return self
