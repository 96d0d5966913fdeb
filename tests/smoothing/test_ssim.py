"""SSIM of stacks of images, held against scikit-image's, one image after the other."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import make_texture

from iqa_ray.distortions import distort
from iqa_ray.smoothing.ssim import measure_ssim
from iqa_ray.smoothing.strategies import VERSIONS

LUMA = np.array([0.299, 0.587, 0.114])


def make_versions(originals):
    ways = [how for how in VERSIONS.values() if how]
    return np.stack(
        [[distort(image, name, parameter=value) for name, value in ways] for image in originals]
    )


@pytest.mark.parametrize("shape", [(32, 32), (40, 25), (11, 11)])
def test_ssim_is_scikit_images(shape):
    metrics = pytest.importorskip("skimage.metrics")
    originals = np.stack([make_texture(seed, *shape) for seed in range(6)])
    versions = make_versions(originals)
    found = measure_ssim(originals, versions)
    expected = [
        [
            metrics.structural_similarity(
                image @ LUMA, version @ LUMA, data_range=255, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False,
            )
            for version in of_image
        ]
        for image, of_image in zip(originals, versions, strict=True)
    ]  # fmt: skip
    assert found == pytest.approx(np.array(expected), abs=1e-4)
    assert np.ptp(found) > 0.1


def test_an_image_is_wholly_like_itself_and_less_like_each_next_level():
    originals = np.stack([make_texture(seed, 32, 32) for seed in range(3)])
    assert measure_ssim(originals, originals[:, None]) == pytest.approx(np.ones((3, 1)))
    levels = measure_ssim(originals, make_versions(originals)).reshape(3, 3, 3)
    assert (np.diff(levels, axis=2) < 0).all()


def test_neighbours_in_a_stack_do_not_matter():
    originals = np.stack([make_texture(seed, 32, 32) for seed in range(3)])
    versions = make_versions(originals)
    alone = measure_ssim(originals[1:2], versions[1:2])
    assert measure_ssim(originals, versions)[1:2] == pytest.approx(alone, abs=1e-12)
