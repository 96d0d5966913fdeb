"""What cutoffs and select leave beside their tables: confidence, coverage, balance, figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from desk import Desk
from pyarrow import parquet as pq

from iqa_ray.config import make_job
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.predictions.jobs import run_predict
from iqa_ray.predictions.settings import PredictJob
from iqa_ray.selection import evidence
from iqa_ray.selection.balance import CLASS_BALANCE_SCHEMA
from iqa_ray.selection.confidence import relate_confidence
from iqa_ray.selection.coverage import RISK_COVERAGE_SCHEMA, order_by_votes, trace_coverage
from iqa_ray.selection.jobs import describe_cutoffs, describe_selection
from iqa_ray.selection.settings import SelectJob

# 30 images: lapm 60 to 176, wavs 200 to 84 in steps of 4
LEVELS = range(60, 180, 4)
PNG = b"\x89PNG"


def predict(desk: Desk, rows: list[tuple[str, bool, float | None]]) -> None:
    """Import predictions: of which file the classifier was right, and how sure it was."""
    columns = {
        "path": [name for name, *_ in rows],
        "label": "a",
        "predicted": ["a" if is_right else "b" for _, is_right, _ in rows],
        "confidence": [sure for *_, sure in rows],
    }
    file = Path(desk.ws).parent / "mine.csv"
    pd.DataFrame(columns).to_csv(file, index=False)
    run_predict(make_job(PredictJob, {"workspace": desk.ws, "predictions": str(file)}))


def name_of(level: int) -> str:
    return f"{'a' if level % 8 else 'b'}/{level}.bmp"


def is_right(level: int) -> bool:
    return level >= 116 or level in (68, 88)


def sure_of(level: int) -> float:
    return 0.4 + level / 400 + 0.05 * (level % 3)


@pytest.fixture
def judged(desk):
    """Images that the classifier is right about from 116 up, and of two below; WAVS is opposed."""
    for level in LEVELS:
        desk.put(name_of(level), level, 260 - level)
    desk.score("lapm", "wavs")
    predict(
        desk,
        [(name_of(level), is_right(level), sure_of(level)) for level in LEVELS],
    )
    return desk


def file_of(desk: Desk, name: str) -> Path:
    return Path(desk.ws, name)


# --- cutoffs --------------------------------------------------------------------------------------


def test_cutoffs_relate_scores_and_confidence(judged):
    entries = judged.cutoffs()
    written = json.loads(file_of(judged, "confidence.json").read_text())
    assert list(written) == ["lapm", "wavs"]
    levels = np.array(LEVELS, float)
    sure = np.array([sure_of(level) for level in LEVELS])
    correct = np.array([is_right(level) for level in LEVELS])
    expected = relate_confidence(levels, sure, correct, True)
    assert written["lapm"]["num_images"] == 30
    assert written["lapm"]["pcc"]["value"] == pytest.approx(expected.pcc.value)
    assert written["lapm"]["srcc"]["low"] == pytest.approx(expected.srcc.low)
    assert [part["accuracy"] for part in written["lapm"]["bins"]] == [
        part.accuracy for part in expected.bins
    ]
    assert written["wavs"]["srcc"]["value"] == pytest.approx(-expected.srcc.value)
    assert entries["lapm"]["correlation"] == {
        name: written["lapm"][name] for name in ("num_images", "pcc", "srcc")
    }
    assert file_of(judged, "cutoffs.png").read_bytes().startswith(PNG)
    value = expected.srcc
    assert (
        f"PCC {expected.pcc.value:.3f} [{expected.pcc.low:.3f}, {expected.pcc.high:.3f}], "
        f"SRCC {value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
    ) in describe_cutoffs(entries)


def test_the_figure_shows_the_images_that_the_cutoff_was_fitted_to(judged, monkeypatch):
    drawn = []
    monkeypatch.setattr(evidence, "draw_cutoffs", lambda panels: drawn.extend(panels) or PNG)
    entries = judged.cutoffs(cutoff={"wavs": 100})
    lapm, wavs = drawn
    assert (lapm.metric, wavs.metric) == ("lapm", "wavs")
    order = np.argsort(lapm.scores)  # images are listed by name
    assert lapm.scores[order].tolist() == pytest.approx(list(LEVELS))
    assert lapm.confidence[order].tolist() == pytest.approx([sure_of(level) for level in LEVELS])
    assert lapm.correct[order].tolist() == [is_right(level) for level in LEVELS]
    assert lapm.value == entries["lapm"]["value"]
    assert lapm.interval == entries["lapm"]["ci"]
    assert lapm.is_log
    # each class has the area 1, per unit of the logarithm
    for density in (lapm.density_correct, lapm.density_incorrect):
        assert np.trapezoid(density, np.log(lapm.grid)) == pytest.approx(1, abs=0.01)
    assert len(wavs.grid) == 0  # set by hand: no curves
    assert wavs.value == 100


def test_curves_cross_at_the_cutoff_also_where_classes_are_weighted_by_size(judged, monkeypatch):
    drawn = []
    monkeypatch.setattr(evidence, "draw_cutoffs", lambda panels: drawn.extend(panels) or PNG)
    for weighting in ("equal", "prior"):
        drawn.clear()
        judged.cutoffs(weighting=weighting)
        difference = drawn[0].density_correct - drawn[0].density_incorrect
        at = [
            np.interp(drawn[0].value * change, drawn[0].grid, difference) for change in (0.99, 1.01)
        ]
        assert at[0] < 0 < at[1], weighting


def test_a_figure_of_metrics_without_a_cutoff_says_why(judged):
    with pytest.raises(IncompleteError):
        judged.cutoffs(min_wrong=25)
    assert file_of(judged, "cutoffs.png").exists()
    assert file_of(judged, "confidence.json").exists()


def test_predictions_without_confidence_have_no_correlation(judged):
    judged.predict({name_of(level): is_right(level) for level in LEVELS})
    entries = judged.cutoffs()
    assert entries["lapm"]["correlation"] == {"num_images": 0, "pcc": None, "srcc": None}
    assert "PCC" not in describe_cutoffs(entries)
    assert file_of(judged, "cutoffs.png").read_bytes().startswith(PNG)
    judged.select(metrics=("lapm",))
    voters = pq.read_table(file_of(judged, "risk_coverage.parquet")).column("voter").unique()
    assert voters.to_pylist() == ["lapm", "wavs", "vote", "random"]


def test_a_score_of_0_is_drawn_with_the_smallest_above_it(judged, monkeypatch):
    drawn = []
    monkeypatch.setattr(evidence, "draw_cutoffs", lambda panels: drawn.extend(panels) or PNG)
    judged.put("a/100.bmp", 0, 0)
    judged.score("lapm", "wavs")
    rows = [(name_of(level), is_right(level), 0.5) for level in LEVELS]
    predict(judged, rows)
    judged.cutoffs()
    assert drawn[0].scores.min() == pytest.approx(60)
    assert len(drawn[0].scores) == 30


def test_a_refit_renews_the_figure(judged):
    judged.cutoffs()
    before = file_of(judged, "confidence.json").read_text()
    picture = file_of(judged, "cutoffs.png").read_bytes()
    rows = [(name_of(level), is_right(level), 1 - sure_of(level) / 2) for level in LEVELS]
    predict(judged, rows)
    judged.rescore(refit=True)
    assert file_of(judged, "confidence.json").read_text() != before
    assert file_of(judged, "cutoffs.png").read_bytes() != picture


def test_without_predictions_what_others_left_is_removed(judged):
    judged.cutoffs()
    judged.select(metrics=("lapm",))
    left = ["confidence.json", "cutoffs.png", "risk_coverage.parquet", "risk_coverage.png"]
    assert all(file_of(judged, name).exists() for name in left)
    file_of(judged, "predictions.parquet").unlink()
    entries = judged.cutoffs(metrics=("lapm",), cutoff={"lapm": 100})
    assert "correlation" not in entries["lapm"]
    summary = judged.select(metrics=("lapm",))
    assert not any(file_of(judged, name).exists() for name in left)
    assert summary["augrc"] == {}
    assert "AUGRC" not in describe_selection(summary)


def test_cutoffs_of_another_workspace_have_no_figure_of_earlier_ones(judged, tmp_path):
    judged.cutoffs()
    other = Path(judged.ws).rename(tmp_path / "other")
    shutil.copytree(other, judged.ws)
    assert file_of(judged, "cutoffs.png").exists()
    judged.select(metrics=("lapm",), cutoffs_from=str(other))
    assert not file_of(judged, "cutoffs.png").exists()
    assert not file_of(judged, "confidence.json").exists()


# --- select: coverage ---------------------------------------------------------------------------


def test_select_traces_accuracy_for_metrics_vote_confidence_and_random(judged):
    judged.cutoffs(cutoff={"lapm": 100, "wavs": 100})
    summary = judged.select()
    table = pq.read_table(file_of(judged, "risk_coverage.parquet"))
    assert table.schema.remove_metadata().equals(RISK_COVERAGE_SCHEMA)
    correct = np.array([is_right(level) for level in LEVELS])
    levels = np.array(LEVELS, float)
    num_low = (levels < 100).astype(int) + (260 - levels < 100)
    qualities = {
        "lapm": levels,
        "wavs": -levels,
        "vote": order_by_votes(num_low, np.full(30, 15.5), 30),
        "confidence": np.array([sure_of(level) for level in LEVELS]),
    }
    expected, areas = trace_coverage(qualities, correct)
    pd.testing.assert_frame_equal(table.to_pandas(), expected)
    assert summary["augrc"] == pytest.approx(areas)
    assert file_of(judged, "risk_coverage.png").read_bytes().startswith(PNG)
    best = min(areas, key=lambda name: areas[name])
    assert f"AUGRC (lower is better): {best} {areas[best]:.4f}, " in describe_selection(summary)


def test_what_the_rule_keeps_are_the_first_of_the_vote_s_order(judged, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        evidence,
        "draw_coverage",
        lambda curves, areas, kept: drawn.update(curves=curves, kept=kept) or PNG,
    )
    judged.cutoffs(cutoff={"lapm": 130, "wavs": 90})
    judged.select(rule="any")
    vote = drawn["curves"].query("voter == 'vote'").set_index("num_images")
    share, accuracy = drawn["kept"]
    kept = round(share * 30)
    assert 0 < kept < 30
    assert vote.loc[kept, "coverage"] == pytest.approx(share)
    assert vote.loc[kept, "accuracy"] == pytest.approx(accuracy)


def test_images_whose_content_changed_since_they_were_predicted_do_not_count(judged):
    judged.cutoffs(cutoff={"lapm": 100})
    judged.put("a/108.bmp", 109, 150)
    judged.score("lapm", "wavs")
    judged.select(metrics=("lapm",))
    assert (
        pq.read_table(file_of(judged, "risk_coverage.parquet")).to_pandas()["num_images"].max()
        == 29
    )


# --- select: classes ----------------------------------------------------------------------------


def test_select_says_what_each_class_loses_and_warns(desk, capsys):
    for level in range(10, 40):
        desk.put(f"blurred/{level}.bmp", level)
        desk.put(f"sharp/{level}.bmp", 100 + level)
        desk.put(f"mixed/{level}.bmp", 50 if level < 15 else 150)
    desk.score("lapm")
    desk.cutoffs(cutoff={"lapm": 38})
    desk.select()
    table = pq.read_table(file_of(desk, "class_balance.parquet"))
    assert table.schema.remove_metadata().equals(CLASS_BALANCE_SCHEMA)
    rows = table.to_pandas().set_index("label")
    assert rows["num_rejected"].to_dict() == {"blurred": 28, "mixed": 0, "sharp": 0}
    assert rows["p_value"]["blurred"] < 1e-6
    said = capsys.readouterr().err
    assert "rejected more often than the other classes (all: 31.1%): blurred (28 of 30)" in said
    desk.cutoffs(cutoff={"lapm": 45})
    desk.select()
    assert "no image is kept of blurred (30 of 30)" in capsys.readouterr().err


def test_min_per_class_keeps_the_best_of_each_class(desk):
    for level in range(10, 20):
        desk.put(f"blurred/{level}.bmp", level)
        desk.put(f"sharp/{level}.bmp", 100 + level)
    desk.put("blurred/broken.bmp", 1).write_text("no image")
    desk.score("lapm")
    desk.cutoffs(cutoff={"lapm": 45})
    summary = desk.select(min_per_class=3, link=str(Path(desk.ws).parent / "kept"))
    selection = pq.read_table(file_of(desk, "selection.parquet")).to_pandas()
    kept = selection[selection["keep"]]
    names = [Path(path).name for path in kept.loc[kept["label"] == "blurred", "path"]]
    assert names == ["17.bmp", "18.bmp", "19.bmp"]
    assert (kept["label"] == "sharp").sum() == 10
    assert (summary["num_kept"], summary["num_saved"], summary["num_linked"]) == (13, 3, 13)
    assert len(pd.read_csv(file_of(desk, "kept.csv"))) == 13
    saved = kept.loc[kept["label"] == "blurred", "reason"]
    assert saved.str.startswith("kept for --min-per-class 3, though low in 1 of 1: lapm").all()
    balance = pq.read_table(file_of(desk, "class_balance.parquet")).to_pandas()
    assert balance["num_rejected"].tolist() == [8, 0]
    assert "3 of them outvoted, for --min-per-class" in describe_selection(summary)
    assert "outvoted" not in describe_selection(desk.select())


def test_a_certified_vote_is_cast_alone(judged):
    predict(judged, [(name_of(level), True, 0.5) for level in LEVELS])
    judged.cutoffs(target_accuracy=0.5, metrics=("lapm",))
    assert file_of(judged, "cutoffs.png").read_bytes().startswith(PNG)
    judged.select()
    with pytest.raises(UsageError, match="--min-per-class keeps outvoted images"):
        judged.select(min_per_class=1)


def test_a_minimum_per_class_is_at_least_one():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        make_job(SelectJob, {"workspace": "ws", "min_per_class": 0})
