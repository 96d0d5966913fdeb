"""An `iqa-ray` command in a process of its own, and how much memory that process took at most."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from iqa_ray import cli


def read_peak_mb() -> int:
    """The most memory that this process has had resident, in MiB (Linux).

    Not `ru_maxrss`: that begins at the peak of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return round(int(peak.split()[1]) / 1024)


def run_command(*arguments: str) -> dict[str, Any]:
    """The summary of `iqa-ray ARGUMENTS --json`, with `process_s` and `driver_peak_mb`.

    `process_s` are the seconds of the whole process; Ray's processes do not count as the driver.
    """
    command = [sys.executable, "-m", "benchmarks.driver", *arguments, "--json"]
    start = perf_counter()
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    process_s = perf_counter() - start
    summary, peak = (json.loads(line) for line in output.splitlines()[-2:])
    return {**summary, **peak, "process_s": process_s}


def main() -> int:
    code = cli.main(sys.argv[1:])
    print(json.dumps({"driver_peak_mb": read_peak_mb()}), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
