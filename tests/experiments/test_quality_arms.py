"""Arms that keep every image and smooth its label, or weight its loss, by quality."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from trainings import replace_training

from iqa_ray.config import make_job
from iqa_ray.errors import UsageError
from iqa_ray.experiments.arms import read_candidates
from iqa_ray.experiments.compare import run_compare
from iqa_ray.experiments.quality import CERTAINTY, add_certainties, plan_arm
from iqa_ray.experiments.settings import CompareJob
from iqa_ray.experiments.splits import split_quality
from iqa_ray.experiments.statistics import pair_arms
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training.recipe import Recipe

POOL = pd.DataFrame({CERTAINTY: [0.9, 0.5, 0.1, np.nan]})
TRAIN = np.array([0, 1, 2])


# --- what arms make of certainties ---------------------------------------------------------------


def test_smoothed_labels_are_as_sure_as_quality_says_and_at_least_as_chance():
    plan = plan_arm("smoothed", POOL, TRAIN, num_classes=4)
    assert plan.certainties.tolist() == pytest.approx([0.9, 0.5, 0.25, 1.0])
    assert plan.weights is None


def test_weights_follow_quality_and_are_1_in_the_mean_of_the_arm():
    plan = plan_arm("weighted", POOL, TRAIN, num_classes=4)
    assert plan.weights[TRAIN].tolist() == pytest.approx([1.8, 1.0, 0.2])
    assert plan.weights[TRAIN].mean() == pytest.approx(1)
    assert plan.certainties is None


@pytest.mark.parametrize("arm", ["high", "all", "everything", "removed-20"])
def test_other_arms_are_as_they_were_and_so_are_their_keys(arm):
    assert plan_arm(arm, POOL.drop(columns=CERTAINTY), TRAIN, 4).describe() == []


def test_keys_say_what_rows_are_worth():
    found = [plan_arm(arm, POOL, TRAIN, 4).describe() for arm in ("smoothed", "weighted")]
    other = POOL.assign(**{CERTAINTY: [0.9, 0.6, 0.1, 1.0]})
    found += [plan_arm(arm, other, TRAIN, 4).describe() for arm in ("smoothed", "weighted")]
    assert len({str(each) for each in found}) == 4


# --- who is trained -------------------------------------------------------------------------------


def test_arms_that_keep_have_every_image_outside_validation_and_test():
    images = pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(80)],
            "path": [f"p{n}" for n in range(80)],
            "content_hash": [f"h{n}" for n in range(80)],
            "label": ["a", "b"] * 40,
            "status": "ok",
            "keep": np.arange(80) < 40,
        }
    )
    plain = split_quality(images, 0, test_on="all").table
    table = split_quality(images, 0, test_on="all", keeping=("everything", "weighted")).table
    pd.testing.assert_frame_equal(
        table[table["arm"].isin(["high", "all"])].reset_index(drop=True), plain
    )
    for arm in ("everything", "weighted"):
        own = table[table["arm"] == arm]
        outside = set(images["image_id"]) - set(own.loc[own["part"] != "train", "image_id"])
        assert set(own.loc[own["part"] == "train", "image_id"]) == outside
        tests = [set(table[(table["arm"] == name) & (table["part"] == "test")]["image_id"])
                 for name in (arm, "high")]  # fmt: skip
        assert tests[0] == tests[1]


def test_arms_that_keep_are_compared_with_what_they_should_not_lose_to():
    assert pair_arms(["high", "all"]) == [("high", "all")]
    assert pair_arms(["high", "all", "everything", "weighted"]) == [
        ("high", "all"),
        ("everything", "high"), ("everything", "all"),
        ("weighted", "high"), ("weighted", "all"),
        ("weighted", "everything"),
    ]  # fmt: skip


def test_high_and_all_cannot_be_left_out():
    with pytest.raises(UsageError, match="--arms: high and all are what the others"):
        make_job(CompareJob, {"workspace": "w", "arms": ("high", "smoothed")})


# --- from predictions to runs ---------------------------------------------------------------------


@pytest.fixture
def judged(desk):
    """80 images of two classes, of scores 1 to 40, on which a classifier is right from 21 on."""
    files = {
        desk.put(f"{'ab'[n % 2]}/{n}.png", lapm=1 + n // 2, wavs=n): n >= 40 for n in range(80)
    }
    desk.score("lapm")
    desk.predict({str(file): is_right for file, is_right in files.items()})
    desk.cutoffs(cutoff={"lapm": 10.5})
    desk.select()
    return desk


def test_certainty_is_how_often_the_classifier_is_right_at_that_quality(judged):
    workspace = Workspace(judged.ws)
    found = add_certainties(workspace, read_candidates(workspace)).frame
    assert found[found["lapm"] <= 20][CERTAINTY].max() == 0
    assert found[found["lapm"] >= 21][CERTAINTY].min() == 1


def test_runs_have_the_certainties_of_their_images(judged, monkeypatch):
    seen = {}

    def train(todo, material, place, plan, on_event):
        seen.update({run.arm: run for run in todo}, paths=material.paths)
        return []

    replace_training(monkeypatch, train)
    given = {"workspace": judged.ws, "backbones": ("resnet18",), "weights": "none",
             "image_size": 32, "seeds": (0,)}  # fmt: skip
    with pytest.raises(Exception, match="2 of 2 runs"):
        run_compare(make_job(CompareJob, given))
    before = {name: run.key for name, run in seen.items() if name != "paths"}
    names = ("high", "all", "everything", "smoothed", "weighted")
    with pytest.raises(Exception, match="5 of 5 runs"):
        run_compare(make_job(CompareJob, {**given, "arms": names}))
    assert {name: seen[name].key for name in before} == before
    assert len({seen[name].key for name in names}) == 5
    numbers = np.array(
        [int(path.rpartition("/")[2].removesuffix(".png")) for path in seen["paths"]]
    )
    smoothed = seen["smoothed"]
    assert (smoothed.plan.certainties[smoothed.train] == np.where(
        numbers[smoothed.train] >= 40, 1, 0.5)).all()  # fmt: skip
    assert len(smoothed.train) == len(seen["everything"].train) > len(seen["all"].train)
    assert isinstance(smoothed.recipe, Recipe)


def test_without_predictions_there_is_no_certainty(desk):
    for n in range(40):
        desk.put(f"{'ab'[n % 2]}/{n}.png", lapm=1 + n)
    desk.score("lapm")
    desk.cutoffs(cutoff={"lapm": 10.5})
    desk.select()
    given = {"workspace": desk.ws, "arms": ("high", "all", "weighted")}
    with pytest.raises(UsageError, match="predictions.parquet: run `iqa-ray predict"):
        run_compare(make_job(CompareJob, given))
