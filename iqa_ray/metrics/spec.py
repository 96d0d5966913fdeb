"""The table of metrics: what each is called, which way is better, and what it needs.

The eight of the main job stand here; any other no-reference metric of an installed pyiqa gets its
entry from pyiqa's own table, and `metrifier:FILE` is a network that `iqa-ray metrify train` wrote.
A metric that is computed on the CPU is an entry with a function: it is used where it is named, and
where nothing is named if `is_default`. Settings take the metrics' names from here, so what computes
them (and OpenCV with it) is imported when it is first called.
"""

from __future__ import annotations

import importlib.util
import os.path
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from iqa_ray.errors import StatusError

if TYPE_CHECKING:
    from iqa_ray.metrics.planes import Planes

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["cpu", "cuda"]
Backend = Literal["cpu", "pyiqa", "metrifier"]

METRIFIER = "metrifier:"  # before the file of a network that was trained here


class MetricError(StatusError):
    """A metric has no value for an image.

    `status` is "too_small" (a side is below the metric's `min_side`), "too_large" (the image does
    not fit into memory) or "undefined" (the definition divides by zero on this image, as on a flat
    one, or the network fails on it).
    """


@dataclass(frozen=True)
class MetricSpec:
    """One metric, described.

    `range` is theoretical; that of pyiqa's metrics is pyiqa's "rough estimation". `version` changes
    whenever the same image would get another score; networks get theirs with their weights.
    `min_side` is in pixels and holds for both sides. `function` computes the metric on the CPU;
    metrics without one are networks, pyiqa's or those trained here. `is_default`: used where no
    metric is named. `supports_max_side`: larger images may be shrunk before scoring (see
    `DeepMetric`).
    """

    name: str
    higher_is_better: bool
    range: tuple[float, float]
    version: str
    min_side: int
    summary: str
    source: str
    function: Callable[[Planes], float] | None = None
    is_default: bool = False
    supports_max_side: bool = False

    @property
    def backend(self) -> Backend:
        """Whose code computes the metric."""
        if self.function:
            return "cpu"
        return "metrifier" if self.name.startswith(METRIFIER) else "pyiqa"

    def check_size(self, height: int, width: int) -> None:
        """Raise MetricError for an image that has not `min_side` pixels on both sides."""
        if min(height, width) < self.min_side:
            raise MetricError(
                "too_small",
                f"{self.name} needs at least {self.min_side} px on both sides, "
                f"the image is {width}x{height}",
            )


def _find(module: str, name: str) -> Callable[[Planes], float]:
    """The function of that name in a module of this room, imported when it is first called."""

    def measure(planes: Planes) -> float:
        score: float = getattr(import_module(f"iqa_ray.metrics.{module}"), name)(planes)
        return score

    return measure


_PERTUZ = "Pertuz et al., Pattern Recognition 46(5), 2013"

_ALL = (
    MetricSpec(
        name="lapv",
        higher_is_better=True,
        range=(0.0, inf),
        version="1",
        min_side=3,
        summary="variance of the Laplacian: sharpness",
        source=f"{_PERTUZ}, LAP4",
        function=_find("sharpness", "lapv"),
        is_default=True,
    ),
    MetricSpec(
        name="lapm",
        higher_is_better=True,
        range=(0.0, inf),
        version="1",
        min_side=3,
        summary="mean modified Laplacian: sharpness",
        source=f"{_PERTUZ}, LAP2",
        function=_find("sharpness", "lapm"),
        is_default=True,
    ),
    MetricSpec(
        name="wavs",
        higher_is_better=True,
        range=(0.0, inf),
        version="1",
        min_side=12,  # the length of the db6 filters
        summary="sum of db6 wavelet details: sharpness",
        source=f"{_PERTUZ}, WAV1",
        function=_find("sharpness", "wavs"),
        is_default=True,
    ),
    MetricSpec(
        name="brisque",
        higher_is_better=False,
        range=(-inf, inf),
        version="1",
        # Half of 13 px, rounded up, is 7 px: the least that holds the 7×7 window at both scales.
        # Below, no local mean at the second scale is free of the zeros around the image.
        min_side=13,
        summary="learned distance from natural scene statistics",
        source="Mittal, Moorthy, Bovik, IEEE Trans. Image Processing 21(12), 2012",
        function=_find("naturalness", "brisque"),
        is_default=True,
    ),
    MetricSpec(
        name="niqe",
        higher_is_better=False,
        range=(0.0, inf),
        version="1",
        min_side=192,  # two blocks of 96 px a side, for a covariance between blocks
        summary="distance of natural scene statistics from those of pristine photographs",
        source="Mittal, Soundararajan, Bovik, IEEE Signal Processing Letters 20(3), 2013",
        function=_find("naturalness", "niqe"),
        is_default=True,
    ),
    MetricSpec(
        name="musiq",
        higher_is_better=True,
        range=(0.0, 100.0),
        version="",
        min_side=32,  # the side of its patches
        summary="multi-scale transformer, trained on KonIQ-10k",
        source="Ke et al., ICCV 2021",
        supports_max_side=True,
    ),
    MetricSpec(
        name="maniqa",
        higher_is_better=True,
        range=(0.0, 1.0),
        version="",
        # The side of its crops. pyiqa would enlarge a smaller image, and score the enlarging.
        min_side=224,
        summary="multi-dimension attention transformer, trained on KonIQ-10k",
        source="Yang et al., CVPR Workshops 2022",
    ),
    MetricSpec(
        name="hyperiqa",
        higher_is_better=True,
        range=(0.0, 1.0),
        version="",
        min_side=224,  # likewise
        summary="content-aware hyper network, trained on KonIQ-10k",
        source="Su et al., CVPR 2020",
    ),
)

SPECS: dict[str, MetricSpec] = {spec.name: spec for spec in _ALL}
CPU_METRICS: tuple[str, ...] = tuple(spec.name for spec in _ALL if spec.backend == "cpu")
DEFAULT_METRICS: tuple[str, ...] = tuple(spec.name for spec in _ALL if spec.is_default)
DEEP_METRICS: tuple[str, ...] = tuple(spec.name for spec in _ALL if spec.backend == "pyiqa")


def get_spec(name: str) -> MetricSpec:
    """Look a metric up by its id, such as "lapm", or one of pyiqa's, such as "topiq_nr".

    `metrifier:FILE` is a network in a file, whose path the entry's name has in full, so that later
    commands and other machines find it; it need not be there yet.

    Raises ValueError where there is no such metric, naming the nearest one, and for metrics of
    pyiqa that do not score an image by itself, with the reason.
    """
    if name in SPECS:
        return SPECS[name]
    if name.startswith(METRIFIER):
        return _describe_metrifier(name)
    configs = _read_pyiqa_configs()
    if name in configs:
        return _describe_pyiqa_metric(name, configs[name])
    close = get_close_matches(name.lower(), [*SPECS, *configs], n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    others = (
        "any no-reference metric that pyiqa lists"
        if configs
        else "with pyiqa installed (`pip install 'iqa_ray[deep]'`) its other no-reference metrics"
    )
    raise ValueError(f"unknown metric {name!r}{hint}; known: {', '.join(SPECS)}, and {others}")


def resolve_name(name: str) -> str:
    """A metric's id as entries and tables have it: a metrifier's names its file's whole path."""
    file = name.removeprefix(METRIFIER)
    if file in {name, ""} or "://" in file:
        return name
    return METRIFIER + os.path.abspath(os.path.expanduser(file))


def _describe_metrifier(name: str) -> MetricSpec:
    if name == METRIFIER:
        raise ValueError(f"{METRIFIER} needs a file, as `iqa-ray metrify train` writes it")
    return MetricSpec(
        name=resolve_name(name),
        higher_is_better=True,
        range=(0.0, 1.0),
        version="",
        min_side=1,
        summary="how sure and right a classifier will be, as another network predicts it",
        source="Cheraaqee 2022, section 3.1",
    )


@lru_cache(maxsize=1)
def _read_pyiqa_configs() -> dict[str, dict[str, Any]]:
    """pyiqa's table of metrics; empty without pyiqa. pyiqa itself, and PyTorch, stay unimported."""
    found = importlib.util.find_spec("pyiqa")
    if found is None or found.origin is None:
        return {}
    path = Path(found.origin).with_name("default_model_configs.py")
    spec = importlib.util.spec_from_file_location("iqa_ray._pyiqa_configs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.DEFAULT_CONFIGS)


# by the name of pyiqa's class
_NOT_FOR_ONE_IMAGE = {
    "FID": "it compares sets of images",
    "InceptionScore": "it scores a set of images",
    "CLIPScore": "it needs a caption",
}
_OWN_LOADERS = {"QAlign", "QReAlign", "Compare2Score", "FGResQ"}


def _describe_pyiqa_metric(name: str, config: dict[str, Any]) -> MetricSpec:
    kind = config["metric_opts"]["type"]
    if config.get("metric_mode") != "NR":
        raise ValueError(f"{name} needs a reference image for each image, and there is none here")
    if kind in _NOT_FOR_ONE_IMAGE:
        raise ValueError(f"{name} gives an image no score of its own: {_NOT_FOR_ONE_IMAGE[kind]}")
    if kind in _OWN_LOADERS:
        raise ValueError(
            f"{name} fetches a whole model repository through transformers, which a weights "
            "folder cannot hold; choose another metric"
        )
    family = SPECS.get(name.partition("-")[0])  # such as musiq of musiq-ava
    return MetricSpec(
        name=name,
        higher_is_better=not config.get("lower_better", False),
        range=_parse_range(config.get("score_range") or ""),
        version="",
        min_side=family.min_side if family else 1,
        summary=f"pyiqa's {name}",
        source=f"pyiqa, class {kind}",
        supports_max_side=family is not None and family.supports_max_side,
    )


def _parse_range(text: str) -> tuple[float, float]:
    """pyiqa writes `0, 1`, `~0, ~100` for a rough estimate, and `0, ~` for no upper bound."""
    low, _, high = (part.strip().removeprefix("~") for part in text.partition(","))
    return float(low) if low else -inf, float(high) if high else inf
