"""Augmentation of batches, on whichever device they are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from iqa_ray.training.pixels import CROP_STEP
from iqa_ray.training.recipe import Augment

# torchvision's RandomResizedCrop leaves as little as 8%, for ImageNet; codes must stay legible
_SMALLEST_AREA = 0.5
_WIDEST_RATIO = 4 / 3


def augment_images(images: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Change each of (N, 3, S, S) uint8 or float images at random; the shape stays.

    `flip` mirrors half of them; `standard` also cuts a part of half to all of the area out, of a
    ratio of 3:4 to 4:3, and scales it to the whole. The draws come from `generator`, on the CPU, so
    that they are the same on every device.
    """
    if augment == "none":
        return images
    number = len(images)
    mirrored = torch.rand(number, generator=generator) < 0.5
    if augment == "flip":
        flipped = images.flip(-1)
        return torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), flipped, images)
    draws = torch.rand(number, 4, generator=generator)
    area = _SMALLEST_AREA + (1 - _SMALLEST_AREA) * draws[:, 0]
    ratio = _WIDEST_RATIO ** (2 * draws[:, 1] - 1)
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(number, 2, 3)
    theta[:, 0, 0] = torch.where(mirrored, -width, width)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (1 - width) * (2 * draws[:, 2] - 1)
    theta[:, 1, 2] = (1 - height) * (2 * draws[:, 3] - 1)
    grid = affine_grid(theta, list(images.shape), align_corners=False).to(images.device)
    # the model takes floats in 0–1 as it takes bytes in 0–255
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images
    return grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def cut_at_random(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A square of `size` out of each of (N, 3, S, S) images, at full resolution; half mirrored.

    Squares start at multiples of CROP_STEP.
    """
    number, room = len(images), images.shape[-1] - size
    assert room >= 0, "crops are larger than the images"
    places = torch.randint(room // CROP_STEP + 1, (2, number), generator=generator)
    tops, lefts = (places * CROP_STEP).tolist()
    mirrored = (torch.rand(number, generator=generator) < 0.5).tolist()
    crops = [
        image[:, top : top + size, left : left + size]
        for image, top, left in zip(images, tops, lefts, strict=True)
    ]
    flipped = zip(crops, mirrored, strict=True)
    return torch.stack([crop.flip(-1) if is_flipped else crop for crop, is_flipped in flipped])


def cut_centre(images: Tensor, size: int) -> Tensor:
    """The square of `size` in the middle of (N, 3, S, S) images; starts as random ones do."""
    start = (images.shape[-1] - size) // 2 // CROP_STEP * CROP_STEP
    return images[..., start : start + size, start : start + size]
