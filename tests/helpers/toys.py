"""A classifier whose error is a known function of blur, and images for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class Toy(nn.Module):
    """Tells red images from blue ones, the surer the more its neighbouring pixels differ.

    Takes (N, 3, H, W) in 0–1. Where they differ by `middle` in the mean, it guesses; where by less,
    it is wrong.
    """

    def __init__(self, slope: float = 0.8, middle: float = 0.015) -> None:
        super().__init__()
        self.slope, self.middle = slope, middle

    def forward(self, images: Tensor) -> Tensor:
        across = (images[:, 1, :, 1:] - images[:, 1, :, :-1]).abs().mean(dim=(1, 2))
        side = torch.sign(images[:, 2].mean(dim=(1, 2)) - images[:, 0].mean(dim=(1, 2)))
        margin = side * self.slope * torch.log((across + 1e-4) / self.middle)
        return torch.stack([-margin, margin], dim=1)


def save_toy(file: Path, **settings: float) -> Path:
    """The toy as a TorchScript file; its outputs are of `a` (red) and `b` (blue)."""
    torch.jit.script(Toy(**settings)).save(str(file))
    return file


def make_toy_images(folder: Path, number: int, size: int = 64, seed: int = 0) -> Path:
    """`number` noisy images, red ones in the folder `a` and blue ones in `b`."""
    for index in range(number):
        rng = np.random.default_rng([seed, index])
        pixels = rng.normal(128, 30, (size, size, 3))
        pixels[..., 2 if index % 2 else 0] += 60
        place = folder / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(place / f"{index:03}.png")
    return folder
