"""The jobs `cutoffs` and `select` without Ray: which rows count, and who votes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from desk import Desk
from inline import put
from pyarrow import parquet as pq

from iqa_ray.config import make_job
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.predictions.table import Origins, read_predictions, write_predictions
from iqa_ray.selection import jobs as selection_jobs
from iqa_ray.selection.cutoffs import Cutoff, fit_cutoff
from iqa_ray.selection.fitting import FittedCutoffs, fit_cutoffs, read_cutoffs, write_cutoffs
from iqa_ray.selection.jobs import describe_cutoffs, describe_selection
from iqa_ray.selection.settings import CutoffsJob, SelectJob
from iqa_ray.storage.workspace import Workspace


@pytest.fixture
def judged(desk):
    """Twelve images that are classified rightly, and ten wrongly; LAPM crosses near 100."""
    right = {f"a/r{level}.bmp": True for level in range(104, 152, 4)}
    wrong = {f"a/w{level}.bmp": False for level in range(60, 100, 4)}
    for name in right | wrong:
        level = int(name[3:-4])
        desk.put(name, level, level // 2)
    desk.score("lapm", "wavs")
    desk.predict(right | wrong)
    return desk


def fit(desk, **given):
    job = make_job(CutoffsJob, {"workspace": desk.ws, **given})
    return fit_cutoffs(Workspace(desk.ws), job).cutoffs


# --- cut-offs ---------------------------------------------------------------------------------


def test_each_metric_is_fitted_to_its_scores_of_right_and_wrong_predictions(judged):
    scores = pd.Series([*range(104, 152, 4), *range(60, 100, 4)], dtype=float)
    correct = (scores >= 104).to_numpy()
    given = {"bandwidth": 0.5, "weighting": "prior", "min_wrong": 9, "seed": 3}
    found = fit(judged, **given)
    assert list(found) == ["lapm", "wavs"]
    expected = fit_cutoff(scores.to_numpy(), correct, True, value_range=(0.0, math.inf), **given)
    assert expected.scale == "log"
    for name, entry in found.items():
        assert entry.version == "1"
        assert entry.counts == {"correct": 12, "incorrect": 10}
        assert entry.direction == "higher_is_better"
        half = 1 if name == "lapm" else 2
        assert entry.value == pytest.approx(expected.value / half, rel=1e-6)
        # resamples are drawn from the rows in their order, which is that of the listing
        assert entry.ci[0] < entry.value < entry.ci[1]
    assert 97 < expected.value < 103
    other = fit(judged, **{**given, "seed": 4})["lapm"]
    assert other.ci != found["lapm"].ci
    assert fit(judged, min_wrong=11)["lapm"].reason == (
        "only 10 incorrectly classified images, 11 are needed"
    )


def test_a_metric_is_named_once_and_those_by_hand_are_not_fitted(judged):
    assert list(fit(judged, metrics=("wavs", "lapm", "wavs"))) == ["wavs", "lapm"]
    found = fit(judged, metrics=("lapm",), cutoff={"lapm": 5, "brisque": 30})
    assert found == {
        "lapm": Cutoff(5.0, "higher_is_better", source="manual", version="1"),
        "brisque": Cutoff(30.0, "lower_is_better", source="manual", version="1"),
    }
    assert list(fit(judged, cutoff={"lapm": 5})) == ["wavs", "lapm"]


def test_cutoffs_by_hand_need_neither_scores_nor_predictions(desk):
    assert desk.cutoffs(cutoff={"lapm": 5})["lapm"]["value"] == 5
    assert json.loads(Path(desk.ws, "cutoffs.json").read_text())["lapm"]["source"] == "manual"
    problem = rf"^{desk.ws} has no scores: run `iqa-ray score IMAGES --workspace {desk.ws}` first$"
    with pytest.raises(UsageError, match=problem):
        fit(desk)


def test_cutoffs_are_written_with_the_settings_that_made_them(judged):
    entries = judged.cutoffs(min_wrong=4)
    assert entries["lapm"].pop("correlation") == entries["wavs"].pop("correlation")  # of none
    assert json.loads(Path(judged.ws, "cutoffs.json").read_text()) == json.loads(
        json.dumps(entries)
    )
    assert read_cutoffs(Workspace(judged.ws)) == fit(judged, min_wrong=4)
    assert next(Workspace(judged.ws).read_configs("cutoffs"))["min_wrong"] == 4
    Path(judged.ws, "cutoffs.json").unlink()
    with pytest.raises(UsageError, match="no cutoffs.json: run `iqa-ray cutoffs --workspace"):
        read_cutoffs(Workspace(judged.ws))


def test_without_any_cutoff_the_table_and_the_reasons_are_told(judged, capsys):
    with pytest.raises(IncompleteError) as error:
        judged.cutoffs(min_wrong=11)
    reason = "only 10 incorrectly classified images, 11 are needed"
    assert str(error.value) == (
        f"no metric has a cut-off (lapm: {reason}; wavs: {reason}); --cutoff NAME=VALUE sets one"
    )
    said = capsys.readouterr().err
    assert "metric     better  scale   cut-off" in said
    assert judged.values() == {"lapm": None, "wavs": None}
    # one that has some is enough
    judged.cutoffs(min_wrong=11, cutoff={"wavs": 1})


def test_predictions_of_images_whose_label_was_corrected_do_not_count(judged, capsys):
    workspace = Workspace(judged.ws)
    frame, origins = read_predictions(workspace)
    before = fit(judged)["lapm"].counts
    assert before == {"correct": 12, "incorrect": 10}
    table = workspace.read_table("predictions.parquet", "predict")
    labels = ["z" if number < 3 else "a" for number in range(len(frame))]
    column = table.schema.get_field_index("label")
    other = table.set_column(column, table.schema.field("label"), [labels])
    assert frame["correct"][:3].all()
    write_predictions(workspace, other, Origins(origins.content_hashes))
    assert fit(judged)["lapm"].counts == {"correct": 9, "incorrect": 10}
    assert (
        "3 predictions were judged by labels that changed since, and do not count: run `iqa-ray "
        "predict` again"
    ) in capsys.readouterr().err
    # the user's own labels are theirs to say
    write_predictions(workspace, other, Origins(origins.content_hashes, has_own_labels=True))
    assert fit(judged)["lapm"].counts == before
    assert "judged by labels" not in capsys.readouterr().err


def test_predictions_without_a_verdict_and_of_images_no_longer_listed_do_not_count(judged, capsys):
    workspace = Workspace(judged.ws)
    _, origins = read_predictions(workspace)
    table = workspace.read_table("predictions.parquet", "predict")
    column = table.schema.get_field_index("correct")
    verdicts = [None, *table.column("correct").to_pylist()[1:]]
    write_predictions(
        workspace, table.set_column(column, table.schema.field("correct"), [verdicts]),
        Origins(origins.content_hashes),
    )  # fmt: skip
    (judged.photos / "a" / "w60.bmp").unlink()
    judged.score("lapm", "wavs")
    assert fit(judged)["lapm"].counts == {"correct": 11, "incorrect": 9}
    said = capsys.readouterr().err
    assert "labels that changed" not in said
    assert "other contents" not in said


def test_predictions_of_another_content_do_not_count(judged, capsys):
    judged.put("a/w60.bmp", 64)
    judged.score("lapm", "wavs")
    assert fit(judged)["lapm"].counts == {"correct": 12, "incorrect": 9}
    problem = (
        "lapm: 1 predictions are of other contents than the scores, and do not count: run "
        "`iqa-ray predict` again"
    )
    assert problem in capsys.readouterr().err
    # an older file does not say of which contents it is: all count, with a note
    table = Workspace(judged.ws).read_table("predictions.parquet", "predict")
    Workspace(judged.ws).write_table("predictions.parquet", table.replace_schema_metadata(None))
    assert fit(judged)["lapm"].counts == {"correct": 12, "incorrect": 10}
    said = capsys.readouterr().err
    assert "predictions.parquet does not say of which contents its predictions are" in said
    assert "other contents" not in said


def test_the_table_of_cutoffs():
    fitted = Cutoff(
        100.5, "higher_is_better", bandwidths={"correct": 8.0, "incorrect": 9.25},
        crossings=(-3.0, 100.5, 200.0), ci=(95.0, 105.25), valid_share=0.875, separation=0.75,
        counts={"correct": 12, "incorrect": 10}, scale="log", youden=0.5, p_value=0.001,
        is_between_medians=False,
    )  # fmt: skip
    entries = {
        "lapm": fitted.to_json(),
        "niqe": Cutoff(None, "lower_is_better", reason="too few", crossings=(1.0,)).to_json(),
        "wavs": Cutoff(7.0, "higher_is_better", source="manual").to_json(),
        "lapv": Cutoff(7.0, "higher_is_better", crossings=(7.0,)).to_json(),
    }
    lines = describe_cutoffs(entries).splitlines()
    cells = [re.split(" {2,}| / |(?<=higher) |(?<=lower) |(?<=%) ", line) for line in lines]
    assert cells[1:] == [
        ["lapm", "higher", "log", "100.5", "95 … 105.2", "88%", "0.500", "0.001", "0.750", "12",
         "10", "8", "9.25", "outside the two medians; curves also cross at -3, 200"],
        ["niqe", "lower", "–", "none", *"––––––––", "too few; curves also cross at 1"],
        ["wavs", "higher", "–", "7", *"––––––––", "set by hand"],
        ["lapv", "higher", "–", "7", *"––––––––"],
    ]  # fmt: skip
    for title, cell in {"cut-off": "100.5", "AUC": "0.750", "bandwidths": "9.25"}.items():
        assert lines[0].index(title) + len(title) == lines[1].index(cell) + len(cell)


@pytest.mark.parametrize("width", [0.0, -1.0])
def test_a_bandwidth_of_nothing_is_refused(width):
    with pytest.raises(UsageError, match="--bandwidth.*a factor must be above 0"):
        make_job(CutoffsJob, {"workspace": "ws", "bandwidth": width})


# --- selection --------------------------------------------------------------------------------


def set_cutoffs(desk, **values: float) -> None:
    desk.cutoffs(metrics=tuple(values), cutoff=values)


def test_the_selection_has_scores_votes_and_reasons(desk, tmp_path):
    for name, levels in {"a/0": (90, 90), "a/1": (10, 90), "b/2": (10, 10)}.items():
        desk.put(f"{name}.bmp", *levels)
    (desk.photos / "b" / "3.bmp").write_text("no image")
    desk.score("lapm", "wavs")
    set_cutoffs(desk, lapm=50, wavs=60)
    summary = desk.select(rule="any", link=str(tmp_path / "kept"))
    assert summary == {
        "num_images": 4, "num_kept": 1, "num_rejected": 3, "num_unscored": 1, "num_linked": 1,
        "metrics": ["lapm", "wavs"], "rule": "any", "cutoffs": {"lapm": 50, "wavs": 60},
        "cross_fitted": None, "in_sample": None, "num_explained": 0, "num_saved": 0, "augrc": {},
        "workspace": desk.ws,
    }  # fmt: skip
    table = pd.read_parquet(f"{desk.ws}/selection.parquet")
    assert list(table) == [
        "image_id", "path", "label", "lapm", "low_lapm", "wavs", "low_wavs", "num_low", "keep",
        "reason",
    ]  # fmt: skip
    assert list(table["label"]) == ["a", "a", "b", "b"]
    assert list(table["keep"]) == [True, False, False, False]
    assert list(table["reason"])[:3] == [
        "", "low in 1 of 2: lapm 10 < 50", "low in 2 of 2: lapm 10 < 50, wavs 10 < 60",
    ]  # fmt: skip
    assert table["reason"][3].startswith("unscored (lapm: ")
    assert Path(f"{desk.ws}/kept.csv").read_text().splitlines()[1:] == [
        f'"{desk.photos}/a/0.bmp","a","{table["image_id"][0]}"'
    ]
    assert [f.name for f in (tmp_path / "kept").glob("*/*")] == ["0.bmp"]
    assert (tmp_path / "kept" / "a" / "0.bmp").is_symlink()
    assert next(Workspace(desk.ws).read_configs("select"))["rule"] == "any"
    assert describe_selection(summary).splitlines() == [
        "kept 1 of 4 images (25.0%), rejected 3 (1 of them for lack of a score)",
        "voters: lapm, wavs; rule: any",
        f"written: {desk.ws}/selection.parquet and kept.csv",
        "linked: 1 images",
    ]
    assert len(describe_selection({**summary, "num_linked": 0}).splitlines()) == 3
    desk.select(rule="any", link=str(tmp_path / "copied"), copy_files=True)
    assert not (tmp_path / "copied" / "a" / "0.bmp").is_symlink()


def test_where_nothing_is_kept_that_is_said(desk, capsys):
    desk.put("a/0.bmp", 10)
    desk.score("lapm")
    set_cutoffs(desk, lapm=10)
    desk.select()
    assert "no image was kept" not in capsys.readouterr().err
    set_cutoffs(desk, lapm=11)
    assert desk.select()["num_kept"] == 0
    assert "no image was kept: look at the cut-offs, or use another --rule" in (
        capsys.readouterr().err
    )


def test_voters_are_those_asked_for_or_of_the_study_or_all_with_a_cutoff(judged, capsys):
    set_cutoffs(judged, lapm=50, wavs=60)
    assert judged.select()["metrics"] == ["lapm", "wavs"]
    assert judged.select(metrics=("wavs", "lapm", "wavs"))["metrics"] == ["wavs", "lapm"]
    Workspace(judged.ws).write_json("study/verdicts.json", {"voters": ["wavs", "niqe"]})
    capsys.readouterr()
    assert judged.select()["metrics"] == ["wavs"]
    said = capsys.readouterr().err
    assert "not a voter: cutoffs.json has no niqe, only lapm, wavs" in said
    assert judged.select(metrics=("lapm",))["metrics"] == ["lapm"]
    Workspace(judged.ws).write_json("study/verdicts.json", {"voters": ["niqe"]})
    with pytest.raises(UsageError, match="no metric in .*/cutoffs.json that may vote has a cut-"):
        judged.select()
    Workspace(judged.ws).write_json("study/verdicts.json", {"voters": []})
    problem = "no metric qualified in .*study/verdicts.json: name voters with --metrics"
    with pytest.raises(UsageError, match=problem):
        judged.select()
    assert judged.select(metrics=("lapm",))["metrics"] == ["lapm"]


def test_a_metric_without_a_cutoff_does_not_vote_and_is_refused_by_name(judged, capsys):
    lacks = Cutoff(None, "higher_is_better", reason="too few")
    cutoffs = {"lapm": lacks, "wavs": Cutoff(1, "higher_is_better")}
    write_cutoffs(Workspace(judged.ws), FittedCutoffs(cutoffs))
    assert judged.select()["metrics"] == ["wavs"]  # also where no version is on record
    assert "not a voter: lapm has no cut-off: too few" in capsys.readouterr().err
    with pytest.raises(UsageError, match="^--metrics: lapm has no cut-off: too few$"):
        judged.select(metrics=("lapm",))
    with pytest.raises(UsageError, match="^--metrics: cutoffs.json has no niqe, only lapm, wavs$"):
        judged.select(metrics=("niqe",))


def test_a_rule_that_the_voters_cannot_meet_is_refused(judged):
    set_cutoffs(judged, lapm=50, wavs=60)
    with pytest.raises(UsageError, match="^--rule .*2 metrics vote, give 1 to 2"):
        judged.select(rule=3)
    assert not Path(judged.ws, "selection.parquet").exists()


def test_scores_of_different_contents_do_not_vote(desk):
    """The file was replaced between two metrics, without a trace in size or time."""
    import os

    file = desk.put("a/0.bmp", 10, 10)
    desk.put("a/1.bmp", 90, 90)
    desk.score("lapm")
    time_ns = file.stat().st_mtime_ns
    put(file, 90, 90)
    os.utime(file, ns=(time_ns, time_ns))
    with pytest.raises(IncompleteError, match="were replaced by files of the same size and time"):
        desk.score("wavs")
    set_cutoffs(desk, lapm=5, wavs=5)
    assert desk.select()["num_unscored"] == 1
    assert make_job(SelectJob, {"workspace": "ws"}).metrics == ()


# --- accuracy on images that did not choose the cut-offs --------------------------------------


@pytest.fixture
def blurred(desk, tmp_path):
    """Sixty images of a manifest, three shots of each object; the blurred half is often wrong."""
    desk = Desk(tmp_path / "blurred")
    rng = np.random.default_rng(0)
    rows, right = [], {}
    for number in range(60):
        level = int(rng.integers(20, 90)) if number % 2 else int(rng.integers(60, 140))
        desk.put(f"a/{number}.bmp", level)
        right[f"a/{number}.bmp"] = bool(rng.random() < (0.9 if level > 70 else 0.2))
        split = "train" if number < 6 else "test"
        rows.append((f"a/{number}.bmp", "a", split, f"object {number // 3}", "one"))
    columns = ["path", "label", "split", "object", "brand"]
    pd.DataFrame(rows, columns=columns).to_csv(desk.photos / "all.csv", index=False)
    desk.photos = desk.photos / "all.csv"
    desk.score("lapm")
    desk.predict(right)
    return desk


def test_accuracy_is_cross_fitted_and_the_in_sample_one_is_named_so(blurred):
    entry = blurred.cutoffs(seed=1)["lapm"]
    assert len(set(entry["fold_values"])) > 1
    assert all(abs(value - entry["value"]) < 30 for value in entry["fold_values"])
    summary = blurred.select()
    measured = summary["cross_fitted"]
    assert measured["num_folds"] == 5
    folds = pd.read_parquet(f"{blurred.ws}/folds.parquet")
    selection = pd.read_parquet(f"{blurred.ws}/selection.parquet").set_index("image_id")
    predictions = pd.read_parquet(f"{blurred.ws}/predictions.parquet").set_index("image_id")
    bounds = np.array(entry["fold_values"])[folds["fold"]]
    keep = selection["lapm"][folds["image_id"]].to_numpy() >= bounds
    correct = predictions["correct"][folds["image_id"]].to_numpy(bool)
    assert measured["num_kept"] == keep.sum()
    assert measured["accuracy_kept"] == pytest.approx(correct[keep].mean())
    assert measured["accuracy_rejected"] == pytest.approx(correct[~keep].mean())
    assert measured["accuracy_all"] == pytest.approx(correct.mean())
    in_sample = selection["keep"][folds["image_id"]].to_numpy(bool)
    assert summary["in_sample"]["accuracy_kept"] == pytest.approx(correct[in_sample].mean())
    said = describe_selection(summary).splitlines()
    assert said[3].startswith("accuracy, cross-fitted in 5 folds: kept ")
    assert said[4].startswith("accuracy, in-sample (on images that chose the cut-offs): kept ")


def test_images_that_the_model_was_trained_on_do_not_fit_cutoffs(blurred, capsys):
    counts = blurred.cutoffs()["lapm"]["counts"]
    assert sum(counts.values()) == 54
    assert "6 predictions are of images with split=train" in capsys.readouterr().err
    assert len(pd.read_parquet(f"{blurred.ws}/folds.parquet")) == 54


def test_images_of_one_group_share_a_fold(blurred):
    blurred.cutoffs(group="object", seed=2)
    folds = pd.read_parquet(f"{blurred.ws}/folds.parquet")
    assert folds.groupby("unit")["fold"].nunique().eq(1).all()
    assert sorted(folds["unit"].unique()) == sorted(f"group object {n}" for n in range(2, 20))


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        ("shop", "all.csv has no column `shop`"),
        ("brand", "--group brand: the judged images have 1 groups, and folds need at least 2"),
    ],
)
def test_groups_that_cannot_be_had_are_refused(blurred, group, problem):
    with pytest.raises(UsageError, match=problem):
        blurred.cutoffs(group=group)


def test_a_folder_has_no_groups(judged):
    with pytest.raises(UsageError, match="--group object: needs a manifest .* is a folder"):
        judged.cutoffs(group="object")


def test_cutoffs_of_another_workspace_are_copied_with_the_images_that_chose_them(
    blurred, judged, capsys
):
    blurred.cutoffs()
    summary = judged.select(cutoffs_from=blurred.ws)
    assert judged.values() == blurred.values()
    folds = Path(judged.ws, "folds.parquet")
    record = json.loads(pq.read_schema(folds).metadata[b"iqa_ray"])
    assert record["workspace"] == blurred.ws
    assert pq.read_table(folds).equals(pq.read_table(f"{blurred.ws}/folds.parquet"))
    # none of these images chose them: what is measured is the vote itself
    assert summary["cross_fitted"]["num_folds"] == 0
    assert summary["cross_fitted"]["accuracy_kept"] == summary["in_sample"]["accuracy_kept"]
    with pytest.raises(UsageError, match=f"--metrics: {blurred.ws}/cutoffs.json has no wavs"):
        judged.select(cutoffs_from=blurred.ws, metrics=("wavs",))
    entries = json.loads(Path(blurred.ws, "cutoffs.json").read_text())
    entries["lapm"]["version"] = "0"
    Path(blurred.ws, "cutoffs.json").write_text(json.dumps(entries))
    with pytest.raises(UsageError, match="version 0 .* score both workspaces with the same"):
        judged.select(cutoffs_from=blurred.ws)


def test_a_majority_of_two_that_were_three_is_told(judged, capsys):
    judged.cutoffs(cutoff={"lapm": 100, "wavs": 50})
    by_hand = read_cutoffs(Workspace(judged.ws))
    lacks = Cutoff(None, "higher_is_better", reason="too few")
    write_cutoffs(Workspace(judged.ws), FittedCutoffs({**by_hand, "lapv": lacks}))
    capsys.readouterr()
    judged.select()
    assert "only lapm and wavs of 3 voters are left" in capsys.readouterr().err
    for settings in ({"rule": "any"}, {"metrics": ("lapm", "wavs")}):
        judged.select(**settings)
        assert "voters are left" not in capsys.readouterr().err


# --- a vote with a guarantee ------------------------------------------------------------------


@pytest.fixture
def sharp_or_not(desk):
    """300 images: of the sharp ones the classifier is right on all, of the others on a third."""
    right = {}
    for number in range(300):
        level = 20 + number % 150
        desk.put(f"a/{number}.bmp", level, level + number // 150)
        right[f"a/{number}.bmp"] = level > 90 or number % 3 == 0
    desk.score("lapm", "wavs")
    desk.predict(right)
    return desk


def test_a_vote_is_certified_for_later_images(sharp_or_not, capsys):
    entries = sharp_or_not.cutoffs(target_accuracy=0.8, rule="any")
    certified = entries.pop("certified")
    assert certified["target"] == 0.8
    assert certified["confidence"] == 0.95
    assert certified["num_images"] == 270
    assert certified["accuracy_kept"] > 0.8
    assert certified["share_kept"] > 0.5
    assert (certified["voters"], certified["rule"]) == (["lapm", "wavs"], "any")
    written = json.loads(Path(sharp_or_not.ws, "cutoffs.json").read_text())
    assert all(entry.pop("correlation")["num_images"] == 0 for entry in entries.values())
    assert written == json.loads(json.dumps(entries))
    assert {entry["source"] for entry in entries.values()} == {"certified"}
    summary = sharp_or_not.select(rule="any")
    assert summary["certified"] == certified
    assert summary["num_kept"] / 300 == pytest.approx(certified["share_kept"], abs=0.1)
    assert summary["in_sample"]["accuracy_kept"] == pytest.approx(
        certified["accuracy_kept"], abs=0.05
    )
    table = describe_cutoffs({**entries, "certified": certified}).splitlines()
    assert len(table) == 4
    assert table[-1].startswith("certified: with a confidence of 95% the any vote of lapm, wavs ")
    for other in ({"rule": "majority"}, {"rule": "any", "metrics": ("lapm",)}):
        with pytest.raises(UsageError, match="certified for the any vote of lapm, wavs: select"):
            sharp_or_not.select(**other)
    # from Python, one row a metric
    table = selection_jobs.cutoffs(sharp_or_not.ws, target_accuracy=0.8)
    assert list(table.index) == ["lapm", "wavs"]


def test_what_cannot_be_certified_leaves_the_cutoffs_as_they_were(sharp_or_not):
    sharp_or_not.cutoffs(cutoff={"lapm": 50})
    before = Path(sharp_or_not.ws, "cutoffs.json").read_bytes()
    with pytest.raises(
        IncompleteError, match="nothing could be certified: .*; about .* more judged images would"
    ):
        sharp_or_not.cutoffs(target_accuracy=0.999)
    assert Path(sharp_or_not.ws, "cutoffs.json").read_bytes() == before
    with pytest.raises(UsageError, match="--cutoff sets one by hand, and --target-accuracy"):
        sharp_or_not.cutoffs(target_accuracy=0.8, cutoff={"lapm": 50})
    with pytest.raises(UsageError, match="--rule 3: 2 metrics vote, give 1 to 2"):
        sharp_or_not.cutoffs(target_accuracy=0.8, rule=3)


def test_one_image_a_unit_is_tested(blurred):
    certified = blurred.cutoffs(target_accuracy=0.3, confidence=0.6, group="object")["certified"]
    assert certified["num_images"] == 16  # of 18 objects two lay the path
    assert len(pd.read_parquet(f"{blurred.ws}/folds.parquet")) == 18
