"""Run the benchmarks one after another; each prints one JSON object.

    python -m benchmarks [NAME ...] [--images DIR] [--out DIR]

One whose packages are not installed is passed over with a line that says so; the exit code is 1 if
one of the others failed. `python -m benchmarks.bench_NAME --help` says what each times.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.machine import name_hardware
from benchmarks.report import make_parser
from iqa_ray.progress import log


@dataclass(frozen=True)
class Benchmark:
    """`needs` are modules beyond the package's own; `takes_images` tells of an option --images."""

    takes_images: bool = True
    needs: tuple[str, ...] = ()


BENCHMARKS = {
    "metrics": Benchmark(needs=("pyiqa", "skimage")),
    "cleanvision": Benchmark(needs=("cleanvision",)),
    "overhead": Benchmark(),
    "growth": Benchmark(takes_images=False),
    "scoring": Benchmark(),
    "driver_memory": Benchmark(takes_images=False),
    "deep": Benchmark(needs=("pyiqa",)),
    "seeds": Benchmark(),
    "guarantee": Benchmark(takes_images=False, needs=("efficientnet_lite_pytorch",)),
    "cutoffs": Benchmark(takes_images=False, needs=("cleanvision",)),
    "cutoff_rule": Benchmark(takes_images=False),
    "layers": Benchmark(takes_images=False),
    "metrify": Benchmark(),
}


def run_benchmark(name: str, images: Path | None, out: Path | None) -> bool:
    """Whether it could be run without an error, or lacks a package."""
    benchmark = BENCHMARKS[name]
    lacking = [module for module in benchmark.needs if find_spec(module) is None]
    if lacking:
        log(f"# {name}: skipped, since {' and '.join(lacking)} is not installed")
        return True
    log(f"# {name}")
    command = [sys.executable, "-m", f"benchmarks.bench_{name}"]
    if images and benchmark.takes_images:
        command += ["--images", str(images)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode == 0 and out:
        save(done.stdout, out)
    return done.returncode == 0


def save(printed: str, out: Path) -> None:
    result = json.loads(printed)
    machine = result["machine"]
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{result['topic']}-{name_hardware(machine)}-{machine['date']}.json"
    file.write_text(printed)
    log(f"written: {file}")


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    known = ", ".join(BENCHMARKS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {known} (default: all)")
    parser.add_argument("--images", type=Path, help="folder of images for those that can take one")
    parser.add_argument("--out", type=Path, help="folder to save each result in as well")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(
            f"no benchmark {', '.join(sorted(unknown))}: choose of {', '.join(BENCHMARKS)}"
        )
    return arguments


def main() -> int:
    arguments = parse_arguments()
    names = arguments.names or BENCHMARKS
    done = [run_benchmark(name, arguments.images, arguments.out) for name in names]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
