"""Training on crops at full resolution, with a severity beside the classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from trainings import INPUTS, PIXELS, TARGETS, make_material, make_run, without_times

from iqa_ray.storage.files import locate
from iqa_ray.training import sharing
from iqa_ray.training.augment import cut_centre
from iqa_ray.training.inputs import CentreOf, ChunkedImages
from iqa_ray.training.loop import start_training
from iqa_ray.training.pixels import cut_crops, load_pixels
from iqa_ray.training.recipe import Recipe, Steps
from iqa_ray.training.runs import RunFiles, train_run

RECIPE = Recipe(
    "resnet18", "none", 3, 24, 8, 1e-3, seed=3, severity_weight=1.0, random_crops=True,
    class_weights=(1.0, 2.0),
)  # fmt: skip
SEVERITIES = torch.where(TARGETS == 0, torch.nan, torch.arange(40) / 40)
PAIRS = torch.stack([TARGETS.float(), SEVERITIES], 1)


def train(files, recipe=RECIPE, on_epoch=lambda row: None, keep_model=True):
    run = make_run(recipe)
    run = type(run)(**{**vars(run), "keep_model": keep_model})
    return run, train_run(run, INPUTS, PAIRS, 2, None, files, on_epoch)


def test_a_run_with_two_heads_is_resumed_to_the_last_bit(tmp_path):
    _, expected = train(RunFiles(locate(tmp_path / "a")))
    assert expected["status"] == "ok"
    assert 0 <= expected["accuracy"] <= 1
    files = RunFiles(locate(tmp_path / "b"))

    def interrupt(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(files, on_epoch=interrupt)
    assert without_times(train(files)[1]) == without_times(expected)


@pytest.mark.parametrize("change", [{"severity_weight": 2.0}, {"class_weights": ()}])
def test_weights_change_what_is_learnt(tmp_path, change):
    _, expected = train(RunFiles(locate(tmp_path / "a")))
    _, other = train(RunFiles(locate(tmp_path / "b")), Recipe(**{**vars(RECIPE), **change}))
    assert other["history"][0]["loss"] != expected["history"][0]["loss"]


def test_the_classifier_that_is_kept_is_that_of_the_best_epoch(tmp_path):
    files = RunFiles(locate(tmp_path))
    recipe = replace(RECIPE, schedule=Steps(1, 100.0))  # after the first epoch all is undone
    run, result = train(files, recipe)
    assert result["best_epoch"] < 3, "the last epoch's would be the same"
    model = start_training(recipe, 2).model
    model.load_state_dict(files.read_model(run))
    images = cut_centre(INPUTS[torch.tensor(run.test)], 24)
    with torch.inference_mode():
        outputs = model.eval()(images)
    assert outputs.shape == (8, 3)
    accuracy = (outputs[:, :2].argmax(1) == TARGETS[run.test]).float().mean().item()
    assert accuracy == result["accuracy"]
    files.forget(run)
    with pytest.raises(FileNotFoundError):
        files.read_model(run)


def test_no_classifier_is_kept_unless_it_is_asked_for(tmp_path):
    train(RunFiles(locate(tmp_path)), keep_model=False)
    assert not (tmp_path / "models").exists()


def test_evaluation_sees_the_centre():
    """As near as multiples of 8 come to it: of 8 pixels too many none are cut off before it."""
    trainer = start_training(RECIPE, 2)
    changed = PIXELS.copy()
    changed[:, 24:] = 0
    changed[:, :, 24:] = 255
    rows = torch.arange(8)
    expected = trainer.predict(INPUTS, rows)
    np.testing.assert_array_equal(trainer.predict(ChunkedImages([changed]), rows), expected)
    changed[:, 0] = 0
    assert (trainer.predict(ChunkedImages([changed]), rows) != expected).any()


def test_squares_are_cut_without_scaling(image_folder):
    material = make_material(image_folder(3))
    pixels, hashes = load_pixels(material.source, material.paths, 80, 1, None, "crop")
    assert hashes == material.content_hashes
    for made, path in zip(pixels, material.paths, strict=True):
        image = material.source.decode(material.source.read(path))
        assert image.shape[0] < 80
        np.testing.assert_array_equal(made, cut_crops(image, 80, 1)[0])


def test_features_of_a_frozen_network_are_those_of_the_centre(monkeypatch):
    shared = sharing.Shared(None, {"resnet18": None}, {}, {})
    monkeypatch.setattr(sharing.ray, "get", lambda value: value)
    monkeypatch.setattr(sharing.Shared, "open_images", lambda _: INPUTS)
    recipe = Recipe(**{**vars(RECIPE), "freeze_backbone": True})
    found = sharing._extract(recipe, shared, np.arange(8), torch.get_num_threads())
    model = start_training(recipe, 1).model
    with torch.inference_mode():
        expected = model.eval().extract_features(CentreOf(INPUTS, 24)[torch.arange(8)])
    assert CentreOf(INPUTS, 24)[torch.arange(8)].shape == (8, 3, 24, 24)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_new_settings_are_not_in_the_keys_of_those_that_lack_them():
    """Runs from before are still found."""
    assert not {"class_weights", "severity_weight", "random_crops"} & set(
        Recipe("resnet18").describe()
    )
    assert RECIPE.describe()["random_crops"] is True
