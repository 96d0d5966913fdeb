"""A trained network with all that its use needs, as a safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from iqa_ray.distortion_types.dataset import CLASSES, MAX_SEVERITY
from iqa_ray.distortion_types.evaluation import compute_probabilities
from iqa_ray.distortion_types.settings import Outputs
from iqa_ray.errors import UsageError
from iqa_ray.images.decoding import hash_content
from iqa_ray.storage.files import locate, one_line, read_bytes
from iqa_ray.training import backbones
from iqa_ray.training.loop import DivergedError, full_precision, pick_device
from iqa_ray.training.model_files import dump_model_file, parse_model_file
from iqa_ray.training.pixels import MAX_CROPS, Pixels, cut_crops

PACKAGED_MODEL = Path(__file__).parent / "params" / "simplenet.safetensors"
FORMAT_VERSION = 1
NONE = "none"


@dataclass(frozen=True)
class ModelCard:
    """What stands in the file beside the tensors.

    Attributes:
        network: a key of `backbones.BACKBONES`.
        classes: in the order of the outputs; one more output is the severity over MAX_SEVERITY.
        crop_size: pixels a side of what the network sees, at full resolution.
        num_crops: over which outputs are averaged.
        outputs: how logits become probabilities.
        temperature: that logits are divided by.
        none_below: the probability below which an image is like none of the classes.
        seed: of the training.
        version: of this format.
    """

    network: str
    classes: tuple[str, ...]
    crop_size: int
    num_crops: int
    outputs: Outputs
    temperature: float = 1.0
    none_below: float = 0.0
    seed: int = 0
    version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Finding:
    """What an image looks like: type or `none`, its probability, severity 1 to 5 (None: none)."""

    distortion: str
    probability: float
    severity: int | None


class TypesModel:
    """A network that names distortions, on its device.

    Args:
        card: how it is used.
        state: the state of its classifier.

    Attributes:
        network: (N, 3, S, S) uint8 RGB to (N, C + 1) outputs, on its device.
    """

    def __init__(self, card: ModelCard, state: dict[str, torch.Tensor]) -> None:
        self.card = card
        model = backbones.create(card.network, len(card.classes) + 1)
        model.load_state_dict(state)
        model.to(memory_format=torch.channels_last)
        self.network = model.to(pick_device()).eval()
        self._device = self.network.head.weight.device

    @torch.inference_mode()
    def compute_outputs(
        self, images: Sequence[Pixels], batch_size: int = 32
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(n, C) logits and (n,) severities 0 to 5, means over the crops of each image.

        Args:
            images: (H, W, 3) uint8 RGB each, of any size.
            batch_size: crops that are computed at once.

        Raises:
            DivergedError: some outputs are not numbers.
        """
        size, number = self.card.crop_size, self.card.num_crops
        cut = [cut_crops(image, size, number) for image in images]
        crops = torch.from_numpy(np.concatenate(cut)).permute(0, 3, 1, 2)
        with full_precision():
            found = [
                self.network(batch.to(self._device)).cpu() for batch in crops.split(batch_size)
            ]
        outputs = torch.cat(found).view(len(images), number, -1).mean(1).numpy()
        if not np.isfinite(outputs).all():
            raise DivergedError("outputs of the network are not numbers")
        severities = np.clip(outputs[:, -1] * MAX_SEVERITY, 0, MAX_SEVERITY)
        return outputs[:, :-1], severities

    def find(self, images: Sequence[Pixels]) -> list[Finding]:
        """What each image looks like."""
        logits, severities = self.compute_outputs(images)
        probabilities = compute_probabilities(logits, self.card.temperature, self.card.outputs)
        pairs = zip(probabilities, severities, strict=True)
        return [self._judge(row, float(severity)) for row, severity in pairs]

    def _judge(self, probabilities: NDArray[np.float64], severity: float) -> Finding:
        place = int(probabilities.argmax())
        probability, name = float(probabilities[place]), self.card.classes[place]
        if probability < self.card.none_below:
            return Finding(NONE, probability, None)
        if name == "refimgs":
            return Finding(name, probability, None)
        return Finding(name, probability, max(1, round(severity)))


def dump_model(card: ModelCard, state: dict[str, torch.Tensor]) -> bytes:
    """A model as the bytes of a safetensors file, in half precision."""
    return dump_model_file(state, asdict(card))


def load_model(uri: str | None) -> tuple[TypesModel, str]:
    """Read a model and its key, the hash of its file; without a name, the packaged one.

    Raises:
        UsageError: it is not there, damaged, or of other classes.
    """
    where = uri or str(PACKAGED_MODEL)
    try:
        data = read_bytes(locate(where))
    except FileNotFoundError:
        lack = f"--model {uri}: there is no such file" if uri else "the package holds no model"
        raise UsageError(f"{lack}: give --model FILE, as `distortions train` writes it") from None
    except OSError as error:
        raise UsageError(f"--model {where}: {one_line(error)}") from None
    return parse_model(data, where), hash_content(data)[:20]


def parse_model(data: bytes, where: str) -> TypesModel:
    """The model in a file's bytes.

    Raises:
        UsageError: the bytes are not those of such a file; `where` is named.
    """
    try:
        state, record = parse_model_file(data)
        card = _parse_card(record)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"--model {where}: damaged, or not a file that `iqa-ray distortions train` wrote: "
            f"{one_line(error)}"
        ) from None
    if unknown := sorted(set(card.classes) - set(CLASSES)):
        raise UsageError(f"--model {where}: has classes that are not known: {', '.join(unknown)}")
    try:
        return TypesModel(card, state)
    except RuntimeError as error:
        raise UsageError(
            f"--model {where}: its tensors are not those of {card.network} with "
            f"{len(card.classes)} classes: {one_line(error)}"
        ) from None


def _parse_card(record: dict[str, Any]) -> ModelCard:
    if record["version"] != FORMAT_VERSION:
        raise ValueError(f"version {record['version']} of the format, not {FORMAT_VERSION}")
    names = {field.name for field in fields(ModelCard)}
    card = ModelCard(**{name: record[name] for name in names})
    if not 1 <= card.num_crops <= MAX_CROPS or card.crop_size < 1 or card.temperature <= 0:
        raise ValueError("its crops or temperature are out of range")
    return ModelCard(**{**asdict(card), "classes": tuple(card.classes)})
