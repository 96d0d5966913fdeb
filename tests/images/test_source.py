"""Reading, decoding and hashing the images of a data set."""

from __future__ import annotations

import errno
import os
import pickle
import threading

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from iqa_ray.images import source as image_source
from iqa_ray.images.decoding import (
    AbsentError,
    ImageError,
    UnreadError,
    hash_content,
)
from iqa_ray.images.settings import DEFAULT_MAX_PIXELS
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.files import locate
from iqa_ray.storage.object_stores import UnansweredError


@pytest.fixture
def source(tmp_path) -> ImageSource:
    """Four images in their order: of 8x8 and 9x9 px, an empty file, and one that is away."""
    for side in (8, 9):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    return ImageSource(locate(tmp_path), max_pixels=64)


def paths_of(source: ImageSource) -> list[str]:
    return list(source.list().table.column("path").to_pylist())


def test_a_source_lists_and_reads_and_decodes_and_hashes(source, tmp_path):
    small, large, empty, gone = paths_of(source)
    data = (tmp_path / "8.png").read_bytes()
    assert source.read(small) == data
    assert np.array_equal(source.decode(data), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ImageError, match="9x9 px is over the limit of 64 pixels"):
        source.decode(source.read(large))
    assert source.hash(small) == hash_content(data)
    assert source.hash(empty) is None
    assert source.hash(gone) is None
    assert list(source.hash_each([gone, small])) == [None, hash_content(data)]


def test_each_image_is_read_in_order_or_says_what_is_wrong(source, monkeypatch):
    paths = paths_of(source)
    local = list(source.read_each(paths))
    assert local[:2] == [source.read(path) for path in paths[:2]]
    assert [str(error) for error in local[2:]] == ["the file is empty", os.strerror(errno.ENOENT)]
    monkeypatch.setattr(
        image_source, "locate_image", lambda path, _: locate(path.replace("store:/", ""))
    )
    monkeypatch.setattr(type(source.root), "is_local", False)
    both = threading.Barrier(2, timeout=20)

    def read_beside_another(location):
        both.wait()
        return location.path.encode()

    monkeypatch.setattr(image_source, "read_bytes", read_beside_another)
    assert list(source.read_each(paths)) == [path.encode() for path in paths]


def test_a_source_is_the_same_on_another_node(source):
    assert pickle.loads(pickle.dumps(source)) == source


def test_a_source_is_found_in_the_record_of_what_was_scored():
    recorded = {"images": "s3://bucket/photos?region=eu", "max_pixels": 100, "labels": "none"}
    source = ImageSource.from_record(recorded)
    assert source == ImageSource(locate("s3://bucket/photos?region=eu"), 100)
    assert source.options == "region=eu"
    assert ImageSource.from_record({}).max_pixels == DEFAULT_MAX_PIXELS


def test_reading_says_why_it_fails(tmp_path):
    source = ImageSource(locate(tmp_path))
    (tmp_path / "there.jpg").write_bytes(b"bytes")
    assert source.read(str(tmp_path / "there.jpg")) == b"bytes"
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match="^the file is empty$") as empty:
        source.read(str(tmp_path / "empty.jpg"))
    assert not isinstance(empty.value, UnreadError)  # what is in it is known
    with pytest.raises(AbsentError, match=f"^{os.strerror(errno.ENOENT)}$"):
        source.read(str(tmp_path / "gone.jpg"))
    with pytest.raises(UnreadError, match="^Is a directory$") as refused:
        source.read(str(tmp_path))
    assert not isinstance(refused.value, AbsentError)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError("the store says\nno"), "unreadable", "the store says no"),
        (pa.ArrowInvalid("no such region"), "unreadable", "no such region"),
        (MemoryError(), "too_large", "not enough memory to read it"),
    ],
)
def test_errors_of_reading_are_rows(monkeypatch, error, status, message):
    def fail(_):
        raise error

    monkeypatch.setattr(image_source, "read_bytes", fail)
    with pytest.raises(ImageError) as caught:
        ImageSource(locate("/")).read("/x.jpg")
    assert (caught.value.status, str(caught.value)) == (status, message)


def test_a_store_that_is_down_says_nothing_of_an_image(monkeypatch):
    def fail(_):
        raise UnansweredError("no answer")

    monkeypatch.setattr(image_source, "read_bytes", fail)
    with pytest.raises(UnansweredError):
        ImageSource(locate("/")).read("/x.jpg")
