"""No-reference quality metrics: one number an image.

metric = iqa_ray.metrics.create("brisque")
metric(image)   # (H, W, 3) uint8 RGB or (H, W) uint8
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

from numpy.typing import NDArray

from iqa_ray.metrics.naturalness import brisque, niqe
from iqa_ray.metrics.planes import Planes
from iqa_ray.metrics.sharpness import lapm, lapv, wavs
from iqa_ray.metrics.spec import CPU_METRICS, SPECS, MetricError, MetricSpec, get_spec

__all__ = ["CPU_METRICS", "SPECS", "Metric", "MetricError", "MetricSpec", "create", "get_spec"]

_FUNCTIONS: dict[str, Callable[[Planes], float]] = {
    "lapv": lapv,
    "lapm": lapm,
    "wavs": wavs,
    "brisque": brisque,
    "niqe": niqe,
}


class Metric:
    """A metric that scores images; `spec` describes it. Make one with `create`."""

    def __init__(self, spec: MetricSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.higher_is_better = spec.higher_is_better
        self.version = spec.version

    def __call__(self, image: NDArray[Any]) -> float:
        """Score an image: (H, W, 3) uint8 RGB or (H, W) uint8.

        The score is finite and in `spec.range`. Raises MetricError with status "too_small" or
        "undefined" where there is none, and ValueError for anything but such an image.
        """
        return self.measure(Planes(image))

    def measure(self, planes: Planes) -> float:
        """Score an image whose grey planes other metrics share. Raises as a call does."""
        side = self.spec.min_side
        if min(planes.height, planes.width) < side:
            raise MetricError(
                "too_small",
                f"{self.name} needs at least {side} px on both sides, "
                f"the image is {planes.width}x{planes.height}",
            )
        score = _FUNCTIONS[self.name](planes)
        if not isfinite(score):
            raise MetricError(
                "undefined",
                f"{self.name} is undefined for this image: it is flat, or too regular for the "
                "statistics that the metric fits",
            )
        return score


def create(name: str) -> Metric:
    """Make a metric from its id, such as "brisque".

    Raises ValueError for an unknown metric, and for one that runs on a deep network.
    """
    spec = get_spec(name)
    if spec.backend != "cpu":
        raise ValueError(
            f"{name} needs the deep metrics, which this version does not have yet; "
            f"choose from {', '.join(CPU_METRICS)}"
        )
    return Metric(spec)
