"""Tables as folders of parts: what is done, stale or there twice, and other runs meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from iqa_ray.errors import IncompleteError
from iqa_ray.storage import lock
from iqa_ray.storage import parts as module
from iqa_ray.storage.files import list_files, write_bytes
from iqa_ray.storage.lock import hold_lock
from iqa_ray.storage.parquet import fingerprints_of, read_part, settings_of, to_part
from iqa_ray.storage.parts import Parts, find_missing, make_fingerprints
from iqa_ray.storage.workspace import Workspace


def rows(ids: str, score: float = 1.0) -> pa.Table:
    return pa.table({"image_id": list(ids), "score": [score] * len(ids)})


def prints(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def contents(parts: Parts) -> dict[str, float]:
    table = parts.read()
    assert table is not None
    return dict(zip(*(table.column(n).to_pylist() for n in ("image_id", "score")), strict=True))


def part_sizes(parts: Parts) -> list[int]:
    return sorted(read_part(file).num_rows for file in list_files(parts.folder, ".parquet"))


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Workspace(str(tmp_path)).parts("t")


@contextmanager
def held_by_another(folder: Path) -> Iterator[None]:
    """Another run, in a thread of its own, holds the lock."""
    begin, end = threading.Event(), threading.Event()

    def hold() -> None:
        with hold_lock(Workspace(str(folder)).location):
            begin.set()
            end.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begin.wait(60)
    yield
    end.set()
    thread.join()


# --- what is done -----------------------------------------------------------------------------


def test_the_same_shard_replaces_its_own_part(parts):
    first = parts.write(rows("ab", 1.0), prints(7, 3), "s")
    again = parts.write(rows("ab", 2.0), prints(7, 3), "s")
    assert first == again
    assert contents(parts) == {"a": 2.0, "b": 2.0}
    assert parts.write(rows("ab", 3.0), prints(7, 4), "s") != first
    schema = read_part(first).schema
    assert fingerprints_of(schema).tolist() == [7, 3]
    assert settings_of(schema) == "s"


def test_fingerprints_may_come_in_any_order(parts):
    """Those of a listing are sorted by path: as hashes, they have no order."""
    assert find_missing(prints(9, 5, 1, 7), prints(1, 9, 4, 5)).tolist() == [
        False, False, True, False,
    ]  # fmt: skip
    parts.write(rows("abcd"), prints(9, 5, 1, 7), "s")
    parts.write(rows("cd"), prints(2, 8), "s")
    # c is there with its own fingerprint and with an old one, and so is d
    assert parts.drop_repeated(prints(9, 5, 1, 7)) == 2
    assert sorted(parts.done().tolist()) == [1, 5, 7, 9]
    assert parts.drop_stale(pa.array(list("abcd")), prints(9, 5, 1, 7)) == 0
    assert parts.drop_stale(pa.array(list("abcd")), prints(9, 5, 3, 7)) == 1
    assert sorted(contents(parts)) == ["a", "b", "d"]


def test_a_fingerprint_is_of_the_size_and_the_time_each():
    def fingerprint(size: int | None, mtime: int | None) -> int:
        table = pa.table(
            {
                "image_id": ["a"],
                "size_bytes": pa.array([size], pa.int64()),
                "mtime_ns": pa.array([mtime], pa.int64()),
            }
        )
        return int(make_fingerprints(table, "s")[0])

    found = [fingerprint(*pair) for pair in ((1, 2), (2, 1), (1, 3), (None, 2), (12, None))]
    assert len(set(found)) == len(found)


def test_without_parts_there_is_nothing_to_drop(parts):
    assert parts.drop_repeated(prints(1)) == 0
    assert parts.drop_stale(pa.array(["a"]), prints(1)) == 0
    assert parts.compact(10) == (0, 0)


# --- other runs meanwhile ---------------------------------------------------------------------


def test_rows_are_removed_and_merged_under_the_lock_alone(parts, tmp_path, monkeypatch):
    parts.write(rows("ab"), prints(1, 2), "s")
    parts.write(rows("bc"), prints(2, 3), "s")
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.1)
    with held_by_another(tmp_path):
        for change in (lambda: parts.drop_repeated(prints(1, 2, 3)), lambda: parts.compact(10)):
            with pytest.raises(IncompleteError, match="is being written by process"):
                change()
    assert part_sizes(parts) == [2, 2]
    assert parts.drop_repeated(prints(1, 2, 3)) == 1
    assert parts.compact(10) == (2, 1)
    assert not (tmp_path / lock.LOCK_FILE).exists()


def test_a_part_that_was_written_again_meanwhile_keeps_its_rows(parts, monkeypatch):
    """Which rows to remove was found out with the rows that were there before."""
    parts.write(rows("ab"), prints(1, 2), "s")
    file = parts.write(rows("bc", 2.0), prints(20, 30), "s")
    real = module._keep_rows

    def write_first(which, choose):
        if which == file:
            write_bytes(file, to_part(rows("xyz", 3.0), prints(7, 8, 9), "s"))
        return real(which, choose)

    monkeypatch.setattr(module, "_keep_rows", write_first)
    assert parts.drop_repeated(prints(1, 2)) == 0
    assert contents(parts) == {"a": 1.0, "b": 1.0, "x": 3.0, "y": 3.0, "z": 3.0}


def test_parts_are_listed_again_where_one_vanished(parts, monkeypatch):
    parts.write(rows("ab"), prints(1, 2), "s")
    real, left = module.read_part, [1]

    def vanish(file, columns=None):
        if left[0]:
            left[0] -= 1
            raise FileNotFoundError(file)
        return real(file, columns)

    monkeypatch.setattr(module, "read_part", vanish)
    assert parts.read().num_rows == 2
    left[0] = 4
    assert parts.read().num_rows == 2
    left[0] = 5
    with pytest.raises(FileNotFoundError):
        parts.read()
    assert left == [0]


# --- merging ----------------------------------------------------------------------------------


def test_parts_are_merged_up_to_the_largest_size(parts):
    """Neighbours by name are merged while they fit; a part as large as the limit is left alone."""
    for number, size in enumerate((4, 3, 3, 2)):
        ids = [f"{number}{row}" for row in range(size)]
        table = pa.table({"image_id": ids, "score": [1.0] * size})
        parts.write(table, np.arange(size, dtype=np.uint64) + 10 * number, "s")
    before = contents(parts)
    num_before, num_after = parts.compact(4)
    assert num_before == 4
    assert num_after == len(part_sizes(parts))
    assert max(part_sizes(parts)) == 4
    assert contents(parts) == before
    assert parts.compact(12) == (num_after, 1)
    assert part_sizes(parts) == [12]
    assert contents(parts) == before
    assert parts.compact(12) == (1, 1)


def test_a_limit_can_be_filled_exactly(parts):
    for number in range(4):
        parts.write(rows("ab"[number % 2] + "cdef"[number]), prints(number, 9 - number), "s")
    assert parts.compact(4) == (4, 2)
    assert part_sizes(parts) == [4, 4]


def test_parts_of_different_settings_stay_apart(parts):
    for number, settings in enumerate("stst"):
        parts.write(rows("abcd"[number]), prints(number), settings)
    assert parts.compact(100) == (4, 2)
    found = {
        settings_of(table.schema): table.column("image_id").to_pylist()
        for table in map(read_part, list_files(parts.folder, ".parquet"))
    }
    assert {name: sorted(ids) for name, ids in found.items()} == {"s": ["a", "c"], "t": ["b", "d"]}


def test_merging_removes_what_killed_runs_left(parts, tmp_path):
    """A row that is in two parts, one of which holds all of the merged one, and half a file."""
    parts.write(rows("ab"), prints(5, 2), "s")
    parts.write(rows("b"), prints(2), "s")
    abandoned, fresh = (tmp_path / "t" / f".part-1.parquet.{n}.tmp" for n in (1, 2))
    abandoned.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(abandoned, (1, 1))
    assert parts.compact(100) == (2, 1)
    assert sorted(parts.done().tolist()) == [2, 5]
    assert part_sizes(parts) == [2]
    assert contents(parts) == {"a": 1.0, "b": 1.0}
    assert not abandoned.exists()
    assert fresh.exists()  # of a run that is writing it


def test_stale_rows_of_images_that_are_not_listed_need_no_lock(parts, tmp_path, monkeypatch):
    parts.write(rows("ab"), prints(1, 2), "s")
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.1)
    with held_by_another(tmp_path):
        assert parts.drop_stale(pa.array(["a"]), prints(1)) == 0
    assert part_sizes(parts) == [2]


def test_a_file_without_a_record_has_no_fingerprints():
    assert fingerprints_of(rows("ab").schema).tolist() == []


# --- copying ----------------------------------------------------------------------------------


def scored(**hashes: str | None) -> pa.Table:
    """Rows of those contents, whose scores are 0, 1, 2, ..."""
    names = list(hashes)
    return pa.table(
        {
            "image_id": names,
            "path": [f"/old/{name}" for name in names],
            "content_hash": pa.array(hashes.values(), pa.string()),
            "score": np.arange(len(names), dtype=float),
        }
    )


def wanted(*copies: tuple[str, str, str | None]) -> pa.Table:
    """Images that take the row of another: id, source, content hash."""
    ids, sources, hashes = (list(cells) for cells in zip(*copies, strict=True))
    columns = {"image_id": ids, "path": [f"/new/{name}" for name in ids], "source_id": sources}
    return pa.table({**columns, "content_hash": pa.array(hashes, pa.string())})


def test_rows_are_copied_to_the_images_that_have_their_content(parts):
    """One row to two images; one goes to nobody, since its image has another content."""
    parts.write(scored(a="ha", b="hb"), prints(1, 2), "s")
    parts.write(scored(c="hc"), prints(3), "s")
    images = wanted(("z", "c", "hc"), ("y", "b", "other"), ("x", "a", "ha"), ("w", "a", "ha"))
    assert parts.copy_rows(images, prints(10, 11, 12, 13), "s") == 3
    assert sorted(parts.done().tolist()) == [1, 2, 3, 10, 12, 13]
    found = {row.pop("image_id"): row for row in parts.read().to_pylist()}
    assert sorted(found) == ["a", "b", "c", "w", "x", "z"]
    assert found["x"] == {"path": "/new/x", "content_hash": "ha", "score": 0.0}
    assert found["w"] == {**found["x"], "path": "/new/w"}
    assert found["z"] == {"path": "/new/z", "content_hash": "hc", "score": 0.0}
    schema = pa.schema([("image_id", pa.string())])
    assert parts.read_listed(prints(12, 10), schema)["image_id"].to_pylist() == ["x", "z"]
    assert {settings_of(read_part(f).schema) for f in list_files(parts.folder)} == {"s"}


def test_rows_of_another_source_or_content_or_setting_are_not_copied(parts):
    assert parts.copy_rows(wanted(("x", "a", "ha")), prints(9), "s") == 0
    assert not parts.exist()
    parts.write(scored(a="ha", b=None), prints(1, 2), "s")
    parts.write(scored(c="hc"), prints(3), "t")
    for copy in (("x", "b", "ha"), ("x", "a", "hb"), ("x", "b", None), ("x", "c", "hc")):
        assert parts.copy_rows(wanted(copy), prints(9), "s") == 0
    assert sorted(parts.done().tolist()) == [1, 2, 3]
