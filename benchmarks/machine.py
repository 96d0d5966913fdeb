"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "cleanvision",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
    "PyWavelets",
    "pyiqa",
    "ray",
    "torch",
)
_VENDORS = ("amd", "apple", "arm", "genuine", "intel")


def describe_machine() -> dict[str, object]:
    """Processor, cores, versions and the date."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: find_version(name) for name in PACKAGES},
    }


def name_hardware(machine: Mapping[str, object]) -> str:
    """A described machine in a file's name: `2-core-epyc` for two cores of an "AMD EPYC"."""
    words = re.findall(r"[a-z0-9-]+", re.sub(r"\(\w+\)", "", str(machine["processor"]).lower()))
    model = next((word for word in words if word not in _VENDORS), "processor")
    return f"{machine['cores']}-core-{model}"


def find_version(package: str) -> str | None:
    """The installed version; None without the package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
