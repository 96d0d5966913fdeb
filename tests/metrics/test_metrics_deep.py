"""Deep metrics, on random weights: their scores mean nothing, but must be pyiqa's."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from pictures import make_texture

from iqa_ray import metrics
from iqa_ray.metrics import deep
from iqa_ray.metrics.spec import DEEP_METRICS, SPECS, MetricError, get_spec

pyiqa = pytest.importorskip("pyiqa")
torch = pytest.importorskip("torch")
uniform_crop = pytest.importorskip("pyiqa.archs.arch_util").uniform_crop


@pytest.fixture(scope="module")
def create(weights_folder):
    made = {}

    def create(name, **settings):
        key = (name, *settings.items())
        if key not in made:
            made[key] = metrics.create(name, str(weights_folder), "cpu", **settings)
        return made[key]

    return create


def score_by_pyiqa(network, image):
    """As pyiqa's own call does: one image, to_tensor, its own forward."""
    from torchvision.transforms.functional import to_tensor

    with torch.no_grad():
        return float(network(to_tensor(image).unsqueeze(0)).reshape(-1)[0])


# --- the table --------------------------------------------------------------------------------


def test_the_table_agrees_with_pyiqa():
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    for name in DEEP_METRICS:
        config = DEFAULT_CONFIGS[name]
        assert SPECS[name].higher_is_better is not config.get("lower_better", False)
        bounds = tuple(float(part.strip(" ~")) for part in config["score_range"].split(","))
        assert SPECS[name].range == bounds
        assert config["metric_mode"] == "NR"


def test_any_no_reference_metric_has_an_entry_or_a_reason():
    for name in pyiqa.list_models("NR"):
        try:
            spec = get_spec(name)
        except ValueError as error:
            assert str(error).startswith(name)
            continue
        low, high = spec.range
        assert low < high
    assert get_spec("topiq_nr").range == (0.0, 1.0)
    assert get_spec("pi").range == (0.0, np.inf)
    assert not get_spec("pi").higher_is_better
    assert get_spec("musiq-ava").min_side == 32
    assert get_spec("musiq-ava").supports_max_side
    assert not get_spec("cnniqa").supports_max_side
    assert get_spec("cnniqa").higher_is_better


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("psnr", "psnr needs a reference image"),
        ("lpips", "lpips needs a reference image"),
        ("fid", "no score of its own: it compares sets of images"),
        ("clipscore", "needs a caption"),
        ("qalign", "fetches a whole model repository"),
        ("topiq", "did you mean 'topiq_nr"),
    ],
)
def test_metrics_that_cannot_be_had(name, message):
    with pytest.raises(ValueError, match=message):
        get_spec(name)


def test_without_pyiqa(monkeypatch):
    from iqa_ray.metrics import spec

    spec._read_pyiqa_configs.cache_clear()
    monkeypatch.setattr(spec.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"iqa_ray\[deep\]"):
        get_spec("topiq_nr")
    spec._read_pyiqa_configs.cache_clear()


# --- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("cnniqa", [(64, 80), (200, 100)]),
        ("musiq", [(64, 80), (321, 481), (500, 90), (384, 384), (33, 300)]),
        ("hyperiqa", [(227, 225), (240, 250)]),
    ],
)
def test_scores_are_pyiqa_s(create, name, sizes):
    """Leaving out padding and equal crops changes no score."""
    metric = create(name)
    width = metric.spec.range[1] - metric.spec.range[0]
    scores = []
    for seed, (height, width_px) in enumerate(sizes):
        image = make_texture(seed, height, width_px)
        scores.append(metric(image))
        expected = score_by_pyiqa(metric._network, image)
        assert scores[-1] == pytest.approx(expected, abs=1e-5 * width)
    assert len(set(scores)) == len(scores)


@pytest.mark.parametrize(
    ("name", "file"),
    [("cnniqa", "CNNIQA_koniq10k-e6f14c91.pth"), ("musiq", "musiq_koniq_ckpt-e95806b9.pth")],
)
def test_scores_are_those_of_a_network_that_pyiqa_made(create, weights_folder, name, file):
    """It loads the same file without us, which the other comparisons do not."""
    network = pyiqa.create_metric(
        name, device="cpu", pretrained_model_path=str(weights_folder / file)
    )
    metric, image = create(name), make_texture(5, 200, 150)
    width = metric.spec.range[1] - metric.spec.range[0]
    assert metric(image) == pytest.approx(score_by_pyiqa(network, image), abs=1e-5 * width)


@pytest.mark.slow
def test_maniqa_of_one_crop_is_that_of_equal_ones(create, monkeypatch):
    """pyiqa scores the same crop twenty times; two of them show it, in a tenth of the time."""
    from pyiqa.archs import maniqa_arch

    metric, image = create("maniqa"), make_texture(1, 227, 225)
    score = metric(image)
    monkeypatch.setattr(
        maniqa_arch,
        "uniform_crop",
        lambda x, crop_size, crop_num: uniform_crop(x, crop_size, crop_num)[:2],
    )
    assert score == pytest.approx(score_by_pyiqa(metric._network, image), abs=1e-5)


def test_equal_crops_are_seen_as_such():
    from pyiqa.archs.arch_util import uniform_crop

    for height, width, num_crops in itertools.product(
        (224, 225, 227, 228), (224, 227, 228), (20, 25)
    ):
        image = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
        crops = uniform_crop(image, 224, num_crops)
        if deep._has_equal_crops(height, width):
            assert bool((crops == crops[:1]).all()), (height, width, num_crops)
    assert deep._has_equal_crops(224, 224)
    assert not deep._has_equal_crops(240, 224)


def test_grey_images_are_taken_as_rgb(create):
    grey = make_texture(1, 64, 64)[..., 0]
    metric = create("cnniqa")
    assert metric(grey) == metric(np.dstack([grey] * 3))


def test_the_version_says_what_made_the_scores(create, weights_folder):
    from hashlib import sha256

    name = "musiq_koniq_ckpt-e95806b9.pth"
    digest = sha256((weights_folder / name).read_bytes()).hexdigest()
    version = f"pyiqa-{pyiqa.__version__}+{name}+{digest}"
    assert create("musiq").version == version
    assert create("musiq").higher_is_better is True
    assert create("musiq", precision="bf16").version == f"{version}+bf16"
    assert create("musiq", max_side=400).version == f"{version}+max-side-400"
    other = create("hyperiqa").version.split("+")
    assert other[1] == "HyperIQA-resnet50-koniq10k-c96c41b1.pth"
    assert len(other[3]) == 12  # of the backbone


def test_max_side_shrinks_larger_images_only(create):
    metric, full = create("musiq", max_side=400), create("musiq")
    small, large = make_texture(1, 300, 400), make_texture(2, 360, 800)
    assert metric(small) == full(small)
    shrunk = cv2.resize(large, (400, 180), interpolation=cv2.INTER_AREA)
    assert metric(large) == full(shrunk) != full(large)


def test_reduced_precision_moves_scores_a_little(create):
    image = make_texture(3, 64, 64)
    exact, rough = create("musiq")(image), create("musiq", precision="bf16")(image)
    assert 0 < abs(exact - rough) < 1


def test_what_a_definition_enlarges_is_noted(create):
    assert "enlarged to 384 px" in create("musiq").note(100, 383)
    assert create("musiq").note(100, 384) == ""
    assert "enlarged to 225 px" in create("hyperiqa").note(224, 500)
    assert create("hyperiqa").note(225, 500) == ""
    assert create("cnniqa").note(10, 10) == ""


@pytest.mark.parametrize(
    ("name", "size"), [("musiq", (31, 100)), ("hyperiqa", (223, 300)), ("maniqa", (300, 223))]
)
def test_small_images_get_no_upscaled_guess(create, name, size):
    if name == "maniqa":
        metric = get_spec(name)
        with pytest.raises(MetricError, match="maniqa needs at least 224 px"):
            metric.check_size(*size)
        return
    with pytest.raises(MetricError, match=f"{name} needs at least") as caught:
        create(name)(make_texture(0, *size))
    assert caught.value.status == "too_small"


def test_odd_input(create):
    for image in (np.zeros((64, 64, 4), np.uint8), np.zeros((64, 64), np.float32), "x"):
        with pytest.raises(ValueError, match="an image must be"):
            create("cnniqa")(image)


def test_a_network_that_fails_on_an_image_says_so(create):
    with pytest.raises(MetricError, match="cnniqa: ") as caught:
        create("cnniqa")(make_texture(0, 3, 3))  # smaller than its patches
    assert caught.value.status == "undefined"


# --- batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["musiq", "cnniqa", "hyperiqa"])
def test_a_score_does_not_depend_on_its_batch(create, monkeypatch, name):
    metric = create(name)
    side = 226 if name == "hyperiqa" else 96
    images = [make_texture(seed, side, side, blur=seed / 4) for seed in range(6)]
    alone = [metric(image) for image in images]
    monkeypatch.setitem(deep._LARGEST_BATCH, "cpu", 4)
    together = metric.score_batch(images)
    backwards = metric.score_batch(images[::-1])[::-1]
    low, high = metric.spec.range
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4 * (high - low))
    np.testing.assert_allclose(backwards, alone, rtol=0, atol=1e-4 * (high - low))


def fail_once_inside(metric, error):
    """Let the next pass fail after MANIQA's hooks have collected its blocks' outputs."""
    left = [error]

    def fail(*_):
        if left:
            raise left.pop()

    metric._network.conv1.register_forward_pre_hook(fail)


@pytest.mark.slow
def test_memory_that_runs_out_leaves_nothing_behind(weights_folder, monkeypatch):
    """MANIQA keeps the outputs of a failed pass and would take them for the next one's."""
    metric = metrics.create("maniqa", str(weights_folder), "cpu")
    images = [make_texture(seed, 225, 225) for seed in range(2)]
    alone = [metric(image) for image in images]
    monkeypatch.setitem(deep._LARGEST_BATCH, "cpu", 2)
    fail_once_inside(metric, torch.OutOfMemoryError("CUDA out of memory"))
    assert metric.score_batch(images) == pytest.approx(alone, abs=1e-4)
    assert metric.batch_size(225, 225) == 1
    assert metric._network.save_output.outputs == []


def limit_memory(metric, monkeypatch, max_pixels):
    """Let a batch of more than `max_pixels` fail; returns the sizes of the batches tried."""
    tried = []
    forward = metric._forward

    def forward_within(images, precision):
        tried.append(len(images))
        if sum(image.shape[0] * image.shape[1] for image in images) > max_pixels:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate"
            )
        return forward(images, precision)

    monkeypatch.setattr(metric, "_forward", forward_within)
    return tried


def test_batches_are_halved_until_they_fit(weights_folder, create, monkeypatch):
    metric = metrics.create("cnniqa", str(weights_folder), "cpu")
    monkeypatch.setitem(deep._LARGEST_BATCH, "cpu", 8)
    images = [make_texture(seed, 64, 64) for seed in range(10)]
    tried = limit_memory(metric, monkeypatch, 3 * 64 * 64)
    scores = metric.score_batch(images)
    assert scores == pytest.approx([create("cnniqa")(image) for image in images], abs=1e-4)
    assert tried == [8, 4, 2, 2, 2, 2, 2]
    # and remembered: larger images start with what that leaves for them
    assert metric.batch_size(64, 64) == 2
    assert metric.batch_size(32, 64) == 4
    assert metric.batch_size(128, 128) == 1


def test_an_image_that_does_not_fit_alone_is_too_large(weights_folder, monkeypatch):
    metric = metrics.create("cnniqa", str(weights_folder), "cpu")
    limit_memory(metric, monkeypatch, 100 * 100)
    with pytest.raises(MetricError, match="not enough memory for cnniqa") as caught:
        metric(make_texture(0, 128, 128))
    assert caught.value.status == "too_large"
    assert isinstance(metric(make_texture(0, 64, 64)), float)
    assert metric.batch_size(8, 8) == deep._LARGEST_BATCH["cpu"]  # that says nothing of batches


def test_one_bad_image_does_not_cost_its_batch(weights_folder, monkeypatch):
    metric = metrics.create("cnniqa", str(weights_folder), "cpu")
    monkeypatch.setitem(deep._LARGEST_BATCH, "cpu", 4)
    images = [make_texture(seed, 64, 64) for seed in range(4)]
    bad = images[2]
    alone = [metric(image) for image in images]
    forward = metric._forward

    def forward_unless_bad(chunk, precision):
        if any(image is bad for image in chunk):
            raise ValueError("cannot take this one")
        return forward(chunk, precision)

    monkeypatch.setattr(metric, "_forward", forward_unless_bad)
    scores = metric.score_batch(images)
    assert isinstance(scores[2], MetricError)
    assert "cannot take this one" in str(scores[2])
    assert [scores[row] for row in (0, 1, 3)] == pytest.approx([alone[row] for row in (0, 1, 3)])


def test_a_score_that_is_no_number_is_none(weights_folder, monkeypatch):
    metric = metrics.create("cnniqa", str(weights_folder), "cpu")
    monkeypatch.setattr(metric, "_network", lambda batch: torch.full((len(batch), 1), float("nan")))
    with pytest.raises(MetricError, match="gives nan"):
        metric(make_texture(0))
