"""Which images a classifier is trained on, and which others they are the same as."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from iqa_ray.errors import UsageError
from iqa_ray.images.source import ImageSource
from iqa_ray.predictions.holdout import draw_share, find_same_images, find_split
from iqa_ray.storage.files import Location, locate


def make_images(splits: list[str | None], labels: list[str | None] | None = None) -> pa.Table:
    labels = labels or ["a"] * len(splits)
    return pa.table({"split": pa.array(splits, pa.string()), "label": pa.array(labels)})


def test_a_value_of_the_split_column_names_its_images():
    images = make_images(["train", "test", None, "train"])
    assert find_split(images, "train", 0).tolist() == [True, False, False, True]
    # a value that is a number is a value first
    assert find_split(make_images(["0.5", "x", "x"]), "0.5", 0).tolist() == [True, False, False]


def test_a_share_is_drawn_of_each_class_by_the_seed():
    labels = ["a"] * 10 + ["b"] * 4 + [None]
    images = make_images([None] * 15, labels)
    drawn = find_split(images, "0.5", 3)
    assert (drawn[:10].sum(), drawn[10:14].sum(), drawn[14]) == (5, 2, False)
    assert (drawn == draw_share(labels, 0.5, 3)).all()
    assert (drawn != find_split(images, "0.5", 4)).any()
    assert drawn.dtype == bool


def test_a_share_takes_at_least_one_image_of_a_class_and_rounds():
    assert draw_share(["a"] * 3 + ["b"], 0.1, 0).sum() == 2
    assert draw_share(["a"] * 8, 0.7, 0).sum() == 6  # of 5.6
    assert not draw_share([None, ""], 0.9, 0).any()


@pytest.mark.parametrize("split", ["0", "1", "1.5", "-0.1", "word", "nan"])
def test_neither_a_share_nor_a_value_is_refused_with_the_known_values(split):
    problem = f"--split {split}: neither a share between 0 and 1 nor a value of the split column"
    with pytest.raises(UsageError) as error:
        find_split(make_images(["test", None, "train", "test"]), split, 0)
    assert str(error.value) == f"{problem} (test, train)"
    with pytest.raises(UsageError) as error:
        find_split(make_images([None]), split, 0)
    assert str(error.value) == f"{problem} (none)"


def list_files(*files: Path, sizes: list[int | None] | None = None) -> pa.Table:
    known = sizes or [file.stat().st_size for file in files]
    return pa.table({"path": [str(f) for f in files], "size_bytes": pa.array(known, pa.int64())})


def write(folder: Path, **contents: bytes) -> list[Path]:
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


HERE = ImageSource(locate("/"))


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that were opened, with the options of the source that did."""
    found: list[tuple[str, str]] = []
    read = ImageSource.read

    def note(source, path):
        found.append((os.path.basename(path), source.options))
        return read(source, path)

    monkeypatch.setattr(ImageSource, "read", note)
    return found


def find(images, others):
    return find_same_images(images, HERE, others, HERE).tolist()


def test_images_are_the_same_by_path_or_by_content(tmp_path, opened):
    images = write(tmp_path / "a", same=b"1234", other=b"4321", listed=b"12", alone=b"123456789")
    others = write(tmp_path / "b", copy=b"1234", larger=b"12345678")
    found = find(list_files(*images), list_files(*others, images[2]))
    assert found == [True, False, True, False]
    # those of a size that the other side has as well, and no other
    assert sorted(name for name, _ in opened) == ["copy", "other", "same"]


def test_where_no_size_is_shared_nothing_is_read(tmp_path, opened):
    images, others = write(tmp_path / "a", x=b"1"), write(tmp_path / "b", y=b"12")
    assert find(list_files(*images), list_files(*others)) == [False]
    assert opened == []


def test_images_that_are_away_are_no_copies_of_each_other(tmp_path):
    images, others = write(tmp_path / "a", x=b"12", z=b"34"), write(tmp_path / "b", y=b"12")
    listed = list_files(images[0], others[0], images[1]), list_files(*others, images[0])
    for file in [images[0], others[0]]:
        file.unlink()
    gone = pa.concat_tables([list_files(tmp_path / "c", sizes=[2]), listed[0].slice(2)])
    assert find(gone, listed[1]) == [False, False]
    unknown = list_files(tmp_path / "c", images[1], sizes=[None, 2])
    assert find(unknown, list_files(images[1], sizes=[None])) == [False, True]


def test_each_side_is_read_with_its_own_options(tmp_path, opened):
    images, others = write(tmp_path / "a", x=b"12"), write(tmp_path / "b", y=b"12")
    one, two = (ImageSource(Location("", "/", options)) for options in ("one", "two"))
    same = find_same_images(list_files(*images), one, list_files(*others), two)
    assert sorted(opened) == [("x", "one"), ("y", "two")]
    assert same.dtype == np.bool_
    assert same.tolist() == [True]
