"""Run the benchmarks that need nothing but the package, one after another."""

from __future__ import annotations

import subprocess
import sys

MODULES = ("bench_metrics", "bench_scoring", "bench_driver_memory")


def main() -> int:
    failed = 0
    for module in MODULES:
        print(f"# benchmarks.{module}", file=sys.stderr, flush=True)
        failed |= subprocess.run(
            [sys.executable, "-m", f"benchmarks.{module}"], check=False
        ).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
