"""Classifiers in files, as other jobs examine them: trained here, or a torchvision checkpoint."""

from __future__ import annotations

import io
import warnings
import zipfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iqa_ray.errors import UsageError
from iqa_ray.storage.files import one_line
from iqa_ray.training import backbones
from iqa_ray.training.backbones import Classifier
from iqa_ray.training.loop import load_checkpoint

# what only archives of compiled programs hold: TorchScript's, and those of `torch.export`
_OF_PROGRAMS = ("constants.pkl", "archive_format", "serialized_exported_program.json")


@dataclass(frozen=True)
class TaskNetwork:
    """A classifier in evaluation mode, on the CPU.

    Attributes:
        module: takes (N, 3, image_size, image_size) RGB, uint8 in 0-255, and gives (N, C) logits.
        num_outputs: C.
        classes: names of the outputs, where the file says them.
        image_size: pixels a side that it was made for.
    """

    module: nn.Module
    num_outputs: int
    classes: tuple[str, ...] | None
    image_size: int


def parse_task_network(data: bytes, where: str, architecture: str | None = None) -> TaskNetwork:
    """The network in a file's bytes; nothing in the file is executed.

    Args:
        data: what `predict --backbone` wrote, or a state dict of a torchvision classifier.
        where: names the file in messages.
        architecture: torchvision's name of the classifier whose state dict it is.

    Raises:
        UsageError: it is neither, a compiled program, or not of that architecture.
    """
    if _is_program(data):
        raise UsageError(
            f"--network {where}: a compiled program (TorchScript or torch.export), whose layers "
            "cannot be looked into: give the checkpoint that it was made of"
        )
    try:
        loaded = load_checkpoint(data)
    except Exception as error:  # a foreign file raises almost anything
        raise UsageError(f"--network {where}: not a checkpoint: {one_line(error)}") from None
    if isinstance(loaded, dict) and {"state", "classes", "backbone", "image_size"} <= set(loaded):
        try:
            classifier = build_classifier(loaded)
        except RuntimeError as error:
            raise UsageError(
                f"--network {where}: its tensors are not those of {loaded['backbone']}: "
                f"{one_line(error)}"
            ) from None
        classes = tuple(loaded["classes"])
        return TaskNetwork(classifier.eval(), len(classes), classes, loaded["image_size"])
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(
            f"--network {where}: neither a classifier of `iqa-ray predict` nor a state dict"
        )
    if architecture is None:
        raise UsageError(
            f"--network {where}: a state dict does not say of what: give --architecture NAME, as "
            "torchvision calls it (such as resnet50)"
        )
    return _build_torchvision(state, where, architecture)


def build_classifier(checkpoint: dict[str, Any]) -> Classifier:
    """The classifier of a checkpoint that `predict --backbone` wrote."""
    model = backbones.create(checkpoint["backbone"], len(checkpoint["classes"]))
    model.load_state_dict(checkpoint["state"])
    return model


def _is_program(data: bytes) -> bool:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except zipfile.BadZipFile:
        return False
    return any(name.rpartition("/")[2] in _OF_PROGRAMS for name in names)


class _Normalised(nn.Module):
    """A network that takes pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images.float() / 255 - self.mean) / self.std)
        return logits


def _build_torchvision(state: dict[str, Tensor], where: str, architecture: str) -> TaskNetwork:
    from torchvision import models

    if architecture not in models.list_models(module=models):
        raise UsageError(f"--architecture {architecture}: torchvision has no classifier so called")
    num_outputs = len(list(state.values())[-1])  # the last parameter is the last layer's
    settings = models.get_model_weights(architecture).DEFAULT.transforms()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of random weights, which are replaced
            network = models.get_model(architecture, weights=None, num_classes=num_outputs)
        network.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"--network {where}: not a state dict of {architecture}: {one_line(error)}"
        ) from None
    module = _Normalised(network, settings.mean, settings.std)
    return TaskNetwork(module.eval(), num_outputs, None, settings.crop_size[0])
