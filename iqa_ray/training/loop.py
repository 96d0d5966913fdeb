"""The training loop of one classifier, and its application; plain PyTorch, no Ray."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iqa_ray.images.source import ImageSource
from iqa_ray.training import backbones
from iqa_ray.training.augment import augment_images, cut_at_random, cut_centre
from iqa_ray.training.backbones import Classifier
from iqa_ray.training.inputs import Inputs
from iqa_ray.training.labels import smooth_labels
from iqa_ray.training.pixels import Pixels, load_pixels
from iqa_ray.training.recipe import Loss, Recipe

# A change of training or of a network that gives other results: raise this so that what was
# trained before is not taken for new.
TRAINING_VERSION = 2


@dataclass(frozen=True)
class TrainingSet:
    """The images that a classifier is trained on."""

    source: ImageSource
    paths: list[str]
    labels: list[str]


class DivergedError(RuntimeError):
    """The loss, or what a network makes of an image, is not a number."""


def pick_device() -> torch.device:
    """The GPU that this process may use, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed_precision(
    device: torch.device, bf16_on_cpu: bool = False
) -> AbstractContextManager[object]:
    """For training: in bf16 where autocast allows it, on a GPU; on a CPU that has it, if asked."""
    if device.type == "cpu" and not (
        bf16_on_cpu and torch.cpu.get_capabilities().get("avx512_bf16", False)
    ):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def full_precision() -> Iterator[None]:
    """For evaluation: GPUs compute in fp32, not in TF32, whose ten bits are cuDNN's default."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def make_optimiser(recipe: Recipe, model: Classifier) -> torch.optim.Optimizer:
    """The optimiser of the parameters that are trained: all, or those of the head alone.

    Raises:
        ValueError: the recipe names a layer that has no such parameter.
    """
    trained = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not recipe.freeze_backbone or name.startswith("head.")
    }
    for layer, _ in recipe.layer_decays:
        if not any(f"{name}.".startswith(f"{layer}.") for name in trained):
            raise ValueError(f"{recipe.backbone} has no parameter {layer} to be trained")
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in trained.items():
        groups.setdefault(recipe.find_weight_decay(name), []).append(parameter)
    parameters = [{"params": group, "weight_decay": decay} for decay, group in groups.items()]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(parameters, recipe.lr, momentum=recipe.momentum)
    return torch.optim.Adam(parameters, recipe.lr)


def compute_loss(
    loss: Loss,
    outputs: Tensor,
    targets: Tensor,
    class_weights: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The mean loss of a batch's (N, C) outputs.

    Args:
        loss: `cross_entropy` in nats; `binary_cross_entropy` in nats, the sum over the classes;
            `squared_error`, the mean also over the outputs; or `brier`, the sum over the classes of
            the squared differences between softmax probabilities and targets, Σ (p − q)².
        outputs: of the network; logits for all but the squared error.
        targets: (N,) class indices or (N, C) probabilities for cross-entropy and `brier`, (N,)
            class indices for binary cross-entropy, (N, C) values for the squared error.
        class_weights: (C,) for both cross-entropies, which are then weighted means over the rows.
        weights: (N,) by which the loss of each row is multiplied before the mean, for cross-entropy
            and `brier`.
    """
    if weights is not None or loss == "brier":
        assert class_weights is None, "rows have weights, or classes"
        losses = _compute_losses(loss, outputs, targets)
        return (losses if weights is None else losses * weights).mean()
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(outputs, targets, class_weights)
    if loss == "binary_cross_entropy":
        one_hot = nn.functional.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
        losses = nn.functional.binary_cross_entropy_with_logits(outputs, one_hot, reduction="none")
        weights = torch.ones_like(losses[:, 0]) if class_weights is None else class_weights[targets]
        return (losses.sum(1) * weights).sum() / weights.sum()
    assert outputs.shape == targets.shape, "they would be broadcast"
    return nn.functional.mse_loss(outputs, targets)


def _compute_losses(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """(N,) the loss of each row; arguments as for `compute_loss`."""
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(outputs, targets, reduction="none")
    assert loss == "brier", "the other losses have no weights of rows"
    if targets.dim() == 1:
        targets = nn.functional.one_hot(targets, outputs.shape[1])
    return (outputs.softmax(1) - targets).square().sum(1)


def split_severity(recipe: Recipe, values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Outputs of the classes and of the severity; the second is None where no severity is trained.

    Args:
        recipe: says whether it is.
        values: (N, C + 1) outputs or (N, 2) targets where it is, else as they are.
    """
    if not recipe.severity_weight:
        return values, None
    return values[:, :-1], values[:, -1]


def find_classes(recipe: Recipe, targets: Tensor) -> Tensor:
    """The targets of the classes: without the severity, if there is one."""
    classes, severity = split_severity(recipe, targets)
    return classes if severity is None else classes[:, 0].long()


def compute_joint_loss(
    recipe: Recipe,
    outputs: Tensor,
    targets: Tensor,
    class_weights: Tensor | None,
    weights: Tensor | None = None,
) -> Tensor:
    """The recipe's loss, and where it trains a severity or a share, the weighted loss of that.

    That is the squared error of a severity, and the binary cross-entropy in nats of a share. Its
    mean is over all rows, of which those of unknown severity have none.
    """
    logits, guessed = split_severity(recipe, outputs)
    loss = compute_loss(recipe.loss, logits, find_classes(recipe, targets), class_weights, weights)
    if guessed is None:
        return loss
    severities = targets[:, 1]
    known = severities.nan_to_num()
    if recipe.predicts_share:
        errors = nn.functional.binary_cross_entropy_with_logits(guessed, known, reduction="none")
    else:
        errors = (guessed - known).square()
    return loss + recipe.severity_weight * torch.where(severities.isnan(), 0, errors).mean()


class Trainer:
    """A classifier in training, an epoch at a time.

    The same seed, device and number of threads give the same classifier to the last bit, also when
    it was put away after an epoch (`dump_state`) and taken up again. Images are taken
    channels-last. On a GPU training is in bf16 where autocast allows it, and evaluation in fp32.
    With `freeze_backbone` only the head is trained, and inputs are features.

    Args:
        recipe: how to train.
        model: the classifier to be trained, on its device; made after `torch.manual_seed`.
    """

    def __init__(self, recipe: Recipe, model: Classifier) -> None:
        self.model = model
        self.recipe = recipe
        self._network: nn.Module = model.head if recipe.freeze_backbone else model
        self._device = next(self._network.parameters()).device
        # faster on GPUs, and by a tenth to a quarter on CPUs
        model.to(memory_format=torch.channels_last)
        self._optimizer = make_optimiser(recipe, model)
        self._generator = torch.Generator().manual_seed(recipe.seed)
        weights = recipe.class_weights
        self._class_weights = torch.tensor(weights, device=self._device) if weights else None

    def train_epoch(
        self,
        epoch: int,
        inputs: Inputs,
        targets: Tensor,
        rows: Tensor,
        certainties: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> tuple[float, float]:
        """Train on each of `rows` (N,) once; returns the mean loss, and the accuracy in [0, 1].

        Both are those of the batches as they were trained on; a single output has an accuracy of
        NaN. `targets` are those of the recipe's loss (see `compute_loss`). With `certainties`
        (N,) they are class indices, of which labels are made that are so sure (`smooth_labels`);
        `weights` (N,) multiply the losses of the rows. The first epoch is 1.
        Where a batch of one would be left at the end, that image is left out of the epoch, since
        batch normalisation may have nothing to normalise in it.

        Raises:
            DivergedError: the loss is not a number.
        """
        self._network.train()
        order = torch.randperm(len(rows), generator=self._generator)
        batches = [batch for batch in order.split(self.recipe.batch_size) if len(batch) > 1]
        total = torch.zeros(2, device=self._device)
        for step, batch in enumerate(batches):
            for group in self._optimizer.param_groups:
                group["lr"] = self.recipe.find_lr(epoch - 1 + (step + 0.5) / len(batches))
            batch_targets = labels = targets[rows[batch]].to(self._device)
            images = inputs[rows[batch]].to(self._device)
            own_weights = None if weights is None else weights[batch].to(self._device)
            if self.recipe.random_crops and images.dim() == 4:
                images = cut_at_random(images, self.recipe.image_size, self._generator)
            images = augment_images(images, self.recipe.augment, self._generator)
            self._optimizer.zero_grad(set_to_none=True)
            with mixed_precision(self._device, self.recipe.bf16_on_cpu):
                logits = self._network(images).float()
            if certainties is not None:
                sure = certainties[batch].to(self._device)
                labels = smooth_labels(batch_targets, sure, logits.shape[1])
            loss = compute_joint_loss(self.recipe, logits, labels, self._class_weights, own_weights)
            loss.backward()
            self._optimizer.step()
            right = _count_right(
                split_severity(self.recipe, logits)[0], find_classes(self.recipe, batch_targets)
            )
            total += torch.stack([loss.detach() * len(batch), right])
        loss_mean, accuracy = (total / sum(map(len, batches))).tolist()
        if not np.isfinite(loss_mean):
            raise DivergedError(f"the loss is {loss_mean}")
        return loss_mean, accuracy

    @torch.inference_mode()
    def predict(self, inputs: Inputs, rows: Tensor) -> NDArray[np.float32]:
        """(N, num_classes) logits for `rows` (N,), computed in fp32; then the severity, if any.

        Raises:
            DivergedError: some are not a number.
        """
        self._network.eval()
        with full_precision():
            outputs = [
                self._network(self._look_at(inputs[batch].to(self._device))).cpu()
                for batch in rows.split(self.recipe.batch_size)
            ]
        return _check_numbers(np.asarray(torch.cat(outputs).numpy()))

    def _look_at(self, images: Tensor) -> Tensor:
        """What the network evaluates of its inputs."""
        is_cut = self.recipe.random_crops and images.dim() == 4
        return cut_centre(images, self.recipe.image_size) if is_cut else images

    def dump_state(self) -> dict[str, Any]:
        """All that the next epoch depends on: tensors, numbers and dictionaries of them."""
        state = {
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "order": self._generator.get_state(),
            "random": torch.get_rng_state(),
        }
        if self._device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self._device)
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `dump_state` was called."""
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self._device)


def start_training(recipe: Recipe, num_classes: int, weights: bytes | None = None) -> Trainer:
    """Make a classifier and its trainer; the seed alone decides what is random in them.

    `weights` are the content of the file that `find_weights` names, for where it is not.
    """
    torch.manual_seed(recipe.seed)
    source = recipe.weights if weights is None else weights
    num_outputs = num_classes + bool(recipe.severity_weight)
    model = backbones.create(recipe.backbone, num_outputs, source)
    return Trainer(recipe, model.to(pick_device()))


def train_classifier(
    recipe: Recipe,
    pixels: Pixels,
    labels: NDArray[np.int64],
    num_classes: int,
    on_epoch: Callable[[dict[str, Any]], object] | None = None,
) -> Classifier:
    """Train on (n, S, S, 3) uint8 RGB and (n,) class indices.

    With `freeze_backbone` the features are computed once and only the head is trained. `on_epoch`
    is told epoch, loss, accuracy and seconds.
    """
    trainer = start_training(recipe, num_classes)
    targets = torch.from_numpy(labels)
    inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    rows = torch.arange(len(targets))
    if recipe.freeze_backbone:
        inputs = compute_features(trainer.model, inputs, rows)
    for epoch in range(1, recipe.epochs + 1):
        start_s = time.monotonic()
        loss, accuracy = trainer.train_epoch(epoch, inputs, targets, rows)
        if on_epoch is not None:
            seconds = time.monotonic() - start_s
            on_epoch({"epoch": epoch, "loss": loss, "accuracy": accuracy, "seconds": seconds})
    return trainer.model.eval()


def train_from_files(
    recipe: Recipe,
    images: TrainingSet,
    num_threads: int,
    on_event: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Decode the images, train on those that can be read, and return the checkpoint.

    `unread` in the checkpoint are the places of images whose files are away or refused.
    `on_event` is told of `loaded` and `unreadable` (numbers of images), then of each epoch.

    Raises:
        ValueError: fewer than two classes can be read.
    """
    unread: list[int] = []
    pixels, hashes = load_pixels(
        images.source, images.paths, recipe.image_size, num_threads, unread.append
    )
    readable = np.array([content is not None for content in hashes])
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
        "unread": sorted(unread),
    }


def dump_checkpoint(checkpoint: dict[str, Any]) -> bytes:
    """What `train_from_files` returns, as a file's bytes."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def load_checkpoint(data: bytes) -> dict[str, Any]:
    """The reverse of `dump_checkpoint`; nothing in the file is executed."""
    loaded: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return loaded


@torch.inference_mode()
def compute_features(
    model: Classifier, inputs: Inputs, rows: Tensor, batch_size: int = 32
) -> Tensor:
    """(N, F) inputs of the head, on the CPU, for the images in `rows` (N,)."""
    model.eval()
    device = model.head.weight.device
    with full_precision():
        batches = [
            model.extract_features(inputs[batch].to(device)).cpu()
            for batch in rows.split(batch_size)
        ]
    return torch.cat(batches)


@torch.inference_mode()
def predict_logits(model: Classifier, pixels: Pixels, batch_size: int = 32) -> NDArray[np.float32]:
    """(n, num_classes) logits for (n, S, S, 3) uint8 RGB.

    Raises:
        DivergedError: some are not a number.
    """
    model.eval()
    device = model.head.weight.device
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    with full_precision():
        outputs = [model(batch.to(device)).cpu() for batch in images.split(batch_size)]
    return _check_numbers(np.asarray(torch.cat(outputs).numpy()))


def predict_probabilities(model: Classifier, pixels: Pixels) -> NDArray[np.float32]:
    """(n, num_classes) softmax outputs for (n, S, S, 3) uint8 RGB. Raises as `predict_logits`."""
    return np.asarray(torch.from_numpy(predict_logits(model, pixels)).softmax(1).numpy())


def _check_numbers(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The outputs of a network, if all are numbers."""
    bad = int((~np.isfinite(outputs).all(axis=1)).sum())
    if bad:
        raise DivergedError(f"the outputs for {bad} of {len(outputs)} images are not numbers")
    return outputs


def _count_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """In how many rows the largest output is that of the target; NaN where there is only one.

    Targets are (N,) class indices, or (N, C) values of which the largest is meant.
    """
    if outputs.shape[1] == 1:
        return outputs.new_tensor(torch.nan)
    classes = targets if targets.dim() == 1 else targets.argmax(1)
    return (outputs.argmax(1) == classes).sum()
