"""The workspace: its tables, the atomic parts that actors write, and what is already done.

A table that many actors fill (`scores/metric=lapm/version=1`) is a folder of parts. A part holds
whole rows and, in its metadata, one fingerprint a row: a hash of the image's id, size,
modification time and of the settings that made the row. A row counts as done while the listing
still gives its fingerprint, so a second run does nothing, a changed image or setting is done
anew, and parts from differently cut shards live side by side.
"""

from __future__ import annotations

import base64
import hashlib
import json
import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray
from pyarrow import compute as pc
from pyarrow import parquet as pq

from iqa_ray.config import Job, dump_settings
from iqa_ray.errors import UsageError
from iqa_ray.files import (
    Location,
    delete_file,
    is_file,
    list_files,
    locate,
    one_line,
    read_whole,
    write_bytes,
)

if TYPE_CHECKING:
    import pandas as pd

Fingerprints = NDArray[np.uint64]

_METADATA_KEY = b"iqa_ray"
_NUM_READERS = 8
_NUM_LISTINGS = 5


class Workspace:
    """A folder or URI that holds a data set's tables (DESIGN, section 1)."""

    def __init__(self, uri: str) -> None:
        self.location = locate(uri)

    def __str__(self) -> str:
        return str(self.location)

    def prepare(self) -> None:
        """Make sure that the workspace can be written.

        Raises:
            UsageError: it cannot.
        """
        probe = self.location / ".write-test"
        try:
            write_bytes(probe, b"")
            delete_file(probe)
        except (OSError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise UsageError(f"--workspace {self}: cannot write there: {reason}") from None

    # --- whole tables -------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether the file `name` exists."""
        return is_file(self.location / name)

    def read_table(self, name: str, made_by: str) -> pa.Table:
        """Read `name` (such as `images.parquet`).

        Raises:
            UsageError: it is not there; says that `iqa-ray <made_by>` makes it.
        """
        try:
            return pq.read_table(pa.BufferReader(read_whole(self.location / name)))
        except FileNotFoundError:
            raise UsageError(
                f"{self} has no {name}: run `iqa-ray {made_by} … --workspace {self}` first"
            ) from None
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"cannot read {self.location / name}: {one_line(error)}") from None

    def write_table(
        self, name: str, table: pa.Table, record: Mapping[str, Any] | None = None
    ) -> None:
        """Write `table` whole or not at all, with `record` in its metadata."""
        write_bytes(self.location / name, _to_parquet(table, record))

    def write_frame(
        self, name: str, frame: pd.DataFrame, record: Mapping[str, Any] | None = None
    ) -> None:
        """Write `frame`, less its index, as `write_table` does."""
        self.write_table(name, pa.Table.from_pandas(frame, preserve_index=False), record)

    def read_record(self, name: str) -> dict[str, Any] | None:
        """The record in the metadata of table `name`; None if there is no such table."""
        if not self.has(name):
            return None
        schema = pq.read_schema(pa.BufferReader(read_whole(self.location / name)))
        return _record_of(schema)

    def read_json(self, name: str, made_by: str) -> dict[str, Any]:
        """Read a JSON object.

        Raises:
            UsageError: it is not there or not an object.
        """
        try:
            loaded = json.loads(read_whole(self.location / name))
        except FileNotFoundError:
            raise UsageError(
                f"{self} has no {name}: run `iqa-ray {made_by} --workspace {self}` first"
            ) from None
        except ValueError as error:
            raise UsageError(f"{self.location / name} is not JSON: {one_line(error)}") from None
        if not isinstance(loaded, dict):
            raise UsageError(f"{self.location / name} must hold a JSON object")
        return loaded

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON object whole or not at all."""
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        write_bytes(self.location / name, text.encode() + b"\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file whole or not at all."""
        write_bytes(self.location / name, text.encode())

    def record_config(self, name: str, job: Job) -> None:
        """Keep the resolved configuration of a run: `configs/<job>-<utc>.yaml`."""
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
        self.write_text(f"configs/{name}-{now}.yaml", dump_settings(job))

    def read_last_config(self, name: str) -> dict[str, Any]:
        """The settings of a job's last run.

        Raises:
            UsageError: it was never run.
        """
        folder = self.location / "configs"
        files = [
            file
            for file in list_files(folder, ".yaml")
            if posixpath.basename(file.path).startswith(f"{name}-")
        ]
        if not files:
            raise UsageError(f"{self} has no record of `iqa-ray {name}`: run it once first")
        return dict(yaml.safe_load(read_whole(files[-1])))

    def parts(self, name: str) -> Parts:
        """The table that is kept as parts below the folder `name`."""
        return Parts(self.location / name)


class Parts:
    """A table kept as a folder of parts, each written whole by one actor."""

    def __init__(self, folder: Location) -> None:
        self.folder = folder

    def write(self, table: pa.Table, fingerprints: Fingerprints, settings: str) -> Location:
        """Write the rows of one shard; the same shard again replaces its own part.

        Returns the part's file.
        """
        key = hashlib.blake2b(fingerprints.tobytes(), digest_size=10).hexdigest()
        file = self.folder / f"part-{key}.parquet"
        self._write_file(file, table, fingerprints, settings)
        return file

    def _write_file(
        self, file: Location, table: pa.Table, fingerprints: Fingerprints, settings: str
    ) -> None:
        record = {
            "settings": settings,
            "fingerprints": base64.b64encode(fingerprints.tobytes()).decode(),
        }
        write_bytes(file, _to_parquet(table, record))

    def exist(self) -> bool:
        """Whether there is any part."""
        return bool(list_files(self.folder, ".parquet"))

    def read(
        self, columns: Sequence[str] | None = None, where: pc.Expression | None = None
    ) -> pa.Table | None:
        """The rows (`where` it holds), one an image even if two runs at once wrote it twice.

        None if there are no parts.
        """
        tables = self._map_files(lambda file: _read_part(file, columns, where))
        if not tables:
            return None
        return _drop_repeated(pa.concat_tables(tables))

    def done(self) -> Fingerprints:
        """The fingerprints of all rows."""
        found = self._map_files(_read_fingerprints)
        return np.concatenate(found) if found else np.empty(0, np.uint64)

    def drop_stale(self, image_ids: pa.Array, current: Fingerprints) -> int:
        """Remove the rows of listed images whose fingerprint is no longer the listing's.

        Rows of images that are not listed stay. Returns the number of rows removed.
        """
        current = np.sort(current)
        return sum(self._map_files(lambda file: self._drop_from(file, image_ids, current)))

    def _drop_from(self, file: Location, image_ids: pa.Array, current: Fingerprints) -> int:
        fingerprints = _read_fingerprints(file)
        outdated = ~_contains(current, fingerprints)
        if not outdated.any():
            return 0
        table = _read_part(file)
        listed = pc.is_in(table.column("image_id"), value_set=image_ids).to_numpy()
        keep = ~(outdated & listed)
        if keep.all():
            return 0
        if keep.any():
            settings = str(_record_of(table.schema)["settings"])
            self._write_file(file, table.filter(pa.array(keep)), fingerprints[keep], settings)
        else:
            delete_file(file)
        return int((~keep).sum())

    def copy_rows(
        self, sources: Mapping[str, str], images: pa.Table, fingerprints: Fingerprints
    ) -> int:
        """Write rows of other images again as rows of these, where there are any.

        Args:
            sources: of each image id to write, the image id whose row it takes.
            images: image_id and path of those to write.
            fingerprints: of `images`, row for row.

        Returns the number of rows written.
        """
        table = self.read()
        if table is None or not sources:
            return 0
        wanted = images.filter(pc.is_in(images.column("image_id"), pa.array(list(sources))))
        origins = pa.array([sources[i] for i in wanted.column("image_id").to_pylist()])
        places = pc.index_in(origins, table.column("image_id").combine_chunks())
        is_there = pc.is_valid(places)
        rows = table.take(places.filter(is_there))
        wanted = wanted.filter(is_there)
        for name in ("image_id", "path"):
            column = rows.schema.get_field_index(name)
            rows = rows.set_column(column, rows.schema.field(name), wanted.column(name))
        chosen = pc.index_in(wanted.column("image_id"), images.column("image_id").combine_chunks())
        if rows.num_rows:
            settings = str(_record_of(self._read_schema())["settings"])
            self.write(rows.combine_chunks(), fingerprints[chosen.to_numpy()], settings)
        return int(rows.num_rows)

    def compact(self, largest_rows: int) -> tuple[int, int]:
        """Merge parts until as few as possible remain, none over `largest_rows` if it was not.

        A merged part is written before those that it holds are removed, and readers take a row
        once however often it is there, so none ever sees a gap. Parts of different settings stay
        apart. Returns the numbers of parts before and after.
        """
        files = list_files(self.folder, ".parquet")
        groups: dict[str, list[tuple[Location, pa.Table, Fingerprints]]] = {}
        for file in files:
            table = _read_part(file)
            settings = str(_record_of(table.schema)["settings"])
            if table.num_rows < largest_rows:
                groups.setdefault(settings, []).append((file, table, _read_fingerprints(file)))
        num_after = len(files)
        for settings, parts in groups.items():
            for batch in _batch_parts(parts, largest_rows):
                merged = pa.concat_tables([table for _, table, _ in batch])
                fingerprints = np.concatenate([prints for _, _, prints in batch])
                # a run that was killed before may have left the same row in two parts
                _, first = np.unique(fingerprints, return_index=True)
                rows = np.sort(first)
                kept = self.write(merged.take(rows).combine_chunks(), fingerprints[rows], settings)
                for file, _, _ in batch:
                    if file != kept:  # the merged one may be one of them, written again
                        delete_file(file)
                num_after -= len(batch) - 1
        return len(files), num_after

    def _read_schema(self) -> pa.Schema:
        return _read_part(list_files(self.folder, ".parquet")[0], []).schema

    def _map_files(self, function: Any) -> list[Any]:
        """Call `function` with every part; again with all, where one was compacted meanwhile."""
        for attempt in range(_NUM_LISTINGS):
            files = list_files(self.folder, ".parquet")
            try:
                with ThreadPoolExecutor(_NUM_READERS) as pool:
                    return list(pool.map(function, files))
            except FileNotFoundError:
                if attempt == _NUM_LISTINGS - 1:
                    raise
        raise AssertionError("not reached")


def list_parts_folders(workspace: Workspace) -> list[str]:
    """The folders in a workspace that hold parts, such as `scores/metric=lapm/version=1`."""
    base = len(workspace.location.path.rstrip("/")) + 1
    files = list_files(workspace.location, ".parquet")
    names = [file.path[base:] for file in files]
    return sorted(
        {posixpath.dirname(n) for n in names if posixpath.basename(n).startswith("part-")}
    )


def make_fingerprints(images: pa.Table, settings: str) -> Fingerprints:
    """One 64-bit hash a row of `images` (image_id, size_bytes, mtime_ns) and `settings`."""
    seed = hashlib.blake2b(settings.encode(), digest_size=16).digest()
    columns = (images.column(name).to_pylist() for name in ("image_id", "size_bytes", "mtime_ns"))
    digests = b"".join(
        hashlib.blake2b(f"{i} {size} {mtime}".encode(), digest_size=8, key=seed).digest()
        for i, size, mtime in zip(*columns, strict=True)
    )
    return np.frombuffer(digests, np.uint64)


def find_missing(done: Fingerprints, current: Fingerprints) -> NDArray[np.bool_]:
    """Which of `current` are not done."""
    return ~_contains(np.sort(done), current)


def _contains(ordered: Fingerprints, wanted: Fingerprints) -> NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.asarray(ordered[places] == wanted)


def _to_parquet(table: pa.Table, record: Mapping[str, Any] | None) -> pa.Buffer:
    if record is not None:
        metadata = dict(table.schema.metadata or {})
        metadata[_METADATA_KEY] = json.dumps(record).encode()
        table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _record_of(schema: pa.Schema) -> dict[str, Any]:
    return dict(json.loads((schema.metadata or {}).get(_METADATA_KEY, b"{}")))


def _read_part(
    file: Location, columns: Sequence[str] | None = None, where: pc.Expression | None = None
) -> pa.Table:
    return pq.read_table(pa.BufferReader(read_whole(file)), columns=columns, filters=where)


def _read_fingerprints(file: Location) -> Fingerprints:
    schema = pq.read_schema(pa.BufferReader(read_whole(file)))
    encoded = str(_record_of(schema).get("fingerprints", ""))
    return np.frombuffer(base64.b64decode(encoded), np.uint64)


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


def _drop_repeated(table: pa.Table) -> pa.Table:
    ids = table.column("image_id")
    if pc.count_distinct(ids).as_py() == table.num_rows:
        return table
    order = pa.table({"image_id": ids, "row": np.arange(table.num_rows)})
    first = order.group_by("image_id").aggregate([("row", "min")]).column("row_min")
    return table.take(first.sort())
