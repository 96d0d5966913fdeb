"""What `compare --split-per-seed` and `vary` draw, train, record and say; nothing is trained."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from trainings import ok, pretend, replace_training

from iqa_ray.cli import main
from iqa_ray.config import make_job
from iqa_ray.experiments import vary as vary_module
from iqa_ray.experiments.compare import CompareJob, describe_compare, run_compare
from iqa_ray.experiments.splits import find_leaks
from iqa_ray.experiments.statistics import measure_difference
from iqa_ray.experiments.vary import VaryJob, describe_vary, run_vary
from iqa_ray.training.runs import RunFiles

SMALL = {"weights": "none", "epochs": 2, "image_size": 32, "batch_size": 16}
SEEDS = (0, 1, 2)


@pytest.fixture
def ws(desk) -> str:
    """40 images of each of two classes, of which the 30 brightest are kept."""
    for number in range(80):
        desk.put(f"{'north' if number % 2 else 'south'}/{number:02}.bmp", 100 + number)
    desk.score("lapm")
    desk.cutoffs(cutoff={"lapm": 120})
    assert desk.select()["num_kept"] == 60
    return desk.ws


def compare(ws, **settings):
    given = {"workspace": ws, "backbones": ("resnet18",), "seeds": SEEDS, **SMALL, **settings}
    return run_compare(make_job(CompareJob, given))


def read(ws, name):
    return pd.read_parquet(f"{ws}/comparisons/{name}.parquet")


def read_tests(ws):
    """The test images of each seed."""
    tests = read(ws, "quality/splits").query("part == 'test'")
    return {seed: set(rows["image_id"]) for seed, rows in tests.groupby("seed")}


@pytest.fixture
def trained(monkeypatch):
    """The runs that were trained since it was last cleared; each comes to another accuracy."""
    runs = []

    def train(todo, material, place, plan, on_event):
        for run in todo:
            runs.append((run, material))
            RunFiles(place).write_result(run, ok(0.5 + 0.01 * len(runs)))
        return []

    replace_training(monkeypatch, train)
    return runs


def test_every_seed_has_its_own_split(ws, trained):
    summary = compare(ws, split_per_seed=True)
    splits = read(ws, "quality/splits")
    assert sorted(splits["seed"].unique()) == list(SEEDS)
    assert find_leaks(splits, {}) == []
    tests = read_tests(ws)
    assert len({frozenset(ids) for ids in tests.values()}) == 3
    for seed, rows in splits.groupby("seed"):
        sizes = rows.groupby(["part", "arm"]).size()
        assert sizes.tolist() == [6, 6, 48, 48, 6, 6]
        for _, of_arm in rows[rows["part"] == "test"].groupby("arm"):
            assert set(of_arm["image_id"]) == tests[seed]
    assert summary["split_per_seed"] is True
    assert (summary["num_train"], summary["num_validation"], summary["num_test"]) == (48, 6, 6)


def test_by_default_all_seeds_share_a_split(ws, trained):
    summary = compare(ws)
    splits = read(ws, "quality/splits")
    assert splits["seed"].isna().all()
    assert len(splits) == 2 * 60
    assert summary["split_per_seed"] is False


def test_each_run_is_trained_and_tested_on_its_seeds_images(ws, trained):
    compare(ws, split_per_seed=True)
    seen = {
        (run.arm, run.recipe.seed, part): {material.paths[row] for row in getattr(run, part)}
        for run, material in trained
        for part in ("train", "validation", "test")
    }
    splits = read(ws, "quality/splits")
    assert len(seen) == 18
    for run, rows in splits.groupby(["arm", "seed", "part"]):
        assert seen[run] == set(rows["path"])


def test_runs_are_reused_where_their_seed_has_the_same_split(ws, trained):
    def count_trained(**settings):
        trained.clear()
        compare(ws, **settings)
        return len(trained)

    assert count_trained(split_per_seed=True, seeds=(0, 1)) == 4
    assert count_trained(split_per_seed=True, seeds=(2, 1, 0)) == 2
    assert count_trained(split_per_seed=True) == 0
    assert count_trained(split_per_seed=True, split_seed=1) == 6
    # no seed has the split that all share by default
    assert count_trained() == 6
    assert count_trained(split_seed=1) == 6
    assert count_trained() == 0
    assert len(read(ws, "quality/runs")) == 6


def test_verdicts_say_whether_they_are_on_one_split(ws, monkeypatch, capsys, desk):
    command = ["compare", "--workspace", ws, "--backbones", "resnet18", "--seeds", "0,1,2"]
    for name, value in SMALL.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    accuracies = [0.9, 0.91, 0.93, 0.7, 0.72, 0.73]
    for flag, verdict in ((["--split-per-seed"], "higher"), ([], "higher on this split")):
        pretend(monkeypatch, [ok(accuracy) for accuracy in accuracies])
        capsys.readouterr()
        assert main([*command, *flag, "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        (row,) = summary["comparison"]
        assert row["verdict"] == verdict
        assert set(read(ws, "quality/summary")["verdict"]) == {verdict}
        text = describe_compare(summary)
        assert any(line.endswith(f"in 3 of 3 seeds: {verdict}") for line in text.splitlines())
        assert ("drawn anew for every seed" in text) == bool(flag)
        newest = max((desk.photos.parent / "ws/configs").glob("compare-*"))
        assert yaml.safe_load(newest.read_text())["split_per_seed"] is bool(flag)


def test_a_named_test_set_is_not_drawn_anew(ws, capsys, desk):
    command = ["compare", "--workspace", ws, "--split-per-seed", "--test-on", str(desk.photos)]
    assert main(command) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "--split-per-seed draws the test images anew, and --test-on names them" in said


def test_a_test_set_of_all_qualities_is_drawn_anew(ws, trained):
    summary = compare(ws, split_per_seed=True, test_on="all")
    assert summary["num_test"] == 8
    assert len({frozenset(ids) for ids in read_tests(ws).values()}) == 3


# --- vary -------------------------------------------------------------------------------------


def vary(ws, **settings):
    given = {"workspace": ws, "seeds": SEEDS, "removed": (0, 30), **SMALL, **settings}
    return run_vary(make_job(VaryJob, given))


def test_vary_says_what_each_share_gains_and_sacrifices(ws, monkeypatch):
    accuracies = {
        "removed-0": [0.7, 0.71, 0.72], "removed-30": [0.8, 0.84, 0.82], "high": [0.9, 0.9, 0.95],
    }  # fmt: skip
    pretend(monkeypatch, [ok(value) for values in accuracies.values() for value in values])
    drawn = []
    monkeypatch.setattr(vary_module, "draw_shares", lambda frame: drawn.append(frame) or b"")
    summary = vary(ws)
    assert drawn[0]["removed_percent"].tolist() == [0, 30]
    json.dumps(summary, allow_nan=False)
    runs = read(ws, "varying/runs")
    assert list(runs["arm"].unique()) == list(accuracies)
    assert runs["accuracy"].tolist() == [*itertools.chain(*accuracies.values())]
    expected = [("removed-30", "removed-0"), ("high", "removed-0"), ("high", "removed-30")]
    table = read(ws, "varying/differences")
    assert list(zip(table["better"], table["worse"], strict=True)) == expected
    assert [(row["better"], row["worse"]) for row in summary["differences"]] == expected
    text = describe_vary(summary)
    for (better, worse), row, record in zip(
        expected, table.to_dict("records"), summary["differences"], strict=True
    ):
        found = measure_difference(np.subtract(accuracies[better], accuracies[worse]).round(9))
        assert row["accuracy_difference"] == pytest.approx(found.difference)
        assert record["accuracy_low"] == pytest.approx(found.low)
        assert record["accuracy_t_p_holm"] == row["accuracy_t_p_holm"] >= found.t_p
        assert record["verdict"] == "higher on this split"
        names = [arm.replace("removed-30", "30% removed") for arm in (better, worse)]
        names = [arm.replace("removed-0", "0% removed") for arm in names]
        points = f"{100 * found.difference:+.1f} points (95% interval {100 * found.low:+.1f} to"
        assert f"accuracy, {names[0]} − {names[1]}: {points}" in text
    assert "High-quality         91.7" in text
    assert "differences.parquet" in text
    arms_table = read(ws, "varying/summary")
    assert arms_table["removed_percent"].tolist()[:2] == [0, 30]
    assert arms_table["removed_percent"].isna().tolist() == [False, False, True]
    assert [row["removed_percent"] for row in summary["table"]] == [0, 30, None]


def test_varys_high_quality_arm_has_kept_images_and_the_same_tests(ws, trained):
    vary(ws)
    splits = read(ws, "varying/splits")
    kept = pd.read_parquet(f"{ws}/selection.parquet").set_index("image_id")["keep"]
    of_high = splits[splits["arm"] == "high"]
    assert kept[of_high["image_id"]].all()
    assert splits["seed"].isna().all()
    assert splits[splits["part"] == "train"].groupby("arm").size().nunique() == 1
    tests = splits[splits["part"] == "test"].groupby("arm")["image_id"].apply(frozenset)
    assert tests.nunique() == 1


def test_vary_without_a_high_quality_arm_has_no_difference_to_it(ws, trained, capsys):
    summary = vary(ws, num_train=49, removed=(0,))
    assert summary["differences"] == []
    assert Image.open(f"{ws}/comparisons/varying/curve.png").size[0] > 200
    assert read(ws, "varying/differences").empty
    assert "no high-quality arm: 49 training images asked for, 48 " in capsys.readouterr().err
