"""Backbones with a linear head: torchvision's, EfficientNet-Lite0, and those of papers.

SimpleNet is Elaraby et al.'s, `cifarnet` Chen et al.'s.
"""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iqa_ray.errors import UsageError
from iqa_ray.storage.files import one_line
from iqa_ray.training.recipe import Recipe
from iqa_ray.weights.backbones import find_weights

_WHITEN_SIZE, _WHITEN_GAIN = 5, 8.0
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# EfficientNet-Lite was trained on (x - 127) / 128
_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


class Classifier(nn.Module):
    """`features`, then a linear `head`; normalisation is part of the model.

    Takes (N, 3, H, W) RGB, uint8 in 0–255 or float in 0–1, and gives (N, num_classes) logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        features: nn.Module,
        num_features: int,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.features = features
        self.head = nn.Linear(num_features, num_classes)

    def extract_features(self, images: Tensor) -> Tensor:
        """(N, num_features) inputs of the head."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        extracted: Tensor = self.features((pixels - self.mean) / self.std)
        return extracted

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.extract_features(images))
        return logits


@dataclass(frozen=True)
class Backbone:
    """How a backbone is made: `build` gives the network with its own last layer, `last_layer`.

    `image_size` is the pixels a side that it was published for.
    """

    build: Callable[[], nn.Module]
    last_layer: str
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    image_size: int = Recipe.image_size


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision import models

        network: nn.Module = models.get_model(name, weights=None)
        return network

    return build


def _build_lite0() -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise UsageError(
            "efficientnet_lite0 needs the extra `lite`: pip install 'iqa_ray[lite]'"
        ) from None
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return network


def _build_inception() -> nn.Module:
    try:
        import timm
    except ImportError:
        raise UsageError("inception_resnet_v2 needs timm: pip install timm") from None
    network: nn.Module = timm.create_model("inception_resnet_v2", pretrained=False)
    return network


class _Whiten(nn.Module):
    """Amplifies what differs from the local mean, where noise, blur and block edges show.

    Photographs have most of their power at low frequencies. A network that sees pixels as they are
    spends its first epochs on what is in the picture. There is nothing to be trained here.
    """

    def forward(self, images: Tensor) -> Tensor:
        mean = nn.functional.avg_pool2d(
            images, _WHITEN_SIZE, 1, _WHITEN_SIZE // 2, count_include_pad=False
        )
        return mean + _WHITEN_GAIN * (images - mean)


def _build_simplenet(is_normalised: bool = False) -> nn.Module:
    """SimpleNet (Elaraby et al., section 3.2.1 and Table 2): 1,425,606 parameters with six classes.

    The text has feature maps normalised before each ReLU; the table has no such layer, and its sum
    leaves no parameter for one. `is_normalised` follows both: batch normalisation without
    parameters of its own. Since its statistics take the noise of dropout for signal, there is none
    between its convolutions, and 20% before the head; and it whitens the image first. Without it
    the network is that of the table. The table's rows of block 5 are swapped (a dropout with the
    295,168 parameters of a convolution): order and widths are those that its shapes and its sum
    give. The text speaks of seven classes and of six: the head has as many as there are labels.

    The shares of dropout are those of convolutions in pairs: 20% after the second and third, 30%
    after the fourth and fifth, 40% after the sixth and seventh; that before the head is not
    published. The published sigmoid outputs are left to the loss: the head gives logits. Inputs of
    other sizes than 256 are pooled to the 4×4 that the dense layer expects.
    """
    layers: list[tuple[str, nn.Module]] = []
    widths = (3, 32, 64, 64, 128, 128, 256, 256)
    dropout = (0.0, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4)
    for block, (inputs, outputs) in enumerate(pairwise(widths)):
        layers.append((f"conv{block + 1}", nn.Conv2d(inputs, outputs, 3, padding=1)))
        if is_normalised:
            if block == 0:
                layers.insert(0, ("whiten", _Whiten()))
            layers.append((f"norm{block + 1}", nn.BatchNorm2d(outputs, affine=False)))
        layers.append((f"relu{block + 1}", nn.ReLU(inplace=True)))
        if block > 0:
            layers.append((f"pool{block + 1}", nn.MaxPool2d(2)))
            share = 0.0 if is_normalised else dropout[block]
            layers.append((f"dropout{block + 1}", nn.Dropout(share)))
    layers += [
        ("shape", nn.AdaptiveAvgPool2d(4)),
        ("flatten", nn.Flatten()),
        ("dense", nn.Linear(4096, 64)),
        ("relu_dense", nn.ReLU(inplace=True)),
        ("dropout_dense", nn.Dropout(0.2 if is_normalised else 0.5)),
        ("predictions", nn.Linear(64, 6)),
    ]
    return nn.Sequential(OrderedDict(layers))


class _LocalNorm(nn.Module):
    """Local response normalisation over nine neighbouring channels (Krizhevsky et al., 3.3).

    As `nn.LocalResponseNorm(9, 0.001, 0.75, 1)`, and twice as fast in training on a CPU: the sum
    over neighbours is a 1×1 convolution with a band of ones.
    """

    band: Tensor
    _reach, _alpha = 4, 0.001 / 9

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        places = torch.arange(num_channels)
        band = ((places[:, None] - places).abs() <= self._reach).float()
        self.register_buffer("band", band[:, :, None, None], persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        # sums in bf16 would be too coarse beside the 1
        kind = values.device.type
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
            values = values.float()
            sums = nn.functional.conv2d(values.square(), self.band)
            root = (1 + self._alpha * sums).sqrt()
            return values / (root * root.sqrt())


def _build_cifarnet() -> nn.Module:
    """The network of Chen et al. (Table 1): 1,756,426 parameters with ten classes.

    Sizes are the table's: 32×32×3, convolution of 64 5×5 kernels, pooling 3×3 with stride 2 to
    16×16, convolution of 64 5×5 kernels, pooling to 8×8, dense layers of 384 and 192 and the head.
    Their two papers disagree on the order of the rest: in one's text features are rectified, then
    normalised (LRN), then pooled; the tables pool before the first LRN and after the second, and
    the other's has `lrn&ReLU`. Here it is pool, ReLU, LRN after the first convolution and ReLU,
    LRN, pool after the second: the tables' places of the pools, and ReLU before LRN as in the text
    and in TensorFlow's CIFAR-10 tutorial, on which they built. (Pooling before ReLU gives the same
    as after it.) From that tutorial are also what they do not print: LRN over nine channels with
    bias 1, α 0.001/9 and β 0.75, and no padding on the left and at the top of pools. Inputs of
    other sizes than 32 are pooled to the 8×8 that the dense layers expect.
    """
    return nn.Sequential(
        OrderedDict(
            [
                ("conv1", nn.Conv2d(3, 64, 5, padding=2)),
                ("pool1", nn.MaxPool2d(3, 2, ceil_mode=True)),
                ("relu1", nn.ReLU()),
                ("lrn1", _LocalNorm(64)),
                ("conv2", nn.Conv2d(64, 64, 5, padding=2)),
                ("relu2", nn.ReLU()),
                ("lrn2", _LocalNorm(64)),
                ("pool2", nn.MaxPool2d(3, 2, ceil_mode=True)),
                ("shape", nn.AdaptiveAvgPool2d(8)),
                ("flatten", nn.Flatten()),
                ("dense1", nn.Linear(4096, 384)),
                ("relu_dense1", nn.ReLU()),
                ("dense2", nn.Linear(384, 192)),
                ("relu_dense2", nn.ReLU()),
                ("softmax", nn.Linear(192, 10)),
            ]
        )
    )


BACKBONES = {
    "resnet34": Backbone(_torchvision("resnet34"), "fc"),
    "resnet18": Backbone(_torchvision("resnet18"), "fc"),
    "alexnet": Backbone(_torchvision("alexnet"), "classifier.6"),
    "vgg19": Backbone(_torchvision("vgg19"), "classifier.6"),
    "efficientnet_lite0": Backbone(_build_lite0, "_fc", _LITE_MEAN, _LITE_STD),
    "simplenet": Backbone(_build_simplenet, "predictions", (0.0,) * 3, (1.0,) * 3, 256),
    "simplenet_norm": Backbone(
        partial(_build_simplenet, True), "predictions", (0.5,) * 3, (0.25,) * 3, 256
    ),
    "cifarnet": Backbone(_build_cifarnet, "softmax", (0.5,) * 3, (0.25,) * 3, 32),
    # timm's weights were trained on pixels from -1 to 1
    "inception_resnet_v2": Backbone(_build_inception, "classif", (0.5,) * 3, (0.5,) * 3, 299),
}


def create(name: str, num_classes: int, weights: str | bytes = "none") -> Classifier:
    """Make a classifier with a fresh head.

    Args:
        name: a key of BACKBONES.
        num_classes: outputs of the head.
        weights: what `find_weights` takes, where a file holds a state dict of the network
            (torchvision's layout) or of a classifier made here; or such a file's content.

    Raises:
        UsageError (a ValueError): unknown name, or weights that cannot be had or do not fit.
    """
    backbone = find_backbone(name)
    if num_classes < 1:
        raise UsageError(f"num_classes must be 1 or more, not {num_classes}")
    network = backbone.build()
    source = weights if isinstance(weights, bytes) else find_weights(name, weights)
    if source is not None:
        _load_weights(network, source, name)
    owner_name, _, last = backbone.last_layer.rpartition(".")
    owner = network.get_submodule(owner_name)
    num_features = int(getattr(owner, last).in_features)
    setattr(owner, last, nn.Identity())
    return Classifier(network, num_features, num_classes, backbone.mean, backbone.std)


def find_backbone(name: str) -> Backbone:
    """The backbone called `name`.

    Raises:
        UsageError: there is none; lists those that there are.
    """
    if name not in BACKBONES:
        raise UsageError(f"unknown backbone {name!r}: choose from {', '.join(BACKBONES)}")
    return BACKBONES[name]


def check_backbone(name: str, weights: Path | None, image_size: int) -> None:
    """Make sure that a network takes a file of weights, and images of a size; computes nothing.

    Raises:
        UsageError: it does not; says why.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parameters on this device have shapes only
        model = create(name, 1, "none" if weights is None else str(weights))
        try:
            model(torch.zeros(2, 3, image_size, image_size))
        except RuntimeError:
            raise UsageError(
                f"--image-size {image_size}: too small for {name}, whose last layers get nothing "
                "to see: give a larger one"
            ) from None


def choose_image_size(names: Sequence[str], asked: int | None) -> int:
    """Pixels a side for the backbones called `names`: as asked, or as they were published for.

    Raises:
        UsageError: there is no such backbone, or they were published for different sizes.
    """
    if asked is not None:
        return asked
    sizes = {name: find_backbone(name).image_size for name in names}
    if len(set(sizes.values())) > 1:
        wanted = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise UsageError(
            f"these backbones were published for images of different sizes ({wanted} px): give one "
            "for all of them with --image-size"
        )
    return next(iter(sizes.values()))


def _load_weights(network: nn.Module, source: Path | bytes, name: str) -> None:
    """Load all but the last layer."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    where = name if isinstance(source, bytes) else source
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file raises almost anything
        raise UsageError(f"--weights {where}: not a file of weights: {one_line(error)}") from None
    state = state.get("state", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UsageError(f"--weights {where}: holds no state dict")
    prefix = "features." if any(key.startswith("head.") for key in state) else ""
    last = BACKBONES[name].last_layer + "."
    given = {key.removeprefix(prefix): value for key, value in state.items()}
    wanted = {key for key in network.state_dict() if not key.startswith(last)}
    try:
        found = network.load_state_dict(
            {key: given[key] for key in wanted & set(given)}, strict=False
        )
    except RuntimeError as error:
        raise UsageError(f"--weights {where}: not weights of {name}: {one_line(error)}") from None
    # PyTorch's own list: it does without the counts of batches, which older files lack
    missing = sorted(wanted.intersection(found.missing_keys))
    if missing:
        raise UsageError(f"--weights {where}: not weights of {name} (it has no {missing[0]})")
