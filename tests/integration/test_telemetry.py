"""What a run tells Ray's metrics, read where Prometheus would read it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial

from clusters import find_free_port, read_samples

from iqa_ray.scoring.cpu_scorer import ShardReport

# Ray sends its counts every ten seconds, and an actor's last ones when it ends
PATIENCE_S = 60.0


def make_model():
    """Does with a shard what a deep metric's scorer would say of it."""

    def work(shard: int) -> ShardReport:
        statuses = {"musiq": {"ok": 1, "too_large": shard}}
        return ShardReport(1, 0, statuses, image_s=[0.03], wait_s=0.25, compute_s=1.5)

    return work


def score_and_read(photos: str, workspace: str, port: int) -> None:
    """In a process and a Ray of its own: score, and print the samples once all have come."""
    import ray

    from iqa_ray.cluster.capacity import Resources
    from iqa_ray.cluster.pools import Pool, run_shards
    from iqa_ray.config import make_job
    from iqa_ray.scoring.jobs import run_score
    from iqa_ray.scoring.settings import ScoreJob
    from iqa_ray.scoring.telemetry import MeasuredScorer

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, _metrics_export_port=port,
        logging_level="warning", object_store_memory=200_000_000,
    )  # fmt: skip
    job = {"images": photos, "workspace": workspace, "metrics": ("lapm", "niqe"), "shard_size": 2}
    run_score(make_job(ScoreJob, job))
    make = partial(MeasuredScorer, make_model, "musiq")
    assert run_shards([Pool(make, [2, 3], 1, Resources())], lambda *_: None) == []
    deadline = time.monotonic() + PATIENCE_S
    expected = {"image_seconds_count{cpu}": 7, "image_seconds_count{musiq}": 2}
    while not expected.items() <= read_samples(port).items() and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(1.0)  # what comes with one message is not taken in at one instant
    print(json.dumps(read_samples(port)))
    ray.shutdown()


def test_counters_and_histograms_are_read_from_ray_s_endpoint(image_folder, tmp_path):
    photos = image_folder(6)
    (photos / "a" / "broken.jpg").write_bytes(b"no image")
    arguments = [str(photos), str(tmp_path / "ws"), str(find_free_port())]
    result = subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    samples = json.loads(result.stdout.splitlines()[-1])
    counted = {name: value for name, value in samples.items() if not name.startswith("image_s")}
    assert counted == {
        "images_scored_total{lapm}": 6,
        "image_errors_total{lapm}{unreadable}": 1,
        "image_errors_total{niqe}{too_small}": 6,
        "image_errors_total{niqe}{unreadable}": 1,
        "images_scored_total{musiq}": 2,
        "image_errors_total{musiq}{too_large}": 5,
        "model_wait_seconds_total{musiq}": 0.5,
        "model_compute_seconds_total{musiq}": 3.0,
    }
    assert samples["image_seconds_count{cpu}"] == samples["image_seconds_bucket{cpu}{+Inf}"] == 7
    assert samples["image_seconds_bucket{musiq}{0.02}"] == 0
    assert samples["image_seconds_bucket{musiq}{0.05}"] == 2
    assert 0 < samples["image_seconds_sum{cpu}"] < 60


if __name__ == "__main__":
    score_and_read(sys.argv[1], sys.argv[2], int(sys.argv[3]))
