"""No-reference quality metrics: one number an image.

metric = iqa_ray.metrics.create("brisque")
metric(image)   # (H, W, 3) uint8 RGB or (H, W) uint8
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from iqa_ray.metrics.spec import (
    CPU_METRICS,
    SPECS,
    Device,
    MetricError,
    MetricSpec,
    Precision,
    get_spec,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from iqa_ray.metrics.deep import DeepMetric as DeepMetric
    from iqa_ray.metrics.planes import Planes

__all__ = [
    "CPU_METRICS",
    "SPECS",
    "DeepMetric",
    "Metric",
    "MetricError",
    "MetricSpec",
    "create",
    "get_spec",
]


def __getattr__(name: str) -> Any:
    # OpenCV and files of networks are for those that score, not for settings that name metrics
    if name == "DeepMetric":
        from iqa_ray.metrics.deep import DeepMetric

        return DeepMetric
    raise AttributeError(f"module 'iqa_ray.metrics' has no attribute {name!r}")


class Metric:
    """A metric computed here on the CPU; `spec` describes it. Make one with `create`."""

    def __init__(self, spec: MetricSpec) -> None:
        assert spec.function is not None, "a network is a DeepMetric"
        self.spec = spec
        self._function = spec.function
        self.name = spec.name
        self.higher_is_better = spec.higher_is_better
        self.version = spec.version

    def __call__(self, image: NDArray[Any]) -> float:
        """Score an image: (H, W, 3) uint8 RGB or (H, W) uint8.

        The score is finite and in `spec.range`. Raises MetricError with status "too_small" or
        "undefined" where there is none, and ValueError for anything but such an image.
        """
        from iqa_ray.metrics.planes import Planes

        return self.measure(Planes(image))

    def measure(self, planes: Planes) -> float:
        """Score an image whose grey planes other metrics share. Raises as a call does."""
        self.spec.check_size(planes.height, planes.width)
        score = self._function(planes)
        if not isfinite(score):
            raise MetricError(
                "undefined",
                f"{self.name} is undefined for this image: it is flat, or too regular for the "
                "statistics that the metric fits",
            )
        return score


def create(
    name: str,
    weights: str | None = None,
    device: Device | None = None,
    precision: Precision = "fp32",
    max_side: int | None = None,
) -> Metric | DeepMetric:
    """Make a metric from its id, such as "brisque", "musiq", another of pyiqa's, or
    "metrifier:FILE" for a network that `iqa-ray metrify train` wrote.

    The other settings are for metrics that are deep networks.

    Args:
        name: the id.
        weights: the weights folder (see `pulling.prepare_weights`).
        device: cpu or cuda (default: cuda where there is one).
        precision: fp32, bf16 or fp16.
        max_side: for MUSIQ, see `DeepMetric`.

    Raises:
        ValueError: an unknown metric; files that are missing (with their names), damaged or of
            another model.
    """
    spec = get_spec(name)
    if spec.backend == "cpu":
        return Metric(spec)
    from iqa_ray.metrics.learnt import make_network_metric, prepare_metric

    prepared = prepare_metric(spec, weights)
    if device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return make_network_metric(spec, prepared, device, precision, max_side)
