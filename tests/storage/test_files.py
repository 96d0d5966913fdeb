from __future__ import annotations

import os
import time

import pytest

from iqa_ray.storage.files import (
    Location,
    list_files,
    locate,
    one_line,
    open_stream,
    remove_unfinished,
    write_bytes,
)


@pytest.mark.parametrize("place", ["{folder}", "memory:/{folder}"])
def test_a_stream_gives_the_bytes_from_the_start(tmp_path, place):
    file = locate(place.format(folder=tmp_path)) / "a.bin"
    write_bytes(file, b"\r\n\xff data")
    with open_stream(file) as stream:
        assert stream.read(3) == b"\r\n\xff"
        assert stream.read() == b" data"
    with pytest.raises(FileNotFoundError):
        open_stream(locate(place.format(folder=tmp_path)) / "b.bin")


def test_a_text_of_200_characters_is_not_cut():
    assert one_line("x" * 200) == "x" * 200
    assert one_line("x" * 201) == "x" * 199 + "…"


def test_what_stores_hold_unfinished_is_not_looked_for_on_this_machine(tmp_path):
    file = tmp_path / ".a.tmp"
    file.touch()
    os.utime(file, (time.time() - 25 * 3600,) * 2)
    remove_unfinished(Location("memory://", str(tmp_path)))
    remove_unfinished(locate(tmp_path / "not-there"))
    assert file.exists()
    remove_unfinished(locate(tmp_path))
    assert not file.exists()


def test_files_are_listed_at_any_depth(tmp_path):
    for name in ("b.txt", "a/b/c.txt", "a/.hidden.txt", "a/d.csv"):
        write_bytes(locate(tmp_path) / name, b"")
    assert list_files(locate(tmp_path), ".txt") == [
        locate(tmp_path / "a/b/c.txt"),
        locate(tmp_path / "b.txt"),
    ]
