"""The training runs of strategies: what they share, their recipes, their keys."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iqa_ray.errors import UsageError
from iqa_ray.progress import log
from iqa_ray.smoothing.dataset import LabelledSet
from iqa_ray.smoothing.inputs import VersionsMaterial
from iqa_ray.smoothing.settings import PAPER_DECAY, PAPER_DECAY_EPOCHS, PAPER_EPOCHS, SmoothJob
from iqa_ray.smoothing.strategies import VERSIONS, Strategy
from iqa_ray.smoothing.versions import VERSIONS_VERSION, Versions
from iqa_ray.training.backbones import check_backbone
from iqa_ray.training.loop import TRAINING_VERSION
from iqa_ray.training.recipe import Recipe, Steps
from iqa_ray.training.rows import RowPlan
from iqa_ray.training.runs import Run

Rows = NDArray[np.int64]

# Chen et al., section 4.3: "L2Loss weight decay multiplied by 0.004" on the two dense layers.
# TensorFlow's L2 loss is half the sum of squares, whose gradient is the weight, as PyTorch's decay.
_DENSE_DECAYS = tuple((f"features.{name}.weight", 0.004) for name in ("dense1", "dense2"))


@dataclass(frozen=True)
class Bench:
    """What all runs share.

    Attributes:
        material: versions of all images, and the classes of their rows.
        classes: names.
        labels: (N,) class indices of the images.
        rows: of each part (train, validation, test), the places of its images.
        tested: the rows of all versions of the test images, version by version.
        content: what the images and their versions are, for keys of runs.
    """

    material: VersionsMaterial
    classes: list[str]
    labels: Rows
    rows: dict[str, Rows]
    tested: Rows
    content: str

    @property
    def num_images(self) -> int:
        """In each version, of all parts."""
        return len(self.labels)

    def list_versions(self, places: Rows) -> Rows:
        """(V · n,) the rows of all versions of n images, version by version."""
        return np.concatenate(
            [places + version * self.num_images for version in range(len(VERSIONS))]
        )


def _list_versions(places: Rows, num_images: int) -> Rows:
    """(V · n,) the rows of all versions of n images, version by version."""
    starts = np.arange(len(VERSIONS)) * num_images
    return (starts[:, None] + places).ravel()


def prepare_bench(job: SmoothJob, images: LabelledSet, versions: Versions) -> Bench:
    """What the runs share; images that could not be decoded are in no part.

    Raises:
        UsageError: images that the network cannot take, or a part without readable images.
    """
    check_backbone(job.backbone, None, versions.image_size)
    is_read = np.array([content is not None for content in versions.content_hashes])
    if not is_read.all():
        place = int(np.flatnonzero(~is_read)[0])
        path, error = images.frame["path"].iloc[place], versions.errors[place]
        log(f"{(~is_read).sum():,} images left out: cannot be decoded (such as {path}: {error})")
    parts = images.frame["part"].to_numpy(str)
    rows = {part: np.flatnonzero((parts == part) & is_read) for part in sorted(set(parts))}
    for part, places in rows.items():
        if not len(places):
            raise UsageError(f"{job.images}: none of its {part} images can be decoded")
    rows.setdefault("validation", np.empty(0, np.int64))
    classes, labels = np.unique(images.frame["label"].to_numpy(str), return_inverse=True)
    material = VersionsMaterial(
        paths=images.frame["path"].tolist(),
        content_hashes=[content or "" for content in versions.content_hashes],
        targets=np.tile(labels.astype(np.int64), len(VERSIONS)),
        num_classes=len(classes),
        weights={job.backbone: None},
        image_size=versions.image_size,
        source=images.source,
        files=tuple(chunk.pixels_file for chunk in versions.chunks),
    )
    depends_on = [
        VERSIONS_VERSION,
        VERSIONS,
        job.split_seed,
        versions.content_hashes,
        images.frame[["label", "part"]].to_numpy().tolist(),
    ]
    return Bench(
        material,
        classes.tolist(),
        labels.astype(np.int64),
        rows,
        _list_versions(rows["test"], len(labels)),
        _digest(depends_on),
    )


def make_recipe(job: SmoothJob, seed: int, image_size: int) -> Recipe:
    """How the settings train; the defaults are what Chen et al. print (sections 3 and 4.3)."""
    schedule = None
    if job.schedule == "steps":
        every = max(1, round(PAPER_DECAY_EPOCHS * job.epochs / PAPER_EPOCHS))
        schedule = Steps(every, PAPER_DECAY)
    return Recipe(
        job.backbone,
        "none",
        job.epochs,
        image_size,
        job.batch_size,
        job.lr,
        seed=seed,
        loss=job.loss,
        optimiser=job.optimiser,
        momentum=job.momentum,
        layer_decays=_DENSE_DECAYS if job.backbone == "cifarnet" else (),
        schedule=schedule,
        bf16_on_cpu=True,
    )


def make_run(
    job: SmoothJob, bench: Bench, strategy: Strategy, seed: int, plan: RowPlan, is_judge: bool
) -> Run:
    """The run of a strategy and a seed.

    It is tested on all versions of the test images at its last epoch: no epoch is chosen. The
    judge, on whose accuracy scores are calibrated, also answers for those of validation images.
    """
    recipe = make_recipe(job, seed, bench.material.image_size)
    test = bench.tested
    if is_judge:
        held_out = _list_versions(bench.rows["validation"], bench.num_images)
        test = np.concatenate([test, held_out])
    depends_on = [
        TRAINING_VERSION,
        bench.content,
        strategy.title,
        recipe.describe(),
        plan.describe(),
        is_judge,
    ]
    return Run(
        _digest(depends_on),
        strategy.title,
        recipe,
        train=bench.rows["train"],
        validation=np.empty(0, np.int64),
        test=test,
        keep_outputs=True,
        plan=plan,
    )


def _digest(depends_on: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(depends_on).encode(), digest_size=12).hexdigest()
