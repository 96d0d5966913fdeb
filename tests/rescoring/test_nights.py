"""Nights without Ray: what is scored, what is kept, what is learnt again, and what is told.

An image has the scores that `desk.put` names, so that every figure is counted by hand.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from desk import Desk
from inline import WriterKilled, run_inline, score_deeply

from iqa_ray.cli import main
from iqa_ray.config import make_job
from iqa_ray.errors import UsageError
from iqa_ray.images.decoding import hash_content
from iqa_ray.images.source import ImageSource
from iqa_ray.metrics.spec import SPECS
from iqa_ray.rescoring import jobs
from iqa_ray.rescoring.jobs import describe_compact, describe_rescore, run_compact
from iqa_ray.rescoring.settings import CompactJob, RescoreJob
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.storage.workspace import Workspace


def touch(file: Path) -> None:
    time_ns = file.stat().st_mtime_ns + 10**9
    os.utime(file, ns=(time_ns, time_ns))


def put_group(desk: Desk, name: str, right: range, middle: float) -> dict[str, bool]:
    """Images that lie in mirror image about `middle`, where the two densities therefore cross."""
    judged = {}
    for level in right:
        desk.put(f"a/{name}{level}.bmp", level)
        desk.put(f"a/{name}{2 * middle - level:.0f}.bmp", round(2 * middle - level))
        judged |= {f"a/{name}{level}.bmp": True, f"a/{name}{2 * middle - level:.0f}.bmp": False}
    return judged


# --- cut-offs ---------------------------------------------------------------------------------


def test_a_refit_learns_other_cutoffs_and_keeps_the_old_ones_dated(desk):
    first = put_group(desk, "x", range(104, 152, 4), 100.5)  # wrong: 97, 93 … 53
    second = put_group(desk, "y", range(144, 192, 4), 140.5)  # wrong: 137, 133 … 93
    desk.score("lapm")
    desk.predict(first)
    desk.cutoffs(scale="raw")
    assert desk.values() == {"lapm": pytest.approx(100.5, abs=0.01)}
    desk.predict(second)
    learnt = Path(desk.ws, "cutoffs.json").read_bytes()
    summary = desk.rescore()
    assert (summary["num_kept"], summary["num_rejected"]) == (12 + 12 + 10, 12 + 2)
    assert Path(desk.ws, "cutoffs.json").read_bytes() == learnt
    assert desk.dated() == []
    summary = desk.rescore(refit=True)
    assert desk.values() == {"lapm": pytest.approx(140.5, abs=0.01)}
    assert summary["cutoffs"] == desk.values()
    assert (summary["num_kept"], summary["num_rejected"]) == (2 + 12, 12 + 10 + 12)
    assert summary["rejected_share"] == 0.708333  # 34 of 48
    assert summary["alerts"] == []
    started = pd.Timestamp(summary["started"])
    assert [file.name for file in desk.dated()] == [f"cutoffs-{started:%Y%m%dT%H%M%SZ}.json"]
    assert desk.dated()[0].read_bytes() == learnt
    assert [json.loads(c) for c in desk.runs()["cutoffs"]][1] == summary["cutoffs"]
    assert list(desk.runs()["num_kept"]) == [34, 14]
    assert list(desk.runs()["status"]) == ["ok", "ok"]


def test_a_night_votes_with_the_cutoffs_that_were_copied_from_another_workspace(desk, tmp_path):
    other = Desk(tmp_path / "other")
    judged = put_group(other, "x", range(104, 152, 8), 100.5)
    other.score("lapm")
    other.predict(judged)
    other.cutoffs(min_wrong=5, scale="raw")
    mine = put_group(desk, "y", range(64, 112, 4), 60)
    desk.score("lapm")
    desk.select(cutoffs_from=other.ws)
    shutil.rmtree(other.ws)  # it need not be there any more
    assert desk.rescore()["num_rejected"] == desk.select()["num_rejected"] > 0
    desk.predict(mine)
    desk.cutoffs(scale="raw")
    assert desk.rescore(refit=True)["alerts"] == []
    assert desk.values()["lapm"] == pytest.approx(60, abs=8)


def test_a_refit_that_cannot_certify_keeps_the_certified_cutoffs_and_the_night_goes_on(desk):
    judged = put_group(desk, "x", range(102, 182), 100.5)
    desk.score("lapm")
    desk.predict(judged)
    desk.cutoffs(target_accuracy=0.4, confidence=0.6)
    before = Path(desk.ws, "cutoffs.json").read_bytes()
    desk.predict(dict.fromkeys(judged, False))
    row = desk.rescore(refit=True)
    (alert,) = row["alerts"]
    assert alert.startswith("--refit keeps the old cut-offs: nothing could be certified: ")
    assert Path(desk.ws, "cutoffs.json").read_bytes() == before
    assert row["num_kept"] is not None


def test_a_refit_fits_as_the_last_cutoffs_did(desk):
    judged = put_group(desk, "x", range(104, 152, 8), 100.5)
    desk.score("lapm")
    desk.predict(judged)
    desk.cutoffs(min_wrong=5, scale="raw")  # there are six; by default it takes ten
    Path(desk.ws, "cutoffs.json").unlink()
    assert desk.rescore(refit=True)["alerts"] == []
    assert desk.values() == {"lapm": pytest.approx(100.5, abs=0.01)}
    assert desk.dated() == []  # there were none


def test_a_refit_that_finds_nothing_keeps_the_old_cutoffs_and_the_night_goes_on(desk, capsys):
    judged = put_group(desk, "x", range(104, 152, 4), 100.5)
    desk.score("lapm")
    desk.predict(judged)
    desk.cutoffs(scale="raw")
    before = Path(desk.ws, "cutoffs.json").read_bytes()
    desk.predict(dict.fromkeys(judged, True))
    desk.put("a/new.bmp", 200)
    command = ["rescore", str(desk.photos), "--workspace", desk.ws, "--refit", "--json"]
    assert main(command) == 3
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    (alert,) = summary["alerts"]
    assert alert == (
        "--refit found no cut-off of lapm, which keeps its old one: only 0 incorrectly classified "
        "images, 10 are needed"
    )
    assert f"alert: {alert}" in said.err
    assert Path(desk.ws, "cutoffs.json").read_bytes() == before
    assert desk.dated() == []
    assert (summary["num_kept"], summary["num_rejected"]) == (13, 12)
    row = desk.runs().iloc[-1]
    assert (row["status"], list(row["alerts"])) == ("alert", [alert])
    assert len(desk.runs()) == 1


def test_a_refit_replaces_only_the_cutoffs_that_it_finds(desk):
    judged = put_group(desk, "x", range(104, 152, 4), 100.5)  # WAVS is 0 in all
    desk.score("lapm", "wavs")
    desk.predict(judged)
    desk.cutoffs(metrics=("wavs", "lapm"), cutoff={"wavs": 7, "lapm": 60})
    old = Path(desk.ws, "cutoffs.json").read_bytes()
    desk.cutoffs(metrics=("wavs", "lapm"), scale="raw")  # the settings that a refit repeats
    Path(desk.ws, "cutoffs.json").write_bytes(old)
    (alert,) = desk.rescore(refit=True)["alerts"]
    assert alert.startswith("--refit found no cut-off of wavs, which keeps its old one: all ")
    assert desk.values() == {"wavs": 7, "lapm": pytest.approx(100.5, abs=0.01)}
    assert [file.read_bytes() for file in desk.dated()] == [old]


def test_a_refit_that_finds_nothing_where_nothing_was_says_why(desk, capsys):
    judged = put_group(desk, "x", range(104, 152, 4), 100.5)
    desk.score("lapm")
    desk.predict(dict.fromkeys(judged, True))
    summary = desk.rescore(refit=True)
    assert summary["alerts"] == [
        "--refit found no cut-off: lapm: only 0 incorrectly classified images, 10 are needed"
    ]
    assert not Path(desk.ws, "cutoffs.json").exists()
    assert desk.dated() == []
    assert "no cut-offs yet, so no vote: `iqa-ray cutoffs` learns them" in capsys.readouterr().err
    assert [summary[f"num_{n}"] for n in ("kept", "rejected")] == [None, None]
    assert (summary["rejected_share"], summary["cutoffs"]) == (None, {})
    assert summary["rejected"]["difference"] is None
    assert desk.runs().iloc[-1]["status"] == "alert"


def test_a_refit_needs_predictions(desk):
    desk.put("a/0.bmp", 10)
    desk.score("lapm")
    problem = f"^--refit: {desk.ws} has no predictions.parquet: run `iqa-ray predict --workspace"
    with pytest.raises(UsageError, match=problem):
        desk.rescore(refit=True)
    assert not Path(desk.ws, "history").exists()


def test_at_night_metrics_vote_as_in_the_last_select(desk, tmp_path, capfd):
    desk.put("a/0.bmp", 10, 90)
    desk.put("a/1.bmp", 90, 90)
    desk.score("lapm", "wavs")
    desk.cutoffs(cutoff={"lapm": 50, "wavs": 50})
    desk.select(rule="any", link=str(tmp_path / "kept"), copy_files=True, figures=True)
    assert "explanations.png" in capfd.readouterr().err  # which cannot be drawn
    desk.put("b/2.bmp", 90, 90)
    summary = desk.rescore()
    assert (summary["num_kept"], summary["num_rejected"]) == (2, 1)  # by majority three are kept
    assert not (tmp_path / "kept" / "b").exists()  # a night makes no links
    assert "explanations.png" not in capfd.readouterr().err  # nor figures


def test_a_cutoff_of_another_version_is_refused_and_at_night_an_alert_without_a_vote(
    desk, monkeypatch, capsys
):
    desk.put("a/0.bmp", 10)
    desk.put("a/1.bmp", 90)
    desk.score("lapm")
    desk.cutoffs(cutoff={"lapm": 50})
    desk.select()
    before = Path(desk.ws, "selection.parquet").read_bytes()
    monkeypatch.setitem(SPECS, "lapm", replace(SPECS["lapm"], version="2"))
    problem = (
        "the cut-off of lapm was learnt on version 1 of its scores, and they are of version 2 now: "
        f"run `iqa-ray cutoffs --workspace {desk.ws}` again"
    )
    assert main(["select", "--workspace", desk.ws]) == 2
    assert problem in capsys.readouterr().err
    summary = desk.rescore()
    assert summary["alerts"] == [f"no vote: {problem}"]
    assert (summary["num_kept"], summary["rejected"]["share_before"]) == (None, None)
    assert Path(desk.ws, "selection.parquet").read_bytes() == before
    assert main(["rescore", str(desk.photos), "--workspace", desk.ws]) == 3
    assert list(desk.runs()["status"]) == ["alert", "alert"]
    desk.cutoffs(cutoff={"lapm": 50})
    assert desk.rescore()["num_kept"] == 1


# --- what is scored ---------------------------------------------------------------------------


def test_all_images_are_scored_with_a_metric_whose_version_changed(desk, monkeypatch):
    for number in range(3):
        desk.put(f"a/{number}.bmp", 10 * number, number)
    desk.score("lapm", "wavs")
    desk.rescore()
    assert desk.scored == []
    monkeypatch.setitem(SPECS, "wavs", replace(SPECS["wavs"], version="2"))
    summary = desk.rescore()
    assert sorted(desk.scored) == [("wavs", f"{number}.bmp") for number in range(3)]
    assert (summary["num_scored"], summary["num_unchanged"]) == (3, 3)
    assert list(desk.frame("wavs")["wavs"]) == [0, 1, 2]


def test_metrics_of_earlier_runs_are_scored_as_well(desk):
    desk.put("a/0.bmp", 10, 1)
    desk.score("wavs")
    desk.score("lapm")
    desk.put("a/1.bmp", 20, 2)
    assert desk.rescore()["metrics"] == ["lapm", "wavs"]
    assert sorted(desk.scored) == [("lapm", "1.bmp"), ("wavs", "1.bmp")]


def test_an_image_that_could_not_be_read_is_tried_again(desk):
    """It was mended without a trace in size or time, as where a disk was away for a while."""
    desk.put("a/0.bmp", 10)
    file = desk.put("a/1.bmp", 20)
    content, time_ns = file.read_bytes(), file.stat().st_mtime_ns
    file.write_bytes(bytes(len(content)))
    os.utime(file, ns=(time_ns, time_ns))
    desk.score("lapm")
    assert list(desk.frame("lapm")["status"]) == ["ok", "unreadable"]
    file.write_bytes(content)
    os.utime(file, ns=(time_ns, time_ns))
    summary = desk.rescore()
    assert desk.scored == [("lapm", "1.bmp")]
    assert (summary["num_unchanged"], summary["num_failed"]) == (2, 0)
    assert list(desk.frame("lapm")["lapm"]) == [10, 20]


@pytest.mark.parametrize("change", ["touched", "moved"])
def test_only_the_stale_score_of_an_image_is_made_anew(desk, change):
    file = desk.put("a/0.bmp", 10, 1)
    desk.put("a/1.bmp", 11, 3)
    desk.score("lapm", "wavs")
    desk.put("a/0.bmp", 20, 2)
    desk.score("lapm")
    if change == "moved":
        file = file.rename(desk.photos / "a" / "elsewhere.bmp")
    else:
        touch(file)
    summary = desk.rescore()
    assert desk.scored == [("wavs", file.name)]
    row = desk.frame("lapm", "wavs").loc[file.name]
    assert (row["lapm"], row["wavs"], row["status"]) == (20, 2, "ok")
    assert summary["num_moved"] == (change == "moved")
    assert summary["num_retouched"] == (change == "touched")
    assert row["content_hash"] == hash_content(file.read_bytes())


def test_deep_metrics_keep_the_settings_of_their_own_version(desk):
    for number in range(2):
        desk.put(f"a/{number}.bmp", 10 * number)
    desk.score("lapm", "musiq", precision="bf16", max_side=384)
    desk.score("wavs")  # in fp32 and of any size, were it a deep metric
    file = desk.put("a/1.bmp", 77)
    desk.rescore()
    assert sorted(desk.scored) == [(name, "1.bmp") for name in ("lapm", "musiq", "wavs")]
    row = desk.frame("musiq").loc["1.bmp"]
    assert row["musiq"] == score_deeply(hash_content(file.read_bytes()), "bf16", 384)


def test_a_stale_score_is_unscored_and_says_which_command_mends_it(desk, capsys):
    judged = put_group(desk, "x", range(104, 152, 4), 100.5)
    desk.score("lapm", "wavs")
    desk.predict(judged)
    desk.put("a/x140.bmp", 160)
    desk.score("wavs")
    remedy = f"run `iqa-ray rescore {desk.photos} --workspace {desk.ws}`"
    row = desk.frame("lapm").loc["x140.bmp"]
    assert (row["status"], pd.isna(row["lapm"])) == ("unscored", True)
    assert row["error"] == f"lapm: the image changed since it was scored: {remedy}"
    counts = desk.cutoffs(metrics=("lapm",))["lapm"]["counts"]
    assert counts == {"correct": 11, "incorrect": 12}
    summary = desk.select()
    assert (summary["num_kept"], summary["num_unscored"]) == (11, 1)
    selection = pd.read_parquet(f"{desk.ws}/selection.parquet")
    (reason,) = selection.loc[selection["path"].str.endswith("x140.bmp"), "reason"]
    assert reason.startswith("unscored (lapm: ")
    assert remedy in reason
    desk.rescore()
    assert desk.frame("lapm").loc["x140.bmp", "lapm"] == 160
    capsys.readouterr()
    # the prediction is of the former content still
    assert desk.cutoffs(metrics=("lapm",))["lapm"]["counts"] == counts
    assert "lapm: 1 predictions are of other contents than the scores" in capsys.readouterr().err


# --- drift, alerts and history ----------------------------------------------------------------


def test_drift_compares_tonight_s_new_and_changed_images_with_all_others(desk):
    for number in range(26):
        desk.put(f"a/{number:02}.bmp", 100 + number, number)
    desk.put("a/gone.bmp", 255)
    desk.put("a/from.bmp", 99)
    desk.score("lapm", "wavs")
    desk.cutoffs(metrics=("lapm",), cutoff={"lapm": 104.5})
    desk.rescore()
    desk.put("a/00.bmp", 200)  # changed
    desk.put("a/01.bmp", 201)
    touch(desk.photos / "a" / "02.bmp")
    (desk.photos / "a" / "gone.bmp").unlink()
    (desk.photos / "a" / "from.bmp").rename(desk.photos / "a" / "to.bmp")
    for number in range(20):
        desk.put(f"b/{number:02}.bmp", 210 + number, 50)
    desk.put("b/low.bmp", 3)
    (desk.photos / "b" / "bad.bmp").write_bytes(b"no")
    summary = desk.rescore(alert_drift=0.25, alert_errors=0.04, alert_rejected=0.5)
    classes = ("new", "changed", "moved", "deleted", "retouched", "unchanged")
    assert [summary[f"num_{name}"] for name in classes] == [22, 2, 1, 1, 1, 23]
    assert summary["num_scored"] == 24
    drift = summary["drift"]["lapm"]
    assert (drift["num_reference"], drift["num_current"]) == (25, 23)
    assert (drift["num_dropped_reference"], drift["num_dropped_current"]) == (0, 1)
    assert drift["ks"] == pytest.approx(22 / 23)  # all but one are above all others
    assert list(summary["drift"]) == ["lapm", "wavs"]
    # 102, 103, 104 and the moved 99 are low; tonight 3, and the one without a score
    rejected = summary["rejected"]
    assert [rejected[n] for n in ("num_before", "total_before")] == [4, 25]
    assert [rejected[n] for n in ("num_now", "total_now")] == [2, 24]
    lapm, wavs, errors = summary["alerts"]
    assert lapm.startswith("lapm scores drifted: population stability index ")
    assert "23 scores against 25 of the reference" in lapm
    assert wavs.startswith("wavs scores drifted")
    assert errors == "1 of 24 images failed (4.2%), more than 4.0%"
    assert summary["failures"]["lapm"]["unreadable"]["num_images"] == 1
    row = desk.runs().iloc[-1]
    assert json.loads(row["drift"]) == summary["drift"]
    assert json.loads(row["failures"]) == summary["failures"]
    assert (row["num_new"], row["status"]) == (22, "alert")
    deleted = pd.read_parquet(f"{desk.ws}/history/deleted.parquet")
    assert [Path(path).name for path in deleted["path"]] == ["gone.bmp"]
    assert deleted["deleted"][0] == pd.Timestamp(summary["started"])
    # the next night has nothing new, so nothing drifts
    after = desk.rescore(alert_drift=0.25, alert_errors=0.0)
    assert (after["drift"], after["alerts"], after["num_unchanged"]) == ({}, [], 49)


def test_a_rise_of_the_rejected_share_is_an_alert(desk):
    for number in range(30):
        desk.put(f"a/{number:02}.bmp", 100)
    desk.score("lapm")
    desk.cutoffs(cutoff={"lapm": 50})
    for number in range(30):
        desk.put(f"b/{number:02}.bmp", 10)
    assert desk.rescore()["alerts"] == []
    for number in range(30):
        desk.put(f"b/{number:02}.bmp", 20)
    (alert,) = desk.rescore(alert_rejected=0.9)["alerts"]
    assert alert.startswith("rejected share rose from 0.0% to 100.0%")


def test_a_night_that_was_cut_short_has_a_row_and_is_looked_at_again(desk, monkeypatch):
    desk.put("a/0.bmp", 10)
    desk.score("lapm")
    desk.rescore()
    desk.put("a/1.bmp", 20)

    def refuse(*_: Any, **__: Any) -> None:
        raise UsageError("no room")

    with monkeypatch.context() as context:
        context.setattr(jobs, "run_score", refuse)
        with pytest.raises(UsageError, match="no room"):
            desk.rescore()
    row = desk.runs().iloc[-1]
    assert (row["status"], row["num_new"], pd.isna(row["num_kept"])) == (
        "incomplete: no room", 1, True,
    )  # fmt: skip
    assert row["seconds"] >= 0
    summary = desk.rescore()
    assert (summary["num_new"], summary["num_scored"]) == (1, 1)
    started = [pd.Timestamp(when) for when in desk.runs()["started"]]
    assert started == sorted(started)
    assert started[-1] == pd.Timestamp(summary["started"])


def test_a_killed_night_is_done_again(desk):
    desk.put("a/0.bmp", 10)
    desk.score("lapm")
    desk.rescore()
    desk.put("a/1.bmp", 20)

    def kill(_: Any) -> None:
        raise WriterKilled

    with run_inline(kill), pytest.raises(WriterKilled):
        desk.rescore()
    assert desk.rescore()["num_new"] == 1
    assert list(desk.frame("lapm")["lapm"]) == [10, 20]


def test_a_night_without_change_opens_no_image(desk, monkeypatch):
    desk.put("a/0.bmp", 10)
    desk.put("a/1.bmp", 20)
    desk.score("lapm")
    touch(desk.photos / "a" / "1.bmp")
    assert desk.rescore()["num_retouched"] == 1
    monkeypatch.setattr(ImageSource, "read", lambda *_: pytest.fail("opened"))
    summary = desk.rescore()
    assert (summary["num_unchanged"], summary["num_scored"], summary["num_reused"]) == (2, 0, 2)
    assert desk.scored == []


def test_only_images_whose_content_decides_are_opened(desk, monkeypatch):
    for number in range(4):
        desk.put(f"a/{number}.bmp", 10 * number)
    desk.score("lapm")
    desk.put("a/0.bmp", 77)
    touch(desk.photos / "a" / "1.bmp")
    (desk.photos / "a" / "2.bmp").rename(desk.photos / "a" / "new.bmp")
    opened = []

    def note(source: ImageSource, path: str) -> Any:
        opened.append(Path(path).name)
        return hash_image(source, path)

    hash_image = ImageSource.hash
    monkeypatch.setattr(ImageSource, "hash", note)
    summary = desk.rescore()
    assert sorted(opened) == ["0.bmp", "1.bmp", "new.bmp"]
    assert desk.scored == [("lapm", "0.bmp")]
    counts = [summary[f"num_{n}"] for n in ("new", "changed", "moved", "deleted", "retouched")]
    assert counts == [0, 1, 1, 0, 1]


def test_nights_label_images_as_the_last_score_did(desk):
    desk.put("a/deeper/0.bmp", 10)
    desk.score("lapm", labels="top")
    desk.rescore()
    listing = pd.read_parquet(f"{desk.ws}/history/listing.parquet")
    assert list(listing["label"]) == ["a"]
    assert listing["content_hash"].notna().all()


def test_an_image_that_cannot_be_opened_is_scored_like_a_changed_one(desk, monkeypatch):
    desk.put("a/0.bmp", 10)
    file = desk.put("a/1.bmp", 20)
    desk.score("lapm")
    touch(file)
    monkeypatch.setattr(ImageSource, "hash", lambda *_: None)
    assert desk.rescore()["num_changed"] == 1
    assert desk.scored == [("lapm", "1.bmp")]


# --- settings ---------------------------------------------------------------------------------


def plan(desk: Desk, **given: Any) -> ScoreJob:
    workspace = Workspace(desk.ws)
    job = make_job(RescoreJob, {"images": "x", "workspace": desk.ws, **given})
    return jobs._plan_scoring(job, jobs._read_scoring_settings(workspace))


def test_deep_metrics_are_placed_as_in_the_last_score_that_had_one(desk):
    desk.put("a/0.bmp", 10)
    desk.score("musiq", weights="older", resources={"a": 1})
    desk.score(
        "musiq", weights="w", resources={"zone": 0.5}, gpus_per_actor=0.25, num_actors=7,
        precision="bf16", max_side=384,
    )  # fmt: skip
    last = plan(desk)
    assert (last.weights, last.resources, last.num_actors) == ("w", {"zone": 0.5}, 7)
    desk.score("lapm", num_actors=3)
    planned = plan(desk)
    assert (planned.weights, planned.resources) == ("w", {"zone": 0.5})
    assert (planned.gpus_per_actor, planned.num_actors) == (0.25, 3)
    assert (planned.precision, planned.max_side) == ("fp32", None)  # each metric's version says
    assert planned.metrics == ("lapm", "musiq")
    assert (planned.images, planned.workspace) == ("x", desk.ws)
    planned = plan(desk, weights="mine", num_actors=1, address="auto")
    assert (planned.weights, planned.num_actors, planned.address) == ("mine", 1, "auto")


def test_a_score_that_left_no_deep_scores_places_none(desk):
    desk.put("a/0.bmp", 10)

    def kill(_: Any) -> None:
        raise WriterKilled

    with run_inline(kill), pytest.raises(WriterKilled):
        desk.score("musiq", resources={"zone": 0.5})
    desk.score("lapm")
    assert desk.rescore()["metrics"] == ["lapm"]


def test_before_the_first_score_there_is_no_night(desk):
    desk.put("a/0.bmp", 10)
    with pytest.raises(UsageError, match="no record of `iqa-ray score`: run it once first"):
        desk.rescore()


def test_nights_leave_their_settings(desk):
    desk.put("a/0.bmp", 10)
    desk.score("lapm")
    desk.rescore(alert_drift=0.5)
    settings = next(Workspace(desk.ws).read_configs("rescore"))
    assert settings["alert_drift"] == 0.5


# --- texts and compacting -----------------------------------------------------------------------


def test_the_night_is_told_to_people(desk):
    for number in range(20):
        desk.put(f"a/{number:02}.bmp", 100 + number)
    desk.score("lapm")
    desk.cutoffs(cutoff={"lapm": 104.5})
    for number in range(19):
        desk.put(f"b/{number:02}.bmp", 200 + number)
    (desk.photos / "b" / "bad.bmp").write_bytes(b"no")
    summary = {**desk.rescore(), "seconds": 1.25}
    lines = describe_rescore(summary).splitlines()
    assert lines == [
        "40 images: 20 new, 0 changed, 0 moved, 0 deleted, 0 retouched, 20 unchanged",
        "20 scored, 1 without a score for some metric; 1.2 s",
        "  lapm: 1 unreadable",
        "kept 34, rejected 6 (15.0%)",
        "rejected of tonight's images 5.0%, of the others 25.0% (difference -20.0%, 95% interval "
        "-42.3% to +3.2%)",
        "drift          KS     PSI   tonight's scores beside all others",
        "lapm       19 current scores, at least 20 are needed",
        f"written: {desk.ws}/history/runs.parquet",
    ]
    summary["drift"]["lapm"] |= {"psi": 1.5, "ks": 0.25}
    assert "lapm        0.250   1.500" in describe_rescore(summary)


def test_compacting_merges_the_parts_of_every_table(desk):
    for number in range(3):
        desk.put(f"a/{number}.bmp", 10 * number, number)
        desk.score("lapm", "wavs")
    before = desk.frame("lapm", "wavs")
    summary = run_compact(CompactJob(ws=desk.ws))
    merged = {"num_before": 3, "num_after": 1}
    assert summary["tables"] == {
        f"scores/metric={name}/version=1": merged for name in ("lapm", "wavs")
    }
    assert summary["seconds"] >= 0
    pd.testing.assert_frame_equal(desk.frame("lapm", "wavs"), before)
    assert describe_compact(summary).splitlines() == [
        "scores/metric=lapm/version=1: 3 parts, now 1",
        "scores/metric=wavs/version=1: 3 parts, now 1",
    ]
    again = run_compact(CompactJob(workspace=desk.ws))
    assert again["workspace"] == desk.ws
    assert again["tables"]["scores/metric=lapm/version=1"]["num_before"] == 1
    assert describe_compact({"tables": {}, "workspace": "ws"}) == "ws has no parts"


def test_no_folder_is_made_a_workspace_by_compacting(tmp_path):
    with pytest.raises(UsageError, match="is not a workspace"):
        run_compact(CompactJob(ws=str(tmp_path / "typo")))
    with pytest.raises(ValueError, match="name one workspace"):
        CompactJob()
    with pytest.raises(ValueError, match="name one workspace"):
        CompactJob(ws="a", workspace="b")
