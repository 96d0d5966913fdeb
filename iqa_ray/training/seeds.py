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

import ray
import torch
from ray import train
from ray.train.torch import TorchTrainer

from iqa_ray.cluster import plan_single_worker
from iqa_ray.errors import IncompleteError
from iqa_ray.files import Location, one_line
from iqa_ray.training.loop import Recipe, TrainingSet, dump_checkpoint, train_from_files

_CHECKPOINT_FILE = "classifier.pt"
_POLL_S = 0.5


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
        board: Any = ray.remote(_Board).options(num_cpus=0).remote()
        with listen(board, on_event), keep_interrupts():
            result = TorchTrainer(
                _train_worker,
                train_loop_config={"recipe": recipe, "images": images, "board": board},
                scaling_config=train.ScalingConfig(
                    num_workers=1,
                    use_gpu=room.num_gpus > 0,
                    resources_per_worker={"CPU": room.num_cpus},
                ),
                run_config=train.RunConfig(
                    name=key,
                    storage_path=storage.path,
                    storage_filesystem=None if storage.is_local else storage.filesystem,
                ),
            ).fit()
        assert result.checkpoint is not None, "the worker reports a checkpoint"
        with result.checkpoint.as_directory() as folder:
            return Path(folder, _CHECKPOINT_FILE).read_bytes()
    except train.TrainingFailedError as error:
        raise IncompleteError(f"training failed: {root_cause(error)}") from None
    finally:
        remove_folder(run)


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


class _Board:
    """An actor that carries what a worker says to the driver, which Ray Train itself does not."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []

    def post(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def take(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events


@contextmanager
def listen(board: Any, on_event: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Pass on what is posted to an actor whose method `take` gives the events since the last call.

    The actor is ended at the end.
    """
    stop = threading.Event()

    def relay() -> None:
        while True:
            is_last = stop.wait(_POLL_S)
            for event in ray.get(board.take.remote()):
                on_event(event)
            if is_last:
                return

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
        ray.kill(board)


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
