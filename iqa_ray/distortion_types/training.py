"""Training runs of networks that name distortions, and the models that come of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from iqa_ray.distortion_types.dataset import CLASSES, MAX_SEVERITY
from iqa_ray.distortion_types.evaluation import (
    compute_probabilities,
    evaluate_outputs,
    find_none_below,
    fit_temperature,
)
from iqa_ray.distortion_types.model import ModelCard, TypesModel
from iqa_ray.distortion_types.settings import FROM_SCRATCH, TrainTypesJob
from iqa_ray.errors import UsageError
from iqa_ray.images.decoding import ImageError, hash_content
from iqa_ray.images.source import ImageSource
from iqa_ray.training.backbones import check_backbone, find_backbone
from iqa_ray.training.loop import TRAINING_VERSION
from iqa_ray.training.recipe import Cosine, Recipe
from iqa_ray.training.runs import Run
from iqa_ray.training.sharing import Material
from iqa_ray.weights.backbones import find_weights

# How much larger than its crops the squares are that are kept of images: crops move within that.
# The features of a frozen network are those of one crop.
_MARGIN = 128
# Pixels a side of crops where they are not those of the network's publication: what distortions do
# to an image shows on small crops, of which a CPU computes seven times as many.
_CROP_SIZES = {"simplenet_norm": 96}
# The severity is learnt as a share of the highest, so its squared error is small beside the loss of
# the type.
_SEVERITY_WEIGHT = 4.0
# The share of training in which the learning rate rises.
_WARM_UP = 0.2
_BATCH_SIZE = 16


@dataclass(frozen=True)
class Plan:
    """Runs, one a seed, and what they share."""

    runs: list[Run]
    material: Material
    card: ModelCard


def plan_runs(job: TrainTypesJob, frame: pd.DataFrame, source: ImageSource) -> Plan:
    """The runs of a job.

    Args:
        job: how to train.
        frame: the images: path, label, severity, part, content_hash.
        source: of the images.

    Raises:
        UsageError: weights that cannot be had, or crops that are too small for the network.
    """
    crop_size = job.crop_size or _CROP_SIZES.get(job.network, find_backbone(job.network).image_size)
    weights = job.weights or ("none" if job.network in FROM_SCRATCH else "imagenet")
    path = find_weights(job.network, weights)
    check_backbone(job.network, path, crop_size)
    content = path.read_bytes() if path else None
    present = set(frame["label"])
    classes = tuple(name for name in CLASSES if name in present)
    labels = frame["label"].map({name: place for place, name in enumerate(classes)})
    targets = np.stack([labels, frame["severity"] / MAX_SEVERITY], axis=1).astype(np.float32)
    rows: dict[str, Any] = {
        part: np.flatnonzero(frame["part"] == part) for part in ("train", "validation", "test")
    }
    train_labels = np.asarray(labels, np.int64)[rows["train"]]
    class_weights = _weigh(train_labels, classes, job.class_weights)
    recipe = _make_recipe(job, weights, crop_size, class_weights)
    depends_on = [
        TRAINING_VERSION,
        {**recipe.describe(), "weights": hash_content(content) if content else None},
        classes,
        frame[["content_hash", "label", "part"]].to_numpy().tolist(),
        frame["severity"].fillna(-1).tolist(),
    ]
    runs = []
    for seed in job.seeds:
        text = json.dumps([*depends_on, seed]).encode()
        key = hashlib.blake2b(text, digest_size=12).hexdigest()
        runs.append(Run(key, "distortions", replace(recipe, seed=seed), **rows, keep_model=True))
    material = Material(
        paths=frame["path"].tolist(),
        content_hashes=frame["content_hash"].tolist(),
        targets=targets,
        num_classes=len(classes),
        weights={job.network: content},
        image_size=crop_size if recipe.freeze_backbone else crop_size + _MARGIN,
        source=source,
        fit="crop",
    )
    card = ModelCard(job.network, classes, crop_size, job.num_crops, job.outputs)
    return Plan(runs, material, card)


def _make_recipe(
    job: TrainTypesJob, weights: str, crop_size: int, class_weights: tuple[float, ...]
) -> Recipe:
    """How the networks of a job are trained; the seed is still to come."""
    return Recipe(
        job.network,
        weights,
        job.epochs,
        crop_size,
        job.batch_size,
        job.lr,
        freeze_backbone=job.network not in FROM_SCRATCH,
        loss="cross_entropy" if job.outputs == "softmax" else "binary_cross_entropy",
        class_weights=class_weights,
        schedule=Cosine(_WARM_UP),
        severity_weight=_SEVERITY_WEIGHT,
        random_crops=True,
        bf16_on_cpu=True,
    )


def _weigh(
    labels: NDArray[np.int64], classes: Sequence[str], is_weighted: bool
) -> tuple[float, ...]:
    """One over each class's share, their mean over the images being 1; none if not asked for."""
    if not is_weighted:
        return ()
    counts = np.bincount(labels, minlength=len(classes))
    return tuple(float(len(labels) / (len(classes) * count)) for count in counts)


@dataclass(frozen=True)
class Answers:
    """What a model says of labelled images, and what is true.

    Attributes:
        logits: (n, C).
        severities: (n,) 0 to 5.
        labels: (n,) true classes.
        true_severities: (n,) 0 to 5; NaN where unknown.
        num_mirrored: how many images are smaller than a crop, and were mirrored at their edges.
    """

    logits: NDArray[np.float32]
    severities: NDArray[np.float32]
    labels: NDArray[np.int64]
    true_severities: NDArray[np.float64]
    num_mirrored: int


def compute_answers(model: TypesModel, frame: pd.DataFrame, source: ImageSource) -> Answers:
    """The answers for those images of `frame` that can be decoded.

    Raises:
        UsageError: none can.
    """
    logits, severities, places, num_mirrored = [], [], [], 0
    for start in range(0, len(frame), _BATCH_SIZE):
        images = []
        for place in range(start, min(start + _BATCH_SIZE, len(frame))):
            try:
                images.append(source.decode(source.read(frame["path"].iloc[place])))
            except ImageError:
                continue
            places.append(place)
            num_mirrored += min(images[-1].shape[:2]) < model.card.crop_size
        if images:
            found = model.compute_outputs(images)
            logits.append(found[0])
            severities.append(found[1])
    if not places:
        raise UsageError(f"{source.root}: none of its images can be decoded")
    used = frame.iloc[places]
    labels = used["label"].map(list(model.card.classes).index)
    return Answers(
        np.concatenate(logits),
        np.concatenate(severities),
        np.asarray(labels, np.int64),
        np.asarray(used["severity"], np.float64),
        num_mirrored,
    )


def calibrate(card: ModelCard, answers: Answers) -> ModelCard:
    """The card with a temperature and a limit of `none` that suit the answers."""
    temperature = fit_temperature(answers.logits, answers.labels, card.outputs)
    probabilities = compute_probabilities(answers.logits, temperature, card.outputs)
    return replace(card, temperature=temperature, none_below=find_none_below(probabilities))


def measure_answers(card: ModelCard, answers: Answers) -> dict[str, Any]:
    """All figures of answers (see `evaluate_outputs`), and `num_mirrored`."""
    figures = evaluate_outputs(
        answers.logits,
        answers.severities,
        answers.labels,
        answers.true_severities,
        card.classes,
        card.temperature,
        card.none_below,
        card.outputs,
    )
    return {**figures, "num_mirrored": answers.num_mirrored}
