"""Files of task networks: how they are named, and what network is in a file's bytes."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iqa_ray.errors import UsageError
from iqa_ray.storage.files import locate, one_line, read_bytes
from iqa_ray.training import backbones
from iqa_ray.training.backbones import Classifier
from iqa_ray.training.loop import load_checkpoint
from iqa_ray.training.settings import Normalise

DEFAULT_SIZE = 224
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_ARCHITECTURE = re.compile(r"([a-z][a-z0-9_]*):(?!/{2})(.+)")
_WRAPPERS = ("state", "state_dict", "model")  # under which training scripts keep a state dict


def split_name(name: str) -> tuple[str, str | None]:
    """The file, as every node understands it, and the architecture of FILE or ARCHITECTURE:FILE."""
    match = _ARCHITECTURE.fullmatch(name)
    architecture, file = (match[1], match[2]) if match else (None, name)
    return str(locate(file)), architecture


@dataclass(frozen=True)
class NetworkSource:
    """How a task network is read, on whichever node.

    Attributes:
        file: a path that all nodes understand, or a URI.
        architecture: of a state dict, which does not say its own: torchvision's name of it, or one
            of BACKBONES.
        classes: of its outputs, for files that do not name them.
        normalise: what a compiled program expects of pixels; without it programs are refused, as
            they are where the layers of a network are needed.
        given_size: pixels a side of the images that it will get, for files that do not say theirs.
        option: of the command line that names the file, for messages.
    """

    file: str
    architecture: str | None
    classes: tuple[str, ...]
    normalise: Normalise | None = None
    given_size: int | None = None
    option: str = "--network"

    @property
    def where(self) -> str:
        """How messages begin."""
        return f"{self.option} {self.file}"

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            UsageError: it cannot be read.
        """
        try:
            return read_bytes(locate(self.file))
        except FileNotFoundError:
            raise UsageError(f"{self.where}: there is no such file") from None
        except OSError as error:
            raise UsageError(f"{self.where}: {one_line(error)}") from None


@dataclass(frozen=True)
class ParsedNetwork:
    """What a file says of a network.

    Attributes:
        module: in evaluation mode, on the CPU; takes (N, 3, S, S) RGB, uint8 in 0-255.
        classes: names of its outputs; None if the file has none.
        image_size: S, if it takes one size only.
        usual_size: S that its architecture was published for; else DEFAULT_SIZE.
        num_rows: N, if it takes one only.
    """

    module: nn.Module
    classes: tuple[str, ...] | None = None
    image_size: int | None = None
    usual_size: int = DEFAULT_SIZE
    num_rows: int | None = None


def parse_network(data: bytes, source: NetworkSource) -> ParsedNetwork:
    """The network in the bytes of a file: of `predict`, a state dict, or a compiled program.

    Nothing in the file is executed, unless it is a program that the source allows.

    Raises:
        UsageError: it is none of these, a program that is refused, or not of its architecture.
    """
    kind = _find_kind(data)
    if kind != "checkpoint" and source.normalise is None:
        raise UsageError(
            f"{source.where}: a compiled program ({kind}), whose layers cannot be looked into: "
            "give the checkpoint that it was made of"
        )
    try:
        if kind == "TorchScript":
            program = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
            return ParsedNetwork(_normalise_program(program, source))
        if kind == "torch.export":
            return _load_export(data, source)
        return _parse_checkpoint(load_checkpoint(data), source)
    except UsageError:
        raise
    except Exception as error:  # a foreign file raises almost anything
        what = source.architecture or "a classifier"
        raise UsageError(
            f"{source.where}: it cannot be read as {what}: {one_line(error)}"
        ) from None


def build_classifier(checkpoint: dict[str, Any]) -> Classifier:
    """The classifier of a checkpoint that `predict --backbone` wrote."""
    model = backbones.create(checkpoint["backbone"], len(checkpoint["classes"]))
    model.load_state_dict(checkpoint["state"])
    return model


def _find_kind(data: bytes) -> str:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except zipfile.BadZipFile:
        return "checkpoint"
    if any("/code/" in name for name in names):
        return "TorchScript"
    is_export = any(name.endswith(("archive_format", "exported_program.json")) for name in names)
    return "torch.export" if is_export else "checkpoint"


class _Normalised(nn.Module):
    """A network of normalised floats that takes pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network((images.float() / 255 - self.mean) / self.std)


def _normalise_program(program: nn.Module, source: NetworkSource) -> nn.Module:
    mean, std = _IMAGENET if source.normalise == "imagenet" else ([0.0] * 3, [1.0] * 3)
    return _Normalised(program, mean, std)


def _load_export(data: bytes, source: NetworkSource) -> ParsedNetwork:
    program = torch.export.load(io.BytesIO(data))
    (name,) = program.graph_signature.user_inputs
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == name)
    if len(shape) != 4:
        raise ValueError(f"its input {tuple(shape)} is not (N, 3, S, S)")
    rows, _, size, _ = (int(side) if isinstance(side, int) else None for side in shape)
    module = _normalise_program(program.module(), source)
    return ParsedNetwork(module, image_size=size, num_rows=rows)


def _parse_checkpoint(loaded: Any, source: NetworkSource) -> ParsedNetwork:
    if isinstance(loaded, dict) and {"state", "classes", "backbone", "image_size"} <= set(loaded):
        classes, size = tuple(map(str, loaded["classes"])), int(loaded["image_size"])
        return ParsedNetwork(build_classifier(loaded).eval(), classes, size)
    state = _find_state(loaded)
    if not state:
        raise UsageError(
            f"{source.where}: neither a classifier of `iqa-ray predict` nor a state dict"
        )
    architecture = source.architecture
    if architecture is None:
        naming = "--architecture NAME" if source.option == "--network" else "NAME:FILE"
        raise UsageError(
            f"{source.where}: a state dict does not say of what: give {naming}, with the name "
            "that torchvision has for it (such as resnet50)"
        )
    if "head.weight" in state and architecture in backbones.BACKBONES:
        model = backbones.create(architecture, len(state["head.weight"]))
        model.load_state_dict(state)
        size = backbones.find_backbone(architecture).image_size
        return ParsedNetwork(model.eval(), image_size=size)
    return _build_torchvision(state, architecture, source)


def _find_state(loaded: Any) -> dict[str, Tensor] | None:
    """The state dict in a checkpoint, with names as a network has them on one device."""
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        return None
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def _build_torchvision(
    state: dict[str, Tensor], architecture: str, source: NetworkSource
) -> ParsedNetwork:
    from torchvision import models

    if architecture not in models.list_models(module=models):
        raise UsageError(f"{source.where}: torchvision has no classifier called {architecture}")
    num_classes = len(list(state.values())[-1])  # the last parameter is the last layer's
    published = models.get_model_weights(architecture).DEFAULT.transforms()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of random weights, which are replaced
        network = models.get_model(architecture, weights=None, num_classes=num_classes)
    network.load_state_dict(state)
    module = _Normalised(network, published.mean, published.std).eval()
    return ParsedNetwork(module, usual_size=published.crop_size[0])
