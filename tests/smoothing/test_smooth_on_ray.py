"""Nine strategies on Ray itself, and a driver that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from shapes import make_folder, smooth

from iqa_ray.smoothing.settings import TABLE_STRATEGIES

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]


def test_nine_strategies_on_five_hundred_images_in_under_two_minutes(tmp_path):
    folder = make_folder(tmp_path / "x", 400, 100)
    start_s = time.monotonic()
    given = {"strategies": TABLE_STRATEGIES, "epochs": 1, "batch_size": 50}
    summary = smooth(folder, tmp_path / "ws", **given)
    assert time.monotonic() - start_s < 120
    assert (summary["num_runs"], summary["num_train"], summary["num_test"]) == (9, 400, 100)
    assert len(pd.read_parquet(tmp_path / "ws/smoothing/table.parquet")) == 90


def test_a_killed_driver_s_strategies_go_on_to_the_same_table(tmp_path):
    folder = make_folder(tmp_path / "x", 120, 15)
    given = {"strategies": ("2", "3"), "epochs": 4, "batch_size": 20, "cpus_per_run": 0.5}
    smooth(folder, tmp_path / "whole", **given)
    command = [
        sys.executable, "-m", "iqa_ray.cli", "smooth", str(folder),
        "--workspace", str(tmp_path / "killed"), "--strategies", "2,3", "--epochs", "4",
        "--batch-size", "20", "--cpus-per-run", "0.5", "--seeds", "0", "--lr", "0.05",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, start_new_session=True, env={**os.environ}
    )
    checkpoints = tmp_path / "killed/smoothing/checkpoints"
    deadline_s = time.monotonic() + 120
    while not list(checkpoints.glob("*.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    smooth(folder, tmp_path / "killed", **given)
    tables = [
        pd.read_parquet(Path(tmp_path, name, "smoothing/table.parquet"))
        for name in ("whole", "killed")
    ]
    pd.testing.assert_frame_equal(*tables)
