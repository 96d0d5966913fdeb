"""The training loop of one classifier, and its application; plain PyTorch, no Ray."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from iqa_ray.decoding import DEFAULT_MAX_PIXELS, ImageError, decode_image, read_image_bytes
from iqa_ray.images import locate_image
from iqa_ray.training import backbones
from iqa_ray.training.backbones import Classifier

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained (paper 000, section 2.3: Adam, 1e-4, no weight decay)."""

    backbone: str
    weights: str = "imagenet"
    epochs: int = 40
    image_size: int = 224
    batch_size: int = 32
    lr: float = 1e-4
    freeze_backbone: bool = False
    seed: int = 0


@dataclass(frozen=True)
class TrainingSet:
    """The images that a classifier is trained on."""

    paths: list[str]
    labels: list[str]
    options: str = ""
    max_pixels: int = DEFAULT_MAX_PIXELS


def load_pixels(
    paths: Sequence[str], image_size: int, max_pixels: int, options: str, num_threads: int
) -> tuple[Pixels, NDArray[np.bool_]]:
    """Decode images, scale the shorter side to `image_size` and cut the centre.

    Returns:
        (n, image_size, image_size, 3) uint8 RGB, and (n,) which of them could be read; the others
        are black.
    """
    pixels = np.zeros((len(paths), image_size, image_size, 3), np.uint8)
    readable = np.zeros(len(paths), bool)

    def load(row: int) -> None:
        try:
            data = read_image_bytes(locate_image(paths[row], options))
            image = Image.fromarray(decode_image(data, max_pixels))
        except ImageError:
            return
        size = (image_size, image_size)
        pixels[row] = np.asarray(ImageOps.fit(image, size, Image.Resampling.BILINEAR))
        readable[row] = True

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(load, range(len(paths))))
    return pixels, readable


def pick_device() -> torch.device:
    """The GPU that this process may use, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_classifier(
    recipe: Recipe,
    pixels: Pixels,
    labels: NDArray[np.int64],
    num_classes: int,
    on_epoch: Callable[[dict[str, Any]], object] | None = None,
) -> Classifier:
    """Train on (n, S, S, 3) uint8 RGB and (n,) class indices.

    With `freeze_backbone` the features are computed once and only the head is trained. The same
    seed, device and number of threads give the same classifier. `on_epoch` is told epoch, loss,
    accuracy (both on the training batches as they were seen) and seconds.
    """
    torch.manual_seed(recipe.seed)
    device = pick_device()
    model = backbones.create(recipe.backbone, num_classes, recipe.weights).to(device)
    targets = torch.from_numpy(labels)
    if recipe.freeze_backbone:
        model.features.requires_grad_(False)
        inputs = torch.cat(list(_extract_features(model, pixels, device)))
        network: nn.Module = model.head
    else:
        inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        network = model
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(recipe.seed)
    network.train()
    for epoch in range(1, recipe.epochs + 1):
        start_s = time.monotonic()
        order = torch.randperm(len(targets), generator=generator)
        # batch normalisation has nothing to normalise in a batch of one
        batches = [rows for rows in order.split(recipe.batch_size) if len(rows) > 1] or [order]
        loss, accuracy = _train_epoch(network, optimizer, inputs, targets, batches, device)
        if on_epoch is not None:
            seconds = time.monotonic() - start_s
            on_epoch({"epoch": epoch, "loss": loss, "accuracy": accuracy, "seconds": seconds})
    return model.eval()


def _train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    batches: Sequence[Tensor],
    device: torch.device,
) -> tuple[float, float]:
    total = torch.zeros(2, device=device)
    for rows in batches:
        batch, wanted = inputs[rows].to(device), targets[rows].to(device)
        optimizer.zero_grad(set_to_none=True)
        logits = network(batch)
        loss = nn.functional.cross_entropy(logits, wanted)
        loss.backward()
        optimizer.step()
        right = (logits.argmax(1) == wanted).sum()
        total += torch.stack([loss.detach() * len(rows), right])
    loss_mean, accuracy = (total / sum(len(rows) for rows in batches)).tolist()
    return loss_mean, accuracy


def train_from_files(
    recipe: Recipe,
    images: TrainingSet,
    num_threads: int,
    on_event: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Decode the images, train on those that can be read, and return the checkpoint.

    `on_event` is told of `loaded` and `unreadable` (numbers of images), then of each epoch.

    Raises:
        ValueError: fewer than two classes can be read.
    """
    pixels, readable = load_pixels(
        images.paths, recipe.image_size, images.max_pixels, images.options, num_threads
    )
    on_event({"loaded": len(readable), "unreadable": int((~readable).sum())})
    classes, indices = np.unique(np.asarray(images.labels)[readable], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"{readable.sum()} readable training images of {len(classes)} classes")
    model = train_classifier(
        recipe, pixels[readable], indices.astype(np.int64), len(classes), on_event
    )
    return {
        "state": {name: value.cpu() for name, value in model.state_dict().items()},
        "classes": classes.tolist(),
        "backbone": recipe.backbone,
        "image_size": recipe.image_size,
    }


def dump_checkpoint(checkpoint: dict[str, Any]) -> bytes:
    """A trained classifier (`state`, `classes`, `backbone`, `image_size`) as a file's bytes."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def load_checkpoint(data: bytes) -> dict[str, Any]:
    """The reverse of `dump_checkpoint`; nothing in the file is executed."""
    loaded: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return loaded


@torch.inference_mode()
def _extract_features(
    model: Classifier, pixels: Pixels, device: torch.device, batch_size: int = 32
) -> Iterator[Tensor]:
    model.eval()
    for start in range(0, len(pixels), batch_size):
        batch = torch.from_numpy(pixels[start : start + batch_size]).permute(0, 3, 1, 2)
        yield model.extract_features(batch.to(device)).cpu()


@torch.inference_mode()
def predict_probabilities(
    model: Classifier, pixels: Pixels, batch_size: int = 32
) -> NDArray[np.float32]:
    """(n, num_classes) softmax outputs for (n, S, S, 3) uint8 RGB."""
    device = next(model.parameters()).device
    outputs = [
        model.head(features.to(device)).softmax(1).cpu()
        for features in _extract_features(model, pixels, device, batch_size)
    ]
    return np.asarray(torch.cat(outputs).numpy())
