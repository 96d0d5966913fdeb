"""The labelled images that strategies train and test on: folders, manifests, CIFAR-10's batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from iqa_ray.errors import UsageError
from iqa_ray.images.decoding import hash_content
from iqa_ray.images.listing import make_image_id, relative_name
from iqa_ray.images.source import ImageSource
from iqa_ray.progress import log
from iqa_ray.storage.files import Location, locate, one_line
from iqa_ray.training.pixels import Pixels

CIFAR = "cifar10:"
PARTS = ("train", "test")
COLUMNS = ["image_id", "path", "label", "part", "size_bytes", "mtime_ns"]
# of the training images, to calibrate scores on
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class LabelledSet:
    """Labelled images of a training and a test part.

    Attributes:
        frame: one row an image: image_id, path, label, part, size_bytes, mtime_ns.
        source: of the images.
        pixels: (n, H, W, 3) uint8 RGB, row for row, where they come from no files of their own.
    """

    frame: pd.DataFrame
    source: ImageSource
    pixels: Pixels | None = None

    def take(self, places: NDArray[np.int64]) -> LabelledSet:
        """The images in some rows of the frame, in that order."""
        frame = self.frame.iloc[places].reset_index(drop=True)
        return LabelledSet(frame, self.source, None if self.pixels is None else self.pixels[places])


def read_set(images: str) -> LabelledSet:
    """The labelled images of `images`, none of which is opened; CIFAR-10's batches are.

    Args:
        images: a folder with train/CLASS and test/CLASS, a manifest with `label` and `split`, or
            `cifar10:` and the folder with CIFAR-10's original files.

    Raises:
        UsageError: a part is empty, fewer than two classes are trained, no test image is of a
            class that is trained, or the files of CIFAR-10 are missing or damaged.
    """
    if images.startswith(CIFAR):
        found = _read_cifar(images, locate(images.removeprefix(CIFAR)))
    else:
        found = _read_listed(ImageSource(locate(images)))
    return _check_parts(images, found)


def _read_listed(source: ImageSource) -> LabelledSet:
    listing = source.list()
    frame = listing.table.to_pandas()
    parts = frame["split"]
    if parts.isna().all():
        names = [relative_name(path, listing.root) for path in frame["path"]]
        parts = pd.Series([name.partition("/")[0] for name in names], frame.index)
    frame["part"] = parts.where(parts.isin(PARTS))
    num_other = int(frame["part"].isna().sum())
    if 0 < num_other < len(frame):
        log(f"{num_other:,} images left out: neither in train nor in test")
    return LabelledSet(frame.dropna(subset=["part"])[COLUMNS].reset_index(drop=True), source)


def _read_cifar(images: str, folder: Location) -> LabelledSet:
    """CIFAR-10's batches, which torchvision unpickles only if their MD5 is the published one."""
    from torchvision.datasets import CIFAR10

    if not folder.is_local:
        raise UsageError(f"{images}: give a folder on this machine")
    frames, pixels = [], []
    for part in PARTS:
        try:
            batch = CIFAR10(folder.path, train=part == "train")
        except RuntimeError as error:
            raise UsageError(
                f"{images}: no folder cifar-10-batches-py with all batches as published, or one is "
                f"damaged ({one_line(error)}): unpack cifar-10-python.tar.gz there again"
            ) from None
        data = np.asarray(batch.data, np.uint8)
        names = [f"{part}/{number:05}-{hash_content(image.tobytes())}"
                 for number, image in enumerate(data)]  # fmt: skip
        frames.append(
            pd.DataFrame(
                {
                    "image_id": [make_image_id(name) for name in names],
                    "path": [f"{images}/{name}" for name in names],
                    "label": [batch.classes[target] for target in batch.targets],
                    "part": part,
                    "size_bytes": None,
                    "mtime_ns": None,
                }
            )
        )
        pixels.append(data)
    source = ImageSource(folder)
    return LabelledSet(pd.concat(frames, ignore_index=True), source, np.concatenate(pixels))


def _check_parts(images: str, found: LabelledSet) -> LabelledSet:
    """Make sure that there is something to train and to test on; drop what cannot be tested."""
    frame = found.frame
    for part in PARTS:
        if not (frame["part"] == part).any():
            raise UsageError(
                f"{images} has no {part} images: give a folder with train/CLASS and test/CLASS, or "
                "a manifest with a column `split` that says train or test"
            )
    unlabelled = frame["label"].isna() | (frame["label"] == "")
    classes = set(frame.loc[(frame["part"] == "train") & ~unlabelled, "label"])
    if len(classes) < 2:
        raise UsageError(
            f"{images}: {len(classes)} class among the training images: labels need at least two "
            "classes to be smoothed over"
        )
    is_usable = ~unlabelled & frame["label"].isin(classes)
    if not is_usable.all():
        log(f"{(~is_usable).sum():,} images left out: without a label, or of one not trained")
    if not (is_usable & (frame["part"] == "test")).any():
        raise UsageError(f"{images}: no test image is of a class that is trained")
    return found if is_usable.all() else found.take(np.flatnonzero(is_usable))


def draw_parts(
    found: LabelledSet,
    num_train: int | None,
    num_test: int | None,
    with_validation: bool,
    seed: int,
) -> LabelledSet:
    """Draw the images of each part, as evenly of the classes as they are.

    The order is that of the parts: train, validation (a tenth of the training images, only with
    `with_validation`), test.

    Raises:
        UsageError: there are fewer images than asked for.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for part, asked in (("train", num_train), ("test", num_test)):
        places = np.flatnonzero(found.frame["part"] == part)
        if asked is not None and asked > len(places):
            raise UsageError(f"--num-{part} {asked}: there are {len(places):,} {part} images")
        order = _order_evenly(found.frame["label"].to_numpy(str)[places], rng)
        chosen.append(places[order[: asked or len(places)]])
    train, test = chosen
    num_validation = round(VALIDATION_SHARE * len(train)) if with_validation else 0
    kept, held_out = train[num_validation:], train[:num_validation]
    parts = {"train": kept, "validation": held_out, "test": test}
    drawn = found.take(np.concatenate(list(parts.values())))
    drawn.frame["part"] = np.repeat(list(parts), [len(places) for places in parts.values()])
    return drawn


def _order_evenly(labels: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.int64]:
    """An order by chance, of which every beginning has about the shares of the classes."""
    order = rng.permutation(len(labels))
    classes = pd.Series(labels[order])
    rank = classes.groupby(classes).cumcount() + 0.5
    share = (rank / classes.map(classes.value_counts())).to_numpy()
    return order[np.argsort(share, kind="stable")]
