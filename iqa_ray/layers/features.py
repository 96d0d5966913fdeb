"""What happens in the layers of a network while it looks at images and at distorted copies.

Layers are looked at by forward hooks, so that any `torch.nn.Module` will do. A layer's features of
the clean images are kept while their distorted copies pass through, and are then forgotten: memory
holds one batch, however many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iqa_ray.layers.distances import Floats, compute_gram, measure_distances, measure_hsic
from iqa_ray.training.loop import full_precision
from iqa_ray.training.pixels import Pixels

_PASSES_ON = (nn.Identity, nn.Flatten)  # layers that compute nothing
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
Visit = Callable[[str, nn.Module, Tensor], None]


@dataclass(frozen=True)
class BatchMeasures:
    """What a batch of B images and V distorted copies of each did in L layers.

    Where the network has dropout there are M = 2 modes, without and with it active; else M = 1.

    Attributes:
        layers: names, in the order in which they ran; a layer's second run is called `NAME:2`.
        kinds: the classes of the layers, such as `Conv2d`.
        skipped: names of layers whose output is no tensor of features, with the reason.
        losses: (M, 1 + V, B) cross-entropy in nats, of the clean images first.
        distances: (M, V, L, B), see `measure_distances`.
        hsic: (M, V, L, 3), see `compute_cka`.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    skipped: dict[str, str]
    losses: Floats
    distances: Floats
    hsic: Floats


def find_dropout(network: nn.Module) -> list[nn.Module]:
    """The layers that drop something out while a network is trained."""
    return [layer for layer in network.modules() if isinstance(layer, _DROPOUT) and layer.p > 0]


@torch.inference_mode()
def measure_batch(
    network: nn.Module,
    clean: Pixels,
    copies: Sequence[Pixels],
    targets: Sequence[int],
    seed: int,
) -> BatchMeasures:
    """Measure how far the features of distorted copies are from those of the clean images.

    With dropout active, all images of the batch, clean and distorted, lose the same units, as if
    they were seen by one thinned network (Srivastava et al. 2014). What is measured is how the
    distortion spreads in it, not how two draws differ: equal images have a distance of exactly 0.

    Args:
        network: in evaluation mode; takes (B, 3, S, S) uint8 RGB and gives (B, C) logits.
        clean: (B, S, S, 3) uint8 RGB.
        copies: V of the same shape.
        targets: B true classes.
        seed: of what dropout drops.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    labels = torch.as_tensor(targets, device=device)
    modes: list[Any] = [nullcontext]
    if dropout := find_dropout(network):
        modes.append(partial(_active, dropout, device, seed))
    losses, comparisons = [], []
    with full_precision():
        for mode in modes:

            def see(pixels: Pixels, visit: Visit, mode: Any = mode) -> Floats:
                images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
                with mode(), visit_layers(network, visit):
                    logits = network(images)
                lost = nn.functional.cross_entropy(logits.double(), labels, reduction="none")
                return np.asarray(lost.cpu().numpy())

            comparison = _Comparison(len(clean))
            losses.append([see(clean, comparison.keep)])
            for copy in copies:
                comparison.begin_copy()
                losses[-1].append(see(copy, comparison.compare))
            comparisons.append(comparison)
    first = comparisons[0]
    return BatchMeasures(
        tuple(first.kinds),
        tuple(first.kinds.values()),
        first.skipped,
        np.array(losses),
        np.array([comparison.distances for comparison in comparisons]),
        np.array([comparison.hsic for comparison in comparisons]),
    )


@contextmanager
def visit_layers(network: nn.Module, visit: Visit) -> Iterator[None]:
    """Call `visit` with name, layer and output of every layer without layers of its own that runs.

    An output must be read at once: the next layer may overwrite it.
    """
    num_runs: Counter[str] = Counter()

    def see(name: str, layer: nn.Module, _inputs: Any, output: Any) -> None:
        num_runs[name] += 1
        visit(name if num_runs[name] == 1 else f"{name}:{num_runs[name]}", layer, output)

    handles = [
        layer.register_forward_hook(partial(see, name))
        for name, layer in network.named_modules()
        if not any(True for _ in layer.children()) and not isinstance(layer, _PASSES_ON)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _active(dropout: Sequence[nn.Module], device: torch.device, seed: int) -> Iterator[None]:
    """Let the layers `dropout` drop what the seed says, of every image the same."""

    def drop(layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        layer.train()
        kept: Tensor = layer.forward(torch.ones_like(output[:1]))
        layer.eval()
        return output * kept

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        handles = [layer.register_forward_hook(drop) for layer in dropout]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class _Comparison:
    """Keeps the features of clean images, and holds those of their copies against them."""

    num_images: int
    kinds: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    distances: list[Floats] = field(default_factory=list)  # (L, B) of each copy
    hsic: list[Floats] = field(default_factory=list)  # (L, 3) of each copy

    def __post_init__(self) -> None:
        self._clean: list[tuple[Tensor, Floats, float]] = []
        self._places: dict[str, int] = {}

    def keep(self, name: str, layer: nn.Module, output: Any) -> None:
        if reason := self._find_trouble(output):
            self.skipped[name] = reason
            return
        self._places[name] = len(self._clean)
        self.kinds[name] = type(layer).__name__
        features = output.float().flatten(1).clone()  # the next layer may work in place
        gram = compute_gram(features)
        self._clean.append((features, gram, measure_hsic(gram, gram)))

    def _find_trouble(self, output: Any) -> str:
        if not isinstance(output, Tensor):
            return f"its output is no tensor but a {type(output).__name__}"
        if not output.is_floating_point():
            return "its output holds no real numbers"
        if output.dim() < 2 or len(output) != self.num_images:
            return f"its output of shape {tuple(output.shape)} has no row an image"
        return ""

    def begin_copy(self) -> None:
        num_layers = len(self._clean)
        self.distances.append(np.full((num_layers, self.num_images), np.nan))
        self.hsic.append(np.full((num_layers, 3), np.nan))

    def compare(self, name: str, _layer: nn.Module, output: Any) -> None:
        place = self._places.get(name)
        if place is None:
            return
        clean, clean_gram, clean_hsic = self._clean[place]
        features = output.float().flatten(1)
        gram = compute_gram(features)
        self.distances[-1][place] = measure_distances(clean, features)
        self.hsic[-1][place] = (
            measure_hsic(clean_gram, gram), clean_hsic, measure_hsic(gram, gram),
        )  # fmt: skip
