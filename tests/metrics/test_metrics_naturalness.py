from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import gammaln
from skimage import data

from iqa_ray import metrics
from iqa_ray.metrics import MetricError
from iqa_ray.metrics.naturalness import (
    fit_asymmetric_gaussians,
    fit_gaussian,
    halve,
    normalise_for_brisque,
    normalise_for_niqe,
)

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "coins", "moon", "rocket")

# (height, width)
CROPS = ((300, 301), (193, 255), (256, 192), (101, 76), (32, 32), (20, 24))


def crop(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return image[top : top + size[0], left : left + size[1]]


def load_params(name: str) -> dict[str, NDArray[np.float64]]:
    path = files("iqa_ray.metrics") / "params" / f"{name}.npz"
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """pyiqa's BRISQUE and NIQE, from files that hold our parameters."""
    pyiqa = pytest.importorskip("pyiqa")
    import torch
    from scipy.io import savemat

    folder: Path = tmp_path_factory.mktemp("pyiqa")
    brisque, niqe = load_params("brisque"), load_params("niqe")
    torch.save(
        tuple(torch.from_numpy(brisque[key]) for key in ("coefficients", "support_vectors")),
        folder / "brisque.pth",
    )
    savemat(
        folder / "niqe.mat",
        {"mu_prisparam": niqe["mean"][None], "cov_prisparam": niqe["covariance"]},
    )
    models = {
        name: pyiqa.create_metric(
            name, device="cpu", pretrained_model_path=str(folder / f"{name}{suffix}")
        )
        for name, suffix in (("brisque", ".pth"), ("niqe", ".mat"))
    }

    def score(name: str, image: NDArray[np.uint8]) -> float:
        channels = image if image.ndim == 3 else np.dstack([image] * 3)
        tensor = torch.from_numpy(channels.astype(np.float32) / 255).permute(2, 0, 1)[None]
        return float(models[name](tensor))

    # its threads wait for each other far longer than they work on images so small
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield score
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_brisque_equals_pyiqa(reference: Any, photograph: str) -> None:
    for size in CROPS:
        image = crop(getattr(data, photograph)(), size)
        expected = reference("brisque", image)
        assert metrics.create("brisque")(image) == pytest.approx(expected, abs=0.05), size


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_niqe_equals_pyiqa(reference: Any, photograph: str) -> None:
    for size in CROPS[:3]:
        image = crop(getattr(data, photograph)(), size)
        expected = reference("niqe", image)
        assert metrics.create("niqe")(image) == pytest.approx(expected, abs=0.02), size


@pytest.mark.parametrize("level", [0, 8, 15, 255])
def test_flat_areas_count_as_in_pyiqa(reference: Any, level: int) -> None:
    # the coefficients of flat areas are zero but for rounding, and the fits count zeros apart
    image = data.chelsea()[:288, :400].copy()
    image[:40] = level
    image[:, -110:] = level
    for name, tolerance in (("brisque", 0.05), ("niqe", 0.02)):
        expected = reference(name, image)
        assert metrics.create(name)(image) == pytest.approx(expected, abs=tolerance)


def test_values_on_photographs_stay() -> None:
    # From this implementation; pyiqa 0.1.16 gives BRISQUE 2.8773, 2.5736, −7.3070 and NIQE 3.06239,
    # 2.57208, 3.09594. Float32 sums may differ between processors, so BRISQUE has more room.
    expected = {
        ("astronaut", "brisque"): 2.87393,
        ("chelsea", "brisque"): 2.57196,
        ("camera", "brisque"): -7.31295,
        ("astronaut", "niqe"): 3.06239,
        ("chelsea", "niqe"): 2.57208,
        ("camera", "niqe"): 3.09594,
    }
    for (photograph, name), score in expected.items():
        image = getattr(data, photograph)()
        assert metrics.create(name)(image) == pytest.approx(
            score, abs=0.01 if name == "brisque" else 1e-4
        )


@pytest.mark.parametrize("name", ["brisque", "niqe"])
def test_grey_equals_three_equal_channels(name: str) -> None:
    grey = data.camera()[:201, :211]
    metric = metrics.create(name)
    assert metric(grey) == metric(np.dstack([grey] * 3))


@pytest.mark.parametrize("name", ["brisque", "niqe"])
def test_blur_and_noise_score_worse(name: str) -> None:
    import cv2

    image = data.chelsea()
    noise = np.random.default_rng(0).normal(0, 25, image.shape)
    noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
    metric = metrics.create(name)
    assert metric(image) < metric(cv2.GaussianBlur(image, (0, 0), 2))
    assert metric(image) < metric(noisy)


def make_odd_images() -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    dot = np.zeros((200, 210), np.uint8)
    dot[100, 100] = 255
    return {
        "black": np.zeros((200, 210, 3), np.uint8),
        "flat": np.full((200, 210, 3), (90, 12, 200), np.uint8),
        "one pixel": np.zeros((1, 1), np.uint8),
        "two by two": np.array([[0, 255], [255, 0]], np.uint8),
        "checkerboard": (np.indices((200, 210)).sum(axis=0) % 2 * 255).astype(np.uint8),
        "coarse checkerboard": (np.indices((192, 192)) // 16).sum(axis=0).astype(np.uint8) % 2,
        "noise": rng.integers(0, 256, (200, 210, 3), dtype=np.uint8),
        "wide": rng.integers(0, 256, (192, 2000), dtype=np.uint8),
        "eight levels": rng.integers(0, 8, (200, 210), dtype=np.uint8),
        "dot": dot,
        "half": np.repeat([[0] * 100 + [255] * 110], 200, axis=0).astype(np.uint8),
        "ramp": np.tile(np.arange(210, dtype=np.uint8), (200, 1)),
        "framed noise": np.pad(rng.integers(0, 256, (60, 60), dtype=np.uint8), 90),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", make_odd_images())
def test_odd_images_score_or_say_why_not(kind: str) -> None:
    image = make_odd_images()[kind]
    for name in metrics.CPU_METRICS:
        try:
            score = metrics.create(name)(image)
        except MetricError as error:
            outcome: str = error.status
        else:
            outcome = "finite" if np.isfinite(score) else "not finite"
        assert outcome in ("finite", "too_small", "undefined")


@pytest.mark.parametrize("name", ["brisque", "niqe"])
@pytest.mark.parametrize("kind", ["black", "flat", "checkerboard"])
def test_regular_images_are_undefined(name: str, kind: str) -> None:
    with pytest.raises(MetricError, match=f"{name} is undefined") as caught:
        metrics.create(name)(make_odd_images()[kind])
    assert caught.value.status == "undefined"


def test_brisque_is_undefined_where_pyiqa_has_none(reference: Any) -> None:
    # on so few pixels some fits have no left side
    image = crop(data.coffee(), (13, 17))
    assert np.isnan(reference("brisque", image))
    with pytest.raises(MetricError, match="undefined"):
        metrics.create("brisque")(image)


def test_threads_and_processes_change_no_bit() -> None:
    code = (
        "import sys, cv2; cv2.setNumThreads(int(sys.argv[1]))\n"
        "from skimage import data; from iqa_ray import metrics\n"
        "print([metrics.create(n)(data.chelsea()).hex() for n in metrics.CPU_METRICS])"
    )
    outputs = set()
    for threads in ("1", "4"):
        env = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        outputs.add(
            subprocess.run(
                [sys.executable, "-c", code, threads],
                check=True,
                capture_output=True,
                text=True,
                env=env,
                timeout=120,
            ).stdout
        )
    assert outputs == {
        f"{[metrics.create(n)(data.chelsea()).hex() for n in metrics.CPU_METRICS]}\n"
    }


def draw_generalised_gaussian(shape: float, size: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    sign = rng.choice([-1.0, 1.0], size)
    return sign * rng.gamma(1 / shape, size=size) ** (1 / shape)


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0])
def test_fits_find_the_shape_of_samples(shape: float) -> None:
    samples = draw_generalised_gaussian(shape, 200_000)
    variance = np.exp(gammaln(3 / shape) - gammaln(1 / shape))
    found, spread = fit_gaussian(samples.astype(np.float32).reshape(1, -1))
    assert found == pytest.approx(shape, rel=0.05)
    assert spread == pytest.approx(variance, rel=0.05)

    skewed = np.where(samples > 0, 3 * samples, samples).astype(np.float32).reshape(1, 400, 500)
    fit = fit_asymmetric_gaussians(skewed)
    assert fit.right_std[0] / fit.left_std[0] == pytest.approx(3, rel=0.05)
    assert fit.left_std[0] ** 2 == pytest.approx(variance, rel=0.05)


def test_asymmetric_fit_of_four_samples() -> None:
    # left: √(4/1); right: √((1 + 1 + 4)/3)
    fit = fit_asymmetric_gaussians(np.array([[[-2, 1], [1, 2]]], np.float32))
    assert fit.left_std[0] == pytest.approx(2)
    assert fit.right_std[0] == pytest.approx(2**0.5)


def test_asymmetric_fit_of_one_side_has_no_other() -> None:
    fit = fit_asymmetric_gaussians(np.array([[[1, 2], [3, 0]]], np.float32))
    assert np.isnan(fit.left_std[0])
    assert fit.right_std[0] == pytest.approx((14 / 3) ** 0.5)
    assert fit.nearest[0] == 0


def test_halving_keeps_a_ramp_in_the_middle() -> None:
    # output i is centred between inputs 2i and 2i + 1
    ramp = np.tile(np.arange(40.0), (21, 1))
    half = halve(ramp)
    assert half.shape == (11, 20)
    np.testing.assert_allclose(half[5, 3:-3], np.arange(40.0).reshape(-1, 2).mean(axis=1)[3:-3])


def test_normalisation_of_a_bright_pixel() -> None:
    # μ is the window's centre weight w, and σ = √(w − w²)
    luma = np.zeros((15, 15))
    luma[7, 7] = 1
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets**2) / (2 * (7 / 6) ** 2))
    weight = (1 / window.sum()) ** 2
    expected = (1 - weight) / (np.sqrt(weight - weight**2) + 1)
    assert normalise_for_niqe(luma)[7, 7] == pytest.approx(expected, rel=1e-6)
    assert normalise_for_brisque(luma.astype(np.float32))[7, 7] == pytest.approx(expected, rel=1e-5)
