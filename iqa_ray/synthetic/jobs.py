"""The job `make-data`."""

from __future__ import annotations

import time
from typing import Any

from iqa_ray.errors import UsageError
from iqa_ray.progress import Progress
from iqa_ray.synthetic.dotcodes import make_dataset
from iqa_ray.synthetic.settings import MakeDataJob


def run_make_data(job: MakeDataJob) -> dict[str, Any]:
    """Make the images and return the run's summary.

    Raises:
        UsageError: the folder holds something else, or cannot be written.
    """
    start_s = time.monotonic()
    try:
        with Progress(job.num_images, "make-data") as progress:
            labels = make_dataset(
                job.out, job.num_images, job.image_size, job.seed, progress.update
            )
    except ValueError as error:
        raise UsageError(f"OUT: {error}") from None
    except OSError as error:
        raise UsageError(f"OUT {job.out}: {error.strerror}") from None
    return {
        "num_images": len(labels),
        "labels": labels["label"].value_counts().to_dict(),
        "out": job.out,
        "seconds": round(time.monotonic() - start_s, 3),
    }


def describe_data(summary: dict[str, Any]) -> str:
    """The summary for people."""
    counts = ", ".join(f"{label} {count:,}" for label, count in summary["labels"].items())
    return f"{summary['num_images']:,} images ({counts}) and labels.csv in {summary['out']}"
