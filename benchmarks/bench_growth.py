"""Scoring more and more images: the time an image and the driver's memory ought to stay flat.

    python -m benchmarks.bench_growth --sizes 1000,10000,100000 --rounds 3

Synthetic JPEGs of 64x64 px, 200 different ones, are linked under as many names as a size asks for,
and each size is scored with lapv,lapm,wavs by `iqa-ray score IMAGES` in a process of its own, with
an actor a CPU, into an empty workspace; then again, which finds everything done. Timed is the whole
process: imports, listing, starting and ending Ray (not in the second run, which needs none), and
the scores. Not timed: making and linking the images.

Printed for each size, of the medians of the rounds: ms an image; ms for each image more than those
of the size before, which leaves out what a run costs however few its images; and the largest
memory of the driver, which is the process of the command without Ray's own and the actors.
"""

from __future__ import annotations

import tempfile
from statistics import median
from typing import Any

from benchmarks.driver import run_command
from benchmarks.images import LinkedImages, open_source
from benchmarks.report import make_parser, print_result, summarise
from benchmarks.runs import METRICS
from iqa_ray.progress import log


def score_twice(images: str, num_images: int) -> tuple[dict[str, Any], dict[str, Any]]:
    with tempfile.TemporaryDirectory() as workspace:
        command = ("score", images, "--workspace", workspace, "--metrics", ",".join(METRICS))
        first, second = run_command(*command), run_command(*command)
    assert first["num_images"] == first["num_scored"] == second["num_reused"] == num_images
    assert first["num_failed"] == 0
    return first, second


def measure(source: LinkedImages, sizes: list[int], num_rounds: int) -> dict[str, Any]:
    folders = {size: source.link(size) for size in sizes}
    runs: dict[int, list[tuple[dict[str, Any], dict[str, Any]]]] = {size: [] for size in sizes}
    for number in range(1, num_rounds + 1):
        for size, folder in folders.items():
            log(f"round {number} of {num_rounds}: {size:,} images")
            runs[size].append(score_twice(str(folder), size))
    rows = [
        {
            "first_run": describe_runs([first for first, _ in runs[size]], size),
            "second_run": describe_runs([second for _, second in runs[size]], size),
        }
        for size in sizes
    ]
    for i in range(1, len(sizes)):
        add_growth(rows[i - 1]["first_run"], rows[i]["first_run"])
    return {
        "topic": "growth",
        "metrics": METRICS,
        "source": source.name,
        "rounds": num_rounds,
        "sizes": rows,
    }


def describe_runs(summaries: list[dict[str, Any]], num_images: int) -> dict[str, Any]:
    seconds = [summary["process_s"] for summary in summaries]
    return {
        **summarise(seconds, num_images),
        "ms_per_image": round(1000 * median(seconds) / num_images, 3),
        "driver_peak_mb": [summary["driver_peak_mb"] for summary in summaries],
    }


def add_growth(before: dict[str, Any], row: dict[str, Any]) -> None:
    num_more = row["num_images"] - before["num_images"]
    more_s = median(row["seconds"]) - median(before["seconds"])
    more_mb = median(row["driver_peak_mb"]) - median(before["driver_peak_mb"])
    row["ms_per_further_image"] = round(1000 * more_s / num_more, 3)
    row["driver_kb_per_further_image"] = round(1024 * more_mb / num_more, 3)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--sizes", default="1000,10000,100000", help="numbers of images")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sizes = sorted({int(size) for size in arguments.sizes.split(",")})
    with open_source(None, image_size=64) as source:
        print_result(measure(source, sizes, arguments.rounds))


if __name__ == "__main__":
    main()
