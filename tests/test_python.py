"""The main job from Python: each step returns its table."""

from __future__ import annotations

import pandas as pd
import pytest

import iqa_ray
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.predictions.table import PREDICTIONS_SCHEMA


def test_the_whole_chain_returns_its_tables(desk, tmp_path):
    right = {f"a/r{level}.bmp": "a" for level in range(104, 152, 4)}
    wrong = {f"a/w{level}.bmp": "b" for level in range(60, 100, 4)}
    for name in right | wrong:
        desk.put(name, int(name[3:-4]), int(name[3:-4]))
    said = pd.DataFrame((right | wrong).items(), columns=["path", "predicted"])
    said.to_csv(tmp_path / "mine.csv", index=False)

    scores = iqa_ray.score(desk.photos, workspace=desk.ws, metrics=["lapm", "wavs"])
    assert (scores["lapm"] == scores["wavs"]).all()
    predictions = iqa_ray.predict(desk.ws, predictions=tmp_path / "mine.csv")
    assert list(predictions) == PREDICTIONS_SCHEMA.names
    assert predictions["correct"].sum() == len(right)
    cutoffs = iqa_ray.cutoffs(desk.ws, metrics=("lapm",))
    assert list(cutoffs.index) == ["lapm"]
    assert 96 < cutoffs.loc["lapm", "value"] < 104
    assert cutoffs.loc["lapm", "counts"] == {"correct": len(right), "incorrect": len(wrong)}
    selection = iqa_ray.select(desk.ws)
    assert len(selection) == len(scores)
    assert selection["keep"].sum() == len(right)
    assert selection.loc[~selection["keep"], "reason"].str.startswith("low in 1 of 1: lapm").all()


def test_unusable_input_is_a_value_error(desk):
    desk.put("a/0.bmp", 10)
    with pytest.raises(UsageError, match="has no images.parquet"):
        iqa_ray.predict(desk.ws, predictions="mine.csv")
    desk.score("lapm")
    with pytest.raises(UsageError, match="--backbone"):
        iqa_ray.predict(desk.ws)
    with pytest.raises(UsageError, match=r"has no predictions\.parquet"):
        iqa_ray.cutoffs(desk.ws)
    with pytest.raises(UsageError, match=r"has no cutoffs\.json"):
        iqa_ray.select(desk.ws)
    with pytest.raises(UsageError, match="unknown setting 'colour'"):
        iqa_ray.select(desk.ws, colour="red")


def test_where_no_metric_has_a_cutoff_that_is_said(desk):
    desk.put("a/0.bmp", 10)
    desk.score("lapm")
    desk.predict({"a/0.bmp": True})
    with pytest.raises(IncompleteError, match="no metric has a cut-off"):
        iqa_ray.cutoffs(desk.ws)
