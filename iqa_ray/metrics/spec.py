"""The table of metrics: what each is called, which way is better, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from typing import Literal

Status = Literal["too_small", "undefined"]


class MetricError(ValueError):
    """A metric has no value for an image; `str(error)` is the reason, on one line.

    `status` is "too_small" (a side is below the metric's `min_side`) or "undefined" (the
    definition divides by zero on this image, as on a flat one).
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status

    def __reduce__(self) -> tuple[type[MetricError], tuple[Status, str]]:
        # workers send errors back pickled, and the default would lose the status
        return type(self), (self.status, str(self))


@dataclass(frozen=True)
class MetricSpec:
    """One metric, described.

    `range` is theoretical. `version` changes whenever the same image would get another score.
    `min_side` is in pixels and holds for both sides.
    """

    name: str
    higher_is_better: bool
    range: tuple[float, float]
    version: str
    min_side: int
    backend: Literal["cpu", "pyiqa"]
    summary: str
    source: str


_PERTUZ = "Pertuz et al., Pattern Recognition 46(5), 2013"

_ALL = (
    MetricSpec(
        name="lapv",
        higher_is_better=True,
        range=(0.0, inf),
        version="1",
        min_side=3,
        backend="cpu",
        summary="variance of the Laplacian: sharpness",
        source=f"{_PERTUZ}, LAP4",
    ),
    MetricSpec(
        name="lapm",
        higher_is_better=True,
        range=(0.0, inf),
        version="1",
        min_side=3,
        backend="cpu",
        summary="mean modified Laplacian: sharpness",
        source=f"{_PERTUZ}, LAP2",
    ),
    MetricSpec(
        name="wavs",
        higher_is_better=True,
        range=(0.0, inf),
        version="1",
        min_side=12,  # the length of the db6 filters
        backend="cpu",
        summary="sum of db6 wavelet details: sharpness",
        source=f"{_PERTUZ}, WAV1",
    ),
    MetricSpec(
        name="brisque",
        higher_is_better=False,
        range=(-inf, inf),
        version="1",
        # Half of 13 px, rounded up, is 7 px: the least that holds the 7×7 window at both scales.
        # Below, no local mean at the second scale is free of the zeros around the image.
        min_side=13,
        backend="cpu",
        summary="learned distance from natural scene statistics",
        source="Mittal, Moorthy, Bovik, IEEE Trans. Image Processing 21(12), 2012",
    ),
    MetricSpec(
        name="niqe",
        higher_is_better=False,
        range=(0.0, inf),
        version="1",
        min_side=192,  # two blocks of 96 px a side, for a covariance between blocks
        backend="cpu",
        summary="distance of natural scene statistics from those of pristine photographs",
        source="Mittal, Soundararajan, Bovik, IEEE Signal Processing Letters 20(3), 2013",
    ),
    MetricSpec(
        name="musiq",
        higher_is_better=True,
        range=(0.0, 100.0),
        version="1",
        min_side=32,  # the side of its patches
        backend="pyiqa",
        summary="multi-scale transformer, trained on KonIQ-10k",
        source="Ke et al., ICCV 2021",
    ),
    MetricSpec(
        name="maniqa",
        higher_is_better=True,
        range=(0.0, 1.0),
        version="1",
        min_side=224,  # the side of its crops
        backend="pyiqa",
        summary="multi-dimension attention transformer, trained on KonIQ-10k",
        source="Yang et al., CVPR Workshops 2022",
    ),
    MetricSpec(
        name="hyperiqa",
        higher_is_better=True,
        range=(0.0, 1.0),
        version="1",
        min_side=224,  # the side of its crops
        backend="pyiqa",
        summary="content-aware hyper network, trained on KonIQ-10k",
        source="Su et al., CVPR 2020",
    ),
)

SPECS: dict[str, MetricSpec] = {spec.name: spec for spec in _ALL}
CPU_METRICS: tuple[str, ...] = tuple(spec.name for spec in _ALL if spec.backend == "cpu")


def get_spec(name: str) -> MetricSpec:
    """Look a metric up by its id, such as "lapm".

    Raises ValueError, naming the known ids and the nearest one, where there is no such metric.
    """
    if name in SPECS:
        return SPECS[name]
    close = get_close_matches(name.lower(), SPECS, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ValueError(f"unknown metric {name!r}{hint}; known metrics: {', '.join(SPECS)}")
