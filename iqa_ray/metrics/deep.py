"""Metrics that are deep networks: pyiqa's models here, fed in batches of images of one size.

The networks and their definitions are pyiqa's. What is done here is to feed them well: images of
exactly the same size together and never padded, so that an image's score does not depend on its
company; smaller batches where memory runs out; and no work that cannot change a score (the empty
patches of MUSIQ, the equal crops of MANIQA and HyperIQA).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from math import isfinite
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from iqa_ray.metrics.planes import check_grey_or_rgb
from iqa_ray.metrics.spec import METRIFIER, Device, MetricError, MetricSpec, Precision
from iqa_ray.weights.metric_files import Weights, build_model, find_pyiqa_version
from iqa_ray.weights.pyiqa_builder import replaced

Image = NDArray[np.uint8]

# On one CPU thread a batch is slower than its images one by one: its buffers leave the caches.
_LARGEST_BATCH: dict[Device, int] = {"cpu": 1, "cuda": 32}
_CROP_SIDE = 224
_MUSIQ_LARGEST_SCALE = 384
_MAX_SIDE = "max-side-"  # in versions
METRIFIER_VERSION = 1  # of how images go into metrifiers and what is made of their outputs


class DeepMetric:
    """A metric that is one of pyiqa's networks, on one device. Make one with `metrics.create`.

    Args:
        spec: the metric's entry; its version is completed here.
        weights: verified files.
        device: cpu or cuda.
        precision: fp32, or bf16 or fp16 for those operations that PyTorch's autocast lists.
        max_side: images whose longer side has more pixels are shrunk to that (area averaging)
            first; for MUSIQ, which else takes the whole image in at full size. None: never.

    Raises:
        UsageError: a file is damaged or belongs to another model.
    """

    def __init__(
        self,
        spec: MetricSpec,
        weights: Weights,
        device: Device = "cpu",
        precision: Precision = "fp32",
        max_side: int | None = None,
    ) -> None:
        self.spec = replace(spec, version=make_version(weights, precision, max_side))
        self.name = spec.name
        self.higher_is_better = spec.higher_is_better
        self.version = self.spec.version
        self._weights, self._device, self._precision = weights, device, precision
        self._max_side = max_side
        # the most pixels that a batch may have; unknown until memory runs out
        self._max_batch_pixels = float("inf")
        self._network = self._build()

    def __call__(self, image: NDArray[Any]) -> float:
        """Score an image: (H, W, 3) uint8 RGB or (H, W) uint8.

        The score is finite; `spec.range` is pyiqa's rough one. Raises MetricError with status
        "too_small", "too_large" (one image alone does not fit into memory) or "undefined", and
        ValueError for anything but such an image.
        """
        (score,) = self.score_batch([self.prepare(image)])
        if isinstance(score, MetricError):
            raise score
        return score

    def prepare(self, image: NDArray[Any]) -> Image:
        """An image as the network takes it: (H, W, 3) uint8 RGB, shrunk if `max_side` asks so.

        Raises:
            MetricError: it is too small.
            ValueError: it is no image.
        """
        check_grey_or_rgb(image)
        height, width = image.shape[:2]
        self.spec.check_size(height, width)
        if image.ndim == 2:
            image = np.dstack([image] * 3)
        longer = max(height, width)
        if self._max_side is None or longer <= self._max_side:
            return image
        size = [max(1, round(side * self._max_side / longer)) for side in (width, height)]
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)

    def note(self, height: int, width: int) -> str:
        """What the metric's own definition does to an image of this size first, if enlarging."""
        side = 0
        if type(self._network).__name__ == "MUSIQ" and max(height, width) < _MUSIQ_LARGEST_SCALE:
            side = _MUSIQ_LARGEST_SCALE
        elif self._find_crops() and min(height, width) <= _CROP_SIDE:
            side = _CROP_SIDE + 1
        return f"enlarged to {side} px, by the metric's definition" if side else ""

    def batch_size(self, height: int, width: int) -> int:
        """How many images of this size go into one batch, as far as is known by now."""
        by_memory = self._max_batch_pixels / (height * width)
        return int(max(1, min(_LARGEST_BATCH[self._device], by_memory)))

    def score_batch(
        self, images: Sequence[Image], precision: Precision | None = None
    ) -> list[float | MetricError]:
        """Score prepared images of one size, in batches of `batch_size` at most.

        An image that cannot be scored has its MetricError in its place. Where memory runs out,
        the batch is halved and done again, and later batches stay as small. `precision` is the
        metric's own unless another is asked for.
        """
        precision = precision or self._precision
        height, width = images[0].shape[:2]
        scores: list[float | MetricError] = []
        size = self.batch_size(height, width)
        while len(scores) < len(images):
            chunk = images[len(scores) : len(scores) + size]
            failure: MetricError | None = None
            try:
                scores += self._forward(chunk, precision)
                continue
            except Exception as error:
                if is_out_of_memory(error):
                    if len(chunk) > 1:
                        less = len(chunk) // 2 * height * width
                        self._max_batch_pixels = min(self._max_batch_pixels, less)
                    failure = MetricError("too_large", f"not enough memory for {self.name}")
                else:
                    failure = MetricError(
                        "undefined", f"{self.name}: {type(error).__name__}: {error}"
                    )
            # after the handler, in which the error's frames still keep the batch's memory
            self._recover()
            if len(chunk) == 1:
                scores.append(failure)
            elif failure.status == "undefined":
                size = 1  # one by one, to find out which
            size = max(1, min(size, len(chunk) // 2))
        return scores

    def _forward(self, images: Sequence[Image], precision: Precision) -> list[float | MetricError]:
        import torch

        with torch.inference_mode(), self._settings(images[0].shape, precision):
            batch = torch.from_numpy(np.stack(images)).to(self._device)
            batch = batch.permute(0, 3, 1, 2).contiguous().float().div_(255)
            output = self._network(batch)
            if isinstance(output, tuple | list):
                output = output[0]
            values = output.double().reshape(-1).tolist()
        if len(values) != len(images):
            raise ValueError(f"{len(values)} scores for {len(images)} images")
        return [value if isfinite(value) else self._not_finite(value) for value in values]

    def _not_finite(self, value: float) -> MetricError:
        hint = "" if self._precision == "fp32" else f"; {self._precision} may be too coarse"
        return MetricError("undefined", f"{self.name} gives {value} for this image{hint}")

    @contextlib.contextmanager
    def _settings(self, shape: tuple[int, ...], precision: Precision) -> Iterator[None]:
        """What holds during a forward pass: pyiqa's own settings, and our savings."""
        import torch

        with contextlib.ExitStack() as stack:
            cudnn = torch.backends.cudnn
            stack.enter_context(cudnn.flags(enabled=True, benchmark=False, deterministic=True))
            if precision != "fp32":
                dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
                stack.enter_context(torch.autocast(self._device, dtype))
            crops = self._find_crops()
            if crops and _has_equal_crops(*shape[:2]):
                stack.enter_context(replaced(self._network, crops, 1))
            if type(self._network).__name__ == "MUSIQ":
                stack.enter_context(_without_padding())
            yield

    def _find_crops(self) -> str | None:
        """Which attribute says how many crops are scored, if any: so it is in MANIQA, HyperIQA."""
        names = ("test_sample", "num_crop")
        return next((name for name in names if hasattr(self._network, name)), None)

    def _build(self) -> Any:
        network = build_model(self._weights)
        return network.to(self._device).eval()

    def _recover(self) -> None:
        """Give memory back after a failed pass, and make a network anew that collects by hooks.

        MANIQA's hooks keep what the failed pass had got to, and the next one would take it.
        """
        import torch

        has_hooks = any(module._forward_hooks for module in self._network.modules())
        if has_hooks:
            del self._network
        if self._device == "cuda":
            torch.cuda.empty_cache()
        if has_hooks:
            self._network = self._build()


def _has_equal_crops(height: int, width: int) -> bool:
    """Whether pyiqa's `uniform_crop` takes the same crop every time.

    It enlarges an image to 225 px where a side has 224 or less, and its steps are a fourth or
    fifth of what the crop leaves free, rounded down.
    """
    if min(height, width) <= _CROP_SIDE:
        factor = (_CROP_SIDE + 1) / min(height, width)
        height, width = int(height * factor), int(width * factor)
    return max(height, width) - _CROP_SIDE < 4


@contextlib.contextmanager
def _without_padding() -> Iterator[None]:
    """Leave out MUSIQ's padding: patches without pixels that attention masks out anyway.

    They are in the same places for images of one size. No value of another patch depends on them:
    after the mask their weight, exp(-1000), is zero in float32. Without them there is nothing to
    mask, and PyTorch's fused attention does, whose memory grows with the number of patches and not
    with its square: 12 megapixels are 12,000 patches.
    """
    from pyiqa.archs import musiq_arch
    from torch.nn.functional import scaled_dot_product_attention

    get_patches = musiq_arch.get_multiscale_patches

    def get_filled(image: Any, **options: Any) -> Any:
        patches = get_patches(image, **options)
        return patches[:, patches[0, :, -1] > 0]

    def attend(layer: Any, x: Any, mask: Any = None) -> Any:
        heads = [
            part(x).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
            for part in (layer.query, layer.key, layer.value)
        ]
        return layer.out(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))

    with (
        replaced(musiq_arch, "get_multiscale_patches", get_filled),
        replaced(musiq_arch.MultiHeadAttention, "forward", attend),
    ):
        yield


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch says with `error` that memory ran out, on whichever device."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text
        for sign in ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
    )


def make_version(
    weights: Weights, precision: Precision = "fp32", max_side: int | None = None
) -> str:
    """The version of a deep metric's scores: whatever changes them is in it.

    pyiqa's version (or, of a network that was trained here, that of what is made of its outputs),
    the name and SHA-256 of the last of its files (its checkpoint), 12 digits of a hash of the
    others, and the settings that are not the default.
    """
    is_own = weights.metric.startswith(METRIFIER)
    parts = [f"metrifier-{METRIFIER_VERSION}" if is_own else f"pyiqa-{find_pyiqa_version()}"]
    if weights.files:
        *others, last = weights.files
        parts += [PurePosixPath(last.name).name, last.sha256]
        if others:
            parts.append(
                sha256("".join(entry.sha256 for entry in others).encode()).hexdigest()[:12]
            )
    if precision != "fp32":
        parts.append(precision)
    if max_side is not None:
        parts.append(f"{_MAX_SIDE}{max_side}")
    return "+".join(parts)


def parse_version(version: str) -> tuple[Precision, int | None]:
    """The precision and max_side that `make_version` wrote into a version."""
    *_, before, last = ["", *version.split("+")]
    max_side = None
    if last.startswith(_MAX_SIDE):
        max_side, last = int(last.removeprefix(_MAX_SIDE)), before
    reduced: dict[str, Precision] = {"bf16": "bf16", "fp16": "fp16"}
    return reduced.get(last, "fp32"), max_side
