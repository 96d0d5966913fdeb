"""Folders that are walked: which are left out, and that the walk goes on behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from iqa_ray.errors import UsageError
from iqa_ray.images import folders
from iqa_ray.images.folders import LINKS_MARKER, walk_local, walk_remote
from iqa_ray.storage.files import Location, locate, write_bytes


def test_what_is_left_out_does_not_end_the_walk(tmp_path: Path):
    """Of a workspace, a folder of links, one seen before and one that is gone: `z` comes last."""
    outside = tmp_path / "outside"
    for name in ("root/a", "root/b", "root/.hidden", "outside/twice", "outside/last"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.jpg").touch()
    (tmp_path / "root" / "b" / LINKS_MARKER).touch()
    for name, target in (("c", "twice"), ("d", "twice"), ("z", "last")):
        (tmp_path / "root" / name).symlink_to(outside / target)
    found = walk_local(locate(tmp_path / "root"), [locate(tmp_path / "root" / "a")])
    assert [name for name, *_ in found] == ["c/x.jpg", "z/x.jpg"]


def test_slashes_around_a_store_s_folders_do_not_matter(tmp_path: Path):
    base = f"{tmp_path.name}/photos"
    for name in ("a.jpg", "ws/b.jpg", "wsx/c.jpg"):
        write_bytes(Location("memory://", f"{base}/{name}"), b"x")
    for root, workspace in ((f"/{base}", f"{base}/ws/"), (f"{base}/", f"/{base}/ws")):
        found = walk_remote(Location("memory://", root), [Location("memory://", workspace)])
        assert sorted(name for name, *_ in found) == ["a.jpg", "wsx/c.jpg"]


def test_a_store_that_cannot_be_listed_is_named(monkeypatch):
    def fail(_: Location) -> None:
        raise OSError("no answer")

    monkeypatch.setattr(folders, "list_infos", fail)
    with pytest.raises(UsageError, match=r"^cannot list memory://photos: no answer$"):
        list(walk_remote(locate("memory://photos"), []))
