"""Images of leaves that cover one another."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from iqa_ray import metrics
from iqa_ray.synthetic.leaves import make_leaves


def make(seed, size=128):
    return make_leaves(size, np.random.default_rng(seed))


def test_an_image_follows_from_its_generator():
    image = make(3)
    assert image.shape == (128, 128, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(make(3), image)
    assert (make(4) != image).any()


@pytest.mark.parametrize("seed", range(3))
def test_power_falls_with_frequency_as_in_photographs(seed):
    """By a power of 2 on the average of natural images (Field 1987); here it lies from 1 to 3."""
    luma = make(seed, 256).mean(axis=2)
    window = np.hanning(256)[:, None] * np.hanning(256)
    power = np.abs(np.fft.rfft2((luma - luma.mean()) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
    edges = np.geomspace(0.02, 0.4, 9)
    means = [power[(radius >= low) & (radius < high)].mean() for low, high in pairwise(edges)]
    slope = np.polyfit(np.log(np.sqrt(edges[:-1] * edges[1:])), np.log(means), 1)[0]
    assert -3 < slope < -1


def test_some_scenes_are_busy_and_some_are_calm():
    sharpness = metrics.create("lapm")
    scores = [sharpness(make(seed)) for seed in range(8)]
    assert max(scores) > 1.5 * min(scores)
