"""Nights: what changed is scored, what moved keeps its scores, drift is told, parts are merged."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pytest
from pictures import make_texture
from PIL import Image

import iqa_ray
from iqa_ray.cli import main
from iqa_ray.config import make_job
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.images.source import ImageSource
from iqa_ray.rescoring import jobs
from iqa_ray.rescoring.jobs import describe_rescore, run_compact, run_rescore
from iqa_ray.rescoring.settings import CompactJob, RescoreJob
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import read_scores, scores_frame
from iqa_ray.storage.lock import LOCK_FILE, hold_lock
from iqa_ray.storage.workspace import Workspace

pytestmark = pytest.mark.usefixtures("ray_session")
METRICS = ["lapm", "wavs"]


def save(path: Path, seed: int, blur: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(make_texture(seed, blur=blur)).save(path, quality=92)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Thirty images, ten of them blurred."""
    for number in range(30):
        save(tmp_path / "photos" / "ab"[number % 2] / f"{number:02}.jpg", number, number // 20 * 3)
    return tmp_path / "photos"


@pytest.fixture
def ws(tmp_path, photos) -> str:
    """A workspace after its first evening: scored, with cut-offs and votes."""
    ws = str(tmp_path / "ws")
    scores = iqa_ray.score(photos, workspace=ws, metrics=METRICS, cpus_per_actor=0.5)
    limits = [f"--cutoff={name}={scores[name].quantile(1 / 3)}" for name in METRICS]
    assert main(["cutoffs", "--workspace", ws, *limits]) == 0
    assert main(["select", "--workspace", ws, "--rule", "any"]) == 0
    return ws


def rescore(ws, photos, **settings):
    return run_rescore(make_job(RescoreJob, {"workspace": ws, "images": str(photos), **settings}))


def counts(summary):
    names = ("new", "changed", "moved", "deleted", "retouched", "unchanged", "scored")
    return {name: summary[f"num_{name}"] for name in names if summary[f"num_{name}"]}


def runs_of(ws):
    return pd.read_parquet(f"{ws}/history/runs.parquet")


def check_scores(ws, photos, tmp_path):
    """What the nights left is what one evening over the same images gives."""
    fresh = str(tmp_path / "fresh")
    expected = iqa_ray.score(photos, workspace=fresh, metrics=METRICS, cpus_per_actor=0.5)
    found = scores_frame(Workspace(ws), METRICS)
    pd.testing.assert_frame_equal(
        found.sort_values("path", ignore_index=True),
        expected.sort_values("path", ignore_index=True),
    )
    shutil.rmtree(fresh)


def test_a_night_without_change_opens_nothing(ws, photos, monkeypatch):
    monkeypatch.setattr(ImageSource, "read", lambda *_: pytest.fail("opened"))
    monkeypatch.setattr(iqa_ray.cluster.connection, "connect", lambda _: pytest.fail("connected"))
    for number in range(2):
        summary = rescore(ws, photos)
        assert counts(summary) == {"unchanged": 30}
        assert len(runs_of(ws)) == number + 1
    assert set(runs_of(ws)["status"]) == {"ok"}


def test_a_night_of_every_kind(ws, photos, tmp_path):
    rescore(ws, photos)
    kept = read_scores(Workspace(ws), "lapm").to_pandas().set_index("path")["score"]
    moved_from, moved_to = photos / "a" / "00.jpg", photos / "b" / "elsewhere.jpg"
    moved_from.rename(moved_to)
    (photos / "a" / "02.jpg").unlink()
    save(photos / "a" / "04.jpg", 99)  # another content
    os.utime(photos / "a" / "06.jpg", (1, 1))  # the same content
    save(photos / "a" / "new.jpg", 77)
    shutil.copy(photos / "a" / "08.jpg", photos / "a" / "copy.jpg")  # a copy is new
    summary = rescore(ws, photos)
    assert counts(summary) == {
        "new": 2, "changed": 1, "moved": 1, "deleted": 1, "retouched": 1, "unchanged": 26,
        "scored": 3,
    }  # fmt: skip
    after = read_scores(Workspace(ws), "lapm").to_pandas().set_index("path")["score"]
    assert after[str(moved_to)] == kept[str(moved_from)]
    check_scores(ws, photos, tmp_path)
    selection = pd.read_parquet(f"{ws}/selection.parquet")
    assert len(selection) == summary["num_images"] == 31
    deleted = pd.read_parquet(f"{ws}/history/deleted.parquet")
    assert list(deleted["path"]) == [str(photos / "a" / "02.jpg")]
    row = runs_of(ws).iloc[-1]
    assert row["num_moved"] == 1
    assert row["rejected_share"] == pytest.approx(summary["num_rejected"] / 31, abs=1e-6)
    assert set(json.loads(row["cutoffs"])) == set(METRICS)
    assert set(json.loads(row["drift"])) == set(METRICS)
    text = describe_rescore(summary)
    for word in ("31 images", "2 new", "1 moved", "3 scored", "kept", "drift"):
        assert word in text
    assert counts(rescore(ws, photos)) == {"unchanged": 31}


def test_an_image_that_could_not_be_read_is_tried_again(ws, photos, tmp_path):
    """It was mended without a trace in size or time, as a disk is that was away for a while."""
    image = photos / "a" / "broken.jpg"
    save(image, 77)
    content, mtime_ns = image.read_bytes(), image.stat().st_mtime_ns
    image.write_bytes(bytes(len(content)))
    os.utime(image, ns=(mtime_ns, mtime_ns))
    assert rescore(ws, photos)["num_failed"] == 1
    image.write_bytes(content)
    os.utime(image, ns=(mtime_ns, mtime_ns))
    summary = rescore(ws, photos)
    assert counts(summary) == {"unchanged": 31, "scored": 1}
    assert summary["num_failed"] == 0
    check_scores(ws, photos, tmp_path)


def test_a_blurred_batch_is_an_alert(ws, photos, capsys):
    command = ["rescore", str(photos), "--workspace", ws, "--json"]
    alerts = ["--alert-drift", "0.25", "--alert-rejected", "0.2", "--alert-errors", "0.1"]
    assert main([*command, *alerts]) == 0
    for number in range(25):
        save(photos / "c" / f"{number}.jpg", 100 + number, 4.0)
    assert main([*command, *alerts]) == 3
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    assert len(summary["alerts"]) == 3
    for alert in summary["alerts"]:
        assert f"iqa-ray: alert: {alert}" in said.err
    assert summary["rejected"]["share_now"] == 1
    assert summary["drift"]["lapm"]["ks"] > 0.6
    row = runs_of(ws).iloc[-1]
    assert row["status"] == "alert"
    assert list(row["alerts"]) == summary["alerts"]
    for number in range(10):
        (photos / "c" / f"bad{number}.jpg").write_bytes(b"no")
    assert main([*command, *alerts]) == 3
    assert "10 of 10 images failed" in capsys.readouterr().err
    assert main(command) == 0  # without thresholds nothing is an alert


def test_cutoffs_stay_unless_a_refit_is_asked_for(ws, photos, tmp_path):
    before = Path(f"{ws}/cutoffs.json").read_text()
    save(photos / "a" / "new.jpg", 77)
    rescore(ws, photos)
    assert Path(f"{ws}/cutoffs.json").read_text() == before
    frame = scores_frame(Workspace(ws), METRICS)
    right = frame["lapm"] > frame["lapm"].quantile(1 / 3)
    right &= frame["lapm"].rank() != len(frame)  # one sharp image is taken for another
    frame["predicted"] = frame["label"].where(right, "other")
    frame[["path", "label", "predicted"]].to_csv(tmp_path / "predictions.csv", index=False)
    predictions = str(tmp_path / "predictions.csv")
    assert main(["predict", "--workspace", ws, "--predictions", predictions]) == 0
    assert main(["cutoffs", "--workspace", ws, "--min-wrong", "3"]) == 0
    fitted = Path(f"{ws}/cutoffs.json").read_text()
    rescore(ws, photos, refit=True)
    (kept,) = Path(f"{ws}/history").glob("cutoffs-*.json")
    assert kept.read_text() == fitted
    assert json.loads(Path(f"{ws}/cutoffs.json").read_text()).keys() == set(METRICS)


def test_a_night_that_is_cut_short_is_looked_at_again(ws, photos, tmp_path, monkeypatch):
    rescore(ws, photos)
    (photos / "a" / "00.jpg").rename(photos / "a" / "moved.jpg")
    save(photos / "a" / "new.jpg", 77)

    def fail(*_, **__):
        raise IncompleteError("1 images could not be scored")

    with monkeypatch.context() as context:
        context.setattr(jobs, "run_score", fail)
        with pytest.raises(IncompleteError):
            rescore(ws, photos)
    assert runs_of(ws).iloc[-1]["status"] == "incomplete: 1 images could not be scored"
    summary = rescore(ws, photos)
    assert counts(summary) == {"new": 1, "moved": 1, "unchanged": 29, "scored": 1}
    check_scores(ws, photos, tmp_path)


def test_before_the_first_evening(tmp_path, photos):
    with pytest.raises(UsageError, match="no record of `iqa-ray score`"):
        rescore(str(tmp_path / "none"), photos)


def test_without_cutoffs_there_is_no_vote(tmp_path, photos, capsys):
    ws = str(tmp_path / "plain")
    iqa_ray.score(photos, workspace=ws, metrics=["lapm"], cpus_per_actor=0.5)
    summary = rescore(ws, photos)
    assert summary["num_kept"] is None
    assert "no cut-offs yet" in capsys.readouterr().err
    describe_rescore(summary)


# --- the lock ---------------------------------------------------------------------------------


def write_lock(ws, **changes):
    owner = {
        "token": "t", "host": socket.gethostname(), "pid": os.getpid(),
        "started": datetime.now(timezone.utc).isoformat(),
    }  # fmt: skip
    Path(ws, LOCK_FILE).write_text(json.dumps({**owner, **changes}))


def test_two_nights_never_write_at_once(ws, photos, capsys):
    with hold_lock(Workspace(ws).location):
        assert main(["rescore", str(photos), "--workspace", ws]) == 1
        assert f"is being written by process {os.getpid()} on" in capsys.readouterr().err
        assert main(["compact", ws]) == 1
    assert not Path(ws, LOCK_FILE).exists()
    rescore(ws, photos)
    assert not Path(ws, LOCK_FILE).exists()


def test_stale_locks_are_taken_over(ws, photos, capsys):
    gone = subprocess.run([sys.executable, "-c", ""], check=True)
    assert gone.returncode == 0
    write_lock(ws, pid=2**22 + 1)
    rescore(ws, photos)
    assert "took over the lock of process 4194305" in capsys.readouterr().err
    old = datetime.now(timezone.utc) - timedelta(hours=25)
    write_lock(ws, host="elsewhere", started=old.isoformat())
    rescore(ws, photos)
    write_lock(ws, host="elsewhere")
    with pytest.raises(IncompleteError, match="on elsewhere since"):
        rescore(ws, photos)


# --- compacting -------------------------------------------------------------------------------


def parts_of(ws):
    return list(Path(ws).glob("scores/**/part-*.parquet"))


def test_compacting_changes_no_row(ws, photos, tmp_path):
    for number in range(3):
        save(photos / "a" / f"night{number}.jpg", 200 + number)
        rescore(ws, photos)
    before = scores_frame(Workspace(ws), METRICS)
    assert len(parts_of(ws)) >= 2 * 4
    summary = run_compact(CompactJob(ws=ws))
    assert len(parts_of(ws)) == 2
    assert {entry["num_after"] for entry in summary["tables"].values()} == {1}
    pd.testing.assert_frame_equal(scores_frame(Workspace(ws), METRICS), before)
    assert counts(rescore(ws, photos)) == {"unchanged": 33}
    assert run_compact(CompactJob(workspace=ws))["tables"]["scores/metric=lapm/version=1"] == {
        "num_before": 1, "num_after": 1,
    }  # fmt: skip
    check_scores(ws, photos, tmp_path)


def test_arguments(capsys):
    assert main(["compact"]) == 2
    assert "name one workspace" in capsys.readouterr().err


def test_models_go_where_the_evening_s_went(tmp_path):
    workspace = Workspace(str(tmp_path))
    pairs = {"scorer": 0.5, "zone": "a"}
    evening = {"images": "x", "workspace": str(tmp_path), "metrics": ("musiq",), "weights": "w"}
    workspace.record_config("score", make_job(ScoreJob, {**evening, "resources": pairs}))
    job = make_job(RescoreJob, {"images": "x", "workspace": str(tmp_path)})
    planned = jobs._plan_scoring(job, jobs._read_scoring_settings(workspace))
    assert planned.resources == pairs
