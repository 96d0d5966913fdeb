"""The job `smooth`, with runs trained in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from shapes import make_folder, smooth, train_inline

from iqa_ray.config import make_job
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.smoothing.jobs import describe_smooth
from iqa_ray.smoothing.settings import SmoothJob
from iqa_ray.smoothing.training import make_recipe
from iqa_ray.training.loop import make_optimiser, start_training
from iqa_ray.training.recipe import Steps


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("shapes"), 60, 15)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def read(ws, name):
    return pd.read_parquet(ws / f"smoothing/{name}.parquet")


def test_what_a_comparison_leaves(images, tmp_path):
    with train_inline() as done:
        summary = smooth(images, tmp_path, strategies=("1", "2", "3"), seeds=(0, 1))
    assert [name.partition(" ")[0] for name in done] == ["1", "1", "2", "2", "3", "3"]
    json.dumps(summary, allow_nan=False)
    assert (summary["num_train"], summary["num_validation"], summary["num_test"]) == (60, 0, 15)
    table = read(tmp_path, "table")
    assert len(table) == 30
    assert (table["num_seeds"] == 2).all()
    assert len(read(tmp_path, "results")) == 60
    assert read(tmp_path, "differences")["test_set"].nunique() == 10
    assert len(read(tmp_path, "versions")) == 75
    runs = read(tmp_path, "runs")
    assert runs["status"].tolist() == ["ok"] * 6
    assert runs["history"].map(len).tolist() == [2] * 6
    for name in ("accuracy", "confidence", "reliability"):
        assert min(Image.open(tmp_path / f"smoothing/{name}.png").size) > 200
    text = describe_smooth(summary)
    for word in ("MIX_blur", "IQA-LS ssim", "JPEG 3", "60 training, 15 test images", "table.parq"):
        assert word in text


def test_the_same_seed_gives_the_same_table_and_what_is_done_is_not_done_again(images, tmp_path):
    names = ("2", "3", "3-shuffled")
    with train_inline() as done:
        smooth(images, tmp_path / "a", strategies=names)
        smooth(images, tmp_path / "b", strategies=names)
        assert len(done) == 6
        smooth(images, tmp_path / "b", strategies=names)
        assert len(done) == 6
        smooth(images, tmp_path / "b", strategies=names, restart=True)
        assert len(done) == 9
    for name in ("table", "differences", "results", "reliability", "confidence"):
        first, second = read(tmp_path / "a", name), read(tmp_path / "b", name)
        pd.testing.assert_frame_equal(first, second)


def test_a_run_that_was_killed_goes_on_to_the_same_table(images, tmp_path):
    class Killed(BaseException):
        pass

    def kill(run, row):
        if run.arm.startswith("3") and row["epoch"] == 2:
            raise Killed

    given = {"strategies": ("1", "3"), "epochs": 3}
    with train_inline():
        smooth(images, tmp_path / "whole", **given)
    with train_inline(kill), pytest.raises(Killed):
        smooth(images, tmp_path / "killed", **given)
    assert len(list((tmp_path / "killed/smoothing/checkpoints").iterdir())) == 1
    with train_inline() as done:
        smooth(images, tmp_path / "killed", **given)
    assert [name.partition(" ")[0] for name in done] == ["3"]
    for name in ("table", "confidence"):
        pd.testing.assert_frame_equal(
            read(tmp_path / "killed", name), read(tmp_path / "whole", name)
        )


def test_settings_that_change_results_are_other_runs(images, tmp_path):
    with train_inline() as done:
        for given in ({}, {"loss": "cross_entropy"}, {"lr": 0.01}, {"split_seed": 1},
                      {"num_train": 59}, {"transform": "calibrated"}):  # fmt: skip
            smooth(images, tmp_path, strategies=("3",), epochs=1, **given)
    # with a judge of its own where scores are calibrated
    assert len(done) == 7


def test_labels_change_what_is_learnt_and_versions_do(images, tmp_path):
    """Seed and images being the same."""
    names = ("1", "2", "3", "3-uniform", "3-shuffled")
    with train_inline():
        smooth(images, tmp_path, strategies=names)
    table = read(tmp_path, "table")
    confidence = table[table["test_set"] == "pristine"]["confidence_mean"]
    assert confidence.nunique() == 5


# --- scores without a reference -------------------------------------------------------------------


def test_metrics_are_calibrated_on_held_out_images(images, tmp_path):
    with train_inline() as done:
        summary = smooth(
            images, tmp_path, strategies=("1", "2", "3"), score=("ssim", "lapm"), epochs=3
        )
    assert (summary["num_train"], summary["num_validation"]) == (54, 6)
    assert [name.split()[:3] for name in done] == [
        ["1", "Original", "Pristine"],  # the judge, before the others
        ["2", "Original", "MIX_blur"],
        ["3", "IQA-LS", "ssim"],
        ["3", "IQA-LS", "lapm"],
    ]
    transforms = read(tmp_path, "transforms")
    assert set(zip(transforms["score"], transforms["training_set"], strict=True)) == {
        ("lapm", "MIX_blur")
    }
    assert (np.diff(transforms["certainty"]) >= 0).all()
    scores = read(tmp_path, "versions")
    assert (scores["ssim_pristine"] == 1).all()
    assert (scores["lapm_blur-3"] < scores["lapm_pristine"]).all()


def test_scores_that_are_no_certainties_are_refused(images, tmp_path):
    with train_inline(), pytest.raises(UsageError, match="--score lapm: .* outside"):
        smooth(images, tmp_path, strategies=("3",), score=("lapm",), transform="identity")


def test_the_original_batches_of_cifar_are_trained_on(cifar, tmp_path):
    folder, images = cifar
    with train_inline() as done:
        summary = smooth(f"cifar10:{folder}", tmp_path / "ws", strategies=("2",), epochs=1)
        smooth(f"cifar10:{folder}", tmp_path / "ws", strategies=("2",), epochs=1)
    assert len(done) == 1
    assert (summary["num_train"], summary["num_test"], summary["num_classes"]) == (20, 4, 3)
    (file,) = (tmp_path / "ws/smoothing/versions").glob("*.pixels.npy")
    stored = {image.tobytes() for image in np.load(file)[:, 0]}
    assert stored == {image.tobytes() for image in images}


# --- what goes wrong ------------------------------------------------------------------------------


def test_images_that_cannot_be_decoded_are_left_out(tmp_path):
    folder = make_folder(tmp_path / "x", 21, 6)
    for part in ("train", "test"):
        torn = min((folder / part / "disc").iterdir())
        torn.write_bytes(torn.read_bytes()[:200])
    with train_inline():
        summary = smooth(folder, tmp_path / "ws", strategies=("1",))
    assert (summary["num_train"], summary["num_test"]) == (20, 5)
    errors = read(tmp_path / "ws", "versions")["error"]
    assert errors.str.startswith("unreadable").sum() == 2


def test_a_run_that_diverges_ends_as_incomplete_and_the_others_are_kept(images, tmp_path):
    given = {"loss": "cross_entropy", "lr": 1e30, "strategies": ("1", "2")}
    with train_inline(), pytest.raises(IncompleteError, match="2 of 2 runs gave no result"):
        smooth(images, tmp_path, **given)
    assert read(tmp_path, "runs")["status"].tolist() == ["diverged"] * 2
    assert not (tmp_path / "smoothing/table.parquet").exists()


def test_a_network_that_needs_larger_images_is_refused(images, tmp_path):
    with train_inline(), pytest.raises(UsageError, match="too small for alexnet"):
        smooth(images, tmp_path, backbone="alexnet")


# --- the optimisation as printed ------------------------------------------------------------------


def job(**given):
    return make_job(SmoothJob, {"images": "x", "workspace": "w", **given})


def test_the_recipe_is_the_printed_one():
    recipe = make_recipe(job(), 0, 32)
    assert (recipe.backbone, recipe.loss, recipe.optimiser) == ("cifarnet", "brier", "sgd")
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (2000, 100, 0.1)
    assert (recipe.schedule, recipe.momentum, recipe.augment) == (Steps(350, 0.1), 0, "none")
    assert [recipe.find_lr(done) for done in (349, 350, 700)] == pytest.approx([0.1, 0.01, 0.001])
    optimiser = make_optimiser(recipe, start_training(recipe, 10).model)
    decayed = [g for g in optimiser.param_groups if g["weight_decay"]]
    assert [group["weight_decay"] for group in decayed] == [0.004]
    assert [tuple(p.shape) for p in decayed[0]["params"]] == [(384, 4096), (192, 384)]


@pytest.mark.parametrize(("epochs", "every"), [(2000, 350), (1000, 175), (12, 2), (1, 1)])
def test_the_schedule_scales_with_the_epochs(epochs, every):
    assert make_recipe(job(epochs=epochs), 0, 32).schedule == Steps(every, 0.1)
    assert make_recipe(job(epochs=epochs, schedule="constant"), 0, 32).schedule is None
