"""iqa_ray: image-quality-guided dataset curation on Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iqa_ray import metrics as metrics
    from iqa_ray import training as training
    from iqa_ray.scoring.jobs import score as score

__version__ = "0.1.0"
__all__ = ["__version__", "metrics", "score", "training"]


def __getattr__(name: str) -> Any:
    # Ray and PyTorch take seconds to import, and `iqa-ray --help` needs neither
    if name == "score":
        return import_module("iqa_ray.scoring.jobs").score
    if name in ("metrics", "training"):
        return import_module(f"iqa_ray.{name}")
    raise AttributeError(f"module 'iqa_ray' has no attribute {name!r}")
