"""Images that are replaced by files of the same size and time, which only their contents tell."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from desk import Desk
from inline import score_deeply

from iqa_ray.errors import IncompleteError
from iqa_ray.images.decoding import hash_content
from iqa_ray.images.source import ImageSource


def replace(desk: Desk, name: str, lapm: int, wavs: int) -> Path:
    """Put another content there, without a trace in size or time."""
    time_ns = (desk.photos / name).stat().st_mtime_ns
    file = desk.put(name, lapm, wavs)
    os.utime(file, ns=(time_ns, time_ns))
    return file


def test_only_scores_of_the_former_content_are_made_anew(desk):
    desk.put("a/0.bmp", 10)
    desk.put("a/1.bmp", 11)
    desk.score("lapm")
    replace(desk, "a/0.bmp", 20, 2)
    with pytest.raises(IncompleteError, match=r"1 images, such as .*0\.bmp', were replaced by"):
        desk.score("wavs")
    assert list(desk.frame("lapm", "wavs")["status"]) == ["unscored", "ok"]
    desk.score("lapm", "wavs")
    assert desk.scored == [("lapm", "0.bmp")]
    assert list(desk.frame("lapm", "wavs")["lapm"]) == [20, 11]


def test_a_former_content_is_found_when_an_earlier_version_is_asked_for_again(desk):
    """Nobody could know of it before: the score at the earlier version was the only one."""
    desk.put("a/0.bmp", 10)
    desk.score("musiq", max_side=384)
    file = replace(desk, "a/0.bmp", 20, 2)
    desk.score("lapm", "musiq", precision="bf16")
    desk.score("lapm", "musiq", max_side=384)
    assert desk.scored == [("musiq", "0.bmp")]
    row = desk.frame("lapm", "musiq").loc["0.bmp"]
    expected = score_deeply(hash_content(file.read_bytes()), "fp32", 384)
    assert (row["lapm"], row["musiq"]) == (20, expected)


def test_scores_of_a_former_content_go_at_every_version(desk):
    desk.put("a/0.bmp", 10)
    desk.score("lapm", "musiq", max_side=384)
    file = replace(desk, "a/0.bmp", 20, 2)
    with pytest.raises(IncompleteError, match="were replaced by"):
        desk.score("wavs", "musiq", precision="bf16")
    desk.rescore()
    assert desk.scored == [("lapm", "0.bmp")]
    (earlier,) = Path(desk.ws).glob("scores/metric=musiq/version=*max-side-384")
    assert not list(earlier.glob("part-*"))
    desk.score("musiq", max_side=384)
    assert desk.scored == [("musiq", "0.bmp")]
    expected = score_deeply(hash_content(file.read_bytes()), "fp32", 384)
    assert desk.frame("musiq").loc["0.bmp", "musiq"] == expected


def test_without_the_file_no_score_of_different_contents_stays(desk, monkeypatch):
    desk.put("a/0.bmp", 10)
    desk.score("lapm")
    replace(desk, "a/0.bmp", 20, 2)
    monkeypatch.setattr(ImageSource, "hash", lambda *_: None)
    with pytest.raises(IncompleteError, match="were replaced by"):
        desk.score("wavs")
    desk.score("lapm", "wavs")
    assert sorted(desk.scored) == [("lapm", "0.bmp"), ("wavs", "0.bmp")]
    assert list(desk.frame("lapm", "wavs")["lapm"]) == [20]
