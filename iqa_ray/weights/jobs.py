"""The job `weights`: get the files of deep metrics and of backbones, or verify them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from iqa_ray.config import Job, positional
from iqa_ray.metrics.spec import DEEP_METRICS, get_spec
from iqa_ray.storage.files import locate
from iqa_ray.weights.backbones import pull_backbones
from iqa_ray.weights.pulling import check_weights, pull_weights


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


def run_weights(job: WeightsJob) -> dict[str, Any]:
    """Fetch or verify; returns each metric's files with their sizes and hashes.

    Raises:
        UsageError: a file cannot be fetched, is missing, damaged, or does not fit its metric.
    """
    if job.action == "pull":
        assert job.to is not None
        folder = locate(job.to)
        metrics = pull_backbones(job.backbones, folder)
        if names := job.metrics or (() if job.backbones else DEEP_METRICS):
            lock = pull_weights(names, folder)
            metrics |= {name: [lock.files[file] for file in lock.metrics[name]] for name in names}
    else:
        assert job.from_ is not None
        folder = locate(job.from_)
        metrics = check_weights(folder, job.metrics)
    return {
        "action": job.action,
        "folder": str(folder),
        "metrics": {
            name: [
                {"name": entry.name, "bytes": entry.bytes, "sha256": entry.sha256}
                for entry in entries
            ]
            for name, entries in metrics.items()
        },
    }


def describe_weights(summary: dict[str, Any]) -> str:
    """The summary for people."""
    lines = []
    for name, files in summary["metrics"].items():
        lines.append(f"{name}:" if files else f"{name}: needs no files")
        lines += [
            f"  {file['name']}  {file['bytes']:,} bytes  {file['sha256'][:16]}…" for file in files
        ]
    what = "written: all in" if summary["action"] == "pull" else "all sound, in"
    return "\n".join([*lines, f"{what} {summary['folder']}"])
