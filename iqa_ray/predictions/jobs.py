"""Predictions: what a classifier says of the scored images, the user's own or one trained here."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc

from iqa_ray.cluster import connection
from iqa_ray.config import make_job
from iqa_ray.errors import UsageError
from iqa_ray.images.decoding import hash_content
from iqa_ray.images.listing import IMAGES_FILE, IMAGES_SCHEMA
from iqa_ray.images.source import ImageSource
from iqa_ray.predictions.holdout import find_same_images, find_split
from iqa_ray.predictions.predictor import model_file, parts_folder, predict_missing
from iqa_ray.predictions.settings import PredictJob
from iqa_ray.predictions.table import (
    PREDICTIONS_FILE,
    Origins,
    import_predictions,
    judge_predictions,
    read_predictions,
    write_predictions,
)
from iqa_ray.progress import LINE_INTERVAL_S, log
from iqa_ray.storage.files import locate, read_bytes, write_bytes
from iqa_ray.storage.parquet import record_of
from iqa_ray.storage.parts import make_fingerprints
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd


def run_predict(job: PredictJob) -> dict[str, Any]:
    """Write `predictions.parquet` and return the run's summary.

    Raises:
        UsageError: unusable input, or training images among those to be predicted.
        IncompleteError: training or some predictions failed; the next run goes on.
    """
    start_s = time.monotonic()
    workspace = Workspace(job.workspace)
    images = workspace.read_table(IMAGES_FILE, "score IMAGES", IMAGES_SCHEMA)
    workspace.prepare()
    if job.predictions is not None:
        table, origins, details = import_predictions(workspace, images, job.predictions)
    else:
        table, origins, details = _train_and_predict(workspace, images, job)
    write_predictions(workspace, table, origins)
    workspace.record_config("predict", job)
    judged = table.column("correct").drop_null()
    num_correct = int(pc.sum(judged).as_py() or 0)
    return {
        "num_images": images.num_rows,
        "num_predicted": table.num_rows - table.column("predicted").null_count,
        "num_judged": len(judged),
        "num_correct": num_correct,
        "accuracy": round(num_correct / len(judged), 4) if len(judged) else None,
        **details,
        "seconds": round(time.monotonic() - start_s, 3),
        "workspace": str(workspace),
    }


def _train_and_predict(
    workspace: Workspace, images: pa.Table, job: PredictJob
) -> tuple[pa.Table, Origins, dict[str, Any]]:
    source = ImageSource.from_record(record_of(images.schema))
    training, train_source = _choose_training_images(images, job, source)
    chosen, num_held_out = _hold_out(images, source, training, train_source, job)
    classes = _check_classes(training, chosen)
    recipe = _make_recipe(job)
    settings = _describe_recipe(recipe)  # finds and checks weights, before actors start
    with connection.connect(job.address):
        model = _find_model(workspace, training, train_source, settings, recipe)
        predict_missing(workspace, chosen, model.key, source, job.num_actors, job.address)
    if lost := classes - model.classes:
        names = ", ".join(sorted(lost))
        log(f"labels without a training image that can be read are not judged: {names}")
    parts = workspace.parts(parts_folder(model.key)).read(
        ["image_id", "predicted", "confidence", "probability_true", "content_hash"]
    )
    assert parts is not None, "every chosen image has a row"
    frame = chosen.select(["image_id", "path", "label"]).to_pandas()
    frame = frame.merge(parts.to_pandas(), on="image_id")
    hashes = pa.array(frame["content_hash"], pa.string(), from_pandas=True).to_pylist()
    details = {
        "backbone": job.backbone,
        "num_trained_on": model.num_images,
        "num_held_out": num_held_out,
        "model": str(workspace.location / model_file(model.key)),
    }
    return judge_predictions(frame, model.classes), Origins(hashes, model=model.key), details


def _check_classes(training: pa.Table, chosen: pa.Table) -> set[str]:
    """The classes that are trained; says which labels of the others they do not cover."""
    classes = set(training.column("label").to_pylist())
    labels = set(chosen.column("label").to_pylist()) - {None}
    if not labels & classes:
        raise UsageError(
            "no label of the scored images is a class of the training images: compare --labels of "
            f"`score` and `predict` (a class: {min(classes)!r})"
        )
    if labels - classes:
        unseen = ", ".join(sorted(labels - classes))
        log(f"labels that the classifier never sees are not judged: {unseen}")
    return classes


def _make_recipe(job: PredictJob) -> Recipe:
    from iqa_ray.training.backbones import choose_image_size

    assert job.backbone is not None
    image_size = choose_image_size([job.backbone], job.image_size)
    return job.make_recipe(job.backbone, job.seed, image_size)


def _describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Everything that decides what a classifier becomes, but the images and their labels."""
    from iqa_ray.training.backbones import check_backbone
    from iqa_ray.training.loop import TRAINING_VERSION
    from iqa_ray.weights.backbones import find_weights

    weights = find_weights(recipe.backbone, recipe.weights)
    check_backbone(recipe.backbone, weights, recipe.image_size)
    return {
        "version": TRAINING_VERSION,
        **recipe.describe(),
        "weights_hash": hash_content(weights.read_bytes()) if weights else None,
    }


@dataclass(frozen=True)
class _Model:
    """A trained classifier in the workspace: on how many images, and the labels it can say."""

    key: str
    num_images: int
    classes: set[str]


def _make_key(training: pa.Table, settings: dict[str, Any]) -> str:
    """The key of a model that was trained on all images of `training`."""
    text = json.dumps({**settings, "labels": training.column("label").to_pylist()})
    return hashlib.blake2b(make_fingerprints(training, text).tobytes(), digest_size=10).hexdigest()


def _find_model(
    workspace: Workspace,
    training: pa.Table,
    source: ImageSource,
    settings: dict[str, Any],
    recipe: Recipe,
) -> _Model:
    """The model of these images, trained now if there is none.

    It is kept under the key of the images that were read: one that was away and comes back makes
    another key, and so another training.
    """
    from iqa_ray.training import loop, single

    key = _make_key(training, settings)
    if workspace.has(model_file(key)):
        log(f"{recipe.backbone} was trained on these {training.num_rows:,} images before")
        loaded = loop.load_checkpoint(read_bytes(workspace.location / model_file(key)))
        return _Model(key, training.num_rows, set(loaded["classes"]))
    log(f"training {recipe.backbone} on {training.num_rows:,} images for {recipe.epochs} epochs")
    paths, labels = (training.column(name).to_pylist() for name in ("path", "label"))
    data = single.train_on_ray(
        recipe,
        loop.TrainingSet(source, paths, labels),
        workspace.location / "train",
        key,
        _TrainingReport(recipe.epochs),
    )
    loaded = loop.load_checkpoint(data)
    if unread := loaded["unread"]:
        training = training.filter(pa.array(~np.isin(np.arange(len(paths)), unread)))
        key = _make_key(training, settings)
        log(
            f"{len(unread):,} training images could not be read, such as {paths[unread[0]]!r}: "
            "the model is kept as one of the others alone, and the next run trains anew (run "
            "`iqa-ray score` before it if they are gone for good)"
        )
    if not workspace.has(model_file(key)):  # its predictions would be of another one
        write_bytes(workspace.location / model_file(key), data)
    return _Model(key, training.num_rows, set(loaded["classes"]))


class _TrainingReport:
    """Says how training goes: every epoch, or one every few seconds where epochs are quick."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._last_line_s = -LINE_INTERVAL_S

    def __call__(self, event: dict[str, Any]) -> None:
        if "loaded" in event:
            lost = f", {event['unreadable']} of them unreadable" if event["unreadable"] else ""
            log(f"loaded {event['loaded']:,} training images{lost}")
            return
        now_s = time.monotonic()
        if event["epoch"] < self._epochs and now_s - self._last_line_s < LINE_INTERVAL_S:
            return
        self._last_line_s = now_s
        log(
            f"epoch {event['epoch']} of {self._epochs}: loss {event['loss']:.4f}, "
            f"accuracy {event['accuracy']:.3f}, {event['seconds']:.1f} s"
        )


def _choose_training_images(
    images: pa.Table, job: PredictJob, source: ImageSource
) -> tuple[pa.Table, ImageSource]:
    """The labelled images to train on, and where they lie."""
    if job.train_images is not None:
        source = ImageSource(locate(job.train_images), source.max_pixels)
        training, where = source.list(job.labels).table, job.train_images
    else:
        assert job.split is not None
        in_split = find_split(images, job.split, job.seed)
        training, where = images.filter(pa.array(in_split)), f"--split {job.split}"
    # a file without a size was absent when it was listed
    for name in ("label", "size_bytes"):
        training = training.filter(pc.is_valid(training.column(name)))
    if pc.count_distinct(training.column("label")).as_py() < 2:
        raise UsageError(f"{where}: training needs labelled images of at least two classes")
    return training, source


def _hold_out(
    images: pa.Table,
    source: ImageSource,
    training: pa.Table,
    train_source: ImageSource,
    job: PredictJob,
) -> tuple[pa.Table, int]:
    """The images to predict: none that the classifier was trained on, by path or by content."""
    same = find_same_images(images, source, training, train_source)
    if job.train_images is not None and same.any():
        first = images.column("path")[int(np.flatnonzero(same)[0])].as_py()
        raise UsageError(
            f"--train-images {job.train_images}: {same.sum():,} of them are among the scored "
            f"images (such as {first!r}), and cut-offs must not be fitted on training images: "
            "give others, or hold a part of the scored images out with --split"
        )
    num_copies = int(same.sum()) - (training.num_rows if job.split else 0)
    if num_copies > 0:
        log(f"{num_copies:,} images have the same content as a training image: held out as well")
    if same.all():
        raise UsageError(f"--split {job.split}: it leaves no image to predict")
    if job.split:
        log(f"held out for training (split {job.split}): {training.num_rows:,} images")
    return images.filter(pa.array(~same)), int(same.sum())


def predict(workspace: str, predictions: str | None = None, **settings: Any) -> pd.DataFrame:
    """Get a prediction for every scored image and return them, one row an image.

    Args:
        workspace: folder or URI of the tables, with scores.
        predictions: a CSV or Parquet table of your own model's predictions; without one,
            `settings` must name a `backbone` to train.
        settings: further settings of `PredictJob`, such as `backbone`, `split` or `train_images`.

    Returns:
        image_id, path, label, predicted, confidence, probability_true (if it is known), correct.

    Raises:
        ValueError: unusable input (an `iqa_ray.errors.UsageError`).
        IncompleteError: training or some predictions failed; calling again goes on.
    """
    given = {"workspace": str(workspace), "predictions": predictions and str(predictions)}
    job = make_job(PredictJob, {**given, **settings})
    run_predict(job)
    return read_predictions(Workspace(job.workspace))[0]


def describe_predictions(summary: dict[str, Any]) -> str:
    """The summary for people."""
    accuracy = "unknown" if summary["accuracy"] is None else f"{summary['accuracy']:.1%}"
    lines = [
        f"predictions for {summary['num_predicted']:,} of {summary['num_images']:,} images, "
        f"right on {summary['num_correct']:,} of {summary['num_judged']:,} ({accuracy})"
    ]
    if "backbone" in summary:
        lines.append(
            f"{summary['backbone']} trained on {summary['num_trained_on']:,} images; "
            f"{summary['num_held_out']:,} scored images held out"
        )
    lines.append(f"written: {summary['workspace']}/{PREDICTIONS_FILE}")
    return "\n".join(lines)
