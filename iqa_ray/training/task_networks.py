"""Task networks: classifiers in files, as other jobs examine them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from iqa_ray.errors import UsageError
from iqa_ray.images.decoding import hash_content
from iqa_ray.storage.files import locate, one_line, read_bytes
from iqa_ray.training.loop import full_precision, pick_device
from iqa_ray.training.network_files import NetworkSource, ParsedNetwork, parse_network
from iqa_ray.training.pixels import Pixels


class TaskNetwork:
    """A classifier in evaluation mode, on its device.

    Attributes:
        module: takes (N, 3, S, S) RGB, uint8 in 0-255, and gives (N, C) logits; a program may give
            them as the first of several outputs.
        classes: names of its C outputs.
        image_size: S; None if it takes any.
        input_size: S of the images that it gets where nothing else decides.
        content_hash: of its file.
        key: says what it is: a hash of its file, and how that is read.
    """

    def __init__(self, source: NetworkSource, parsed: ParsedNetwork, content_hash: str) -> None:
        self._device = pick_device()
        self.module = parsed.module.to(self._device)
        self.image_size, self._num_rows = parsed.image_size, parsed.num_rows
        self.input_size = parsed.image_size or source.given_size or parsed.usual_size
        self.content_hash = content_hash
        self.key = "+".join([source.architecture or "", source.normalise or "", content_hash[:20]])
        self.classes = self._name_outputs(parsed.classes or source.classes, source.where)

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
            outputs = [self.module(batch) for batch in images.split(self._num_rows or number)]
        return torch.cat([_pick_logits(each) for each in outputs])[:number]

    def _name_outputs(self, names: tuple[str, ...], where: str) -> tuple[str, ...]:
        size = self.input_size
        try:
            outputs = self._compute(np.zeros((2, size, size, 3), np.uint8))
        except Exception as error:  # a foreign program raises almost anything
            raise UsageError(
                f"{where}: it does not take images of {size}x{size} px: {one_line(error)}"
            ) from None
        if outputs.dim() != 2 or len(outputs) != 2:
            raise UsageError(f"{where}: its output {tuple(outputs.shape)} is not a number a class")
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
    return TaskNetwork(source, parse_network(data, source), hash_content(data))


def load_networks(sources: Sequence[NetworkSource]) -> list[TaskNetwork]:
    """Several task networks, of one set of classes. Raises as `load_network`, and UsageError where
    their classes differ.
    """
    networks = [load_network(source) for source in sources]
    for source, network in zip(sources, networks, strict=True):
        if set(network.classes) != set(networks[0].classes):
            raise UsageError(
                f"{source.where}: its classes are not those of {sources[0].file}: "
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
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UsageError(f"--classes {file}: {reason}") from None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--classes {file}: write each class once, a line each")
    return names
