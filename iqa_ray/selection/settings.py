"""The settings of the jobs `cutoffs` and `select`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from iqa_ray.config import WorkspaceJob
from iqa_ray.metrics.spec import resolve_name

Weighting = Literal["equal", "prior"]
Bandwidth = Literal["scott", "silverman"] | float
Scale = Literal["raw", "log"]
Rule = Literal["majority", "any", "all"] | int


def _drop_repeated(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(resolve_name, names)))


class CutoffsJob(WorkspaceJob):
    """Learn each metric's cut-off from the scores of right and wrong predictions."""

    metrics: tuple[str, ...] = Field(
        default=(), description="metrics, separated by commas (default: all that have scores)"
    )
    scale: Scale | Literal["auto"] = Field(
        default="auto",
        description="densities of the scores (raw) or of their logarithms (log); auto: log for "
        "metrics of range (0, inf)",
    )
    bandwidth: Bandwidth = Field(
        default="scott",
        description="kernel width: scott, silverman, or a factor of each class's spread, which is "
        "the smaller of standard deviation and IQR/1.34",
    )
    weighting: Weighting = Field(
        default="equal",
        description="equal: densities of equal area; prior: weighted by the number of right and "
        "wrong predictions",
    )
    min_wrong: int = Field(
        default=10, ge=2, description="with fewer wrong predictions a metric gets no cut-off"
    )
    cutoff: dict[str, float] = Field(
        default={},
        description="set a metric's cut-off by hand, such as lapm=2.6; repeatable; it holds for "
        "images of one size",
    )
    target_accuracy: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="certify the loosest vote that keeps images of at least this accuracy, instead "
        "of fitting each metric's cut-off",
    )
    confidence: float = Field(
        default=0.95, gt=0, lt=1, description="with --target-accuracy: how sure it shall be"
    )
    rule: Rule = Field(
        default="majority",
        description="with --target-accuracy: low votes that reject an image, as in `select`",
    )
    group: str | None = Field(
        default=None,
        description="column of the scored manifest: images of one group, such as shots of one "
        "object, share a fold when accuracy is cross-fitted",
        json_schema_extra={"metavar": "COLUMN"},
    )
    seed: int = Field(default=0, ge=0, description="seed of bootstrap, permutations and folds")

    _metrics = field_validator("metrics")(_drop_repeated)

    @field_validator("cutoff")
    @classmethod
    def _resolve_names(cls, cutoff: dict[str, float]) -> dict[str, float]:
        return {resolve_name(name): value for name, value in cutoff.items()}

    @field_validator("bandwidth")
    @classmethod
    def _check_bandwidth(cls, value: Bandwidth) -> Bandwidth:
        if isinstance(value, float) and value <= 0:
            raise ValueError("a factor must be above 0")
        return value


class SelectJob(WorkspaceJob):
    """Let the metrics vote with their cut-offs and keep the images that pass."""

    metrics: tuple[str, ...] = Field(
        default=(),
        description="voters, separated by commas (default: those that `study` chose, or all that "
        "have a cut-off)",
    )
    rule: Rule = Field(
        default="majority",
        description="low votes that reject an image: majority (more than half), any, "
        "all or a number",
    )
    min_per_class: int | None = Field(
        default=None,
        ge=1,
        description="keep at least so many images of each class: where fewer pass, the best of "
        "those outvoted as well, by mean rank over the voters",
    )
    cutoffs_from: str | None = Field(
        default=None,
        description="use the cut-offs that were learnt on another workspace; they are copied",
        json_schema_extra={"metavar": "WS"},
    )
    link: str | None = Field(
        default=None,
        description="also make this folder of links to the kept images, for ImageFolder",
    )
    copy_files: bool = Field(default=False, description="with --link: copy instead of linking")
    figures: bool = Field(
        default=False,
        description="also draw explanations.png: what the answers of the classifier of `predict "
        "--backbone` rest on, for a kept and a rejected image of up to three classes; takes "
        "seconds to minutes",
    )

    _metrics = field_validator("metrics")(_drop_repeated)
