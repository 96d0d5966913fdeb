"""Memory of the driver for a manifest of a million rows; the scores are faked in the actors.

    python -m benchmarks.bench_driver_memory --num-rows 1000000

Prints the peak resident memory of the driver process, which listed the images, cut and handed out
the shards and wrote `images.parquet`, and of a second run that finds everything done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from benchmarks.driver import read_peak_mb
from benchmarks.machine import describe_machine
from iqa_ray import metrics
from iqa_ray.scoring.cpu_scorer import Scorer, ScoringRun, Shard, ShardReport
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import SCORES_SCHEMA, make_row_settings, scores_folder
from iqa_ray.storage.workspace import Workspace

METRICS = ("lapv", "lapm", "wavs")


def make_faker(run: ScoringRun) -> Scorer:
    """Writes the parts that a scorer would write, without looking at any image."""
    place = Workspace(run.workspace)

    def fake(shard: Shard) -> ShardReport:
        size = shard.images.num_rows
        columns = [
            shard.images.column("image_id"),
            shard.images.column("path"),
            pa.array(["0" * 32] * size),
            pa.array(np.random.default_rng(0).random(size)),
            pa.array(["ok"] * size),
            pa.array([""] * size),
        ]
        table = pa.table(columns, schema=SCORES_SCHEMA)
        for name in shard.metrics:
            parts = place.parts(scores_folder(name, metrics.create(name).version))
            parts.write(table, shard.fingerprints, make_row_settings(run.images.max_pixels))
        return ShardReport(size, 0)

    return fake


def run_once(manifest: str, workspace: str) -> dict[str, Any]:
    start = perf_counter()
    job = ScoreJob(images=manifest, workspace=workspace, metrics=METRICS)
    summary = run_score(job, make_faker)
    return {
        "num_images": summary["num_images"],
        "num_scored": summary["num_scored"],
        "seconds": round(perf_counter() - start, 1),
        "driver_peak_mb": read_peak_mb(),
    }


def run_in_new_process(manifest: Path, workspace: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.bench_driver_memory", "--run-once"]
    command += [str(manifest), str(workspace)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def write_manifest(folder: Path, num_rows: int) -> Path:
    (folder / "000000000.jpg").touch()  # one path exists, or the manifest would be refused
    paths = [f"{number // 1000:06}/{number:09}.jpg" for number in range(num_rows - 1)]
    labels = [f"class {number % 31}" for number in range(num_rows)]
    pq.write_table(
        pa.table({"path": ["000000000.jpg", *paths], "label": labels}), folder / "list.parquet"
    )
    return folder / "list.parquet"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-rows", type=int, default=1_000_000)
    parser.add_argument("--run-once", nargs=2, metavar=("MANIFEST", "WORKSPACE"))
    arguments = parser.parse_args()
    if arguments.run_once:
        print(json.dumps(run_once(*arguments.run_once)))
        return
    with tempfile.TemporaryDirectory() as name:
        manifest = write_manifest(Path(name), arguments.num_rows)
        runs = [run_in_new_process(manifest, Path(name, "ws")) for _ in range(2)]
    result = {
        "topic": "driver-memory",
        "num_rows": arguments.num_rows,
        "metrics": METRICS,
        "first_run": runs[0],
        "second_run": runs[1],
        "machine": describe_machine(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
