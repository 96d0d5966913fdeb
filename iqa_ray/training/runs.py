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
from iqa_ray.training.rows import AS_THEY_ARE, RowPlan

Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A classifier to be trained and tested; the rows of each part are those of the inputs.

    `key` says what the run depends on, `arm` what its training images are, `plan` how these are
    treated. With `keep_model` its classifier at the best epoch is kept beside the result, with
    `keep_outputs` its outputs for the test part. Without a validation part the last epoch is the
    best.
    """

    key: str
    arm: str
    recipe: Recipe
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    keep_model: bool = False
    keep_outputs: bool = False
    plan: RowPlan = AS_THEY_ARE

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

    def write_best(self, run: Run, trainer: Trainer, logits: NDArray[np.float32]) -> None:
        """Keep the classifier as it is now, and its logits for the test part, if the run does."""
        if run.keep_model:
            write_bytes(self._model(run), _to_bytes(trainer.model.state_dict()))
        if run.keep_outputs:
            buffer = io.BytesIO()
            np.save(buffer, logits)
            write_bytes(self._outputs(run), buffer.getvalue())

    def read_outputs(self, run: Run) -> NDArray[np.float32]:
        """(n, C) logits of a finished run for its test part, at its best epoch."""
        loaded = np.load(io.BytesIO(read_whole(self._outputs(run))), allow_pickle=False)
        return np.asarray(loaded, np.float32)

    def forget(self, run: Run) -> None:
        """Remove what there is of a run."""
        delete_file(self._outputs(run))
        delete_file(self._model(run))
        delete_file(self._result(run))
        delete_file(self._checkpoint(run))

    def _result(self, run: Run) -> Location:
        return self._folder / f"runs/{run.key}.json"

    def _checkpoint(self, run: Run) -> Location:
        return self._folder / f"checkpoints/{run.key}.pt"

    def _model(self, run: Run) -> Location:
        return self._folder / f"models/{run.key}.pt"

    def _outputs(self, run: Run) -> Location:
        return self._folder / f"outputs/{run.key}.npy"


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

    The epoch that counts is the best of the validation part (see `_rank_epoch`), then the earliest
    (Smith et al., section 3.2, set a tenth aside and do not say what for); without one the last.

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
    parts = {name: torch.tensor(getattr(run, name)) for name in ("validation", "test")}
    for epoch in range(len(history) + 1, run.recipe.epochs + 1):
        start_s = time.monotonic()
        is_last = epoch == run.recipe.epochs
        try:
            row = _do_epoch(trainer, epoch, inputs, targets, run, parts["validation"])
            rank, is_best = _rank_epoch(row, best, is_last)
            if is_best or is_last:
                last, logits = _test(trainer, inputs, targets, parts["test"])
        except DivergedError as diverged:
            error = f"{diverged} in epoch {epoch}"
            break
        if is_best:
            best = {**(last or {}), "rank": rank, "epoch": epoch}
            files.write_best(run, trainer, logits)
        history.append({**row, "seconds": round(time.monotonic() - start_s, 4)})
        on_epoch(history[-1])
        if not is_last:
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
    trainer: Trainer, epoch: int, inputs: Inputs, targets: Tensor, run: Run, validation: Tensor
) -> dict[str, Any]:
    """Train, and validate where there is a validation part; returns the row of the history."""
    drawn = run.plan.draw(run.train, run.recipe.seed, epoch)
    rows, certainties, weights = (None if part is None else torch.tensor(part) for part in drawn)
    assert rows is not None
    loss, accuracy = trainer.train_epoch(epoch, inputs, targets, rows, certainties, weights)
    row = {"epoch": epoch, "loss": loss, "accuracy": accuracy}
    if not len(validation):
        return {**row, "validation_loss": None, "validation_accuracy": None}
    logits, labels, error = _predict_classes(trainer, inputs, targets, validation)
    row |= {
        "validation_loss": measure_loss(logits, labels),
        "validation_accuracy": measure_accuracy(logits, labels),
    }
    return row if error is None else {**row, "validation_error": error}


def _rank_epoch(
    row: dict[str, Any], best: dict[str, Any] | None, is_last: bool
) -> tuple[list[float] | None, bool]:
    """The rank of an epoch, higher for a better one, and whether it is the best so far.

    It is by accuracy, then loss; or by the error of a share, where one is predicted. Without a
    validation part there is no rank, and the last epoch is the best.
    """
    if row["validation_accuracy"] is None:
        return None, is_last
    rank = [row["validation_accuracy"], -row["validation_loss"]]
    if "validation_error" in row:
        rank = [-row["validation_error"]]
    return rank, best is None or rank > best["rank"]


def _test(
    trainer: Trainer, inputs: Inputs, targets: Tensor, rows: Tensor
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """The figures of the test part, and its logits."""
    logits, labels, _ = _predict_classes(trainer, inputs, targets, rows)
    auc = measure_auc(compute_log_odds(logits), labels)
    figures = {
        "accuracy": measure_accuracy(logits, labels),
        "auc": auc if np.isfinite(auc) else None,
    }
    return figures, logits


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
