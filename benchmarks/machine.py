"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
    "PyWavelets",
    "pyiqa",
    "ray",
    "torch",
)


def describe_machine() -> dict[str, object]:
    """Processor, cores, versions and the date."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: find_version(name) for name in PACKAGES},
    }


def find_version(package: str) -> str | None:
    """The installed version; None without the package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
