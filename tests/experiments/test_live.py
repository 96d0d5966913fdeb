"""What the driver shows of runs, and writes of them for TensorBoard."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from iqa_ray.errors import UsageError
from iqa_ray.experiments.live import LiveRuns, check_log_dir
from iqa_ray.training.recipe import Recipe
from iqa_ray.training.runs import Run

RUN = Run("0123456789", "high", Recipe("resnet18", epochs=30), *[np.arange(2)] * 3)
NAMES = ("loss", "accuracy", "validation_loss", "validation_accuracy")


def epoch(number: int) -> dict:
    values = {name: number + place / 8 for place, name in enumerate(NAMES)}
    return {"key": RUN.key, "epoch": {"epoch": number, "seconds": 1.0, **values}}


def test_every_epoch_is_in_the_event_file_at_once(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    with LiveRuns([RUN], 0, str(tmp_path / "log")) as live:
        live({"started": RUN.key})
        live(epoch(1))
        live(epoch(2))
        (file,) = (tmp_path / "log" / "high-resnet18-seed0-01234567").iterdir()
        data, events = file.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[12 + size + 4 :]
    assert events[0].file_version == "brain.Event:2"
    found = [
        (event.step, v.tag, v.simple_value) for event in events[1:] for v in event.summary.value
    ]
    assert found == [(step, name, epoch(step)["epoch"][name]) for step in (1, 2) for name in NAMES]


def test_a_run_without_a_validation_part_is_shown_as_well(tmp_path, capsys, monkeypatch):
    event = epoch(1)
    event["epoch"] |= {"validation_loss": None, "validation_accuracy": None}
    monkeypatch.setattr("iqa_ray.experiments.live.LINE_INTERVAL_S", 0.0)
    with LiveRuns([RUN], 0, str(tmp_path)) as live:
        live({"started": RUN.key})
        live(event)
        table = live._render()
    assert "validation –;" in capsys.readouterr().err
    assert [list(column.cells) for column in table.columns][5] == ["–"]


@pytest.mark.parametrize("after_the_loss", [[], [3], [3, *range(4, 31)], range(4, 31)])
def test_what_is_left_counts_no_epoch_twice(capsys, monkeypatch, after_the_loss):
    """A worker is lost after the run's third epoch, or after its result; another takes the run.

    Half of all epochs took forty seconds, so the other half takes as long.
    """
    result = {"status": "ok", "accuracy": 0.5, "best_epoch": 3, "seconds": 30.0}
    other = replace(RUN, key="other")
    with LiveRuns([RUN, other], 0, None) as live:
        now_s = time.monotonic() + 40
        monkeypatch.setattr(time, "monotonic", lambda: now_s)
        live({"started": RUN.key})
        for number in (1, 2, 3):
            live(epoch(number))
        live({"started": RUN.key})
        for number in after_the_loss:
            live(epoch(number))
        live({"finished": RUN.key, "result": result})
    assert capsys.readouterr().err.splitlines()[-1].endswith("; 40 s left")


def test_a_full_disk_is_an_error_and_no_endless_wait(tmp_path, monkeypatch):
    def train():
        with LiveRuns([RUN], 0, str(tmp_path)) as live:
            for number in range(1, 31):
                live(epoch(number))

    full = partial(Path("/dev/full").open, "wb")
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda _: full())
    with pytest.raises(OSError, match="No space left"):
        train()


def test_a_log_dir_that_cannot_be_written_is_found_early(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in ("file", "file/below"):
        with pytest.raises(UsageError, match="--log-dir .*file.*: cannot write there: "):
            check_log_dir(str(tmp_path / folder))
    with pytest.raises(
        UsageError, match="--log-dir s3://bucket/log: give a folder on this machine"
    ):
        check_log_dir("s3://bucket/log")
    check_log_dir(str(tmp_path / "new" / "log"))
    assert not list((tmp_path / "new" / "log").iterdir())
