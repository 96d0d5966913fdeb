"""iqa_ray: image-quality-guided dataset curation on Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iqa_ray import metrics as metrics
    from iqa_ray import training as training
    from iqa_ray.predictions.jobs import predict as predict
    from iqa_ray.scoring.jobs import score as score
    from iqa_ray.selection.jobs import cutoffs as cutoffs
    from iqa_ray.selection.jobs import select as select

__version__ = "0.1.0"
__all__ = ["__version__", "cutoffs", "metrics", "predict", "score", "select", "training"]

_COMMANDS = {
    "score": "iqa_ray.scoring.jobs",
    "predict": "iqa_ray.predictions.jobs",
    "cutoffs": "iqa_ray.selection.jobs",
    "select": "iqa_ray.selection.jobs",
}


def __getattr__(name: str) -> Any:
    # Ray and PyTorch take seconds to import, and `iqa-ray --help` needs neither
    if name in _COMMANDS:
        return getattr(import_module(_COMMANDS[name]), name)
    if name in ("metrics", "training"):
        return import_module(f"iqa_ray.{name}")
    raise AttributeError(f"module 'iqa_ray' has no attribute {name!r}")
