from __future__ import annotations

import pickle
import subprocess
import sys
from math import isfinite
from typing import Any

import numpy as np
import pytest

from iqa_ray import metrics
from iqa_ray.metrics import CPU_METRICS, SPECS, MetricError, get_spec
from iqa_ray.metrics.planes import Planes


def test_table_of_metrics() -> None:
    assert list(SPECS) == [*CPU_METRICS, "musiq", "maniqa", "hyperiqa"]
    assert CPU_METRICS == ("lapv", "lapm", "wavs", "brisque", "niqe")
    assert [name for name, spec in SPECS.items() if not spec.higher_is_better] == [
        "brisque",
        "niqe",
    ]
    assert all(spec.name == name and spec.min_side > 0 for name, spec in SPECS.items())


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'brisque'") as caught:
        get_spec("BRISQE")
    assert "\n" not in str(caught.value)
    assert all(name in str(caught.value) for name in SPECS)
    with pytest.raises(ValueError, match="unknown metric 'zzz'; known: lapv, lapm"):
        get_spec("zzz")


@pytest.mark.parametrize("name", CPU_METRICS)
def test_metric_carries_its_description(name: str) -> None:
    metric = metrics.create(name)
    spec = SPECS[name]
    assert metric.spec is spec
    assert (metric.name, metric.higher_is_better, metric.version) == (
        name,
        spec.higher_is_better,
        spec.version,
    )


def test_too_small_says_how_small() -> None:
    with pytest.raises(MetricError) as caught:
        metrics.create("niqe")(np.zeros((120, 160, 3), np.uint8))
    assert caught.value.status == "too_small"
    assert str(caught.value) == "niqe needs at least 192 px on both sides, the image is 160x120"


@pytest.mark.parametrize("name", CPU_METRICS)
def test_smallest_image_scores_and_a_smaller_does_not(name: str) -> None:
    side = SPECS[name].min_side
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    assert isfinite(metrics.create(name)(image))
    for smaller in (image[1:], image[:, 1:], image[:1, :1]):
        with pytest.raises(MetricError) as caught:
            metrics.create(name)(smaller)
        assert caught.value.status == "too_small"


def test_metric_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(MetricError("undefined", "no value")))
    assert (error.status, str(error)) == ("undefined", "no value")
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 20), np.float32),
        np.zeros((20, 20, 4), np.uint8),
        np.zeros((20, 20, 1), np.uint8),
        np.zeros(20, np.uint8),
        np.zeros((0, 20, 3), np.uint8),
        [[1, 2], [3, 4]],
    ],
)
def test_only_8_bit_grey_and_rgb_arrays_are_images(image: Any) -> None:
    with pytest.raises(ValueError, match="an image must"):
        metrics.create("lapm")(image)


def test_planes_are_bt601_luma() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    planes = Planes(image)
    expected = image @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(planes.grey, expected, rtol=0, atol=1e-12)
    assert planes.grey.dtype == np.float64
    assert (planes.height, planes.width) == planes.luma.shape == (9, 7)
    assert np.abs(planes.luma - expected).max() <= 0.5 + 1e-9
    assert (planes.luma == np.rint(planes.luma)).all()
    assert planes.grey is planes.grey


def test_planes_of_equal_channels_are_the_channel() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for planes in (Planes(grey), Planes(np.dstack([grey] * 3))):
        assert (planes.grey == grey).all()
        assert (planes.luma == grey).all()


def test_luma_rounds_as_pyiqa_does() -> None:
    pytest.importorskip("pyiqa")
    import torch
    from pyiqa.utils.color_util import to_y_channel

    colours = np.indices((256, 256, 16)).reshape(3, 1024, -1).transpose(1, 2, 0)
    image = (colours * (1, 1, 17)).astype(np.uint8)
    tensor = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    assert (Planes(image).luma == to_y_channel(tensor, 255.0)[0, 0].numpy()).all()


def test_metrics_share_planes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 210, 3), dtype=np.uint8)
    planes = Planes(image)
    for name in CPU_METRICS:
        metric = metrics.create(name)
        assert metric.measure(planes) == metric(image)


def test_import_needs_no_heavy_library() -> None:
    code = (
        "import sys, iqa_ray.metrics; "
        "assert not {'torch', 'ray', 'pyiqa', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
