"""What actors tell Ray's metrics of their scoring; each node serves them to Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ray.util.metrics import Counter, Histogram

from iqa_ray.scoring.cpu_scorer import Scorer, Shard, ShardReport

_IMAGE_SECONDS = [step * scale for scale in (0.001, 0.01, 0.1, 1.0, 10.0) for step in (1, 2, 5)]


class MeasuredScorer:
    """Does shards with a scorer, and after each counts what became of its images.

    Ray adds its own prefix: `iqa_ray_images_scored` is read as `ray_iqa_ray_images_scored_total`.
    """

    def __init__(self, make_scorer: Callable[[], Scorer], group: str) -> None:
        """`group`: the deep metric that the scorer has, or "cpu" for the CPU metrics together."""
        self._score, self._group = make_scorer(), {"group": group}
        self._scored = Counter("iqa_ray_images_scored", "images with a score", ("metric",))
        self._errors = Counter(
            "iqa_ray_image_errors", "images without a score, by the kind of error",
            ("metric", "status"),
        )  # fmt: skip
        self._seconds = Histogram(
            "iqa_ray_image_seconds",
            "seconds that an image held its actor, for all metrics of the group",
            _IMAGE_SECONDS,
            ("group",),
        )
        self._wait = Counter(
            "iqa_ray_model_wait_seconds",
            "seconds that a deep metric's model, and so its GPU, waited for images",
            ("group",),
        )
        self._compute = Counter(
            "iqa_ray_model_compute_seconds", "seconds that a deep metric's model computed",
            ("group",),
        )  # fmt: skip

    def __call__(self, shard: Shard) -> ShardReport:
        """Returns the scorer's report, less the seconds of each image."""
        report = self._score(shard)
        for metric, statuses in report.statuses.items():
            for status, number in statuses.items():
                if status == "ok":
                    self._scored.inc(number, {"metric": metric})
                else:
                    self._errors.inc(number, {"metric": metric, "status": status})
        for seconds in report.image_s:
            self._seconds.observe(seconds, self._group)
        for counter, total_s in ((self._wait, report.wait_s), (self._compute, report.compute_s)):
            if total_s:
                counter.inc(total_s, self._group)
        return replace(report, image_s=[])
