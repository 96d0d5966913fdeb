"""The settings of the jobs `rescore` and `compact`."""

from __future__ import annotations

from pydantic import Field, model_validator

from iqa_ray.config import Job, WorkspaceJob, positional


class RescoreJob(WorkspaceJob):
    """Score what is new or changed since the last night, vote again, and look for drift.

    How images are scored and how metrics vote is as in the last `score` and `select`.
    """

    images: str = positional("folder, manifest (.csv, .parquet) or URI, as for `score`", "IMAGES")
    refit: bool = Field(
        default=False, description="fit the cut-offs again; the old ones are kept in history/"
    )
    alert_drift: float | None = Field(
        default=None,
        gt=0,
        description="exit with 3 where a metric's population stability index of tonight's images "
        "against all others is above this (0.25 is usually called a major shift)",
    )
    alert_rejected: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="exit with 3 where the rejected share of tonight's images exceeds that of the "
        "others by more than this, such as 0.1",
    )
    alert_errors: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="exit with 3 where a larger share of tonight's images has no score for some "
        "metric",
    )
    weights: str | None = Field(
        default=None,
        description="folder or URI of deep metrics' files (default: as in the last `score`)",
        json_schema_extra={"metavar": "DIR"},
    )
    num_actors: int | None = Field(
        default=None, ge=1, description="actors of each pool (default: as in the last `score`)"
    )


class CompactJob(Job):
    """Merge the small parts that nights leave behind; readers never see a gap."""

    ws: str | None = positional("the workspace", "WS", default=None)
    workspace: str | None = Field(default=None, description="the same, as a flag")

    @model_validator(mode="after")
    def _check_workspace(self) -> CompactJob:
        if (self.ws is None) == (self.workspace is None):
            raise ValueError("name one workspace")
        return self
