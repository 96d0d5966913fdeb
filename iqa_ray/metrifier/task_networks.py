"""Task networks: the classifiers whose errors a metrifier predicts, read from many formats."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iqa_ray.errors import UsageError
from iqa_ray.images.decoding import hash_content
from iqa_ray.metrifier.settings import Normalise
from iqa_ray.storage.files import locate, one_line, read_bytes
from iqa_ray.training import backbones
from iqa_ray.training.loop import full_precision, load_checkpoint, pick_device
from iqa_ray.training.pixels import Pixels

DEFAULT_SIZE = 224
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_ARCHITECTURE = re.compile(r"([a-z][a-z0-9_]*):(?!/{2})(.+)")
_WRAPPERS = ("state", "state_dict", "model")  # under which training scripts keep a state dict


def _split_name(name: str) -> tuple[str | None, str]:
    """The architecture, if any is named, and the file."""
    match = _ARCHITECTURE.fullmatch(name)
    return (match[1], match[2]) if match else (None, name)


def resolve_network(name: str) -> str:
    """The name of a task network with the whole path of its file, as every node understands it."""
    architecture, file = _split_name(name)
    prefix = f"{architecture}:" if architecture else ""
    return prefix + str(locate(file))


@dataclass(frozen=True)
class NetworkSource:
    """How a task network is read, on whichever node.

    Attributes:
        name: a file, or an architecture of torchvision's and a file (`resnet18:FILE`).
        normalise: what a program expects of pixels.
        classes: of its outputs, for files that do not name them.
        given_size: pixels a side of the images that it will get, for files that do not say theirs.
    """

    name: str
    normalise: Normalise
    classes: tuple[str, ...]
    given_size: int = DEFAULT_SIZE

    @property
    def architecture(self) -> str | None:
        """Of a checkpoint that does not say its own."""
        return _split_name(self.name)[0]

    @property
    def file(self) -> str:
        return _split_name(self.name)[1]

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            UsageError: it cannot be read.
        """
        try:
            return read_bytes(locate(self.file))
        except FileNotFoundError:
            raise UsageError(f"--task-networks {self.file}: there is no such file") from None
        except OSError as error:
            raise UsageError(f"--task-networks {self.file}: {one_line(error)}") from None


class TaskNetwork:
    """A classifier on its device.

    Attributes:
        classes: names of its outputs.
        image_size: pixels a side that it takes; None if any.
        key: says what it is: a hash of its file, and how that is read.
    """

    def __init__(
        self,
        source: NetworkSource,
        network: Callable[[Tensor], Any],
        classes: tuple[str, ...] | None,
        image_size: int | None,
        num_rows: int | None,
        key: str,
    ) -> None:
        self.image_size, self.key = image_size, key
        self._source, self._network, self._num_rows = source, network, num_rows
        self._device = pick_device()
        self.classes = self._name_outputs(classes)

    def compute_log_probabilities(self, pixels: Pixels) -> NDArray[np.float64]:
        """(n, C) logarithms of the classes' probabilities; NaN where outputs are no numbers.

        Args:
            pixels: (n, S, S, 3) uint8 RGB, scaled to the network's size if it has another.
        """
        return np.asarray(self._compute(pixels).double().log_softmax(1).cpu().numpy())

    @torch.inference_mode()
    def _compute(self, pixels: Pixels) -> Tensor:
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)
        size = self.image_size
        if size is not None and size != images.shape[-1]:
            scaled = nn.functional.interpolate(
                images.float(), size, mode="bilinear", antialias=True, align_corners=False
            )
            images = scaled.round().clamp(0, 255).to(torch.uint8)
        number = len(images)
        if self._num_rows is not None:  # a program of a fixed batch: the last one is filled up
            lacking = -number % self._num_rows
            images = torch.cat([images, images[:1].expand(lacking, -1, -1, -1)])
        with full_precision():
            outputs = [self._network(batch) for batch in images.split(self._num_rows or number)]
        return torch.cat([_pick_logits(each) for each in outputs])[:number]

    def _name_outputs(self, classes: tuple[str, ...] | None) -> tuple[str, ...]:
        size = self.image_size or self._source.given_size
        where = f"--task-networks {self._source.name}"
        try:
            outputs = self._compute(np.zeros((2, size, size, 3), np.uint8))
        except Exception as error:  # a foreign program raises almost anything
            raise UsageError(
                f"{where}: it does not take images of {size}x{size} px: {one_line(error)}"
            ) from None
        if outputs.dim() != 2 or len(outputs) != 2:
            raise UsageError(f"{where}: its output {tuple(outputs.shape)} is not a number a class")
        names = classes or self._source.classes
        if len(names) != outputs.shape[1]:
            raise UsageError(
                f"{where}: it has {outputs.shape[1]} outputs, and there are {len(names)} classes: "
                "give images of its classes, or name them with --classes FILE"
            )
        return names


def _pick_logits(outputs: Any) -> Tensor:
    """What a network says of classes: its output, or the first of several."""
    if isinstance(outputs, tuple | list):
        outputs = outputs[0]
    elif isinstance(outputs, dict):
        outputs = next(iter(outputs.values()))
    logits: Tensor = outputs
    return logits


def load_network(source: NetworkSource) -> TaskNetwork:
    """Read a task network and find out what it takes and gives.

    Raises:
        UsageError: it cannot be read, or its outputs are not as many as there are classes.
    """
    data = source.read()
    classes: tuple[str, ...] | None = None
    num_rows: int | None = None
    image_size: int | None = None
    network: Callable[[Tensor], Any]
    try:
        kind = _find_kind(data)
        if kind == "TorchScript":
            module = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
            network = _Normalised(module.to(pick_device()), source.normalise)
        elif kind == "torch.export":
            module, num_rows, image_size = _load_program(data)
            network = _Normalised(module, source.normalise)
        else:
            module, classes, image_size = _load_state(load_checkpoint(data), source)
            network = module.to(pick_device()).eval()
    except UsageError:
        raise
    except Exception as error:  # a foreign file raises almost anything
        raise UsageError(
            f"--task-networks {source.name}: not a classifier that can be read: {one_line(error)}"
        ) from None
    key = "+".join([source.architecture or "", source.normalise, hash_content(data)[:20]])
    return TaskNetwork(source, network, classes, image_size, num_rows, key)


def _find_kind(data: bytes) -> str:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except zipfile.BadZipFile:
        return "state"
    if any("/code/" in name for name in names):
        return "TorchScript"
    is_program = any(name.endswith(("archive_format", "exported_program.json")) for name in names)
    return "torch.export" if is_program else "state"


class _Normalised(nn.Module):
    """A network that takes floats, given (N, 3, S, S) uint8."""

    def __init__(self, network: nn.Module, normalise: Normalise) -> None:
        super().__init__()
        mean, std = _IMAGENET if normalise == "imagenet" else ((0.0,) * 3, (1.0,) * 3)
        device = pick_device()
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self._network = network

    def forward(self, images: Tensor) -> Any:
        return self._network((images.float() / 255 - self._mean) / self._std)


def _load_program(data: bytes) -> tuple[nn.Module, int | None, int | None]:
    """An exported program, the rows that it takes at once, and its images' size, where fixed."""
    program = torch.export.load(io.BytesIO(data))
    (name,) = program.graph_signature.user_inputs
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == name)
    if len(shape) != 4:
        raise ValueError(f"its input {tuple(shape)} is not (N, 3, S, S)")
    rows, _, size, _ = (int(side) if isinstance(side, int) else None for side in shape)
    return program.module().to(pick_device()), rows, size


def _load_state(
    loaded: Any, source: NetworkSource
) -> tuple[nn.Module, tuple[str, ...] | None, int | None]:
    """A network from its state, its classes, and its images' size, where the file says them."""
    if isinstance(loaded, dict) and {"state", "classes", "backbone", "image_size"} <= set(loaded):
        model = backbones.create(loaded["backbone"], len(loaded["classes"]))
        model.load_state_dict(loaded["state"])
        return model, tuple(map(str, loaded["classes"])), int(loaded["image_size"])
    architecture = source.architecture
    if architecture is None:
        raise ValueError("it holds tensors alone: say whose with ARCHITECTURE:FILE")
    for wrapper in _WRAPPERS:
        if isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    state = {str(name).removeprefix("module."): value for name, value in loaded.items()}
    if "head.weight" in state and architecture in backbones.BACKBONES:
        model = backbones.create(architecture, len(state["head.weight"]))
        model.load_state_dict(state)
        return model, None, backbones.find_backbone(architecture).image_size
    from torchvision import models

    num_classes = len(list(state.values())[-1])
    network: nn.Module = models.get_model(architecture, weights=None, num_classes=num_classes)
    network.load_state_dict(state)
    return _Normalised(network, "imagenet"), None, None


def load_networks(sources: Sequence[NetworkSource]) -> list[TaskNetwork]:
    """Several task networks, of one set of classes. Raises as `load_network`, and UsageError where
    their classes differ.
    """
    networks = [load_network(source) for source in sources]
    for source, network in zip(sources, networks, strict=True):
        if set(network.classes) != set(networks[0].classes):
            raise UsageError(
                f"--task-networks {source.name}: its classes are not those of {sources[0].name}: "
                "networks are averaged only if they tell the same classes apart"
            )
    return networks


def check_labels(networks: Sequence[TaskNetwork], labels: Sequence[str]) -> None:
    """Make sure that networks know all labels.

    Raises:
        UsageError: they do not; names some.
    """
    known = set(networks[0].classes)
    if unknown := sorted(set(labels) - known):
        raise UsageError(
            f"the task network's classes ({_name(sorted(known))}) do not match the labels of the "
            f"images: it has no {_name(unknown)}: give images of its classes, or compare --labels "
            "and --classes"
        )


def _name(words: Sequence[str]) -> str:
    more = f" and {len(words) - 5} more" if len(words) > 5 else ""
    return ", ".join(words[:5]) + more


def read_classes(file: str | None, labels: Sequence[str]) -> tuple[str, ...]:
    """The classes that a file lists, a line each; without a file the labels, sorted.

    Raises:
        UsageError: it cannot be read, or names a class twice or none.
    """
    if file is None:
        return tuple(sorted(set(labels)))
    try:
        text = read_bytes(locate(file)).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes {file}: {one_line(error)}") from None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--classes {file}: write each class once, a line each")
    return names
