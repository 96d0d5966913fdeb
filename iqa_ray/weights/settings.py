"""The settings of the job `weights`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from iqa_ray.config import Job, positional
from iqa_ray.metrics.spec import get_spec


class WeightsJob(Job):
    """Fetch the files of deep metrics into a folder that needs no network later, or verify them."""

    action: Literal["pull", "check"] = positional("pull: fetch; check: verify", "pull|check")
    metrics: tuple[str, ...] = Field(
        default=(),
        description="metrics, separated by commas (default: musiq,maniqa,hyperiqa for pull without "
        "--backbones, all of the folder's for check)",
    )
    backbones: tuple[str, ...] = Field(
        default=(),
        description="for pull: ImageNet weights of classifiers, such as resnet18,alexnet,vgg19",
    )
    to: str | None = Field(
        default=None,
        description="for pull: folder or URI to fetch the files into",
        json_schema_extra={"metavar": "DIR"},
    )
    from_: str | None = Field(
        default=None,
        description="for check: folder or URI to verify",
        json_schema_extra={"metavar": "DIR"},
    )

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if get_spec(name).backend != "pyiqa":
                raise ValueError(f"{name} is no deep metric and needs no weights")
        return tuple(dict.fromkeys(names))

    @model_validator(mode="after")
    def _check_folder(self) -> WeightsJob:
        if self.action == "pull" and (self.to is None or self.from_ is not None):
            raise ValueError("pull needs --to DIR (and no --from)")
        if self.action == "check" and (self.from_ is None or self.to is not None):
            raise ValueError("check needs --from DIR (and no --to)")
        if self.action == "check" and self.backbones:
            raise ValueError(
                "--backbones is for pull: their files are verified whenever they are used"
            )
        return self
