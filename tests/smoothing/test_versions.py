"""Versions of images: made once, stored, and given to networks by index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inline import run_inline
from PIL import Image
from shapes import make_folder, make_shape

from iqa_ray import metrics
from iqa_ray.distortions import distort
from iqa_ray.errors import UsageError
from iqa_ray.smoothing import versions as module
from iqa_ray.smoothing.dataset import draw_parts, read_set
from iqa_ray.smoothing.inputs import VersionedImages, move_versions
from iqa_ray.smoothing.ssim import measure_ssim
from iqa_ray.smoothing.strategies import VERSIONS
from iqa_ray.smoothing.versions import make_versions, measure_versions, read_array
from iqa_ray.storage.files import locate


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Versions of 15 images in chunks of four, made in this process; and the chunks as made."""
    monkeypatch.setattr(module, "CHUNK_SIZE", 4)
    monkeypatch.setattr("iqa_ray.smoothing.inputs.CHUNK_SIZE", 4)
    chunks = []
    make_folder(tmp_path / "x", 12, 3)

    def make(seed=0):
        images = draw_parts(read_set(str(tmp_path / "x")), None, None, False, 0)
        with run_inline(chunks.append):
            return images, make_versions(images, seed, locate(tmp_path / "v"), None)

    return make, chunks


def read_pixels(versions):
    return np.concatenate([read_array(chunk.pixels_file) for chunk in versions.chunks])


def test_versions_are_the_distortions_of_their_images(made):
    images, versions = made[0](seed=5)
    pixels = read_pixels(versions)
    assert pixels.shape == (15, 10, 32, 32, 3)
    for place in (0, 14):
        original = np.asarray(Image.open(images.frame["path"].iloc[place]))
        assert np.array_equal(pixels[place, 0], original)
        for version, how in enumerate(VERSIONS.values()):
            if how:
                name, parameter = how
                expected = distort(original, name, parameter=parameter, rng=5)
                assert np.array_equal(pixels[place, version], expected)
    found = measure_versions(versions, "ssim", None)
    assert found == pytest.approx(measure_ssim(pixels[:, 0], pixels))
    assert (found[:, 0] == 1).all()


def test_every_image_has_a_noise_of_its_own(made):
    pixels = read_pixels(made[0]()[1]).astype(int)
    noise = list(VERSIONS).index("noise-1")
    first, second = (pixels[n, noise] - pixels[n, 0] for n in range(2))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1


def test_what_was_made_is_not_made_again(made, tmp_path):
    make, chunks = made
    make()
    assert len(chunks) == 4
    make()
    assert len(chunks) == 4
    victim = chunks[2].pixels_file.path
    (tmp_path / "v" / victim.rpartition("/")[2]).unlink()
    make()
    assert [chunk.key for chunk in chunks[4:]] == [chunks[2].key]
    make(seed=1)
    assert len(chunks) == 9
    # an image that changed changes its own chunk
    Image.fromarray(make_shape("ring", 77)).save(min((tmp_path / "x/train/disc").iterdir()))
    make()
    assert len(chunks) == 10


def test_metrics_score_every_version(made):
    _, versions = made[0]()
    with run_inline(made[1].append):
        found = measure_versions(versions, "lapm", None)
    pixels, lapm = read_pixels(versions), metrics.create("lapm")
    assert found.shape == (15, 10)
    assert found[6, 3] == lapm(pixels[6, 3])
    num_before = len(made[1])
    assert np.array_equal(measure_versions(versions, "lapm", None), found)
    assert len(made[1]) == num_before


def test_images_that_lack_a_score_are_named(made, tmp_path):
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "x/train/disc/flat.png")
    _, versions = made[0]()
    with (
        run_inline(),
        pytest.raises(
            UsageError,
            match=r"--score brisque: no score for \d+ of 160 versions of 1 images .*flat",
        ),
    ):
        measure_versions(versions, "brisque", None)


@pytest.mark.parametrize(
    ("score", "message"),
    [("niqe", "--score niqe: niqe needs at least 192 px"), ("brisk", "unknown metric 'brisk'")],
)
def test_scores_that_cannot_be_had_are_refused(made, score, message):
    with pytest.raises(UsageError, match=message):
        measure_versions(made[0]()[1], score, None)


def test_images_of_differing_size_are_refused(made, tmp_path):
    Image.fromarray(make_shape("disc", 0, 40)).save(tmp_path / "x/train/ring/large.png")
    with pytest.raises(UsageError, match=r"images differ in size: .*large.png is 40x40 px"):
        made[0]()


@pytest.mark.parametrize(("size", "message"), [((32, 40), "must be squares"), ((8, 8), "11 px")])
def test_images_of_a_wrong_shape_are_refused(made, tmp_path, size, message):
    for file in (tmp_path / "x").rglob("*.png"):
        Image.new("RGB", size).save(file)
    with pytest.raises(UsageError, match=message):
        made[0]()


def test_an_image_that_cannot_be_decoded_is_known_by_its_error(made, tmp_path):
    torn = min((tmp_path / "x/train/disc").iterdir())
    torn.write_bytes(torn.read_bytes()[:200])
    images, versions = made[0]()
    place = images.frame["path"].tolist().index(str(torn))
    assert versions.content_hashes[place] is None
    assert versions.errors[place].startswith("unreadable: ")
    assert versions.content_hashes.count(None) == 1
    assert np.isnan(measure_versions(versions, "ssim", None)[place]).all()


# --- inputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold", [VersionedImages, lambda c: move_versions(c, torch.device("cpu"))])
def test_a_row_is_an_image_in_a_version(made, hold):
    _, versions = made[0]()
    chunks = [read_array(chunk.pixels_file) for chunk in versions.chunks]
    pixels = np.concatenate(chunks)
    rows = torch.tensor([3 + 15 * 9, 14, 0, 14 + 15 * 4])
    found = hold(chunks)[rows]
    assert found.shape == (4, 3, 32, 32)
    for tensor, (image, version) in zip(found, ((3, 9), (14, 0), (0, 0), (14, 4)), strict=True):
        assert np.array_equal(tensor.permute(1, 2, 0).numpy(), pixels[image, version])


def test_an_image_unlike_its_original_keeps_a_label_that_is_possible(made, monkeypatch):
    def measure(originals, versions):
        return np.full(versions.shape[:2], -0.2)

    monkeypatch.setattr(module, "measure_ssim", measure)
    assert (measure_versions(made[0]()[1], "ssim", None) == 0.01).all()
