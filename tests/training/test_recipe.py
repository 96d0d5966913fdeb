"""Recipes: what they mean in the training loop, and that results stay what they were."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from trainings import INPUTS, TARGETS

from iqa_ray.experiments import arms
from iqa_ray.experiments.settings import CompareJob
from iqa_ray.images.source import ImageSource
from iqa_ray.predictions import jobs as predictions_jobs
from iqa_ray.predictions.settings import PredictJob
from iqa_ray.storage.files import locate
from iqa_ray.training import backbones, loop
from iqa_ray.training.augment import augment_images
from iqa_ray.training.backbones import Classifier
from iqa_ray.training.loop import (
    Trainer,
    compute_features,
    compute_loss,
    make_optimiser,
    start_training,
    train_classifier,
)
from iqa_ray.training.recipe import Cosine, Recipe, Steps
from iqa_ray.training.runs import Run, RunFiles, train_run


def make_images(size, side):
    """Bright and dark noise, a quarter of it mislabelled: (size, side, side, 3), (size,)."""
    rng = np.random.default_rng(0)
    labels = np.arange(size) % 2
    pixels = rng.integers(0, 90, (size, side, side, 3)) + 120 * labels[:, None, None, None]
    labels[::4] = 1 - labels[::4]
    return pixels.astype(np.uint8), labels


@pytest.fixture
def one_thread(monkeypatch):
    """Of a CPU."""
    monkeypatch.setattr(loop, "pick_device", lambda: torch.device("cpu"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train_plainly(recipe, pixels, labels):
    """What training was before recipes said how: Adam and cross-entropy, written out."""
    torch.manual_seed(recipe.seed)
    model = backbones.create(recipe.backbone, 2, recipe.weights)
    network = (model.head if recipe.freeze_backbone else model).train()
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(recipe.seed)
    inputs, targets = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels)
    if recipe.freeze_backbone:
        inputs = compute_features(model, inputs, torch.arange(len(labels)))
    rows = []
    for _ in range(recipe.epochs):
        network.train()
        total = torch.zeros(2)
        order = torch.randperm(len(labels), generator=generator)
        for batch in order.split(recipe.batch_size):
            images = augment_images(inputs[batch], recipe.augment, generator)
            optimizer.zero_grad()
            logits = network(images)
            loss = torch.nn.functional.cross_entropy(logits, targets[batch])
            loss.backward()
            optimizer.step()
            right = (logits.argmax(1) == targets[batch]).sum()
            total += torch.stack([loss.detach() * len(batch), right])
        rows.append(tuple((total / len(labels)).tolist()))
    return rows, model.state_dict()


@pytest.mark.parametrize(
    ("recipe", "losses"),
    [
        (Recipe("resnet18", "none", 2, 32, 8, 1e-5, False, 3, "standard"), [0.58214, 0.56785]),
        (Recipe("resnet18", "none", 3, 32, 8, 1e-3, True, 3), [0.61481, 0.55174, 0.52624]),
        (
            Recipe("simplenet", "none", 3, 64, 8, 1e-3, False, 1, "flip"),
            [0.58437, 0.79457, 0.60696],
        ),
    ],
    ids=["whole", "frozen", "simplenet"],
)
def test_training_is_what_it_was_to_the_last_bit(one_thread, recipe, losses):
    """Against a plain loop on this machine, and losses recorded before recipes said how to train.

    Those are of PyTorch 2.15.0 on an x86-64 CPU; with AVX-512, AVX2 or SSE they differ by 2e-6.
    """
    pixels, labels = make_images(24, recipe.image_size)
    told = []
    model = train_classifier(recipe, pixels, labels, 2, told.append)
    rows, state = train_plainly(recipe, pixels, labels)
    assert [(row["loss"], row["accuracy"]) for row in told] == rows
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert [loss for loss, _ in rows] == pytest.approx(losses, abs=1e-4)


def test_an_optimiser_is_as_it_was_when_interrupted_runs_wrote_its_state():
    model = make_linear(0.0)
    plain = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=0.0)
    assert make_optimiser(Recipe("linear"), model).state_dict() == plain.state_dict()


# --- what a recipe says ---------------------------------------------------------------------------


def test_steps_multiply_the_learning_rate_after_each_of_them():
    recipe = Recipe("resnet18", lr=0.5, schedule=Steps(2, 0.25))
    assert [recipe.find_lr(done) for done in range(5)] == [0.5, 0.5, 0.125, 0.125, 0.03125]
    assert recipe.find_lr(1.99) == 0.5
    assert Recipe("resnet18", lr=0.5).find_lr(1000) == 0.5


def test_a_cosine_rises_to_the_learning_rate_and_falls_from_it():
    recipe = Recipe("resnet18", lr=0.5, epochs=8, schedule=Cosine(0.25))
    high, low = 0.25 + 0.25 * 0.5**0.5, 0.25 - 0.25 * 0.5**0.5
    expected = {0: 0, 0.5: 0.125, 1: 0.25, 2: 0.5, 3.5: high, 5: 0.25, 6.5: low, 8: 0}
    found = {done: recipe.find_lr(done) for done in expected}
    assert found == pytest.approx(expected)


def test_the_learning_rate_changes_with_every_step(monkeypatch):
    recipe = Recipe("resnet18", "none", 3, 32, 16, 1e-3, schedule=Cosine(0.0))
    trainer, seen = start_training(recipe, 2), []
    step = trainer._optimizer.step
    monkeypatch.setattr(
        trainer._optimizer,
        "step",
        lambda: (seen.append(trainer._optimizer.param_groups[0]["lr"]), step()),
    )
    trainer.train_epoch(2, INPUTS, TARGETS, torch.arange(32))
    assert seen == [recipe.find_lr(1.25), recipe.find_lr(1.75)]


def test_a_layer_s_weight_decay_is_that_of_the_longest_name():
    decays = (("features.fc1", 0.25), ("features", 0.5), ("features.fc1.bias", 0.0))
    recipe = Recipe("resnet18", weight_decay=1.0, layer_decays=decays)
    assert {
        name: recipe.find_weight_decay(name)
        for name in ("features.fc1.weight", "features.fc1.bias", "features.fc10.bias", "head.bias")
    } == {
        "features.fc1.weight": 0.25,
        "features.fc1.bias": 0.0,
        "features.fc10.bias": 0.5,
        "head.bias": 1.0,
    }


def test_adam_takes_no_momentum():
    with pytest.raises(AssertionError):
        Recipe("resnet18", momentum=0.9)


# --- what it means --------------------------------------------------------------------------------


def make_linear(weight, num_outputs=1):
    """A network without features: its first output is `weight` times the red value."""
    model = Classifier(nn.Flatten(), 3, num_outputs, (0.0,) * 3, (1.0,) * 3)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
        model.head.weight[0, 0] = weight
    return model


def train_linear(recipe, model, targets, epochs=1):
    """Train on red images; returns what each epoch says, and the first weight and bias."""
    images = torch.tensor([1.0, 0.0, 0.0]).expand(len(targets), 3).reshape(-1, 3, 1, 1)
    trainer, rows = Trainer(recipe, model), torch.arange(len(targets))
    told = [trainer.train_epoch(epoch, images, targets, rows) for epoch in range(1, epochs + 1)]
    return told, model.head.weight[0, 0].item(), model.head.bias[0].item()


def test_two_steps_of_gradient_descent_by_hand():
    """Output w + b against 3: both gradients are 2 (w + b - 3), that of w has w / 2 added.

    Epoch 1: -4 + 0.5 and -4, times -0.1: w = 1.35, b = 0.4.
    Epoch 2: -2.5 + 0.675 and -2.5, and half of the steps before: -3.575 and -4.5, times -0.01.
    """
    recipe = Recipe(
        "linear", lr=0.1, loss="squared_error", optimiser="sgd", momentum=0.5,
        layer_decays=(("head.weight", 0.5),), schedule=Steps(1, 0.1),
    )  # fmt: skip
    told, weight, bias = train_linear(recipe, make_linear(1.0), torch.full((2, 1), 3.0), epochs=2)
    assert [loss for loss, _ in told] == pytest.approx([4, 1.25**2])
    assert np.isnan([accuracy for _, accuracy in told]).all()  # one output names no class
    assert (weight, bias) == pytest.approx((1.35 + 0.03575, 0.4 + 0.045))


def test_every_training_counts_its_epochs(tmp_path):
    """A learning rate of zero after the first epoch leaves what it came to."""
    recipe = Recipe("resnet18", "none", 3, 32, 8, 1e-3, True, schedule=Steps(1, 0.0))
    pixels, labels = make_images(16, 32)
    model = train_classifier(recipe, pixels, labels, 2)
    first = train_classifier(replace(recipe, epochs=1), pixels, labels, 2)
    assert torch.equal(model.head.weight, first.head.weight)
    rows = np.arange(16)
    run = Run("key", "high", recipe, rows, rows, rows)
    features = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
    told = []
    train_run(
        run, features, torch.from_numpy(labels), 2, None, RunFiles(locate(tmp_path)), told.append
    )
    losses = [row["validation_loss"] for row in told]
    assert len(losses) == 3
    assert losses[0] == losses[1] == losses[2]


def test_one_step_of_adam_by_hand():
    """The first step is the learning rate, against the gradient's sign; that of the loss is 0."""
    recipe = Recipe("linear", lr=0.125, loss="squared_error", weight_decay=0.5)
    still = replace(recipe, layer_decays=(("head", 0.0),))
    targets = torch.ones(2, 1)
    assert train_linear(recipe, make_linear(1.0), targets)[1:] == pytest.approx((0.875, 0))
    assert train_linear(still, make_linear(1.0), targets)[1:] == (1, 0)


def test_losses_by_hand():
    outputs = torch.tensor([[1.0, 3.0]]).log()  # probabilities of 1/4 and 3/4
    soft = compute_loss("cross_entropy", outputs, torch.tensor([[0.5, 0.5]]))
    assert soft.item() == pytest.approx(np.log(16 / 3) / 2)
    assert compute_loss("cross_entropy", outputs, torch.tensor([0])).item() == pytest.approx(
        np.log(4)
    )
    values = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    assert compute_loss("squared_error", values, torch.zeros(2, 2)).item() == (1 + 4 + 16) / 4
    with pytest.raises(AssertionError):
        compute_loss("squared_error", values, torch.zeros(2))


def test_certain_probabilities_are_class_indices():
    recipe, classes = Recipe("linear", lr=0.1), torch.tensor([0, 1, 1, 0, 1, 1])
    indices = train_linear(recipe, make_linear(1.0, 3), classes, epochs=2)
    certain = nn.functional.one_hot(classes, 3).float()
    probabilities = train_linear(recipe, make_linear(1.0, 3), certain, epochs=2)
    np.testing.assert_allclose(np.array(probabilities[0]), np.array(indices[0]), rtol=1e-6)
    assert probabilities[1:] == pytest.approx(indices[1:])
    assert indices[0][0][1] == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("layer", "freeze"), [("fc", False), ("head.weights", False), ("features.bn1", True)]
)
def test_a_layer_that_is_not_trained_has_no_weight_decay(layer, freeze):
    model = backbones.create("resnet18", 2)
    recipe = Recipe("resnet18", freeze_backbone=freeze, layer_decays=((layer, 0.5),))
    with pytest.raises(ValueError, match=f"resnet18 has no parameter {layer} to be trained"):
        make_optimiser(recipe, model)


# --- from settings, and into keys -----------------------------------------------------------------


def test_settings_have_the_defaults_of_recipes():
    job = CompareJob(workspace="ws")
    assert job.make_recipe("resnet18", 0, 224) == Recipe("resnet18")
    given = PredictJob(
        workspace="ws", backbone="simplenet", split="0.5", weights="none", epochs=3, lr=0.01,
        batch_size=4, freeze_backbone=True, seed=7,
    )  # fmt: skip
    assert predictions_jobs._make_recipe(given) == Recipe(
        "simplenet", "none", 3, 256, 4, 0.01, True, 7
    )


def make_keys(job, weights):
    rows = [("train", "a", "x"), ("train", "b", "y"), ("validation", "c", "x"), ("test", "d", "y")]
    splits = pd.DataFrame(rows, columns=["part", "image_id", "label"]).assign(arm="high")
    pool = splits[["image_id", "label"]].assign(content_hash=["1", "2", "3", "4"])
    candidates = arms.Candidates(pool, (), ImageSource(locate("photos"), 1000))
    runs = arms._make_runs(
        job, ["resnet18"], splits, pool, candidates, {"resnet18": weights}, job.image_size
    )
    return [run.key for run in runs]


def test_runs_that_were_finished_before_recipes_said_how_to_train_are_found():
    job = CompareJob(workspace="ws", weights="none", seeds=(0, 3), image_size=64, augment="flip")
    assert make_keys(job, None) == ["107bd63e91785179c628caa9", "19d74546717bece9fa0d935b"]
    assert make_keys(job, b"weights") == ["ee649586930b86648b3eb3f3", "995d5cf32961d01017e8bb08"]


def test_models_that_were_trained_before_recipes_said_how_to_train_are_found():
    recipe = Recipe("simplenet", "none", 3, 256, 4, 0.01, True, 7)
    # its text is part of the key
    assert json.dumps(predictions_jobs._describe_recipe(recipe)) == (
        '{"version": 2, "backbone": "simplenet", "weights": "none", "epochs": 3, "image_size": 256,'
        ' "batch_size": 4, "lr": 0.01, "freeze_backbone": true, "seed": 7, "augment": "none", '
        '"weights_hash": null}'
    )


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "squared_error"},
        {"optimiser": "sgd"},
        {"weight_decay": 0.5},
        {"layer_decays": (("head", 0.5),)},
        {"schedule": Steps(2, 0.5)},
        {"schedule": Cosine(0.5)},
        {"bf16_on_cpu": True},
    ],
)
def test_another_way_to_train_is_another_key(change):
    recipe = Recipe("resnet18")
    other = json.dumps(replace(recipe, **change).describe())
    assert other != json.dumps(recipe.describe())
    (name,) = change
    assert name in json.loads(other)
