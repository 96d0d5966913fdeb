"""Small labelled photographs with a training and a test part, and `smooth` on them without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from inline import run_inline
from pictures import make_texture
from PIL import Image

from iqa_ray.cluster.capacity import Resources
from iqa_ray.config import make_job
from iqa_ray.smoothing import jobs
from iqa_ray.smoothing.settings import SmoothJob
from iqa_ray.training import parallel
from iqa_ray.training.pixels import CHUNK_SIZE
from iqa_ray.training.runs import RunFiles, train_run

CLASSES = ("disc", "ring", "square")


def make_shape(label: str, seed: int, size: int = 32) -> np.ndarray:
    """(size, size, 3) uint8: a texture, and on it what the label says, in a place of its own."""
    image = (0.4 * make_texture(seed, size, size)).astype(np.uint8)
    x, y = (int(place) for place in np.random.default_rng(seed).integers(9, size - 9, 2))
    if label == "disc":
        cv2.circle(image, (x, y), 7, (220, 60, 60), -1)
    elif label == "ring":
        cv2.circle(image, (x, y), 7, (60, 220, 60), 2)
    else:
        cv2.rectangle(image, (x - 6, y - 6), (x + 6, y + 6), (70, 70, 230), -1)
    return image


def make_folder(root: Path, num_train: int, num_test: int) -> Path:
    """train/CLASS and test/CLASS with so many PNGs, the classes in turn."""
    for part, number, start in (("train", num_train, 0), ("test", num_test, 10_000)):
        for place in range(number):
            label = CLASSES[place % len(CLASSES)]
            folder = root / part / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(make_shape(label, start + place)).save(folder / f"{place:04}.png")
    return root


@contextmanager
def train_inline(on_epoch: Any = lambda run, row: None) -> Iterator[list[str]]:
    """Chunks are made and runs are trained in this process; gives the names of runs as trained."""
    done: list[str] = []

    def train_runs(runs, material, folder, plan, on_event):
        starts = range(0, len(material.paths), CHUNK_SIZE)
        chunks = [material.load_chunk(start, start + CHUNK_SIZE)[0] for start in starts]
        inputs = material.open_chunks(chunks)
        for run in runs:
            done.append(run.name)
            result = train_run(
                run, inputs, torch.tensor(material.targets), material.num_classes, None,
                RunFiles(folder), lambda row, run=run: on_epoch(run, row),
            )  # fmt: skip
            on_event({"finished": run.key, "result": result})
        return []

    with ExitStack() as stack:
        stack.enter_context(run_inline())
        for name, stand_in in (
            ("plan_parallel_runs", lambda *_: (Resources(), 1)),
            ("train_runs", train_runs),
        ):
            stack.enter_context(mock.patch.object(parallel, name, stand_in))
        yield done


def smooth(images: Path | str, workspace: Path, **settings: Any) -> dict[str, Any]:
    """`iqa-ray smooth`, two epochs of one seed unless told otherwise."""
    given = {"epochs": 2, "seeds": (0,), "batch_size": 20, "lr": 0.05}
    given |= {"images": str(images), "workspace": str(workspace), **settings}
    return jobs.run_smooth(make_job(SmoothJob, given))
