"""Runs on few small images, and their results."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from iqa_ray.cluster import connection
from iqa_ray.cluster.capacity import Resources
from iqa_ray.images.decoding import hash_content
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.files import locate
from iqa_ray.training import parallel
from iqa_ray.training.inputs import CentreOf, ChunkedImages, DistortedImages
from iqa_ray.training.loop import compute_features, start_training
from iqa_ray.training.parallel import RunFailure
from iqa_ray.training.pixels import load_pixels
from iqa_ray.training.recipe import Recipe
from iqa_ray.training.runs import Run, RunFiles, train_run
from iqa_ray.training.sharing import Material


def without_times(result):
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in result["history"]]
    return {**result, "history": history, "seconds": 0}


def make_material(folder):
    paths = sorted(map(str, folder.rglob("*.jpg")))
    targets = np.array([int(Path(path).parent.name == "b") for path in paths])
    hashes = [hash_content(Path(path).read_bytes()) for path in paths]
    return Material(paths, hashes, targets, 2, {"resnet18": None}, 32, ImageSource(locate(folder)))


def make_runs(num=4, **settings):
    rows = np.random.default_rng(0).permutation(30)
    recipe = {"epochs": 3, "image_size": 32, "batch_size": 8, "lr": 1e-3, **settings}
    return [
        Run(
            f"{arm}-{seed}", arm, Recipe("resnet18", "none", seed=seed, **recipe),
            rows[:18], rows[18:24], rows[24:],
        )
        for arm in ("high", "all")
        for seed in range(num // 2)
    ]  # fmt: skip


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


def train(run, files, on_epoch=lambda row: None, inputs=INPUTS):
    return train_run(run, inputs, TARGETS, 2, None, files, on_epoch)


def replace_training(monkeypatch, train_runs):
    """Let `train_runs` stand for that of `training.parallel`, without Ray."""
    monkeypatch.setattr(connection, "connect", lambda _: nullcontext())
    monkeypatch.setattr(parallel, "plan_parallel_runs", lambda *_: (Resources(), 1))
    monkeypatch.setattr(parallel, "train_runs", train_runs)


def pretend(monkeypatch, results):
    """Let runs come to `results`, one after the other, without training."""

    def train(todo, material, place, plan, on_event):
        failures = []
        for run, result in zip(todo, results, strict=True):
            if isinstance(result, str):
                failures.append(RunFailure(run, result))
            else:
                RunFiles(place).write_result(run, result)
        return failures

    replace_training(monkeypatch, train)


def train_inline(monkeypatch):
    """Let `train_missing` do runs in this process; the list that it returns names their seeds."""
    done = []

    def train_runs(runs, material, folder, plan, on_event):
        pixels, hashes = load_pixels(
            material.source, material.paths, material.image_size, 1, None, material.fit
        )
        assert hashes == material.content_hashes
        images, rows = ChunkedImages([pixels]), torch.arange(material.num_inputs)
        if material.copies is not None:
            images = DistortedImages(images, material.copies, 1)
        for run in runs:
            done.append(run.recipe.seed)
            weights, inputs = material.weights[run.recipe.backbone], images
            if run.recipe.freeze_backbone:
                frozen = start_training(run.recipe, 1, weights).model
                is_cut = run.recipe.random_crops
                seen = CentreOf(images, run.recipe.image_size) if is_cut else images
                inputs = compute_features(frozen, seen, rows)
            result = train_run(
                run, inputs, torch.tensor(material.targets),
                material.num_classes, weights, RunFiles(folder),
                lambda row, key=run.key: on_event({"epoch": row, "key": key}),
            )  # fmt: skip
            on_event({"finished": run.key, "result": result})
        return []

    replace_training(monkeypatch, train_runs)
    return done


def ok(accuracy):
    return {
        "status": "ok", "error": "", "accuracy": accuracy, "auc": accuracy, "best_epoch": 1,
        "last_accuracy": accuracy, "last_auc": accuracy, "history": [], "seconds": 1.0,
        "device": "cpu", "num_train": 9,
    }  # fmt: skip
