"""Training on Ray Train (V2): one classifier in one worker."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ray import train
from ray.train.torch import TorchTrainer

from iqa_ray.cluster import plan_single_worker
from iqa_ray.errors import IncompleteError
from iqa_ray.files import Location, one_line
from iqa_ray.training.boards import listen
from iqa_ray.training.loop import Recipe, TrainingSet, dump_checkpoint, train_from_files

_CHECKPOINT_FILE = "classifier.pt"


def train_on_ray(
    recipe: Recipe,
    images: TrainingSet,
    storage: Location,
    key: str,
    on_event: Callable[[dict[str, Any]], None],
) -> bytes:
    """Train one classifier in a Ray Train worker.

    Args:
        recipe: how.
        images: on what.
        storage: a folder that every node can write, for the worker's checkpoint.
        key: names the run; what an earlier run left there under this name is removed.
        on_event: told of `loaded` (num_images, num_unreadable) and of each epoch.

    Returns:
        The checkpoint's bytes, as `loop.load_checkpoint` reads them.

    Raises:
        IncompleteError: the worker failed.
    """
    run, room = storage / key, plan_single_worker()
    remove_folder(run)
    try:
        with listen(on_event) as board, keep_interrupts():
            result = TorchTrainer(
                _train_worker,
                train_loop_config={"recipe": recipe, "images": images, "board": board},
                scaling_config=train.ScalingConfig(
                    num_workers=1,
                    use_gpu=room.num_gpus > 0,
                    resources_per_worker={"CPU": room.num_cpus},
                ),
                run_config=configure_run(run),
            ).fit()
        assert result.checkpoint is not None, "the worker reports a checkpoint"
        with result.checkpoint.as_directory() as folder:
            return Path(folder, _CHECKPOINT_FILE).read_bytes()
    except train.TrainingFailedError as error:
        raise IncompleteError(f"training failed: {root_cause(error)}") from None
    finally:
        remove_folder(run)


def configure_run(folder: Location) -> train.RunConfig:
    """Ray Train's settings of a run that keeps its files in `folder`, and ends when it fails.

    Ray Train itself would ask for the same places for ever after their node was lost.
    """
    place, _, name = folder.path.rpartition("/")
    once: Any = {"max_failures": 0, "controller_failure_limit": 0, "max_preemption_failures": 0}
    return train.RunConfig(
        name=name,
        storage_path=place,
        storage_filesystem=None if folder.is_local else folder.filesystem,
        failure_config=train.FailureConfig(**once),
    )


@contextmanager
def keep_interrupts() -> Iterator[None]:
    """Ctrl-C stays KeyboardInterrupt: Ray Train's own handler exits, and outlives the training."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _train_worker(config: dict[str, Any]) -> None:
    num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(num_threads)
    checkpoint = train_from_files(
        config["recipe"], config["images"], num_threads, config["board"].post.remote
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _CHECKPOINT_FILE).write_bytes(dump_checkpoint(checkpoint))
        train.report({}, checkpoint=train.Checkpoint.from_directory(folder))


def remove_folder(folder: Location) -> None:
    try:
        folder.filesystem.delete_dir(folder.path)
    except FileNotFoundError:
        return


def root_cause(error: BaseException) -> str:
    """The worker's own words, without the traces of the layers above it."""
    failures = list(getattr(error, "worker_failures", {}).values())
    cause = failures[0] if failures else error
    cause = getattr(cause, "cause", None) or cause.__cause__ or cause
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else one_line(cause)
