"""One run of a comparison: train, validate every epoch, test at the best one; plain PyTorch.

A run is its key. What is finished is a file and never done again; what was interrupted goes on from
the checkpoint of its last epoch and ends as if nothing had happened.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iqa_ray.storage.files import Location, delete_file, read_whole, remove_unfinished, write_bytes
from iqa_ray.training.evaluation import (
    compute_log_odds,
    measure_accuracy,
    measure_auc,
    measure_loss,
)
from iqa_ray.training.inputs import Inputs
from iqa_ray.training.loop import (
    DivergedError,
    Trainer,
    find_classes,
    split_severity,
    start_training,
)
from iqa_ray.training.recipe import Recipe

Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A classifier to be trained and tested; the rows of each part are those of the inputs.

    `key` says what the run depends on, `arm` what its training images are. With `keep_model` its
    classifier at the best epoch is kept beside the result.
    """

    key: str
    arm: str
    recipe: Recipe
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    keep_model: bool = False

    @property
    def name(self) -> str:
        return f"{self.arm} {self.recipe.backbone} seed {self.recipe.seed}"


class RunFiles:
    """Where results and checkpoints of runs are kept."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder

    def read_result(self, run: Run) -> Result | None:
        """What a finished run came to; None if it is not finished."""
        try:
            loaded: Result = json.loads(read_whole(self._result(run)))
        except FileNotFoundError:
            return None
        return loaded

    def write_result(self, run: Run, result: Result) -> None:
        text = json.dumps(result, allow_nan=False, indent=1)
        write_bytes(self._result(run), text.encode())
        delete_file(self._checkpoint(run))

    def read_checkpoint(self, run: Run) -> dict[str, Any] | None:
        """The state that a run goes on from; None if it has none.

        What writers that were killed long ago left half written is removed. What is young may be
        that of another process, which trains the same run now.
        """
        remove_unfinished(self._folder / "checkpoints")
        try:
            data = read_whole(self._checkpoint(run))
        except FileNotFoundError:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return state

    def write_checkpoint(self, run: Run, state: dict[str, Any]) -> None:
        write_bytes(self._checkpoint(run), _to_bytes(state))

    def read_model(self, run: Run) -> dict[str, Tensor]:
        """The state of a finished run's classifier at its best epoch."""
        data = read_whole(self._model(run))
        state: dict[str, Tensor] = torch.load(
            io.BytesIO(data), map_location="cpu", weights_only=True
        )
        return state

    def write_model(self, run: Run, trainer: Trainer) -> None:
        """Keep the classifier as it is now, if the run keeps any."""
        if run.keep_model:
            write_bytes(self._model(run), _to_bytes(trainer.model.state_dict()))

    def forget(self, run: Run) -> None:
        """Remove what there is of a run."""
        delete_file(self._model(run))
        delete_file(self._result(run))
        delete_file(self._checkpoint(run))

    def _result(self, run: Run) -> Location:
        return self._folder / f"runs/{run.key}.json"

    def _checkpoint(self, run: Run) -> Location:
        return self._folder / f"checkpoints/{run.key}.pt"

    def _model(self, run: Run) -> Location:
        return self._folder / f"models/{run.key}.pt"


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def train_run(
    run: Run,
    inputs: Inputs,
    targets: Tensor,
    num_classes: int,
    weights: bytes | None,
    files: RunFiles,
    on_epoch: Callable[[dict[str, Any]], object],
) -> Result:
    """Do a run, from its checkpoint if it has one, and write its result; or read the one it has.

    A worker may be lost after it wrote the result and before it said so. One that is lost after it
    told of an epoch and before the checkpoint makes the next do that epoch again.

    The epoch that counts is the best of the validation part (see `_rank_epoch`), then the earliest.
    (Smith et al., section 3.2, set a tenth of the images aside, and do not say what for.)

    Args:
        run: which.
        inputs: images, or features where the backbone is frozen.
        targets: (N,) class indices of all inputs.
        num_classes: of the whole comparison.
        weights: content of the file with the backbone's initial weights.
        files: where results and checkpoints go.
        on_epoch: told of each row of the history (see `_do_epoch`, and seconds).

    Returns:
        status (ok, or diverged with an error), accuracy and auc on the test part at the best epoch
        and last_accuracy and last_auc at the last, best_epoch, history (a row an epoch), seconds,
        device, num_train.
    """
    # in this order: a worker that is still at it writes the result before it deletes the checkpoint
    state = files.read_checkpoint(run) or {"history": [], "best": None}
    if (result := files.read_result(run)) is not None:
        return result
    trainer = start_training(run.recipe, num_classes, weights)
    if state["history"]:
        trainer.load_state(state["trainer"])
    history, best, last, error = state["history"], state["best"], None, ""
    parts = {name: torch.tensor(getattr(run, name)) for name in ("train", "validation", "test")}
    for epoch in range(len(history) + 1, run.recipe.epochs + 1):
        start_s = time.monotonic()
        try:
            row = _do_epoch(trainer, epoch, inputs, targets, parts)
            rank = _rank_epoch(row)
            is_best = best is None or rank > best["rank"]
            if is_best or epoch == run.recipe.epochs:
                last = _test(trainer, inputs, targets, parts["test"])
        except DivergedError as diverged:
            error = f"{diverged} in epoch {epoch}"
            break
        if is_best:
            best = {**(last or {}), "rank": rank, "epoch": epoch}
            files.write_model(run, trainer)
        history.append({**row, "seconds": round(time.monotonic() - start_s, 4)})
        on_epoch(history[-1])
        if epoch < run.recipe.epochs:
            state = {"trainer": trainer.dump_state(), "history": history, "best": best}
            files.write_checkpoint(run, state)
    result = _make_result(run, history, best, last, error)
    files.write_result(run, result)
    return result


def _make_result(
    run: Run,
    history: list[dict[str, Any]],
    best: dict[str, Any] | None,
    last: dict[str, Any] | None,
    error: str,
) -> Result:
    found, final = ({}, {}) if error else (best or {}, last or {})
    return {
        "status": "diverged" if error else "ok",
        "error": error,
        "accuracy": found.get("accuracy"),
        "auc": found.get("auc"),
        "last_accuracy": final.get("accuracy"),
        "last_auc": final.get("auc"),
        "best_epoch": found.get("epoch"),
        "history": history,
        "seconds": round(sum(row["seconds"] for row in history), 3),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "num_train": len(run.train),
    }


def _do_epoch(
    trainer: Trainer, epoch: int, inputs: Inputs, targets: Tensor, parts: dict[str, Tensor]
) -> dict[str, Any]:
    loss, accuracy = trainer.train_epoch(epoch, inputs, targets, parts["train"])
    logits, labels, error = _predict_classes(trainer, inputs, targets, parts["validation"])
    row = {
        "epoch": epoch,
        "loss": loss,
        "accuracy": accuracy,
        "validation_loss": measure_loss(logits, labels),
        "validation_accuracy": measure_accuracy(logits, labels),
    }
    return row if error is None else {**row, "validation_error": error}


def _rank_epoch(row: dict[str, Any]) -> list[float]:
    """What the best epoch has the most of: accuracy, then loss; or the least error of a share."""
    if "validation_error" in row:
        return [-row["validation_error"]]
    return [row["validation_accuracy"], -row["validation_loss"]]


def _test(trainer: Trainer, inputs: Inputs, targets: Tensor, rows: Tensor) -> dict[str, Any]:
    logits, labels, _ = _predict_classes(trainer, inputs, targets, rows)
    auc = measure_auc(compute_log_odds(logits), labels)
    return {
        "accuracy": measure_accuracy(logits, labels),
        "auc": auc if np.isfinite(auc) else None,
    }


def _predict_classes(
    trainer: Trainer, inputs: Inputs, targets: Tensor, rows: Tensor
) -> tuple[NDArray[np.float32], NDArray[np.int64], float | None]:
    """(n, C) logits of the classes, the true ones, and the mean squared error of any share."""
    recipe = trainer.recipe
    outputs = torch.from_numpy(trainer.predict(inputs, rows))
    logits, further = split_severity(recipe, outputs)
    error = None
    if recipe.predicts_share:
        assert further is not None
        error = float((further.sigmoid() - targets[rows][:, 1]).square().mean())
    return logits.numpy(), find_classes(recipe, targets[rows]).numpy(), error
