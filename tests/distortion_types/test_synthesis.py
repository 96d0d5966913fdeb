"""Labelled images that are made of photographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from pictures import make_texture
from PIL import Image

from iqa_ray.distortion_types.dataset import read_labelled, split_references
from iqa_ray.distortion_types.settings import PAPER_COUNTS
from iqa_ray.distortion_types.synthesis import (
    find_leaves,
    find_made,
    plan_counts,
    vary_photograph,
)
from iqa_ray.distortions import distort, downscale
from iqa_ray.errors import UsageError
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.files import locate
from iqa_ray.synthetic.leaves import make_leaves


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(9):
        Image.fromarray(make_texture(number)).save(folder / f"{number}.png")
    return folder


def make(photographs, folder, num_images=70, mix="balanced", seed=0, is_varied=False):
    counts, made = plan_counts(num_images, mix, False), []
    source = find_made(
        locate(folder), [ImageSource(locate(photographs))], counts, seed, made.append, is_varied
    )
    return source, len(made)


def test_the_paper_s_shares_are_those_of_table_1():
    assert plan_counts(1165, "paper", False) == PAPER_COUNTS
    assert sum(plan_counts(500, "paper", True).values()) == 500
    assert plan_counts(72, "balanced", False) == {
        name: 11 if place < 2 else 10 for place, name in enumerate(PAPER_COUNTS)
    }
    assert set(plan_counts(80, "balanced", True).values()) == {10}


def test_no_photograph_stands_on_both_sides_of_a_split(photographs, tmp_path):
    """Though its copies are many, and of all classes."""
    source, _ = make(photographs, tmp_path / "made")
    frame = read_labelled(source)
    for seed in range(5):
        part = split_references(frame, seed)
        assert set(part) == {"train", "validation", "test"}
        assert (frame.assign(part=part).groupby("reference")["part"].nunique() == 1).all()
        for _, parts in frame.assign(part=part).groupby("label")["part"]:
            assert set(parts) == {"train", "validation", "test"}
    assert (split_references(frame, 0) == split_references(frame, 0)).all()
    assert (split_references(frame, 0) != split_references(frame, 1)).any()


def test_made_images_are_the_distorted_photographs(photographs, tmp_path):
    """Of the class, at the level and with the noise that the manifest and the seed say."""
    source, num_made = make(photographs, tmp_path / "made", seed=3)
    assert num_made == 70
    table = pd.read_csv(source.root.path, keep_default_na=False)
    assert sorted(set(table["severity"])) == [0, 1, 2, 3, 4, 5]
    assert (table["label"].value_counts() == 10).all()
    assert ((table["severity"] == 0) == (table["label"] == "refimgs")).all()
    folder = Path(source.root.path).parent
    for row in table.itertuples():
        photograph = np.asarray(Image.open(row.reference))
        expected = photograph
        if row.distortion:
            expected = distort(photograph, row.distortion, level=row.severity, rng=3)
        made = np.asarray(Image.open(folder / row.path))
        np.testing.assert_array_equal(made, expected)
    lighting = table[table["label"] == "bad_lighting"]
    assert set(lighting["distortion"]) == {"underexposure", "overexposure"}


def test_images_are_made_once_and_again_for_other_settings(photographs, tmp_path):
    first, _ = make(photographs, tmp_path / "made")
    again, num_made = make(photographs, tmp_path / "made")
    assert (again, num_made) == (first, 0)
    other, num_made = make(photographs, tmp_path / "made", seed=1)
    assert other != first
    assert num_made == 70


class Drawn:
    """A generator whose draws are given: shrunk?, sharpened?, encoded?; by how much."""

    def __init__(self, draws, **amounts):
        self.draws, self.amounts = draws, amounts

    def random(self, number):
        assert number == 3
        return np.array(self.draws)

    def uniform(self, low, high):
        return self.amounts.get("shrinking" if low == 1 else "sharpening", low)

    def integers(self, low, high, endpoint):
        assert (low, high, endpoint) == (75, 98, True)
        return self.amounts.get("quality", low)


def test_a_clean_photograph_is_varied_as_cameras_and_programs_do():
    image = make_texture(3, 256, 300)
    np.testing.assert_array_equal(vary_photograph(image, Drawn([0.7, 0.6, 0.7])), image)
    shrunk = vary_photograph(image, Drawn([0.6, 1, 1], shrinking=1.5))
    np.testing.assert_array_equal(shrunk, downscale(image, 1.5))
    assert min(vary_photograph(image, Drawn([0.6, 1, 1], shrinking=2.5)).shape[:2]) == 128
    encoded = vary_photograph(image, Drawn([1, 1, 0.6], quality=80))
    np.testing.assert_array_equal(encoded, distort(image, "jpeg", parameter=80))
    sharp = vary_photograph(image, Drawn([1, 0.4, 1], sharpening=1.0)).astype(float)
    blurred = cv2.GaussianBlur(image, (0, 0), 1.0).astype(float)
    np.testing.assert_array_equal(sharp, np.clip(2 * image.astype(float) - blurred, 0, 255))


def test_a_photograph_too_small_to_be_shrunk_keeps_its_size():
    image = make_texture(3, 100, 120)
    varied = vary_photograph(image, Drawn([0.6, 1, 1], shrinking=2.0))
    np.testing.assert_array_equal(varied, image)


def test_photographs_to_train_on_are_varied_and_others_are_not(photographs, tmp_path):
    plain, _ = make(photographs, tmp_path / "made")
    varied, num_made = make(photographs, tmp_path / "made", is_varied=True)
    assert num_made == 70
    folders = [Path(source.root.path).parent for source in (plain, varied)]
    names = [f"refimgs/{number:05}.png" for number in range(10)]
    same = [len({(folder / name).read_bytes() for folder in folders}) == 1 for name in names]
    assert 0 < sum(same) < 10
    again, _ = make(photographs, tmp_path / "again", is_varied=True)
    for name in (*names, "wn/00003.png"):
        other = Path(again.root.path).parent / name
        assert other.read_bytes() == (folders[1] / name).read_bytes()


def test_leaves_are_made_once(tmp_path):
    source = find_leaves(locate(tmp_path), 3, 5)
    files = sorted(tmp_path.glob("leaves-3-5/*.png"))
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    expected = make_leaves(348, np.random.default_rng([5, 1]))
    np.testing.assert_array_equal(np.asarray(Image.open(files[1])), expected)
    content = files[1].read_bytes()
    files[0].write_bytes(b"kept")
    files[1].unlink()
    assert find_leaves(locate(tmp_path), 3, 5) == source
    assert files[0].read_bytes() == b"kept"
    assert files[1].read_bytes() == content


def test_a_making_that_was_cut_short_is_done_again(photographs, tmp_path):
    source, _ = make(photographs, tmp_path / "made")
    Path(source.root.path).unlink()
    assert make(photographs, tmp_path / "made") == (source, 70)


def test_a_photograph_that_cannot_be_decoded_is_named(photographs, tmp_path):
    (photographs / "0.png").write_bytes(b"none")
    with pytest.raises(UsageError, match=r"--synthesise-from: .*0\.png: not an image"):
        make(photographs, tmp_path / "made")
