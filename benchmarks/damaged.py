"""Labelled images of which a known half is damaged, with everything that rules of selection see.

Whether an image is damaged, how, and how strongly, is drawn from its content: the same image has
the same damage in every run, wherever it lies.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from iqa_ray import metrics
from iqa_ray.distortions import distort
from iqa_ray.images.decoding import hash_content
from iqa_ray.images.listing import list_images
from iqa_ray.metrics.planes import Planes
from iqa_ray.progress import log
from iqa_ray.synthetic.dotcodes import make_dataset
from iqa_ray.training import backbones
from iqa_ray.training.loop import compute_features

Pixels = NDArray[np.uint8]

BACKBONE = "efficientnet_lite0"
BLURS = ("gaussian_blur", "motion_blur")
MIXED = (*BLURS, "noise", "jpeg", "underexposure", "overexposure")
# cleanvision's checks that look at the pixels of one image
ISSUES = ("blurry", "dark", "light", "low_information")
CODE_SIZE = 256
_IN_FOCUS_SIGMA = 1.0  # of codes of 256 px: up to here the generator calls them in focus


@dataclass(frozen=True)
class DamagedSet:
    """What is known of n images.

    Attributes:
        name: of the set.
        labels: (n,) class indices.
        is_train: (n,) whether it lies on the training side of the set's own boundary.
        damage: (n,) the kind of damage; empty for a clean image.
        scores: (n) rows with a column a metric, NaN without a score.
        issues: (n) rows with cleanvision's verdict at its defaults, a column of ISSUES each.
        features: (n, F) of the frozen backbone.
    """

    name: str
    labels: NDArray[np.int64]
    is_train: NDArray[np.bool_]
    damage: NDArray[np.str_]
    scores: pd.DataFrame
    issues: pd.DataFrame
    features: torch.Tensor


@dataclass(frozen=True)
class Labelled:
    """Images as they were, and where they belong."""

    pixels: list[Pixels]
    labels: NDArray[np.int64]
    is_train: NDArray[np.bool_]


def make_codes(num_images: int) -> DamagedSet:
    """Synthetic codes, half of them out of focus; every second pair is on the training side."""
    with tempfile.TemporaryDirectory() as folder:
        table = make_dataset(folder, num_images, CODE_SIZE)
        pixels = [_read(Path(folder) / path) for path in table["path"]]
    damage = np.where(table["blur_sigma"] > _IN_FOCUS_SIGMA, "defocus", "")
    labels = pd.factorize(table["label"], sort=True)[0].astype(np.int64)
    is_train = np.arange(num_images) // 2 % 2 == 0
    return describe("codes", Labelled(pixels, labels, is_train), damage, pixels, 192)


def read_folders(folder: Path, sides: Sequence[tuple[str, int | None]]) -> Labelled:
    """The images of `train` and of the other folders, which are the side that tests.

    Args:
        folder: has one folder a side, with a folder a class below.
        sides: name, and how many images to draw from it at random (seed 0); None takes all.
    """
    paths: list[str] = []
    names: list[str] = []
    is_train: list[bool] = []
    for side, number in sides:
        table = list_images(str(folder / side)).table.to_pandas().sort_values("path")
        if number is not None:
            table = table.sample(number, random_state=0)
        paths += table["path"].tolist()
        names += table["label"].tolist()
        is_train += [side == "train"] * len(table)
    labels = pd.factorize(pd.Series(names), sort=True)[0].astype(np.int64)
    return Labelled([_read(Path(path)) for path in paths], labels, np.array(is_train))


def damage_images(
    name: str, images: Labelled, kinds: Sequence[str], levels: Sequence[int], feature_size: int
) -> DamagedSet:
    """Damage a half of the images, each by one of `kinds` at one of `levels`."""
    drawn = [draw_damage(image, kinds, levels) for image in images.pixels]
    pixels = [
        distort(image, kind, level=level) if kind else image
        for image, (kind, level) in zip(images.pixels, drawn, strict=True)
    ]
    damage = np.array([kind for kind, _ in drawn])
    return describe(name, images, damage, pixels, feature_size)


def draw_damage(image: Pixels, kinds: Sequence[str], levels: Sequence[int]) -> tuple[str, int]:
    """Kind and level of an image's damage, from its content alone; an empty kind for none."""
    rng = np.random.default_rng(int(hash_content(image.tobytes()), 16))
    is_damaged = rng.random() < 0.5
    kind, level = kinds[int(rng.integers(len(kinds)))], levels[int(rng.integers(len(levels)))]
    return (kind, level) if is_damaged else ("", 0)


def describe(
    name: str,
    images: Labelled,
    damage: NDArray[np.str_],
    pixels: list[Pixels],
    feature_size: int,
) -> DamagedSet:
    """Score the images, have cleanvision check them, and compute features at `feature_size` px."""
    log(f"{name}: {len(pixels):,} images, {np.mean(damage != ''):.1%} damaged")
    return DamagedSet(
        name,
        images.labels,
        images.is_train,
        damage,
        score_images(pixels),
        find_issues(pixels),
        extract_features(pixels, feature_size),
    )


def score_images(pixels: Sequence[Pixels]) -> pd.DataFrame:
    """A column for each CPU metric that takes images of this size."""
    side = min(pixels[0].shape[:2])
    used = [
        metrics.Metric(spec)
        for spec in map(metrics.get_spec, metrics.CPU_METRICS)
        if spec.min_side <= side
    ]
    rows = []
    for image in pixels:
        planes = Planes(image)
        rows.append([_measure(metric, planes) for metric in used])
    return pd.DataFrame(rows, columns=[metric.name for metric in used])


def _measure(metric: metrics.Metric, planes: Planes) -> float:
    try:
        return metric.measure(planes)
    except metrics.MetricError:
        return np.nan


def find_issues(pixels: Sequence[Pixels]) -> pd.DataFrame:
    """cleanvision's verdicts at its default thresholds, on PNG files of the images."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        from cleanvision import Imagelab

        for number, image in enumerate(pixels):
            Image.fromarray(image).save(f"{folder}/{number:06}.png", compress_level=1)
        lab = Imagelab(data_path=folder, verbose=False)
        lab.find_issues({issue: {} for issue in ISSUES}, n_jobs=1, verbose=False)
    found = lab.issues.sort_index()
    assert len(found) == len(pixels)
    return pd.DataFrame({issue: found[f"is_{issue}_issue"].to_numpy(bool) for issue in ISSUES})


def extract_features(pixels: Sequence[Pixels], size: int) -> torch.Tensor:
    """(n, F) features of the frozen backbone, as `iqa-ray predict --image-size` computes them."""
    model = backbones.create(BACKBONE, 1, "imagenet")
    fitted = [
        np.asarray(ImageOps.fit(Image.fromarray(image), (size, size), Image.Resampling.BILINEAR))
        for image in pixels
    ]
    inputs = torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2)
    return compute_features(model, inputs, torch.arange(len(inputs)))


def _read(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
