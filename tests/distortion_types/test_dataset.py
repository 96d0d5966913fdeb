"""Labelled images: read, and split by the photograph."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pictures import make_texture
from PIL import Image

from iqa_ray.distortion_types.dataset import read_labelled, split_references
from iqa_ray.errors import UsageError
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.files import locate


def label(folder, files):
    """A data set of small images at the paths that `files` names."""
    for number, name in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_texture(number)).save(folder / name)
    return ImageSource(locate(folder))


def test_shares_of_the_parts_are_those_that_help_promises():
    frame = pd.DataFrame({"label": ["wn", "jpeg"] * 100, "reference": np.repeat(range(100), 2)})
    counts = pd.Series(split_references(frame.astype(str), 0)).value_counts()
    assert dict(counts) == {"train": 130, "validation": 30, "test": 40}


def test_of_two_references_one_trains_and_one_tests():
    frame = pd.DataFrame({"label": ["wn", "wn", *["jpeg"] * 10], "reference": list("ABcdefghijkl")})
    part = split_references(frame, 0)
    assert sorted(part[:2]) == ["test", "train"]


def test_a_folder_s_files_of_one_name_are_of_one_photograph(tmp_path, capsys):
    source = label(tmp_path, ["wn/a.png", "wn/b.png", "jpeg/a.png", "refimgs/b.bmp"])
    frame = read_labelled(source)
    severities = frame.set_index(["label", "reference"])["severity"].fillna(-1).to_dict()
    assert severities == {
        ("wn", "a"): -1, ("wn", "b"): -1, ("jpeg", "a"): -1, ("refimgs", "b"): 0,
    }  # fmt: skip
    assert "files of one name count as of one photograph" in capsys.readouterr().err


def test_references_are_those_that_the_live_release_names(tmp_path, capsys):
    source = label(tmp_path, ["wn/img1.bmp", "wn/img2.bmp", "jpeg/img1.bmp", "refimgs/caps.bmp"])
    (tmp_path / "wn/info.txt").write_text("caps.bmp img1.bmp 0.5\nhouse.bmp img2.bmp 1.5\n\n")
    (tmp_path / "jpeg/info.txt").write_text("house.bmp img1.bmp 0.2\n")
    frame = read_labelled(source)
    assert dict(frame.groupby("reference")["label"].apply(sorted)) == {
        "caps": ["refimgs", "wn"], "house": ["jpeg", "wn"],
    }  # fmt: skip
    assert "names no references" not in capsys.readouterr().err


def test_images_of_other_labels_are_left_out_and_named(tmp_path, capsys):
    frame = read_labelled(label(tmp_path, ["wn/a.png", "jpeg/a.png", "cats/a.png"]))
    assert sorted(frame["label"]) == ["jpeg", "wn"]
    assert "1 images of other labels left out: cats" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.png", "b.png"], "no image is labelled bad_lighting, fastfading"),
        (["wn/a.png", "wn/b.png"], "all images are labelled 'wn': give two classes or more"),
        (
            ["wn/a.png", "wn/b.png", "jpeg/a.png", "jpeg/a.bmp"],
            "all images of class jpeg are of one photograph",
        ),
    ],
)
def test_images_that_cannot_be_trained_on_are_refused(tmp_path, files, message):
    with pytest.raises(UsageError, match=message) as refused:
        split_references(read_labelled(label(tmp_path, files)), 0)
    assert "\n" not in str(refused.value)


def test_a_manifest_s_severities_must_be_levels(tmp_path):
    label(tmp_path, ["1.png", "2.png"])
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label,reference,severity\n1.png,wn,a,2.5\n2.png,jpeg,b,\n")
    frame = read_labelled(ImageSource(locate(manifest)))
    assert frame["severity"].fillna(-1).tolist() == [2.5, -1]
    assert frame["reference"].tolist() == ["a", "b"]
    manifest.write_text("path,label,reference,severity\n1.png,wn,a,2.5\n2.png,jpeg,b,6\n")
    with pytest.raises(UsageError, match="severity '6': give 0 .none. to 5"):
        read_labelled(ImageSource(locate(manifest)))
    manifest.write_text("path,label,reference\n1.png,wn,a\n2.png,jpeg,\n")
    with pytest.raises(UsageError, match="no reference is named for .*2.png"):
        read_labelled(ImageSource(locate(manifest)))
