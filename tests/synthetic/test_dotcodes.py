from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from iqa_ray.synthetic import dotcodes
from iqa_ray.synthetic.dotcodes import MANUFACTURERS, Scene, make_dataset, render_code


def hash_files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def render(manufacturer: str, blur_sigma: float, seed: int, size: int = 256) -> np.ndarray:
    return render_code(manufacturer, blur_sigma, np.random.default_rng(seed), size)[0]


def measure_sharpness(image: np.ndarray) -> float:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dotcodes") / "set"
    make_dataset(folder, num_images=12, image_size=64, seed=3)
    return folder


def test_same_seed_gives_same_bytes(dataset, tmp_path):
    make_dataset(tmp_path, num_images=12, image_size=64, seed=3)
    assert hash_files(tmp_path) == hash_files(dataset)


def test_other_seed_gives_other_images(dataset, tmp_path):
    make_dataset(tmp_path, num_images=12, image_size=64, seed=4)
    ours, theirs = hash_files(tmp_path), hash_files(dataset)
    assert ours.keys() == theirs.keys()
    assert not set(ours.values()) & set(theirs.values())


def test_image_does_not_depend_on_size_of_set(dataset, tmp_path):
    make_dataset(tmp_path, num_images=5, image_size=64, seed=3)
    longer = hash_files(dataset)
    shorter = {path: digest for path, digest in hash_files(tmp_path).items() if "jpg" in path}
    assert len(shorter) == 5
    assert all(longer[path] == digest for path, digest in shorter.items())


def test_labels(dataset):
    labels = pd.read_csv(dataset / "labels.csv")
    columns = ["path", "label", "blur_sigma", *Scene.__dataclass_fields__]
    assert list(labels.columns) == columns
    assert labels["path"][:3].tolist() == ["north/00000.jpg", "south/00001.jpg", "north/00002.jpg"]
    assert labels["label"].value_counts().to_dict() == {"north": 6, "south": 6}
    assert (labels["path"].str.split("/").str[0] == labels["label"]).all()
    for path in labels["path"]:
        with Image.open(dataset / path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))


def test_blur_is_spread_and_scales_with_size():
    small, large = (
        np.array([dotcodes._draw_blur_sigma(np.random.default_rng(i), size) for i in range(400)])
        for size in (256, 512)
    )
    assert large == pytest.approx(2 * small)
    assert 0.4 <= small.min() < 0.45
    assert 6 < small.max() <= 7
    assert 0.4 < (small < 1).mean() < 0.6
    assert (small > 3).mean() > 0.15


def test_second_run_does_nothing(tmp_path):
    first = make_dataset(tmp_path, num_images=3, image_size=64)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    calls: list[int] = []
    again = make_dataset(tmp_path, num_images=3, image_size=64, progress=calls.append)
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times
    pd.testing.assert_frame_equal(first, again)


def test_interrupted_run_is_made_whole(tmp_path):
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "a", num_images=4, image_size=64, progress=stop)
    assert (tmp_path / "a/north/00000.jpg").is_file()
    assert not (tmp_path / "a/labels.csv").exists()
    calls: list[int] = []
    for name in "ab":
        make_dataset(tmp_path / name, num_images=4, image_size=64, progress=calls.append)
    assert calls == [1] * 8
    assert hash_files(tmp_path / "a") == hash_files(tmp_path / "b")


def test_missing_image_is_made_again(tmp_path):
    make_dataset(tmp_path, num_images=3, image_size=64)
    before = hash_files(tmp_path)
    (tmp_path / "south/00001.jpg").unlink()
    make_dataset(tmp_path, num_images=3, image_size=64)
    assert hash_files(tmp_path) == before


@pytest.mark.parametrize("change", [{"seed": 4}, {"num_images": 14}, {"image_size": 80}])
def test_other_settings_do_not_mix(dataset, change):
    before = hash_files(dataset)
    with pytest.raises(ValueError, match="other settings: name an empty folder"):
        make_dataset(dataset, **({"num_images": 12, "image_size": 64, "seed": 3} | change))
    assert hash_files(dataset) == before


def test_folder_with_other_data_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds other data"):
        make_dataset(tmp_path, num_images=2, image_size=64)
    with pytest.raises(ValueError, match="is a file"):
        make_dataset(tmp_path / "holiday.jpg", num_images=2, image_size=64)
    assert list(hash_files(tmp_path)) == ["holiday.jpg"]


@pytest.mark.parametrize(
    "settings", [{"num_images": 1}, {"image_size": 63}, {"seed": -1}], ids=lambda s: next(iter(s))
)
def test_settings_out_of_range(tmp_path, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        make_dataset(tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "sigma", "size"),
    [("east", 1, 64), ("north", -1, 64), ("north", float("nan"), 64), ("north", 1, 32)],
)
def test_render_rejects(name, sigma, size):
    with pytest.raises(ValueError, match="must be"):
        render_code(name, sigma, np.random.default_rng(0), size)


@pytest.mark.parametrize("size", [64, 256, 400])
def test_render_shape(size):
    image, scene = render_code("south", 1.0, np.random.default_rng(0), size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert image.std() > 5
    assert all(len(line) == 6 for line in scene.text.split("|"))


def test_size_changes_resolution_and_not_the_scene():
    small, large = render("north", 1, 7, 128), render("north", 2, 7, 256)
    reduced = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(float) - small).mean() < 2


@pytest.mark.parametrize("manufacturer", list(MANUFACTURERS))
@pytest.mark.parametrize("seed", range(4))
def test_sharpness_falls_with_blur(manufacturer, seed):
    sharpness = [measure_sharpness(render(manufacturer, s, seed)) for s in (0, 0.5, 1, 2, 4, 7)]
    assert sharpness == sorted(sharpness, reverse=True)
    assert sharpness[0] > 20 * sharpness[-1]


@pytest.mark.parametrize("seed", range(4))
def test_manufacturers_differ_in_dots_alone(seed):
    """Equal scenes part in focus and meet out of it, with the same amount of ink."""
    apart = {
        sigma: render("north", sigma, seed).astype(float) - render("south", sigma, seed)
        for sigma in (0.5, 4.0)
    }
    assert apart[0.5].std() > 10 * apart[4.0].std()
    assert abs(apart[4.0].mean()) < 0.3


def test_content_and_nuisance_do_not_depend_on_manufacturer():
    scenes = [render_code(name, 1.0, np.random.default_rng(5), 64)[1] for name in MANUFACTURERS]
    assert scenes[0] == scenes[1]


def test_glyphs_fit_their_grid():
    grid = dotcodes._place_dots("L0123A|E04/56", MANUFACTURERS["north"])
    assert np.abs(grid).max(axis=0).tolist() == [17, 8]
    assert len(np.unique(grid, axis=0)) == len(grid)
    texts = [dotcodes._draw_text(np.random.default_rng(i)) for i in range(300)]
    assert set("".join(texts)) - {"|"} == set(dotcodes.GLYPHS)


def test_colour_and_brightness_do_not_tell_the_manufacturer():
    """A linear classifier on the channels' means and deviations stays near chance."""
    count = 400
    images = [render(list(MANUFACTURERS)[i % 2], 0.5, i, 64).reshape(-1, 3) for i in range(count)]
    features = np.array([[*image.mean(0), *image.std(0), 1] for image in images])
    targets = np.where(np.arange(count) % 2 == 0, -1.0, 1.0)
    weights = np.linalg.lstsq(features[:200], targets[:200], rcond=None)[0]
    accuracy = (np.sign(features[200:] @ weights) == targets[200:]).mean()
    assert 0.38 < accuracy < 0.62
