"""Training classifiers: one at a time, and many runs side by side on Ray Train."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iqa_ray.training import backbones as backbones

__all__ = ["backbones"]


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import, and some modules here do without it
    if name == "backbones":
        return import_module("iqa_ray.training.backbones")
    raise AttributeError(f"module 'iqa_ray.training' has no attribute {name!r}")
