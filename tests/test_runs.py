"""One run of a comparison: resumed, diverged, best epoch; and inputs that lie in pieces."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from iqa_ray.files import locate
from iqa_ray.training import runs as runs_module
from iqa_ray.training.augment import augment_images
from iqa_ray.training.inputs import ChunkedImages
from iqa_ray.training.loop import Recipe, compute_features, start_training
from iqa_ray.training.runs import Run, RunFiles, train_run

RECIPE = Recipe("resnet18", "none", 4, 32, 8, 1e-3, seed=3)


def make_data(size=40):
    """Bright and dark noise, half of it mislabelled, so that there is something left to learn."""
    rng = np.random.default_rng(0)
    labels = np.arange(size) % 2
    pixels = rng.integers(0, 90, (size, 32, 32, 3)) + 120 * labels[:, None, None, None]
    labels[::4] = 1 - labels[::4]
    return pixels.astype(np.uint8), torch.from_numpy(labels)


PIXELS, TARGETS = make_data()
INPUTS = ChunkedImages([PIXELS[:16], PIXELS[16:32], PIXELS[32:]])


def make_run(recipe=RECIPE, key="k", arm="high"):
    rows = np.arange(40)
    return Run(key, arm, recipe, rows[:24], rows[24:32], rows[32:])


@pytest.fixture
def files(tmp_path):
    return RunFiles(locate(tmp_path))


def train(run, files, on_epoch=lambda row: None, inputs=INPUTS):
    return train_run(run, inputs, TARGETS, 2, None, files, on_epoch)


def without_times(result):
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in result["history"]]
    return {**result, "history": history, "seconds": 0}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(make_run(), RunFiles(locate(tmp_path_factory.mktemp("runs"))))


def test_a_result_holds_what_is_promised(undisturbed):
    assert undisturbed["status"] == "ok"
    assert [row["epoch"] for row in undisturbed["history"]] == [1, 2, 3, 4]
    assert set(undisturbed["history"][0]) == {
        "epoch", "loss", "accuracy", "validation_loss", "validation_accuracy", "seconds",
    }  # fmt: skip
    assert 0 <= undisturbed["accuracy"] <= 1
    assert undisturbed["num_train"] == 24
    assert undisturbed["device"] == "cpu"
    assert undisturbed["seconds"] > 0
    json.dumps(undisturbed, allow_nan=False)


def test_the_best_epoch_is_that_of_validation(undisturbed):
    ranks = [
        (row["validation_accuracy"], -row["validation_loss"]) for row in undisturbed["history"]
    ]
    assert undisturbed["best_epoch"] == 1 + ranks.index(max(ranks))


def test_the_same_run_is_the_same_to_the_last_bit(undisturbed, files):
    assert without_times(train(make_run(), files)) == without_times(undisturbed)


@pytest.mark.parametrize("augment", ["none", "standard"])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(undisturbed, files, tmp_path, augment):
    """Interrupted after its second epoch, and in the midst of the fourth."""
    run = make_run(Recipe(**{**vars(RECIPE), "augment": augment}))
    expected = undisturbed
    if augment != "none":
        expected = train(run, RunFiles(locate(tmp_path / "other")))
        assert expected["history"][0]["loss"] != undisturbed["history"][0]["loss"]

    def interrupt(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, files, interrupt)
    assert files.read_result(run) is None
    assert len(files.read_checkpoint(run)["history"]) == 2
    seen = []

    class Failing(ChunkedImages):
        """Gives the third and fourth epochs' first batches and then fails."""

        left = 3 + 1 + 1 + 1

        def __getitem__(self, rows):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("lost")
            return super().__getitem__(rows)

    with pytest.raises(RuntimeError, match="lost"):
        train(run, files, seen.append, Failing([PIXELS[:16], PIXELS[16:32], PIXELS[32:]]))
    result = train(run, files, seen.append)
    assert [row["epoch"] for row in seen] == [3, 4]
    assert without_times(result) == without_times(expected)
    assert files.read_checkpoint(run) is None
    assert without_times(files.read_result(run)) == without_times(expected)


def test_a_run_that_diverges_says_when(files):
    run = make_run(Recipe(**{**vars(RECIPE), "lr": 1e30}))
    result = train(run, files)
    assert result["status"] == "diverged"
    assert result["accuracy"] is None
    assert result["error"].startswith("the loss is ")
    assert "in epoch " in result["error"]
    json.dumps(result, allow_nan=False)
    assert files.read_result(run)["status"] == "diverged"


def test_half_written_checkpoints_are_removed(files, tmp_path):
    run = make_run()
    files.write_checkpoint(run, {"history": [1]})
    for name in (".k.pt.0123.tmp", ".other.pt.0123.tmp"):
        (tmp_path / "checkpoints" / name).write_bytes(b"half")
    assert files.read_checkpoint(run) == {"history": [1]}
    left = {file.name for file in (tmp_path / "checkpoints").iterdir()}
    assert left == {"k.pt", ".other.pt.0123.tmp"}


def test_files_are_forgotten(files):
    run = make_run()
    files.write_checkpoint(run, {"history": []})
    files.write_result(run, {"status": "ok"})
    assert files.read_checkpoint(run) is None
    files.forget(run)
    assert files.read_result(run) is None
    files.forget(run)


def test_arms_share_initial_heads():
    first, second = (start_training(RECIPE, 5).model.head.weight for _ in range(2))
    assert torch.equal(first, second)
    other = start_training(Recipe(**{**vars(RECIPE), "seed": 4}), 5).model.head.weight
    assert not torch.equal(first, other)


def test_frozen_runs_train_the_head_alone(files, monkeypatch):
    recipe = Recipe(**{**vars(RECIPE), "freeze_backbone": True})
    before = start_training(recipe, 2).model
    inputs = compute_features(before, INPUTS, torch.arange(40))
    assert inputs.shape == (40, 512)
    trainers = []

    def keep_trainer(*given):
        trainers.append(start_training(*given))
        return trainers[0]

    monkeypatch.setattr(runs_module, "start_training", keep_trainer)
    result = train(make_run(recipe), files, inputs=inputs)
    assert result["history"][-1]["loss"] < result["history"][0]["loss"]
    (after,) = (trainer.model for trainer in trainers)
    for name, value in before.features.state_dict().items():
        assert torch.equal(after.features.state_dict()[name], value), name
    assert not torch.equal(after.head.weight, before.head.weight)


def test_pieces_are_one():
    rows = torch.tensor([39, 0, 15, 16, 31, 32, 0])
    gathered = INPUTS[rows]
    assert gathered.shape == (7, 3, 32, 32)
    assert gathered.dtype == torch.uint8
    np.testing.assert_array_equal(gathered.permute(0, 2, 3, 1).numpy(), PIXELS[rows.numpy()])


# --- augmentation -----------------------------------------------------------------------------


def test_flips_are_flips():
    images = torch.from_numpy(PIXELS[:16]).permute(0, 3, 1, 2)
    flipped = augment_images(images, "flip", torch.Generator().manual_seed(0))
    is_same = [torch.equal(a, b) for a, b in zip(images, flipped, strict=True)]
    is_flipped = [torch.equal(a.flip(-1), b) for a, b in zip(images, flipped, strict=True)]
    assert all(a or b for a, b in zip(is_same, is_flipped, strict=True))
    assert 0 < sum(is_flipped) < 16
    assert augment_images(images, "none", torch.Generator()) is images


def test_cut_outs_are_parts_of_the_image():
    """Of a ramp from left to right: a part of it, scaled to the whole, forwards or backwards."""
    ramp = torch.linspace(0, 1, 64).expand(200, 3, 64, 64)
    made = augment_images(ramp, "standard", torch.Generator().manual_seed(1))
    assert made.shape == ramp.shape
    assert made.min() >= 0
    assert made.max() <= 1
    spread = (made[:, 0, 32, -1] - made[:, 0, 32, 0]).abs() * 64 / 63
    # the area is at least a half and the ratio at most 4:3: √(0.5 · 3/4) = 0.61 of the width
    assert spread.min() > 0.6
    assert 0.85 < spread.mean() < 1
    assert 60 < int((made[:, 0, 32, -1] < made[:, 0, 32, 0]).sum()) < 140
    bytes_ = augment_images(
        (255 * ramp).to(torch.uint8), "standard", torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(bytes_, made, atol=0.005, rtol=0)
