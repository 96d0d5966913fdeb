"""Training on Ray Train (V2): one classifier in one worker."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ray import train
from ray.train.torch import TorchTrainer

from iqa_ray.cluster.connection import plan_single_worker
from iqa_ray.errors import IncompleteError
from iqa_ray.storage.files import Location, delete_folder, one_line, read_bytes, write_bytes
from iqa_ray.training.events import listen, register_worker
from iqa_ray.training.loop import TrainingSet, dump_checkpoint, train_from_files
from iqa_ray.training.recipe import Recipe

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
        key: names the run, which others may do at the same time.
        on_event: told of `loaded` (num_images, num_unreadable) and of each epoch.

    Returns:
        The checkpoint's bytes, as `loop.load_checkpoint` reads them.

    Raises:
        IncompleteError: the worker failed.

    What `on_event` raises ends the worker and is raised here.
    """
    run, room = storage / f"{key}-{uuid.uuid4().hex[:12]}", plan_single_worker()
    checkpoint = run / _CHECKPOINT_FILE
    settings = {"recipe": recipe, "images": images, "file": checkpoint}
    try:
        with listen(on_event) as queue, keep_interrupts():
            TorchTrainer(
                _train_worker,
                train_loop_config={**settings, "queue": queue},
                scaling_config=train.ScalingConfig(
                    num_workers=1,
                    use_gpu=room.num_gpus > 0,
                    resources_per_worker={"CPU": room.num_cpus},
                ),
                run_config=configure_run(run),
            ).fit()
        return read_bytes(checkpoint)
    except train.TrainingFailedError as error:
        raise IncompleteError(f"training failed: {root_cause(error)}") from None
    finally:
        delete_folder(run)


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
    register_worker(config["queue"])
    num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(num_threads)
    checkpoint = train_from_files(
        config["recipe"], config["images"], num_threads, config["queue"].post.remote
    )
    write_bytes(config["file"], dump_checkpoint(checkpoint))


def root_cause(error: BaseException) -> str:
    """The worker's own words, without the traces of the layers above it."""
    failures = list(getattr(error, "worker_failures", {}).values())
    cause = failures[0] if failures else error
    cause = getattr(cause, "cause", None) or cause.__cause__ or cause
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else one_line(cause)
