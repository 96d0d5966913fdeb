"""The job `weights`: get the files of deep metrics and of backbones, or verify them."""

from __future__ import annotations

from typing import Any

from iqa_ray.metrics.spec import DEEP_METRICS
from iqa_ray.storage.files import locate
from iqa_ray.weights.backbones import pull_backbones
from iqa_ray.weights.pulling import check_weights, pull_weights
from iqa_ray.weights.settings import WeightsJob


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
