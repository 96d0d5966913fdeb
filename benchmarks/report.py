"""What the benchmarks share of their command lines and results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.machine import describe_machine


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose `--help` shows the module's docstring as it is written."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def summarise(seconds: Sequence[float], num_images: int) -> dict[str, Any]:
    """Every round's seconds, and the rate of the median round."""
    return {
        "num_images": num_images,
        "seconds": [round(value, 2) for value in seconds],
        "images_per_s": round(num_images / median(seconds), 1),
    }


def print_result(result: dict[str, Any]) -> None:
    """Print the result, with what it was measured on, as the JSON object that a benchmark is."""
    print(json.dumps({**result, "machine": describe_machine()}, indent=2))
