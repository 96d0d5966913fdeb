from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pywt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from skimage import data

from iqa_ray import metrics
from iqa_ray.metrics.planes import Planes

SHARPNESS = ("lapv", "lapm", "wavs")

grey_images = arrays(
    np.uint8,
    st.tuples(st.integers(12, 30), st.integers(12, 30)),
    elements=st.integers(0, 127),
    fill=st.nothing(),
)


def compute_reference_wavs(grey: NDArray[np.float64]) -> float:
    height, width = grey.shape
    _, details = pywt.dwt2(grey, "db6", mode="symmetric")
    total = np.zeros_like(grey)
    for kept in range(3):
        alone = tuple(band if kept == i else None for i, band in enumerate(details))
        total += np.abs(pywt.idwt2((None, alone), "db6", mode="symmetric")[:height, :width])
    return float(total.mean())


@pytest.mark.parametrize("name", SHARPNESS)
@pytest.mark.parametrize("colour", [(0, 0, 0), (7, 7, 7), (255, 255, 255), (13, 201, 77)])
def test_constant_image_scores_exactly_zero(name: str, colour: tuple[int, int, int]) -> None:
    image = np.full((19, 24, 3), colour, np.uint8)
    assert metrics.create(name)(image) == 0.0


def test_lapv_of_a_step_edge() -> None:
    # Every row is 0 0 0 30 30 30. Along rows the kernel sums to [1 −2 1], so the response of each
    # row is 0 0 30 −30 0 0: mean 0, squares 4 · 2 · 900, over 24 − 1.
    image = np.tile(np.array([0, 0, 0, 30, 30, 30], np.uint8), (4, 1))
    assert metrics.create("lapv")(image) == pytest.approx(7200 / 23, rel=1e-12)


def test_lapm_of_a_step_edge() -> None:
    # |−1 2 −1| gives 30 on the two pixels beside the edge, of six; nothing down the columns.
    image = np.tile(np.array([0, 0, 0, 30, 30, 30], np.uint8), (4, 1))
    assert metrics.create("lapm")(image) == pytest.approx(10.0, rel=1e-12)


def test_lapv_of_one_bright_pixel() -> None:
    # The response is the kernel times 60: its squares add to (20² + 4 · 4² + 4 · 1²) / 36 = 13.
    image = np.zeros((5, 5), np.uint8)
    image[2, 2] = 60
    assert metrics.create("lapv")(image) == pytest.approx(13 * 60**2 / 24, rel=1e-12)


def test_lapm_of_one_bright_pixel() -> None:
    # 1 + 2 + 1 along the row and the same down the column.
    image = np.zeros((5, 5), np.uint8)
    image[2, 2] = 60
    assert metrics.create("lapm")(image) == pytest.approx(8 * 60 / 25, rel=1e-12)


def test_lapm_weighs_colours_as_bt601() -> None:
    image = np.zeros((5, 5, 3), np.uint8)
    image[2, 2] = (10, 20, 30)
    luma = 0.299 * 10 + 0.587 * 20 + 0.114 * 30
    assert metrics.create("lapm")(image) == pytest.approx(8 * luma / 25, rel=1e-12)


def test_wavs_of_stripes_is_the_detail_of_one_row() -> None:
    # Where all rows are equal, only details across columns are left: those of one row.
    row = np.random.default_rng(0).integers(0, 256, 41).astype(np.uint8)
    _, detail = pywt.dwt(row.astype(np.float64), "db6", mode="symmetric")
    expected = np.abs(pywt.idwt(None, detail, "db6", mode="symmetric")[:41]).mean()
    assert metrics.create("wavs")(np.tile(row, (20, 1))) == pytest.approx(expected, rel=1e-7)


def test_wavs_of_one_bright_pixel_spreads_its_energy() -> None:
    # Far from borders H, V and D are orthogonal projections of the pixel; per axis the details
    # hold half the energy on average over the two phases, so together 3/4 of it.
    energies = []
    for phase in ((0, 0), (0, 1), (1, 0), (1, 1)):
        image = np.zeros((64, 64))
        image[32 + phase[0], 32 + phase[1]] = 1
        _, details = pywt.dwt2(image, "db6", mode="symmetric")
        energies.append(sum(float((band**2).sum()) for band in details))
        bright = (200 * image).astype(np.uint8)
        assert metrics.create("wavs")(bright) == pytest.approx(
            compute_reference_wavs(200 * image), rel=1e-7
        )
    assert np.mean(energies) == pytest.approx(0.75)


@pytest.mark.parametrize("shape", [(12, 12), (12, 13), (13, 12), (15, 40), (37, 23), (192, 2000)])
def test_wavs_equals_pywavelets_on_noise(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    expected = compute_reference_wavs(image.astype(np.float64))
    assert metrics.create("wavs")(image) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("photograph", ["astronaut", "camera", "chelsea", "coffee"])
def test_wavs_equals_pywavelets_on_photographs(photograph: str) -> None:
    image = getattr(data, photograph)()
    for part in (image, image[3:204, 5:260], image[::3, ::3]):
        expected = compute_reference_wavs(Planes(part).grey)
        assert metrics.create("wavs")(part) == pytest.approx(expected, rel=2e-8)


def test_laplacian_measures_of_a_photograph() -> None:
    # as the definitions give them, written out in float64
    image = data.astronaut()
    grey = np.pad(image @ np.array([0.299, 0.587, 0.114]), 1, mode="edge")
    middle, across = grey[1:-1, 1:-1], grey[1:-1, :-2] + grey[1:-1, 2:]
    down = grey[:-2, 1:-1] + grey[2:, 1:-1]
    corners = grey[:-2, :-2] + grey[:-2, 2:] + grey[2:, :-2] + grey[2:, 2:]
    laplacian = (corners + 4 * (across + down) - 20 * middle) / 6
    modified = np.abs(2 * middle - across) + np.abs(2 * middle - down)
    assert metrics.create("lapv")(image) == pytest.approx(laplacian.var(ddof=1), rel=1e-11)
    assert metrics.create("lapm")(image) == pytest.approx(modified.mean(), rel=1e-11)


@pytest.mark.parametrize("name", SHARPNESS)
def test_grey_equals_three_equal_channels(name: str) -> None:
    grey = data.camera()[:101, :90]
    metric = metrics.create(name)
    assert metric(grey) == metric(np.dstack([grey] * 3))


@pytest.mark.parametrize("name", SHARPNESS)
def test_memory_layout_does_not_matter(name: str) -> None:
    image = data.chelsea()[:101, :90]
    metric = metrics.create(name)
    views: list[NDArray[Any]] = [image, np.asfortranarray(image), image[:, :, ::-1][:, :, ::-1]]
    assert len({metric(view) for view in views}) == 1


@settings(max_examples=40)
@given(grey_images)
def test_transposition_changes_nothing(image: NDArray[np.uint8]) -> None:
    for name in SHARPNESS:
        metric = metrics.create(name)
        assert metric(np.ascontiguousarray(image.T)) == pytest.approx(metric(image), rel=1e-6)


@settings(max_examples=40)
@given(grey_images)
def test_flips_change_nothing_in_the_laplacian_measures(image: NDArray[np.uint8]) -> None:
    for name in ("lapv", "lapm"):
        metric = metrics.create(name)
        for flipped in (image[::-1], image[:, ::-1]):
            assert metric(flipped) == pytest.approx(metric(image), rel=1e-12)


@settings(max_examples=40)
@given(grey_images)
def test_contrast_scales_and_brightness_does_not(image: NDArray[np.uint8]) -> None:
    for name, factor in (("lapv", 4), ("lapm", 2), ("wavs", 2)):
        metric = metrics.create(name)
        score = metric(image)
        assert metric(image * np.uint8(2)) == pytest.approx(factor * score, rel=1e-6)
        assert metric(image + np.uint8(100)) == pytest.approx(score, rel=1e-6)


@settings(max_examples=40)
@given(grey_images)
def test_scores_are_finite_and_not_negative(image: NDArray[np.uint8]) -> None:
    for name in SHARPNESS:
        assert 0 <= metrics.create(name)(image) < np.inf
