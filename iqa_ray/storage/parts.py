"""Tables that many actors fill, as folders of atomic parts, and what is already done of them.

A part holds whole rows and, in its metadata, one fingerprint a row: a hash of the image's id, size,
modification time and of the settings that made the row. A row counts as done while the listing
still gives its fingerprint, so a second run does nothing, a changed image or setting is done
anew, and parts from differently cut shards live side by side.

Runs beside each other only add rows, which no lock is needed for; rows are removed and parts
rewritten under the workspace's lock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute as pc

from iqa_ray.storage.files import Location, delete_file, list_files, remove_unfinished, write_bytes
from iqa_ray.storage.lock import hold_lock_briefly
from iqa_ray.storage.parquet import (
    Fingerprints,
    choose_one_each,
    contains,
    fingerprints_of,
    read_fingerprints,
    read_part,
    settings_of,
    to_part,
)

_NUM_READERS = 8
_NUM_LISTINGS = 5


class Parts:
    """A table kept as a folder of parts, each written whole by one actor.

    Rows are removed, and parts rewritten, under the lock of the workspace's folder `root`.
    """

    def __init__(self, folder: Location, root: Location) -> None:
        self.folder, self._root = folder, root

    def write(self, table: pa.Table, fingerprints: Fingerprints, settings: str) -> Location:
        """Write the rows of one shard; the same shard again replaces its own part.

        Returns the part's file.
        """
        key = hashlib.blake2b(fingerprints.tobytes(), digest_size=10).hexdigest()
        file = self.folder / f"part-{key}.parquet"
        write_bytes(file, to_part(table, fingerprints, settings))
        return file

    def exist(self) -> bool:
        """Whether there is any part."""
        return bool(list_files(self.folder, ".parquet"))

    def read(
        self,
        columns: Sequence[str] | None = None,
        choose: Callable[[pa.Table], pa.ChunkedArray] | None = None,
    ) -> pa.Table | None:
        """The rows, one an image even if two runs at once wrote it twice; None without any part.

        Args:
            columns: those to read.
            choose: says which rows of a part.
        """

        def read(file: Location) -> pa.Table:
            rows = read_part(file, columns)
            return rows.filter(choose(rows)) if choose else rows

        tables = self._map_files(read)
        if not tables:
            return None
        return _keep_first_rows(pa.concat_tables(tables))

    def read_listed(self, current: Fingerprints, schema: pa.Schema) -> pa.Table:
        """The valid rows of listed images, in the order of the listing.

        Args:
            current: the fingerprints of the listing, one an image.
            schema: the columns to read.

        Returns:
            One row an image; all of its cells are null if the image has no valid row.
        """
        ordered = np.sort(current)

        def read(file: Location) -> tuple[pa.Table, Fingerprints]:
            rows = read_part(file, schema.names)
            fingerprints = fingerprints_of(rows.schema)
            is_valid = contains(ordered, fingerprints)
            return rows.filter(pa.array(is_valid)), fingerprints[is_valid]

        found = self._map_files(read)
        table = pa.concat_tables(
            [schema.empty_table(), *(rows.select(schema.names) for rows, _ in found)]
        )
        fingerprints = np.concatenate([np.empty(0, np.uint64), *(prints for _, prints in found)])
        order = np.argsort(fingerprints, kind="stable")
        is_there = contains(fingerprints[order], current)
        places = np.searchsorted(fingerprints[order], current[is_there])
        rows = np.zeros(len(current), np.int64)
        rows[is_there] = order[places]
        return table.take(pa.array(rows, mask=~is_there))

    def done(self) -> Fingerprints:
        """The fingerprints of all rows."""
        found = self._map_files(read_fingerprints)
        return np.concatenate(found) if found else np.empty(0, np.uint64)

    def drop_stale(self, image_ids: pa.Array, current: Fingerprints) -> int:
        """Remove the rows of listed images whose fingerprint is no longer the listing's.

        Rows of images that are not listed stay. Returns the number of rows removed.

        Raises:
            IncompleteError: there are such rows, and another run holds the workspace.
        """
        current = np.sort(current)

        def is_valid(rows: pa.Table) -> NDArray[np.bool_]:
            listed = pc.is_in(rows.column("image_id"), value_set=image_ids).to_numpy()
            return np.asarray(contains(current, fingerprints_of(rows.schema)) | ~listed)

        def find_stale(file: Location) -> bool:
            return not contains(current, read_fingerprints(file)).all() and not bool(
                is_valid(read_part(file, ["image_id"])).all()
            )

        if not any(self._map_files(find_stale)):
            return 0
        with hold_lock_briefly(self._root):
            return sum(self._map_files(lambda file: _keep_rows(file, is_valid)))

    def drop_repeated(self, current: Fingerprints) -> int:
        """Remove rows so that every image has one, as it has not after two runs at once.

        The row whose fingerprint is in `current`, the listing's, stays. Returns the number of
        rows removed.

        Raises:
            IncompleteError: there are such rows, and another run holds the workspace.
        """
        if not self._num_repeated():
            return 0
        current = np.sort(current)
        with hold_lock_briefly(self._root):
            files = self._list_files()
            tables = [read_part(file, ["image_id"]) for file in files]
            prints = np.concatenate([fingerprints_of(table.schema) for table in tables])
            ids = pa.concat_tables([table.select(["image_id"]) for table in tables])
            chosen = choose_one_each(ids.column("image_id"), contains(current, prints))
            num_dropped, start = 0, 0
            for file, table in zip(files, tables, strict=True):
                keep = chosen[start : start + table.num_rows]
                start += table.num_rows
                num_dropped += _keep_rows(file, partial(_choose_if_same, table, keep))
        return num_dropped

    def _num_repeated(self) -> int:
        tables = self._map_files(lambda file: read_part(file, ["image_id"]))
        if not tables:
            return 0
        ids = pa.concat_tables(tables).column("image_id")
        return len(ids) - int(pc.count_distinct(ids).as_py())

    def copy_rows(self, images: pa.Table, fingerprints: Fingerprints, settings: str) -> int:
        """Write rows again for images that have the same content at another place or time.

        A row is copied only if its own content hash is the image's and `settings` made it.

        Args:
            images: image_id and path of those to write, source_id (the image whose row each
                takes) and content_hash.
            fingerprints: of `images`, row for row.
            settings: of this run.

        Returns the number of rows written.
        """
        sources = images.column("source_id").combine_chunks()

        def read(file: Location) -> pa.Table:
            rows = read_part(file)
            is_source = pc.is_in(rows.column("image_id"), value_set=sources)
            return rows.filter(pc.and_(is_source, settings_of(rows.schema) == settings))

        found = self._map_files(read)
        if not found:
            return 0
        table = pa.concat_tables(found)
        places = pc.index_in(
            _join_keys(images, "source_id"),
            value_set=_join_keys(table, "image_id"),
            skip_nulls=True,
        )
        is_there = pc.is_valid(places)
        rows, targets = table.take(places.filter(is_there)), images.filter(is_there)
        if not rows.num_rows:
            return 0
        for name in ("image_id", "path"):
            column = rows.schema.get_field_index(name)
            rows = rows.set_column(column, rows.schema.field(name), targets.column(name))
        self.write(rows.combine_chunks(), fingerprints[is_there.to_numpy()], settings)
        return int(rows.num_rows)

    def compact(self, largest_rows: int) -> tuple[int, int]:
        """Merge parts until as few as possible remain, none over `largest_rows` if it was not.

        A merged part is written before those that it holds are removed, and readers take a row
        once however often it is there, so none ever sees a gap. Parts of different settings stay
        apart. Returns the numbers of parts before and after.
        """
        with hold_lock_briefly(self._root):
            remove_unfinished(self.folder)
            files = self._list_files()
            num_after = len(files)
            groups: dict[str, list[tuple[Location, pa.Table, Fingerprints]]] = {}
            for file in files:
                table = read_part(file)
                if table.num_rows < largest_rows:
                    part = (file, table, fingerprints_of(table.schema))
                    groups.setdefault(settings_of(table.schema), []).append(part)
            for settings, parts in groups.items():
                for batch in _batch_parts(parts, largest_rows):
                    self._merge(batch, settings)
                    num_after -= len(batch) - 1
        return len(files), num_after

    def _merge(self, batch: list[tuple[Location, pa.Table, Fingerprints]], settings: str) -> None:
        merged = pa.concat_tables([table for _, table, _ in batch])
        fingerprints = np.concatenate([prints for _, _, prints in batch])
        # a run that was killed before may have left the same row in two parts
        _, first = np.unique(fingerprints, return_index=True)
        rows = np.sort(first)
        kept = self.write(merged.take(rows).combine_chunks(), fingerprints[rows], settings)
        for file, _, _ in batch:
            if file != kept:  # the merged one may be one of them, written again
                delete_file(file)

    def _list_files(self) -> list[Location]:
        """All parts. The folder is listed twice, since a listing takes time: if parts are merged
        meanwhile, one listing may have neither the old parts nor the merged one.
        """
        found = {file.path: file for _ in range(2) for file in list_files(self.folder, ".parquet")}
        return [found[path] for path in sorted(found)]

    def _map_files(self, function: Any) -> list[Any]:
        """Call `function` with every part; again with all, where one was compacted meanwhile."""
        for attempt in range(_NUM_LISTINGS):
            files = self._list_files()
            try:
                with ThreadPoolExecutor(_NUM_READERS) as pool:
                    return list(pool.map(function, files))
            except FileNotFoundError:
                if attempt == _NUM_LISTINGS - 1:
                    raise
        raise AssertionError("not reached")


def make_fingerprints(images: pa.Table, settings: str) -> Fingerprints:
    """One 64-bit hash a row of `images` (image_id, size_bytes, mtime_ns) and `settings`."""
    seed = hashlib.blake2b(settings.encode(), digest_size=16).digest()
    columns = (images.column(name).to_pylist() for name in ("image_id", "size_bytes", "mtime_ns"))
    digests = b"".join(
        hashlib.blake2b(f"{i} {size} {mtime}".encode(), digest_size=8, key=seed).digest()
        for i, size, mtime in zip(*columns, strict=True)
    )
    return np.frombuffer(digests, np.uint64)


def mark_missing(
    fingerprints: Fingerprints, images: pa.Table, is_missing: NDArray[np.bool_], settings: str
) -> Fingerprints:
    """`fingerprints` of `images` (image_id), with those of absent files where files were absent.

    Such rows do not count as done: if a file comes back as it was when it was listed, it is tried
    again.
    """
    unknown = pa.nulls(images.num_rows, pa.int64())
    columns = {"image_id": images.column("image_id"), "size_bytes": unknown, "mtime_ns": unknown}
    return np.where(is_missing, make_fingerprints(pa.table(columns), settings), fingerprints)


def find_missing(done: Fingerprints, current: Fingerprints) -> NDArray[np.bool_]:
    """Which of `current` are not done."""
    return ~contains(np.sort(done), current)


def _join_keys(table: pa.Table, id_column: str) -> pa.ChunkedArray:
    """One text a row that names image and content; null without a content hash."""
    ids, hashes = table.column(id_column), table.column("content_hash")
    return pc.binary_join_element_wise(ids, hashes, ":")


def _keep_rows(file: Location, choose: Callable[[pa.Table], NDArray[np.bool_]]) -> int:
    """Write a part again with the rows that `choose` says; the number of those removed."""
    table = read_part(file)
    keep = choose(table)
    if keep.all():
        return 0
    if keep.any():
        fingerprints = fingerprints_of(table.schema)[keep]
        rows = table.filter(pa.array(keep))
        write_bytes(file, to_part(rows, fingerprints, settings_of(table.schema)))
    else:
        delete_file(file)
    return int((~keep).sum())


def _choose_if_same(before: pa.Table, keep: NDArray[np.bool_], rows: pa.Table) -> NDArray[np.bool_]:
    """`keep`, or every row where another run has written the part again since."""
    same = np.array_equal(fingerprints_of(rows.schema), fingerprints_of(before.schema))
    return keep if same else np.ones(rows.num_rows, bool)


def _batch_parts(
    parts: Sequence[tuple[Location, pa.Table, Fingerprints]], largest_rows: int
) -> list[list[tuple[Location, pa.Table, Fingerprints]]]:
    """Neighbours of at most so many rows together, two or more each."""
    batches: list[list[tuple[Location, pa.Table, Fingerprints]]] = [[]]
    num_rows = 0
    for part in parts:
        num_rows += part[1].num_rows
        if num_rows > largest_rows and batches[-1]:
            batches.append([])
            num_rows = part[1].num_rows
        batches[-1].append(part)
    return [batch for batch in batches if len(batch) > 1]


def _keep_first_rows(table: pa.Table) -> pa.Table:
    ids = table.column("image_id")
    if pc.count_distinct(ids).as_py() == table.num_rows:
        return table
    order = pa.table({"image_id": ids, "row": np.arange(table.num_rows)})
    first = order.group_by("image_id").aggregate([("row", "min")]).column("row_min")
    return table.take(first.sort())
