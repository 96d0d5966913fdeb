"""Metrics that are networks trained here on a classifier's own errors: metrifiers.

A metrifier predicts how sure and right a classifier will be of an image: its target, 0 to 1
(Cheraaqee 2022, section 3.1). It lies in a safetensors file, with all that its use needs.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from iqa_ray.errors import UsageError
from iqa_ray.metrics.deep import METRIFIER_VERSION, DeepMetric, Image
from iqa_ray.metrics.planes import check_grey_or_rgb
from iqa_ray.metrics.spec import METRIFIER, Device, MetricSpec, Precision
from iqa_ray.storage.files import Location, locate, one_line, open_stream
from iqa_ray.training import backbones
from iqa_ray.training.loop import full_precision
from iqa_ray.training.model_files import dump_model_file, parse_model_file
from iqa_ray.training.pixels import cut_square
from iqa_ray.weights.files import WeightFile, hash_stream, open_node_copy
from iqa_ray.weights.metric_files import Weights
from iqa_ray.weights.pulling import prepare_weights


@dataclass(frozen=True)
class MetrifierCard:
    """What stands in the file of a metrifier beside the tensors.

    Attributes:
        backbone: a key of `backbones.BACKBONES`.
        image_size: pixels a side of the squares that it sees.
        distortions: (name, level) of the outputs before the last one, which is the target's; ("",
            0) is an image as it is.
        left_out: distortions that it was not trained on.
        dataset: the key of the data set that it was trained on.
        seed: of the training.
        version: of this format, and of what is made of the outputs.
    """

    backbone: str
    image_size: int
    distortions: tuple[tuple[str, int], ...]
    left_out: tuple[str, ...] = ()
    dataset: str = ""
    seed: int = 0
    version: int = METRIFIER_VERSION


class Metrifier(nn.Module):
    """The network: (N, 3, S, S) RGB, uint8 or float in 0–1, to (N,) predicted targets in [0, 1]."""

    def __init__(self, card: MetrifierCard, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.card = card
        self._classifier = backbones.create(card.backbone, len(card.distortions) + 1)
        self._classifier.load_state_dict(state)
        self._classifier.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.look(images)[0]

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) predicted targets, and (N, C) logits of the card's distortions."""
        with full_precision():
            outputs: Tensor = self._classifier(images)
        return outputs[:, -1].float().sigmoid(), outputs[:, :-1]


class LearntMetric(DeepMetric):
    """A metrifier as a metric: its score of an image is the target that it predicts.

    An image is scaled and cut to the square that the network sees, as a classifier's input is.
    Otherwise as `DeepMetric`.
    """

    def prepare(self, image: NDArray[Any]) -> Image:
        """An image as the network takes it: (S, S, 3) uint8 RGB.

        Raises:
            ValueError: it is no image.
        """
        check_grey_or_rgb(image)
        if image.ndim == 2:
            image = np.dstack([image] * 3)
        return cut_square(image, self._network.card.image_size)

    def note(self, height: int, width: int) -> str:
        """Nothing: every image has the network's size by now."""
        return ""

    def _build(self) -> Metrifier:
        return build_metrifier(self._weights).to(self._device).eval()


def make_network_metric(
    spec: MetricSpec,
    weights: Weights,
    device: Device = "cpu",
    precision: Precision = "fp32",
    max_side: int | None = None,
) -> DeepMetric:
    """A metric that is a network, pyiqa's or one trained here. Takes and raises as `DeepMetric`."""
    kind = LearntMetric if spec.backend == "metrifier" else DeepMetric
    return kind(spec, weights, device, precision, max_side)


def prepare_metric(spec: MetricSpec, folder: str | None) -> Weights:
    """The verified files of a metric that is a network; `folder` is for pyiqa's.

    Raises:
        UsageError: they cannot be had, or are damaged.
    """
    if spec.backend == "metrifier":
        return prepare_metrifier(spec)
    return prepare_weights([spec.name], folder)[spec.name]


def prepare_metrifier(spec: MetricSpec) -> Weights:
    """The file of a metrifier, made sure of before anything is scored.

    Raises:
        UsageError: there is no such file, or it is damaged or of another version.
    """
    file = locate(spec.name.removeprefix(METRIFIER))
    folder, name = posixpath.split(file.path)
    try:
        with open_stream(file) as stream:
            entry = WeightFile(name, str(file), *hash_stream(stream))
    except FileNotFoundError:
        raise UsageError(
            f"{METRIFIER}{file}: there is no such file: give one that `iqa-ray metrify train` wrote"
        ) from None
    except OSError as error:
        raise UsageError(f"{METRIFIER}{file}: {one_line(error)}") from None
    place = Location(file.prefix, folder, file.options)
    weights = Weights(spec.name, (entry,), str(place))
    build_metrifier(weights)
    return weights


def build_metrifier(weights: Weights) -> Metrifier:
    """The network, from this node's copy of its file.

    Raises:
        UsageError: the file is another one by now, damaged or of another version.
    """
    (entry,) = weights.files
    data = open_node_copy(entry, weights.folder).read_bytes()
    return parse_metrifier(data, entry.url)


def dump_metrifier(card: MetrifierCard, state: dict[str, Tensor]) -> bytes:
    """A metrifier as the bytes of a safetensors file, in half precision."""
    return dump_model_file(state, asdict(card))


def parse_metrifier(data: bytes, where: str) -> Metrifier:
    """The metrifier in a file's bytes.

    Raises:
        UsageError: the bytes are not those of such a file; `where` is named.
    """
    try:
        state, record = parse_model_file(data)
        card = _parse_card(record)
        return Metrifier(card, state)
    except UsageError:  # a package that the backbone needs
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{METRIFIER}{where}: damaged, of another version, or not a file that `iqa-ray metrify "
            f"train` wrote: {one_line(error)}"
        ) from None


def _parse_card(record: dict[str, Any]) -> MetrifierCard:
    if record["version"] != METRIFIER_VERSION:
        raise ValueError(f"version {record['version']} of the format, not {METRIFIER_VERSION}")
    given = {field.name: record[field.name] for field in fields(MetrifierCard)}
    given["distortions"] = tuple((str(name), int(level)) for name, level in record["distortions"])
    given["left_out"] = tuple(record["left_out"])
    card = MetrifierCard(**given)
    if card.image_size < 1:
        raise ValueError("its image size is out of range")
    return card
