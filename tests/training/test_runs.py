"""One run of a comparison: resumed, diverged, best epoch; and inputs that lie in pieces."""

from __future__ import annotations

import io
import json
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from trainings import INPUTS, PIXELS, RECIPE, TARGETS, make_run, train, without_times

from iqa_ray.cluster.capacity import Resources
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.files import locate
from iqa_ray.training import loop, parallel, sharing
from iqa_ray.training import runs as runs_module
from iqa_ray.training.augment import augment_images
from iqa_ray.training.inputs import ChunkedImages
from iqa_ray.training.loop import (
    DivergedError,
    compute_features,
    predict_probabilities,
    start_training,
)
from iqa_ray.training.recipe import Recipe
from iqa_ray.training.rows import RowPlan
from iqa_ray.training.runs import Run, RunFiles, train_run


@pytest.fixture
def files(tmp_path):
    return RunFiles(locate(tmp_path))


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


def test_without_a_validation_part_the_last_epoch_counts_and_alone_is_tested(files, monkeypatch):
    run = replace(make_run(), validation=np.empty(0, np.int64), keep_outputs=True, keep_model=True)
    tested = []
    predict = loop.Trainer.predict
    monkeypatch.setattr(
        loop.Trainer, "predict", lambda self, *given: tested.append(1) or predict(self, *given)
    )
    result = train(run, files)
    assert len(tested) == 1
    assert result["best_epoch"] == 4
    assert {row["validation_accuracy"] for row in result["history"]} == {None}
    outputs = files.read_outputs(run)
    assert outputs.shape == (8, 2)
    right = outputs.argmax(1) == TARGETS[run.test].numpy()
    assert result["accuracy"] == result["last_accuracy"] == right.mean()
    trainer = start_training(RECIPE, 2)
    trainer.model.load_state_dict(files.read_model(run))
    assert np.array_equal(predict(trainer, INPUTS, torch.tensor(run.test)), outputs)
    files.forget(run)
    with pytest.raises(FileNotFoundError):
        files.read_outputs(run)


def test_rows_are_trained_as_the_plan_says(undisturbed, tmp_path):
    """Labels that are certain and weights of 1 change nothing; others do, each in its own way."""

    def train_one(name, **plan):
        run = replace(make_run(replace(RECIPE, epochs=1)), plan=RowPlan(**plan))
        return train(run, RunFiles(locate(tmp_path / name)))["history"][0]["loss"]

    before = undisturbed["history"][0]["loss"]
    ones = np.ones(40, np.float32)
    assert train_one("certain", certainties=ones) == pytest.approx(before, rel=1e-4)
    assert train_one("equal", weights=ones) == pytest.approx(before, rel=1e-4)
    half = np.where(np.arange(40) % 2, 1, 0.6).astype(np.float32)
    others = [
        train_one("unsure", certainties=half),
        train_one("light", weights=half),
        train_one("shuffled", certainties=half, is_shuffled=True),
    ]
    assert len({before, *others}) == 4


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


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_outputs_that_are_not_numbers_are_found_on_each_part(files, part):
    run = make_run(Recipe(**{**vars(RECIPE), "freeze_backbone": True}))
    features = torch.randn(40, 512, generator=torch.Generator().manual_seed(0))
    features[getattr(run, part)[3]] = torch.nan
    result = train(run, files, inputs=features)
    assert result["status"] == "diverged"
    said = "the loss is nan" if part == "train" else "the outputs for 1 of 8 images are not numbers"
    assert result["error"] == f"{said} in epoch 1"
    assert result["accuracy"] is None
    assert files.read_result(run)["history"] == []


def test_a_classifier_whose_outputs_are_not_numbers_predicts_nothing():
    model = start_training(RECIPE, 2).model
    with torch.no_grad():
        model.features.bn1.running_var.fill_(torch.nan)
    with pytest.raises(DivergedError, match="the outputs for 5 of 5 images are not numbers"):
        predict_probabilities(model, PIXELS[:5])


def test_weights_that_are_not_numbers_are_a_run_that_diverges(files):
    buffer = io.BytesIO()
    state = start_training(RECIPE, 2).model.state_dict()
    torch.save({name: torch.full_like(value, torch.nan) if value.is_floating_point() else value
                for name, value in state.items()}, buffer)  # fmt: skip
    result = train_run(make_run(), INPUTS, TARGETS, 2, buffer.getvalue(), files, lambda row: None)
    assert result["error"] == "the loss is nan in epoch 1"


def test_a_last_batch_of_one_is_left_out_and_batches_are_never_changed():
    class Watched(ChunkedImages):
        def __getitem__(self, rows):
            sizes.append(len(rows))
            return super().__getitem__(rows)

    sizes: list[int] = []
    inputs = Watched([PIXELS[:16], PIXELS[16:32], PIXELS[32:]])
    start_training(RECIPE, 2).train_epoch(1, inputs, TARGETS, torch.arange(17))
    start_training(RECIPE, 2).train_epoch(1, inputs, TARGETS, torch.arange(18))
    assert sizes == [8, 8, 8, 8, 2]
    with pytest.raises(AssertionError):
        Recipe(**{**vars(RECIPE), "batch_size": 1})


def test_two_that_train_the_same_run_leave_each_other_s_files_alone(undisturbed, files):
    """The second begins while the first writes a checkpoint, and ends before the first does."""
    run, results = make_run(), []

    def train_beside(descriptor):
        if not results:
            results.append(None)
            results[0] = train(run, RunFiles(files._folder))
        fsync(descriptor)

    fsync = os.fsync
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", train_beside)
        results.append(train(run, files))
    assert [without_times(result) for result in results] == [without_times(undisturbed)] * 2
    assert files.read_checkpoint(run) is None


def test_a_run_that_has_its_result_is_not_trained_again(files):
    """Its worker was lost before it could say so."""
    seen = []
    expected = train(make_run(), files)
    assert train(make_run(), files, seen.append) == expected
    assert seen == []


def test_a_result_that_another_writes_meanwhile_is_found(files):
    """A worker of a lost node goes on for a moment: it ends the run before this one looks."""
    run, seen = make_run(), []

    class Overtaken(RunFiles):
        def read_checkpoint(self, run):
            train(run, files)
            return super().read_checkpoint(run)

    result = train(run, Overtaken(files._folder), seen.append)
    assert result == files.read_result(run)
    assert seen == []


def test_what_was_left_half_written_long_ago_is_removed(files, tmp_path):
    run = make_run()
    files.write_checkpoint(run, {"history": [1]})
    for name, age_s in ((".k.pt.0123.tmp", 3600), (".k.pt.4567.tmp", 25 * 3600)):
        half = tmp_path / "checkpoints" / name
        half.write_bytes(b"half")
        os.utime(half, (time.time() - age_s,) * 2)
    assert files.read_checkpoint(run) == {"history": [1]}
    left = {file.name for file in (tmp_path / "checkpoints").iterdir()}
    assert left == {"k.pt", ".k.pt.0123.tmp"}


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


@pytest.fixture
def inline_ray(monkeypatch):
    """Tasks of `sharing` are done when they are asked for; what they return is the reference."""

    class Task:
        def __init__(self, function):
            self.remote = function

        def options(self, **_):
            return self

    context = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(
        sharing,
        "ray",
        SimpleNamespace(
            remote=Task, get=lambda given: given, get_runtime_context=lambda: context,
            exceptions=ray.exceptions,
        ),
    )  # fmt: skip


def share(weights=None):
    hashes = [str(row) for row in range(40)]
    material = sharing.Material(
        [""] * 40, hashes, TARGETS.numpy(), 2, {}, 32, ImageSource(locate("."))
    )
    return sharing.Shared(material, {"resnet18": weights}, {"here": [[PIXELS, hashes]]}, {})


def open_frozen(shared, run):
    return parallel._open_inputs(run, shared, {})[torch.arange(40)]


def freeze(seed, weights="none"):
    settings = {**vars(RECIPE), "freeze_backbone": True, "seed": seed, "weights": weights}
    return make_run(Recipe(**settings), key=str(seed))


def test_frozen_random_networks_are_those_of_their_seeds(inline_ray, files, tmp_path):
    """What a run comes to does not depend on the seeds that are trained beside it."""
    runs = [freeze(seed) for seed in (3, 4, 5)]
    threads = Resources(torch.get_num_threads())
    shared = share()
    shared.features = sharing.compute_shared_features(runs, shared, threads)
    assert len(shared.features) == 3
    for run in runs:
        model = start_training(run.recipe, 2).model
        own = compute_features(model, INPUTS, torch.arange(40))
        assert torch.equal(open_frozen(shared, run), own)
    alone = share()
    alone.features = sharing.compute_shared_features(runs[:1], alone, threads)
    first = train(runs[0], files, inputs=shared.open_features(("resnet18", 3)))
    other = RunFiles(locate(tmp_path / "alone"))
    again = train(runs[0], other, inputs=alone.open_features(("resnet18", 3)))
    assert without_times(first) == without_times(again)


def test_frozen_networks_of_one_file_are_one(inline_ray):
    buffer = io.BytesIO()
    torch.save(start_training(Recipe(**{**vars(RECIPE), "seed": 9}), 2).model.state_dict(), buffer)
    weights = buffer.getvalue()
    runs = [freeze(seed, "w.pt") for seed in (3, 4)]
    shared = share(weights)
    shared.features = sharing.compute_shared_features(
        runs, shared, Resources(torch.get_num_threads())
    )
    assert len(shared.features) == 1
    own = compute_features(
        start_training(runs[0].recipe, 2, weights).model, INPUTS, torch.arange(40)
    )
    for run in runs:
        assert torch.equal(open_frozen(shared, run), own)


# --- evaluation -------------------------------------------------------------------------------


@pytest.fixture
def tf32():
    """GPUs may compute in TF32, as cuDNN does unless told otherwise."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield lambda: [backend.allow_tf32 for backend in backends]
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def test_evaluation_is_in_full_precision(monkeypatch, tf32):
    """Though training is in bf16, here by the CPU's autocast, and TF32 is allowed on GPUs."""
    bf16 = torch.autocast("cpu", torch.bfloat16)
    monkeypatch.setattr(loop, "mixed_precision", lambda *_: bf16)

    def note(*_):
        seen.append([torch.is_autocast_enabled("cpu"), *tf32()])

    trainer, rows, seen = start_training(RECIPE, 2), torch.arange(8), []
    trainer.model.features.register_forward_hook(note)
    trainer.train_epoch(1, INPUTS, TARGETS, rows)
    assert seen == [[True, True, True]]
    seen.clear()
    assert trainer.predict(INPUTS, rows).dtype == np.float32
    compute_features(trainer.model, INPUTS, rows)
    predict_probabilities(trainer.model, PIXELS[:8])
    assert seen == [[False, False, False]] * 3
    assert tf32() == [True, True]


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_gpus_train_in_bf16():
    context = loop.mixed_precision(torch.device("cuda"))
    assert isinstance(context, torch.autocast)
    assert context.fast_dtype == torch.bfloat16


@pytest.mark.parametrize(("has_bf16", "is_asked"), [(True, True), (True, False), (False, True)])
def test_cpus_that_have_bf16_train_in_it_if_asked(monkeypatch, has_bf16, is_asked):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    context = loop.mixed_precision(torch.device("cpu"), is_asked)
    assert isinstance(context, torch.autocast) == (has_bf16 and is_asked)


def test_confident_errors_are_measured():
    """Logits of 60 and 50: in fp32 both probabilities are 1, and the second is of the wrong class.

    The area tells them apart, and the error costs its 50 nats.
    """
    trainer = start_training(Recipe(**{**vars(RECIPE), "freeze_backbone": True, "lr": 1e-12}), 2)
    with torch.no_grad():
        trainer.model.head.weight.zero_()
        trainer.model.head.bias.zero_()
        trainer.model.head.weight[0, 0] = 1
    features = torch.zeros(2, 512)
    features[:, 0] = torch.tensor([60, 50])
    targets, rows = torch.tensor([0, 1]), torch.arange(2)
    tested, _ = runs_module._test(trainer, features, targets, rows)
    assert tested == {"accuracy": 0.5, "auc": 1.0}
    run = Run("key", "all", trainer.recipe, np.arange(2), np.arange(2), np.arange(2))
    row = runs_module._do_epoch(trainer, 1, features, targets, run, rows)
    assert row["validation_loss"] == pytest.approx(25, rel=1e-6)
    assert row["validation_accuracy"] == 0.5


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
