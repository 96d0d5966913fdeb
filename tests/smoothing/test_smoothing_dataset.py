"""Labelled images with a training and a test part: read, drawn, refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from shapes import CLASSES, make_folder
from torchvision.datasets import CIFAR10

from iqa_ray.errors import UsageError
from iqa_ray.smoothing.dataset import draw_parts, read_set


def count(images):
    return images.frame.groupby(["part", "label"]).size().to_dict()


def test_a_folder_has_its_parts_at_the_top(tmp_path):
    make_folder(tmp_path, 9, 6)
    found = read_set(str(tmp_path))
    assert count(found) == {(p, c): n for p, n in (("train", 3), ("test", 2)) for c in CLASSES}


def test_a_manifest_says_the_parts(tmp_path):
    folder = make_folder(tmp_path / "x", 9, 6)
    files = sorted(folder.rglob("*.png"))
    rows = {"path": files, "label": [file.parent.name for file in files]}
    rows["split"] = ["test" if number % 3 == 0 else "train" for number in range(len(files))]
    rows["split"][1] = "val"
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    frame = read_set(str(tmp_path / "m.csv")).frame
    assert frame["part"].value_counts().to_dict() == {"train": 9, "test": 5}


def test_what_cannot_be_used_is_refused(tmp_path):
    folder = make_folder(tmp_path / "x", 6, 3)
    for file in (folder / "test").rglob("*.png"):
        file.unlink()
    with pytest.raises(UsageError, match="has no test images: give a folder with train/CLASS"):
        read_set(str(folder))
    make_folder(tmp_path / "one", 1, 1)
    with pytest.raises(UsageError, match="1 class among the training images"):
        read_set(str(tmp_path / "one"))
    other = make_folder(tmp_path / "other", 6, 1)
    (other / "test/disc").rename(other / "test/cube")
    with pytest.raises(UsageError, match="no test image is of a class that is trained"):
        read_set(str(other))


def test_test_images_of_other_classes_are_left_out(tmp_path):
    folder = make_folder(tmp_path, 6, 6)
    (folder / "test/disc").rename(folder / "test/cube")
    assert ("test", "cube") not in count(read_set(str(folder)))


# --- draws ----------------------------------------------------------------------------------------


def test_parts_are_drawn_as_evenly_as_the_classes_are(tmp_path):
    found = read_set(str(make_folder(tmp_path, 60, 30)))
    drawn = draw_parts(found, 30, 9, with_validation=True, seed=0)
    sizes = {("train", 9), ("validation", 1), ("test", 3)}
    assert count(drawn) == {(part, label): n for part, n in sizes for label in CLASSES}
    assert drawn.frame["part"].tolist() == ["train"] * 27 + ["validation"] * 3 + ["test"] * 9
    assert drawn.frame["image_id"].is_unique
    same = draw_parts(found, 30, 9, with_validation=True, seed=0)
    assert same.frame.equals(drawn.frame)
    other = draw_parts(found, 30, 9, with_validation=True, seed=1)
    assert set(other.frame["image_id"]) != set(drawn.frame["image_id"])
    assert (draw_parts(found, None, None, False, 0).frame["part"] == "train").sum() == 60


def test_more_than_there_are_cannot_be_drawn(tmp_path):
    found = read_set(str(make_folder(tmp_path, 6, 3)))
    with pytest.raises(UsageError, match="--num-test 4: there are 3 test images"):
        draw_parts(found, None, 4, with_validation=False, seed=0)


# --- CIFAR-10 -------------------------------------------------------------------------------------


def test_the_original_batches_are_read(cifar):
    folder, images = cifar
    found = read_set(f"cifar10:{folder}")
    assert found.frame["part"].tolist() == ["train"] * 20 + ["test"] * 4
    assert found.frame["label"].tolist()[:4] == [*CLASSES, CLASSES[0]]
    assert np.array_equal(found.pixels, images)
    drawn = draw_parts(found, 10 + 10, 3, with_validation=True, seed=0)
    place = found.frame["image_id"].tolist().index(drawn.frame["image_id"].iloc[-1])
    assert np.array_equal(drawn.pixels[-1], images[place])


def test_a_damaged_batch_is_refused_in_one_line(cifar):
    folder, _ = cifar
    file = folder / CIFAR10.base_folder / "data_batch_2"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UsageError, match=r"cifar10:.* damaged .*unpack cifar-10-python.tar.gz"):
        read_set(f"cifar10:{folder}")
    with pytest.raises(UsageError, match="unpack"):
        read_set(f"cifar10:{folder / 'nowhere'}")
