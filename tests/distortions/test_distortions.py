from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from iqa_ray.distortions import (
    DISTORTIONS,
    NUM_CROP_STEPS,
    PAPER_LEVELS,
    ROTATION_ANGLES,
    crop_progressively,
    distort,
    downscale,
    rotate,
)
from iqa_ray.distortions.blurs import (
    blur_defocus,
    blur_gaussian,
    blur_motion,
    make_disc_kernel,
    make_motion_kernel,
)
from iqa_ray.distortions.codecs import (
    compress_jpeg,
    compress_jpeg2000,
    decode_jpeg2000,
    encode_jpeg2000,
)
from iqa_ray.distortions.tones import (
    FULL_WELL,
    READ_NOISE,
    add_noise,
    overexpose,
    reduce_contrast,
    underexpose,
)

LEVELS = range(1, 6)


def make_scene(seed: int, height: int = 240, width: int = 320) -> np.ndarray:
    """(H, W, 3) uint8: texture at all scales, with the 1/f spectrum of photographs, and edges."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120.0)
    for scale in (0.8, 1.6, 3.2, 6.4, 12.8, 25.6):
        grain = cv2.GaussianBlur(rng.standard_normal((height, width, 3)), (0, 0), scale)
        image += 13 * grain / grain.std()
    cv2.circle(image, (width // 3, height // 2), height // 4, (220, 180, 60), -1, cv2.LINE_AA)
    cv2.rectangle(image, (width // 2, 30), (width - 40, height // 2), (40, 60, 110), -1)
    image += 8 * rng.standard_normal((height, width, 1))
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return make_scene(0)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Photographs that scikit-image brings, of about the size of BSDS's."""
    found = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    return [np.ascontiguousarray(image[:321, :481]) for image in found]


def measure_fidelity(image: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """PSNR and SSIM against the original, at levels 1 to 5."""
    distorted = [distort(image, name, level=level, rng=1) for level in LEVELS]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return (
        np.array([peak_signal_noise_ratio(image, other) for other in distorted]),
        np.array(
            [
                structural_similarity(grey, cv2.cvtColor(other, cv2.COLOR_RGB2GRAY))
                for other in distorted
            ]
        ),
    )


# every distortion


@pytest.mark.parametrize("name", DISTORTIONS)
def test_result_is_an_image_and_repeats(name: str, scene: np.ndarray) -> None:
    image = scene[:90, :70]  # not contiguous
    before = image.copy()
    results = [distort(image, name, level=3, rng=5) for _ in range(2)]
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(results[0], results[1])
    assert results[0].dtype == np.uint8
    assert results[0].shape == image.shape
    assert results[0].flags.c_contiguous
    assert not np.shares_memory(results[0], image)
    assert (results[0] != image).any()


@pytest.mark.parametrize("name", DISTORTIONS)
def test_fidelity_falls_with_level(name: str, scene: np.ndarray) -> None:
    psnr, ssim = measure_fidelity(scene, name)
    assert (np.diff(psnr) < 0).all(), psnr
    assert (np.diff(ssim) < 0).all(), ssim


@pytest.mark.parametrize("name", sorted(set(DISTORTIONS) - {"fast_fading"}))
def test_fidelity_falls_with_level_on_every_photograph(name: str, photos: list[np.ndarray]) -> None:
    for photo in photos:
        psnr, ssim = measure_fidelity(photo, name)
        assert (np.diff(psnr) < 0).all(), psnr
        assert (np.diff(ssim) < 0).all(), ssim


def test_fidelity_falls_with_fading_on_average_over_photographs(photos: list[np.ndarray]) -> None:
    # wrong bits can by chance do less harm together than alone
    psnr, ssim = np.mean([measure_fidelity(photo, "fast_fading") for photo in photos], axis=0)
    assert (np.diff(psnr) < 0).all(), psnr
    assert (np.diff(ssim) < 0).all(), ssim


@pytest.mark.parametrize("name", ["motion_blur", "noise", "underexposure", "fast_fading"])
def test_seeds_differ_and_generators_are_taken(name: str, scene: np.ndarray) -> None:
    first = distort(scene, name, level=3, rng=1)
    assert (first != distort(scene, name, level=3, rng=2)).any()
    assert (first != distort(scene, name, level=3)).any()
    rng = np.random.default_rng(1)
    drawn = [distort(scene, name, level=3, rng=rng) for _ in range(2)]
    assert (drawn[0] != drawn[1]).any()
    again = distort(scene, name, level=3, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(drawn[0], again)


@pytest.mark.parametrize("seed", [0, 7])
def test_images_that_are_distorted_with_one_seed_do_not_share_their_noise(seed: int) -> None:
    """Flat images of one size: what is left of each without it is its noise."""
    fields = {}
    for grey in (100, 101):
        image = np.full((64, 64, 3), grey, np.uint8)
        levels = [distort(image, "noise", level=level, rng=seed) for level in (1, 3, 3)]
        noise = [level.astype(float).ravel() - grey for level in levels]
        assert np.corrcoef(noise[0], noise[1])[0, 1] > 0.99  # one field, scaled
        np.testing.assert_array_equal(levels[1], levels[2])
        fields[grey] = noise[1]
    assert abs(np.corrcoef(fields[100], fields[101])[0, 1]) < 0.05


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 40), (3, 1), (9, 16)])
def test_tiny_images(name: str, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for level in (1, 5):
        result = distort(image, name, level=level)
        assert result.shape == image.shape
        assert result.dtype == np.uint8


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        [[[0, 0, 0]]],
    ],
    ids=["grey", "one channel", "four channels", "empty", "float", "list"],
)
def test_other_images_are_refused(name: str, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="an image must"):
        distort(image, name, level=1)


@pytest.mark.parametrize("name", DISTORTIONS)
@pytest.mark.parametrize("parameter", [float("nan"), float("inf"), -float("inf"), -1000.0])
def test_parameters_out_of_range_are_refused(name: str, parameter: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        distort(np.zeros((8, 8, 3), np.uint8), name, parameter=parameter)


def test_distort_refuses_what_it_cannot_tell(scene: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one of .*gaussian_blur.* not 'fog'"):
        distort(scene, "fog", level=1)
    with pytest.raises(ValueError, match="either"):
        distort(scene, "noise")
    with pytest.raises(ValueError, match="either"):
        distort(scene, "noise", level=1, parameter=0.1)
    for level in (0, 6, 1.5):
        with pytest.raises(ValueError, match="level"):
            distort(scene, "noise", level=level)  # type: ignore[arg-type]


def test_levels_and_parameters_agree(scene: np.ndarray) -> None:
    for name, distortion in DISTORTIONS.items():
        assert distortion.name == name
        np.testing.assert_array_equal(
            distort(scene, name, level=2), distort(scene, name, parameter=distortion.levels[1])
        )


def test_paper_levels() -> None:
    assert PAPER_LEVELS["label_smoothing"] == {
        "gaussian_blur": (0.7, 1.0, 1.2),
        "noise": (0.005, 0.01, 0.02),
        "jpeg": (12, 8, 4),
    }


@settings(max_examples=25)
@given(
    image=arrays(
        np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)), fill=st.nothing()
    ),
    name=st.sampled_from(sorted(DISTORTIONS)),
    level=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_any_image_keeps_its_kind(image: np.ndarray, name: str, level: int, seed: int) -> None:
    before = image.copy()
    result = distort(image, name, level=level, rng=seed)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(image, before)


# blurs


def make_impulse(side: int) -> np.ndarray:
    image = np.zeros((side, side, 3), np.uint8)
    image[side // 2, side // 2] = 255
    return image


def test_blur_of_an_impulse_is_the_gaussian() -> None:
    sigma = 1.5
    offset = np.arange(-10, 11)
    profile = np.exp(-(offset**2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
    expected = 255 * np.outer(profile, profile)
    result = blur_gaussian(make_impulse(21), sigma)
    assert expected.max() > 18
    for channel in range(3):
        np.testing.assert_allclose(result[:, :, channel], expected, atol=0.52)


def test_disc_of_radius_one() -> None:
    # By hand: the centre lies within the disc, the disc reaches into all eight pixels around it.
    kernel = make_disc_kernel(1.0)
    assert kernel.shape == (3, 3)
    centre = 1.0
    # √(1 − x²) over x from −1/2 to 1/2 has the integral √3/4 + π/6, of which the centre has 1/2
    side = np.sqrt(3) / 4 + np.pi / 6 - 0.5
    corner = (np.pi - centre - 4 * side) / 4
    expected = np.array([[corner, side, corner], [side, centre, side], [corner, side, corner]])
    np.testing.assert_allclose(kernel, expected / np.pi, atol=3e-4)


@pytest.mark.parametrize("radius", [0.8, 1.3, 2.0, 3.7, 8.5, 40.0])
def test_disc_kernel(radius: float) -> None:
    kernel = make_disc_kernel(radius)
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)
    np.testing.assert_array_equal(kernel, kernel.T)
    offset = np.arange(len(kernel)) - len(kernel) // 2
    # a uniform disc has the variance r²/4 along an axis, a pixel 1/12
    variance = (kernel.sum(axis=0) * offset**2).sum()
    assert variance == pytest.approx(radius**2 / 4 + 1 / 12, abs=0.04)
    distance = np.hypot(*np.meshgrid(offset, offset))
    assert (kernel[distance > radius + np.sqrt(0.5)] == 0).all()
    inside = kernel[distance < radius - np.sqrt(0.5)]
    np.testing.assert_allclose(inside * np.pi * radius**2, 1, rtol=2e-3)


def test_disc_within_a_pixel_changes_nothing(scene: np.ndarray) -> None:
    np.testing.assert_array_equal(blur_defocus(scene, 0.5), scene)
    np.testing.assert_array_equal(blur_gaussian(scene, 0), scene)
    np.testing.assert_array_equal(blur_motion(scene, 0, np.random.default_rng(0)), scene)


def test_horizontal_motion() -> None:
    kernel = make_motion_kernel(5, 0)
    expected = np.array([0, 1 / 8, 7 / 8, 1, 1, 1, 7 / 8, 1 / 8, 0]) / 5
    np.testing.assert_allclose(kernel[4], expected, atol=1e-4)
    assert np.delete(kernel, 4, axis=0).sum() == 0
    np.testing.assert_allclose(make_motion_kernel(5, 90), kernel.T, atol=1e-12)


@pytest.mark.parametrize("angle", [0, 20, 45, 90, 130])
@pytest.mark.parametrize("length", [3.5, 12, 26])
def test_motion_kernel_has_its_length_and_direction(length: float, angle: float) -> None:
    kernel = make_motion_kernel(length, angle)
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)
    offset = np.arange(len(kernel)) - len(kernel) // 2
    x, y = np.meshgrid(offset, -offset)
    direction = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    along, across = (
        (kernel * (x * u + y * v) ** 2).sum() for u, v in (direction, (-direction[1], direction[0]))
    )
    # a line of length L has the variance L²/12; sharing between pixels adds at most 1/4
    assert length**2 / 12 - 0.01 <= along <= length**2 / 12 + 0.25
    assert 0 <= across <= 0.25


def test_blurs_keep_a_flat_image() -> None:
    image = np.full((20, 30, 3), (7, 130, 255), np.uint8)
    for name in ("gaussian_blur", "defocus", "motion_blur"):
        np.testing.assert_array_equal(distort(image, name, level=5), image)


# tones


def test_noise_has_its_variance() -> None:
    image = np.full((200, 200, 3), 128, np.uint8)
    residual = add_noise(image, 0.01, np.random.default_rng(3)) / 255 - 128 / 255
    # rounding adds 1/12 of a squared grey level; the relative error is √(2/40000) = 0.7%
    expected = 0.01 + 1 / 12 / 255**2
    np.testing.assert_allclose(residual.var(axis=(0, 1)), expected, rtol=0.035)
    assert np.abs(residual.mean(axis=(0, 1))).max() < 5 * np.sqrt(0.01 / 40_000)
    channels = np.corrcoef(residual.reshape(-1, 3).T)
    assert np.abs(channels - np.eye(3)).max() < 0.03


def test_overexposure_by_hand() -> None:
    # 128 is 0.21586 in linear light; twice that, 0.43172, is 0.68840 or grey level 175.5-175.6;
    # 200 is 0.57758, and twice that clips
    image = np.array([[[0, 128, 200]]], np.uint8)
    np.testing.assert_array_equal(overexpose(image, 2), [[[0, 176, 255]]])
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    np.testing.assert_array_equal(overexpose(every, 1), every)


def test_underexposure_by_hand() -> None:
    # grey 188 is 0.50289 in linear light; its square, 0.25290, is 0.54050 or grey level 137.8
    image = np.full((200, 200, 3), 188, np.uint8)
    result = underexpose(image, 2, np.random.default_rng(0)).astype(float)
    assert result.mean() == pytest.approx(137.8, abs=0.3)
    # the noise in light, times the slope of the sRGB curve at 0.2529
    spread = np.sqrt(0.2529 * FULL_WELL + READ_NOISE**2) / FULL_WELL
    slope = 255 * 1.055 / 2.4 * 0.2529 ** (1 / 2.4 - 1)
    assert result.std() == pytest.approx(spread * slope, rel=0.03)


def test_underexposure_keeps_hue() -> None:
    image = np.full((100, 100, 3), (200, 120, 60), np.uint8)
    light = ((image[0, 0] / 255 + 0.055) / 1.055) ** 2.4
    dark = underexpose(image, 1.8, np.random.default_rng(0)) / 255
    after = (((dark + 0.055) / 1.055) ** 2.4).mean(axis=(0, 1))
    np.testing.assert_allclose(after[:2] / after[0], light[:2] / light[0], rtol=0.02)


def test_contrast_by_hand() -> None:
    # the mean luma is 0.299 · 100 + 0.587 · 50 + 0.114 · 200 = 82.05
    image = np.full((4, 4, 3), (100, 50, 200), np.uint8)
    np.testing.assert_array_equal(reduce_contrast(image, 0.5)[0, 0], [91, 66, 141])
    np.testing.assert_array_equal(reduce_contrast(image, 0)[0, 0], [82, 82, 82])
    np.testing.assert_array_equal(reduce_contrast(image, 1), image)


# codecs


def test_jpeg_subsamples_chroma() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, ::2] = (255, 0, 0)
    image[:, 1::2] = (0, 0, 255)
    result = compress_jpeg(image, 100).astype(int)
    # luma alternates still, colour is one mean for each pair of columns; without subsampling the
    # standard deviation would be 104
    red_difference = (result[:, :, 0] - result @ np.array([0.299, 0.587, 0.114]))[4:12, 4:12]
    assert red_difference.std() < 10


def test_jpeg_side_is_limited() -> None:
    with pytest.raises(ValueError, match="at most 65,500 px"):
        compress_jpeg(np.zeros((65_501, 1, 3), np.uint8), 50)


@pytest.mark.parametrize("quality", [0, 101, 50.5])
def test_jpeg_quality_is_whole(quality: float, scene: np.ndarray) -> None:
    with pytest.raises(ValueError, match="quality must be"):
        compress_jpeg(scene, quality)


@pytest.mark.parametrize("size", [(321, 481), (97, 161)])
def test_jpeg2000_rate(size: tuple[int, int]) -> None:
    image = make_scene(1, *size)
    for bits_per_pixel in (4, 2.5, *DISTORTIONS["jpeg2000"].levels):
        target = bits_per_pixel * size[0] * size[1] / 8
        if target < 300:  # the main header has half of that
            continue
        stream = encode_jpeg2000(image, bits_per_pixel)
        assert len(stream) == pytest.approx(target, rel=0.05)
        assert stream[:2] == b"\xff\x4f"
        assert decode_jpeg2000(stream).shape == image.shape


def test_jpeg2000_rate_on_photographs(photos: list[np.ndarray]) -> None:
    for photo in photos:
        for bits_per_pixel in (1.2, 0.3, 0.07):
            num_bits = 8 * len(encode_jpeg2000(photo, bits_per_pixel))
            assert num_bits / photo[:, :, 0].size == pytest.approx(bits_per_pixel, rel=0.05)


def test_jpeg2000_spends_no_bits_without_need() -> None:
    flat = np.full((200, 200, 3), 90, np.uint8)
    assert len(encode_jpeg2000(flat, 2)) < 1000
    assert np.abs(compress_jpeg2000(flat, 2).astype(int) - 90).max() <= 1


@pytest.mark.parametrize("bits_per_pixel", [0, 1e-9, 24.1])
def test_jpeg2000_rate_out_of_range(bits_per_pixel: float, scene: np.ndarray) -> None:
    with pytest.raises(ValueError, match="bits_per_pixel must be"):
        compress_jpeg2000(scene, bits_per_pixel)


# geometry


def test_crop_shapes() -> None:
    tall = np.zeros((20_000, 20, 3), np.uint8)
    assert [crop_progressively(tall, step).shape[:2] for step in range(NUM_CROP_STEPS)] == [
        (20_000 - 1000 * step, 20 - step) for step in range(10)
    ]
    odd = np.zeros((321, 47, 3), np.uint8)
    assert [crop_progressively(odd, step).shape[:2] for step in range(10)] == [
        (321, 47), (305, 45), (289, 43), (273, 40), (257, 38),
        (241, 36), (225, 33), (209, 31), (193, 29), (177, 26),
    ]  # fmt: skip


def test_crop_keeps_the_top_left(scene: np.ndarray) -> None:
    result = crop_progressively(scene, 9)
    np.testing.assert_array_equal(result, scene[:132, :176])
    assert result.flags.c_contiguous
    assert not np.shares_memory(result, scene)
    assert not np.shares_memory(crop_progressively(scene, 0), scene)


def test_crop_refuses() -> None:
    with pytest.raises(ValueError, match="too small to be cropped 10 times"):
        crop_progressively(np.zeros((100, 19, 3), np.uint8), 0)
    for step in (-1, 10, 1.5, float("nan")):
        with pytest.raises(ValueError, match="step must be"):
            crop_progressively(np.zeros((100, 100, 3), np.uint8), step)  # type: ignore[arg-type]


@pytest.mark.parametrize("degrees", ROTATION_ANGLES)
def test_rotation_turns_counter_clockwise(degrees: float) -> None:
    image = np.zeros((101, 141, 3), np.uint8)
    cv2.circle(image, (70 + 25, 50), 3, (255, 255, 255), -1)
    for border, side in (("inscribed", (71, 71)), ("reflect", (101, 141))):
        result = rotate(image, degrees, border)  # type: ignore[arg-type]
        assert result.shape[:2] == side
        y, x = (np.indices(side) * result[:, :, 0]).sum(axis=(1, 2)) / result[:, :, 0].sum()
        expected_x = (side[1] - 1) / 2 + 25 * np.cos(np.deg2rad(degrees))
        expected_y = (side[0] - 1) / 2 - 25 * np.sin(np.deg2rad(degrees))
        assert np.hypot(x - expected_x, y - expected_y) < 0.5


@pytest.mark.parametrize("border", ["inscribed", "reflect"])
def test_rotation_has_no_black_corners(border: str) -> None:
    image = np.full((80, 120, 3), (200, 100, 50), np.uint8)
    for degrees in ROTATION_ANGLES:
        result = rotate(image, degrees, border)  # type: ignore[arg-type]
        np.testing.assert_array_equal(result, np.broadcast_to(image[0, 0], result.shape))


def test_inscribed_rotation_shows_only_what_is_there() -> None:
    # the frame stays outside the square at every angle; the filter reaches it at the corners
    image = np.full((200, 240, 3), 100, np.uint8)
    cv2.rectangle(image, (0, 0), (239, 199), (0, 0, 0), 1)
    for degrees in range(0, 360, 5):
        result = rotate(image, degrees)
        assert result.shape == (141, 141, 3)
        assert np.median(result) == 100
        assert (np.abs(result.astype(int) - 100) > 10).mean() < 0.001


def test_rotation_by_zero_softens_like_the_others(photos: list[np.ndarray]) -> None:
    def measure_sharpness(image: np.ndarray) -> float:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
        return float(np.abs(cv2.Laplacian(grey, cv2.CV_64F)).mean())

    ratios = [
        measure_sharpness(rotate(photo, 0))
        / np.mean([measure_sharpness(rotate(photo, angle)) for angle in ROTATION_ANGLES[1:]])
        for photo in photos
    ]
    assert np.mean(ratios) == pytest.approx(1, abs=0.04)


def test_rotation_refuses(scene: np.ndarray) -> None:
    with pytest.raises(ValueError, match="border"):
        rotate(scene, 10, "black")  # type: ignore[arg-type]
    for degrees in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            rotate(scene, degrees)
    assert rotate(np.zeros((32_766, 2, 3), np.uint8), 10).shape == (1, 1, 3)
    with pytest.raises(ValueError, match="too large to be rotated"):
        rotate(np.zeros((2, 32_767, 3), np.uint8), 10)


def test_downscale_averages_areas() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    # red is 0 3 / 12 15 in the top left, then 6 9 / 18 21
    assert downscale(image, 2)[0, :, 0].tolist() == [8, 14]
    # 3 px to 2: the middle one is shared, (10 + 20 / 2) / 1.5 and (20 / 2 + 40) / 1.5
    row = np.repeat(np.array([[10, 20, 40]], np.uint8)[:, :, None], 3, axis=2)
    assert downscale(row, 1.5)[0, :, 0].tolist() == [13, 33]
    assert downscale(image, 1.5).shape == (3, 3, 3)
    assert downscale(image, 100).tolist() == [[[22, 24, 24]]]


@pytest.mark.parametrize("factor", [0.5, float("nan"), float("inf"), -2])
def test_downscale_refuses(factor: float, scene: np.ndarray) -> None:
    with pytest.raises(ValueError, match="factor"):
        downscale(scene, factor)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 50)])
def test_geometry_of_tiny_images(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 77, np.uint8)
    for degrees in ROTATION_ANGLES:
        assert (rotate(image, degrees) == 77).all()
        assert (rotate(image, degrees, "reflect") == 77).all()
    assert (downscale(image, 3) == 77).all()
    np.testing.assert_array_equal(downscale(image, 1), image)


@pytest.mark.parametrize(
    "change", [lambda image: crop_progressively(image, 1), lambda image: rotate(image, 15),
               lambda image: downscale(image, 2)],
    ids=["crop", "rotate", "downscale"],
)  # fmt: skip
def test_geometry_refuses_other_images_and_leaves_its_own(change, scene: np.ndarray) -> None:
    before = scene.copy()
    result = change(scene)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(scene, before)
    for image in (scene[:, :, 0], scene.astype(np.float32)):
        with pytest.raises(ValueError, match="an image must"):
            change(image)
