"""Series of images that are made of samples."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import make_texture
from PIL import Image

from iqa_ray.distortions.blurs import blur_defocus
from iqa_ray.images.listing import make_image_id
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.files import locate
from iqa_ray.study.series import CONFIGURATIONS, Sample, SeriesMaker


def make_noise(tmp_path, names, seed):
    """The noise that the last image of each flat sample's noise series shows."""
    make = SeriesMaker(
        str(tmp_path / f"ws-{seed}"), "series", ImageSource(locate(tmp_path)), 64, seed
    )
    fields = []
    for name in names:
        Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(tmp_path / name)
        rows = make(Sample(make_image_id(name), name, str(tmp_path / name)))
        (path,) = [r["path"] for r in rows if (r["configuration"], r["index"]) == ("noise", 5)]
        with Image.open(tmp_path / f"ws-{seed}" / path) as image:
            fields.append(np.asarray(image, float).ravel() - 128)
    return fields


def test_samples_do_not_share_their_noise_and_have_it_again(tmp_path):
    first, second = make_noise(tmp_path, ["a.png", "b.png"], 0)
    assert first.std() > 10
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    (again,) = make_noise(tmp_path, ["b.png"], 0)
    np.testing.assert_array_equal(again, second)
    (other,) = make_noise(tmp_path, ["b.png"], 1)
    assert abs(np.corrcoef(other, second)[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("height", "width", "step"),
    [(100, 60, 0.1), (60, 100, 0.1), (30, 1000, 1.0), (20, 12_000, 10.0)],
)
def test_steps_of_blur_are_a_thousandth_of_the_longer_side(height, width, step):
    """From the smallest disc that changes nothing on, and up to 10,000 px."""
    image = make_texture(0, height, width)
    blurring = CONFIGURATIONS["blurring"]
    assert blurring.num_images == 10
    for index in (1, 9):
        blurred = blurring.change(image, index, np.random.default_rng(0))
        np.testing.assert_array_equal(blurred, blur_defocus(image, 0.5 + index * step))
        assert (blurred != image).any()
