"""Distorted copies as inputs of networks, and the loss of a share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trainings import PIXELS, RECIPE

from iqa_ray.distortions import distort
from iqa_ray.training import runs
from iqa_ray.training.inputs import ChunkedImages, Copies, DistortedImages
from iqa_ray.training.loop import compute_joint_loss
from iqa_ray.training.recipe import Recipe

SHARE = Recipe(**{**vars(RECIPE), "severity_weight": 2.0, "predicts_share": True})


@pytest.mark.parametrize("num_threads", [1, 3])
def test_copies_are_made_of_the_images_that_they_name(num_threads):
    images = ChunkedImages([PIXELS[:16], PIXELS[16:32], PIXELS[32:]])
    distortions = (("", 0), ("noise", 3), ("jpeg", 5))
    copies = Copies(np.array([7, 7, 39, 0]), np.array([1, 0, 2, 1]), distortions, seed=4)
    found = DistortedImages(images, copies, num_threads)[torch.tensor([3, 0, 1, 2])]
    assert (found.shape, found.dtype) == ((4, 3, 32, 32), torch.uint8)
    expected = [
        distort(PIXELS[0], "noise", level=3, rng=4),
        distort(PIXELS[7], "noise", level=3, rng=4),
        PIXELS[7],
        distort(PIXELS[39], "jpeg", level=5, rng=4),
    ]
    for copy, image in zip(found, expected, strict=True):
        assert (copy.permute(1, 2, 0).numpy() == image).all()


def test_the_loss_of_a_share_is_its_cross_entropy_by_hand():
    """Outputs of 0 are shares of a half, whose cross-entropy is log 2 whatever the target."""
    outputs = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, np.log(3)]])
    targets = torch.tensor([[0.0, 0.9], [1.0, 0.25]])
    loss = compute_joint_loss(SHARE, outputs, targets, None)
    second = -0.25 * np.log(0.75) - 0.75 * np.log(0.25)
    assert float(loss) == pytest.approx(np.log(2) + 2.0 * (np.log(2) + second) / 2)


def test_the_best_epoch_is_that_of_the_least_error_of_a_share():
    row = {"validation_accuracy": 0.3, "validation_loss": 9.0}
    rank = [
        runs._rank_epoch({**row, **change}, None, is_last=False)[0]
        for change in (
            {"validation_error": 0.2},
            {"validation_accuracy": 0.9, "validation_error": 0.3},
            {"validation_accuracy": 0.4},
            {},
        )
    ]
    assert rank[0] > rank[1]
    assert rank[2] > rank[3]


def test_recipes_without_a_share_have_the_keys_that_they_had():
    assert "predicts_share" not in RECIPE.describe()
    assert SHARE.describe()["predicts_share"] is True
    with pytest.raises(AssertionError):
        Recipe(**{**vars(RECIPE), "predicts_share": True})
