"""`metrify build`, `train` and `evaluate`, and the metric that comes of them, without Ray."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from inline import WriterKilled, list_paths, run_inline
from toys import make_toy_images, save_toy
from trainings import train_inline

from iqa_ray import metrics
from iqa_ray.config import make_job
from iqa_ray.distortions import DISTORTIONS, distort
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.images.decoding import decode_image
from iqa_ray.metrifier import builder, copies, jobs
from iqa_ray.metrifier.dataset import DATASET_SCHEMA, read_copy_plan, read_dataset, split_images
from iqa_ray.metrifier.rating import gather_raters, rate_copies
from iqa_ray.metrifier.settings import (
    BuildJob,
    DistortionName,
    EvaluateMetrifierJob,
    TrainMetrifierJob,
)
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training import backbones
from iqa_ray.training.loop import dump_checkpoint
from iqa_ray.training.pixels import cut_square


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Checkpoints of 130 MB are not flushed; and workers in this process may change its threads."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def toy(tmp_path):
    make_toy_images(tmp_path / "photos", 30)
    save_toy(tmp_path / "toy.pt")
    return tmp_path


def build(folder, before_shard=lambda shard: None, **given):
    seen = []

    def see(shard):
        before_shard(shard)
        seen.extend(Path(path).name for path in list_paths(shard))

    settings = {
        "images": str(folder / "photos"), "workspace": str(folder / "ws"),
        "task_networks": (str(folder / "toy.pt"),), "normalise": "none",
        "distortions": ("gaussian_blur", "noise"), "levels": (2, 4), "image_size": 64,
    }  # fmt: skip
    with run_inline(see):
        summary = jobs.run_build(make_job(BuildJob, {**settings, **given}))
    return summary, seen, pd.read_parquet(folder / "ws/metrifier/dataset.parquet")


def train(folder, **given):
    settings = {
        "workspace": str(folder / "ws"), "backbone": "resnet18", "epochs": 1, "batch_size": 16,
    }  # fmt: skip
    return jobs.run_train(make_job(TrainMetrifierJob, {**settings, **given}))


def evaluate(folder, **given):
    settings = {"workspace": str(folder / "ws"), "metrics": ("lapm", "wavs"), "normalise": "none"}
    with run_inline():
        return jobs.run_evaluate(make_job(EvaluateMetrifierJob, {**settings, **given}))


def test_the_settings_name_all_distortions_that_there_are():
    assert set(DistortionName.__args__) == set(DISTORTIONS)


# --- build ----------------------------------------------------------------------------------------


def test_every_image_has_a_row_for_every_distortion_and_level(toy):
    summary, seen, table = build(toy)
    assert list(table) == DATASET_SCHEMA.names
    assert len(seen) == summary["num_images"] == summary["num_built"] == 30
    assert len(table) == summary["num_rows"] == 30 * 5
    assert table.groupby("image_id").size().tolist() == [5] * 30
    pairs = list(zip(table["distortion"], table["level"], strict=True))
    assert pairs[:5] == [
        ("", 0), ("gaussian_blur", 2), ("gaussian_blur", 4), ("noise", 2), ("noise", 4),
    ]  # fmt: skip
    assert (table["status"] == "ok").all()
    assert table["target"].to_numpy() == pytest.approx(np.exp(-table["loss"]))
    assert table["target"].to_numpy() == pytest.approx(table["probability_true"])
    assert table["correct"].tolist() == (table["target"] > 0.5).tolist()
    assert table["confidence"].to_numpy() == pytest.approx(
        np.maximum(table["target"], 1 - table["target"])
    )
    means = table.groupby(["distortion", "level"])["target"].mean()
    assert means["", 0] > means["gaussian_blur", 2] > means["gaussian_blur", 4]
    assert "30 images (test 6, train 20, validation 4), 30 built now" in jobs.describe_build(
        summary
    )


def test_a_row_is_what_the_network_says_of_the_distorted_square(toy):
    _, _, table = build(toy, image_size=48)
    images = pd.read_parquet(toy / "ws/metrifier/images.parquet")
    row = table[(table["distortion"] == "noise") & (table["level"] == 4)].iloc[7]
    path = images.set_index("image_id").loc[row["image_id"], "path"]
    square = cut_square(decode_image(Path(path).read_bytes()), 48)
    noisy = distort(square, "noise", level=4, rng=0)
    network = torch.jit.load(str(toy / "toy.pt"))
    batch = torch.from_numpy(noisy.copy()).permute(2, 0, 1)[None] / 255
    probabilities = network(batch).double().softmax(1)[0]
    label = "ab".index(Path(path).parent.name)
    assert row["target"] == pytest.approx(float(probabilities[label]), abs=1e-6)


def test_all_rows_of_an_image_and_of_its_copies_are_in_one_part(toy):
    first = toy / "photos/a/000.png"
    for name in ("copy1.png", "copy2.png", "copy3.png"):
        (toy / "photos/a" / name).write_bytes(first.read_bytes())
    _, _, table = build(toy)
    assert table.groupby("image_id")["part"].nunique().max() == 1
    images = pd.read_parquet(toy / "ws/metrifier/images.parquet")
    assert len(images) == 33
    assert images.groupby("content_hash")["part"].nunique().max() == 1
    assert set(images["part"]) == {"train", "validation", "test"}


def test_a_second_build_does_nothing_and_a_changed_image_alone_is_done_again(toy):
    _, _, before = build(toy)
    _, seen, after = build(toy)
    assert seen == []
    pd.testing.assert_frame_equal(before, after)
    make_toy_images(toy / "other", 1, seed=9)
    (toy / "photos/a/004.png").write_bytes((toy / "other/a/000.png").read_bytes())
    _, seen, _ = build(toy)
    assert seen == ["004.png"]


def test_a_build_that_is_killed_goes_on_row_for_row(toy, tmp_path_factory, monkeypatch):
    small = partial(builder.do_missing, shard_size=8)
    monkeypatch.setattr(builder, "do_missing", small)
    shards = []

    def kill(shard):
        shards.append(shard)
        if len(shards) == 3:
            raise WriterKilled

    with pytest.raises(WriterKilled):
        build(toy, kill)
    assert not (toy / "ws/metrifier/dataset.parquet").exists()
    _, seen, resumed = build(toy)
    assert len(seen) == 30 - 16
    build(toy, workspace=str(toy / "ws2"))
    whole = pd.read_parquet(toy / "ws2/metrifier/dataset.parquet")
    pd.testing.assert_frame_equal(resumed, whole)


def test_other_settings_never_take_rows_of_before(toy):
    build(toy)
    for given in ({"image_size": 48}, {"levels": (1,)}, {"split_seed": 3}, {"batch_size": 32}):
        _, seen, _ = build(toy, **given)
        assert len(seen) == (0 if "batch_size" in given else 30), given
    save_toy(toy / "toy.pt", slope=0.4)
    assert len(build(toy)[1]) == 30


def test_a_label_that_is_corrected_is_judged_anew(toy):
    def write(swap):
        paths = sorted(toy.glob("photos/*/*.png"))
        labels = [path.parent.name for path in paths]
        labels[0] = "b" if swap else "a"
        rows = {"path": paths, "label": labels}
        pd.DataFrame(rows).to_csv(toy / "m.csv", index=False)

    write(False)
    _, _, before = build(toy, images=str(toy / "m.csv"))
    write(True)
    _, seen, after = build(toy, images=str(toy / "m.csv"))
    assert seen == ["000.png"]
    assert after["target"][0] == pytest.approx(1 - before["target"][0])


def test_batches_do_not_change_a_row(toy):
    _, _, table = build(toy, batch_size=7)
    build(toy, batch_size=64, workspace=str(toy / "ws2"))
    other = pd.read_parquet(toy / "ws2/metrifier/dataset.parquet")
    pd.testing.assert_frame_equal(table, other)


def test_images_and_copies_that_cannot_be_had_have_rows_that_say_why(toy, monkeypatch):
    (toy / "photos/a/002.png").write_bytes(b"nothing")
    make_square = copies.distort_square

    def fail(image, name, level, seed):
        if (name, level) == ("noise", 4):
            raise ValueError("this codec refuses it")
        return make_square(image, name, level, seed)

    monkeypatch.setattr(copies, "distort_square", fail)
    summary, _, table = build(toy)
    assert summary["num_failed"] == 5 + 29
    lost = table[table["status"] == "unreadable"]
    assert len(lost) == 5
    assert lost["error"].str.contains("not an image").all()
    refused = table[table["status"] == "undefined"]
    assert set(refused["error"]) == {"noise at level 4: ValueError: this codec refuses it"}
    assert (
        refused[["loss", "confidence", "probability_true", "target", "correct"]].isna().all().all()
    )


def test_outputs_that_are_no_numbers_are_a_status(toy):
    class Odd(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            across = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3))
            return torch.stack([torch.where(across < 0.05, torch.nan, across), across], dim=1)

    torch.jit.script(Odd()).save(str(toy / "toy.pt"))
    _, _, table = build(toy)
    odd = table[table["status"] != "ok"]
    assert set(odd["distortion"]) == {"gaussian_blur"}
    assert set(odd["error"]) == {"the outputs of a task network are not numbers"}


def test_a_file_that_was_away_is_tried_again(toy):
    path = toy / "photos/b/003.png"
    content = path.read_bytes()
    paths = sorted(toy.glob("photos/*/*.png"))
    pd.DataFrame({"path": paths}).to_csv(toy / "m.csv", index=False)
    stat = path.stat()

    def lose(shard):
        path.unlink(missing_ok=True)

    _, _, table = build(toy, lose, images=str(toy / "m.csv"))
    assert (table["status"] != "ok").sum() == 5
    assert set(table.loc[table["status"] != "ok", "error"]) == {"No such file or directory"}
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    _, seen, table = build(toy, images=str(toy / "m.csv"))
    assert seen == ["003.png"]
    assert (table["status"] == "ok").all()


def save_classifier(file, state, classes):
    record = {"state": state, "classes": classes, "backbone": "resnet18", "image_size": 32}
    file.write_bytes(dump_checkpoint(record))


def test_several_networks_are_averaged_class_by_class(toy):
    """The same classifier with its outputs in another order says the same, and a flat one 1/2."""
    torch.manual_seed(0)
    state = backbones.create("resnet18", 2).state_dict()
    save_classifier(toy / "one.pt", state, ["a", "b"])
    swapped = {name: state[name].flip(0) for name in ("head.weight", "head.bias")}
    save_classifier(toy / "two.pt", {**state, **swapped}, ["b", "a"])
    flat = {name: torch.zeros_like(state[name]) for name in ("head.weight", "head.bias")}
    save_classifier(toy / "flat.pt", {**state, **flat}, ["a", "b"])
    one, two, flat = (str(toy / f"{name}.pt") for name in ("one", "two", "flat"))
    given = {"image_size": None, "distortions": ("noise",), "levels": (3,)}
    _, _, alone = build(toy, task_networks=(one,), **given)
    _, _, both = build(toy, task_networks=(one, two), **given)
    assert alone["target"].std() > 0.01
    assert both["target"].to_numpy() == pytest.approx(alone["target"], abs=1e-5)
    _, _, mixed = build(toy, task_networks=(one, flat), **given)
    assert mixed["target"].to_numpy() == pytest.approx((alone["target"] + 0.5) / 2, abs=1e-5)
    _, _, first = build(toy, task_networks=(two, one), **given)
    assert first["target"].to_numpy() == pytest.approx(alone["target"], abs=1e-5)


def test_labels_that_the_network_does_not_know_are_refused(toy):
    (toy / "classes.txt").write_text("a\nc\n")
    with pytest.raises(UsageError, match="do not match the labels of the images: it has no b"):
        build(toy, classes=str(toy / "classes.txt"))
    make_toy_images(toy / "more", 1)
    (toy / "more/a").rename(toy / "photos/c")
    with pytest.raises(UsageError, match="it has 2 outputs, and there are 3 classes"):
        build(toy)


def test_images_without_labels_are_refused(toy):
    with pytest.raises(UsageError, match="no image has a label"):
        build(toy, labels="none")


# --- the split ------------------------------------------------------------------------------------


def make_images(splits, labels="ab"):
    number = len(splits)
    return pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(number)],
            "label": [labels[n % len(labels)] for n in range(number)],
            "split": splits,
            "content_hash": [f"h{n}" for n in range(number)],
        }
    )


def test_the_split_of_a_manifest_is_kept_and_a_share_of_training_validates():
    images = make_images(["train"] * 32 + ["test"] * 8)
    parts = split_images(images, 0)
    assert parts[32:].tolist() == ["test"] * 8
    assert (parts[:32] == "validation").sum() == 6
    given = make_images(["train"] * 5 + ["val"] * 2 + ["test"] * 3)
    expected = ["train"] * 5 + ["validation"] * 2 + ["test"] * 3
    assert split_images(given, 0).tolist() == expected


def test_images_are_drawn_label_by_label_and_by_seed():
    images = make_images([None] * 40)
    parts = split_images(images, 0)
    for label in "ab":
        counts = pd.Series(parts[(images["label"] == label).to_numpy()]).value_counts()
        assert counts.to_dict() == {"train": 13, "test": 4, "validation": 3}
    assert (split_images(images, 1) != parts).any()
    assert split_images(images, 0).tolist() == parts.tolist()


def test_splits_that_are_none_or_too_small_are_refused():
    with pytest.raises(UsageError, match="column `split`: 'dev': write train, val"):
        split_images(make_images(["train"] * 5 + ["dev"]), 0)
    with pytest.raises(UsageError, match="there is no image for test and validation"):
        split_images(make_images([None] * 4), 0)


# --- train ----------------------------------------------------------------------------------------


def test_targets_that_are_all_alike_have_nothing_to_be_learnt(toy, monkeypatch):
    train_inline(monkeypatch)
    save_toy(toy / "toy.pt", slope=0.0)
    build(toy)
    with pytest.raises(IncompleteError, match="targets are alike .* there is nothing to learn"):
        train(toy)


def test_training_without_a_data_set_says_what_to_run(toy):
    with pytest.raises(UsageError, match="run `iqa-ray metrify build IMAGES"):
        train(toy)


def test_runs_are_kept_and_the_best_seed_is_the_model(toy, monkeypatch):
    done = train_inline(monkeypatch)
    build(toy)
    summary = train(toy, seeds=(0, 4))
    assert done == [0, 4]
    folder = toy / "ws/metrifier"
    assert json.loads((folder / "training.json").read_text()) == summary
    assert summary["num_images"] == 24  # none that is for testing
    assert summary["num_rows"] == {"train": 100, "validation": 20}
    best = min(summary["runs"], key=lambda run: run["validation_rmse"])
    kept = (folder / "model.safetensors").read_bytes()
    assert kept == (folder / f"model-seed{best['seed']}.safetensors").read_bytes()
    again = train(toy, seeds=(0, 4))
    assert done == [0, 4]
    assert again["runs"] == summary["runs"]
    train(toy, seeds=(0,), leave_out=("noise",))
    assert done == [0, 4, 0]
    text = jobs.describe_train(summary)
    assert f"--metrics metrifier:{folder}/model.safetensors" in text


def test_the_epoch_that_counts_is_that_of_the_least_error(toy, monkeypatch):
    train_inline(monkeypatch)
    build(toy)
    summary = train(toy, epochs=4, lr=3e-2)
    (run,) = summary["runs"]
    errors = [row["validation_error"] for row in run["history"]]
    assert run["best_epoch"] == 1 + int(np.argmin(errors))
    assert run["validation_rmse"] == pytest.approx(min(errors) ** 0.5, abs=1e-4)


def test_a_distortion_that_is_not_there_cannot_be_left_out(toy):
    build(toy)
    with pytest.raises(UsageError, match="--leave-out defocus: the data set has no such"):
        train(toy, leave_out=("defocus",))


# --- the whole ------------------------------------------------------------------------------------


def test_the_error_of_a_toy_is_learnt_from_blur(tmp_path, monkeypatch):
    """Its error is a function of blur alone, whose order the metrifier must recover."""
    train_inline(monkeypatch)
    make_toy_images(tmp_path / "photos", 60)
    save_toy(tmp_path / "toy.pt")
    build(tmp_path, distortions=("gaussian_blur",), levels=(1, 2, 3, 4, 5), image_size=32)
    train(tmp_path, epochs=8)
    summary = evaluate(tmp_path)
    srocc, low, high = summary["mixed"]["agreement"]["srocc"]
    assert 0.9 <= srocc <= high
    assert low < srocc
    assert list(summary["mixed"]["voters"]) == ["metrifier", "lapm", "wavs", "confidence", "random"]
    table = pd.read_parquet(tmp_path / "ws/metrifier/risk_coverage.parquet")
    assert set(table["voter"]) == {"metrifier", "lapm", "wavs", "confidence", "random"}
    assert (tmp_path / "ws/metrifier/risk_coverage.png").stat().st_size > 1000
    assert json.loads((tmp_path / "ws/metrifier/evaluation.json").read_text()) == summary
    assert [row["level"] for row in summary["by_level"]] == [0, 1, 2, 3, 4, 5]
    assert summary["left_out"] == []
    text = jobs.describe_evaluate(summary)
    assert f"SROCC {srocc:.3f} [{low:.3f}, {high:.3f}]" in text
    # another network, which is surer where this one is not
    save_toy(tmp_path / "other.pt", slope=-0.8)
    again = evaluate(tmp_path, task_networks=(str(tmp_path / "other.pt"),))
    assert again["mixed"] == summary["mixed"]
    assert again["transfer"]["agreement"]["srocc"][0] < -0.9


def test_distortions_that_were_left_out_are_evaluated_apart(toy, monkeypatch):
    train_inline(monkeypatch)
    build(toy)
    train(toy, leave_out=("noise",))
    summary = evaluate(toy)
    assert summary["mixed"]["num_rows"] == 6 * 3
    (row,) = summary["left_out"]
    assert (row["distortion"], row["num_rows"]) == ("noise", 6 * 2)
    assert "noise, left out of training:" in jobs.describe_evaluate(summary)


def test_predictions_are_those_of_the_metric_on_the_same_pixels(toy, monkeypatch):
    """And metrics are oriented: a better image has more of a quality."""
    train_inline(monkeypatch)
    build(toy)
    train(toy)
    workspace = Workspace(str(toy / "ws"))
    _, images, record = read_dataset(workspace)
    plan = read_copy_plan(record)
    job = make_job(EvaluateMetrifierJob, {"workspace": str(workspace)})
    names = [f"metrifier:{toy}/ws/metrifier/model.safetensors", "lapm", "brisque"]
    found = {}
    with run_inline():
        for raters in gather_raters(names, None):
            found |= rate_copies(workspace, raters, plan, images, job)
    path = images.column("path")[8].as_py()
    square = cut_square(decode_image(Path(path).read_bytes()), plan.image_size)
    copy = distort(square, "noise", level=4, rng=plan.seed)
    for name, sign in zip(names, (1, 1, -1), strict=True):
        expected = sign * metrics.create(name)(copy)
        assert found[name][8, 4] == pytest.approx(expected, rel=1e-5), name


def test_evaluating_without_a_model_says_what_to_run(toy):
    build(toy)
    with pytest.raises(UsageError, match="there is no such file: give one that `iqa-ray metrify"):
        evaluate(toy)
