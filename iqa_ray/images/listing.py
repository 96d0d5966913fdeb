"""The images of a data set: listing them with ids and labels; no image is opened for it."""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import compute as pc
from pyarrow import csv as pacsv
from pyarrow import fs as pafs

from iqa_ray.config import refuse_credentials
from iqa_ray.errors import UsageError
from iqa_ray.images.folders import EXTENSIONS, stat_entry, walk_local, walk_remote
from iqa_ray.images.prefetch import run_ahead
from iqa_ray.images.settings import LabelMode
from iqa_ray.storage.files import (
    Location,
    find_info,
    locate,
    one_line,
    parse_parquet,
    read_bytes,
)

MANIFEST_EXTENSIONS = (".csv", ".parquet")
# an object store answers slowly and many at a time
_REMOTE_STATS = 16

IMAGES_FILE = "images.parquet"  # of a workspace
IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Listing:
    """The images of a data set: `table` has IMAGES_SCHEMA, one row an image, sorted by path."""

    root: Location
    table: pa.Table


@dataclass
class _Rows:
    """Columns under construction."""

    names: list[str]
    paths: list[str]
    sizes: list[int | None]
    mtimes: list[int | None]

    def add(self, name: str, path: str, size: int | None, mtime: int | None) -> None:
        self.names.append(name)
        self.paths.append(path)
        self.sizes.append(size)
        self.mtimes.append(mtime)


def list_images(
    source: str, labels: LabelMode = "parent", exclude: Sequence[Location] = ()
) -> Listing:
    """List the images of a folder, a manifest (CSV or Parquet) or a URI, without opening any.

    Args:
        source: folder, manifest with a column `path` (and optionally `label`, `split`), or a URI
            of either. Relative paths of a manifest are relative to the manifest's folder.
        labels: where an image's label comes from if no manifest says it: the name of its
            `parent` folder, of the `top` folder below the root, or `none`.
        exclude: folders to leave out (a workspace inside the image folder). Those that `select
            --link` made are left out anyway, unless `source` is one.

    Raises:
        UsageError: nothing is there, no image is in it, or the manifest is unusable.
    """
    root = locate(source)
    if root.path.lower().endswith(MANIFEST_EXTENSIONS) and not _is_folder(root):
        listing = _list_manifest(root, labels)
    else:
        listing = _list_folder(root, labels, exclude)
    if listing.table.num_rows == 0:
        raise UsageError(
            f"{source} holds no images ({' '.join(sorted(EXTENSIONS))}): give a folder of images "
            "or a manifest"
        )
    return listing


def make_image_id(name: str) -> str:
    """The id of the image that stands at `name` (relative, /-separated) in its data set."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()


def relative_name(path: str, root: Location) -> str:
    """`path` relative to `root`; a path elsewhere is its own name."""
    base = root.prefix + root.path.rstrip("/") + "/"
    return path[len(base) :] if path.startswith(base) else path


# --- folders ---------------------------------------------------------------------------------


def _is_folder(location: Location) -> bool:
    info = _file_info(location)
    return bool(info.type == pafs.FileType.Directory)


def _file_info(location: Location) -> pafs.FileInfo:
    try:
        return find_info(location)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot reach {location}: {one_line(error)}") from None


def _list_folder(root: Location, labels: LabelMode, exclude: Sequence[Location]) -> Listing:
    kind = _file_info(root).type
    if kind == pafs.FileType.NotFound:
        raise UsageError(f"{root} does not exist: give a folder of images or a manifest")
    if kind != pafs.FileType.Directory:
        raise UsageError(f"{root} is neither a folder of images nor a .csv or .parquet manifest")
    rows = _Rows([], [], [], [])
    entries = (walk_local if root.is_local else walk_remote)(root, exclude)
    for name, path, size, mtime in sorted(entries):
        rows.add(name, path, size, mtime)
    root_name = posixpath.basename(root.path.rstrip("/"))
    return Listing(root, _build_table(rows, [_label_of(n, root_name, labels) for n in rows.names]))


def _label_of(name: str, root_name: str, labels: LabelMode) -> str | None:
    parts = name.split("/")
    if labels == "none":
        return None
    if labels == "top":  # an image elsewhere is in no folder below the root
        return parts[0] if len(parts) > 1 and not _is_absolute(name) else None
    return (parts[-2] or None) if len(parts) > 1 else root_name


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or "://" in path


# --- manifests -------------------------------------------------------------------------------


def read_manifest(location: Location, columns: Sequence[str]) -> pa.Table:
    """Read those of `columns` that a CSV or Parquet table has, all as strings.

    A cell that is empty or NaN, as which pandas writes a number that is missing, is null.

    Raises:
        UsageError: it does not exist, cannot be read, has no column `path` or one of `columns`
            twice, or a path holds a NUL, which no file system takes.
    """
    try:
        data = read_bytes(location)
        is_parquet = location.path.lower().endswith(".parquet")
        table = parse_parquet(data) if is_parquet else _parse_csv(data, columns)
        found = table.column_names
    except FileNotFoundError:
        raise UsageError(f"{location} does not exist") from None
    except UnicodeDecodeError:
        raise UsageError(f"{location} has a header that is not UTF-8: save it as UTF-8") from None
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot read {location}: {one_line(error)}") from None
    if "path" not in found:
        raise UsageError(f"{location} has no column `path` (it has: {', '.join(found) or 'none'})")
    for name in columns:
        if found.count(name) > 1:
            raise UsageError(f"{location} has more than one column `{name}`: keep one")
    try:
        table = pa.table({name: _to_text(table[name]) for name in columns if name in found})
    except pa.ArrowException as error:
        raise UsageError(f"{location}: columns must hold text: {one_line(error)}") from None
    for path in table["path"].filter(pc.match_substring(table["path"], ":/")).to_pylist():
        refuse_credentials(path, f"{location}: ")
    row = pc.index(pc.match_substring(table["path"], "\0"), True).as_py()
    if row >= 0:
        raise UsageError(f"{location}: row {row + 1}: {table['path'][row].as_py()!r} holds a NUL")
    return table


def _parse_csv(data: bytes, columns: Sequence[str]) -> pa.Table:
    options = pacsv.ConvertOptions(column_types={name: pa.string() for name in columns})
    return pacsv.read_csv(
        pa.BufferReader(data),
        read_options=pacsv.ReadOptions(use_threads=False),  # as in `parse_parquet`
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=options,
    )


def _to_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    text = column.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), None, text)


def _list_manifest(location: Location, labels: LabelMode) -> Listing:
    table = read_manifest(location, ["path", "label", "split"])
    root = _root_of(location)
    paths = [
        resolve_path(path, root, location, row) for row, path in enumerate(_cells(table, "path"))
    ]
    names = [relative_name(path, root) for path in paths]
    if len(set(names)) < len(names):
        raise UsageError(f"{location} lists {_first_repeated(names)!r} more than once")
    rows = _Rows(names, paths, [], [])
    rows.sizes, rows.mtimes = _stat_paths(paths, root)
    if paths and not any(size is not None for size in rows.sizes):
        raise UsageError(
            f"none of the {len(paths):,} paths in {location} exists (the first: {paths[0]!r}; "
            f"relative paths count from {root})"
        )
    if labels == "none":
        label_cells: list[str | None] = [None] * len(names)
    elif "label" in table.column_names:
        label_cells = _cells(table, "label")
    else:
        root_name = posixpath.basename(root.path)
        label_cells = [_label_of(name, root_name, labels) for name in names]
    splits = _cells(table, "split") if "split" in table.column_names else None
    return Listing(root, _build_table(rows, label_cells, splits).sort_by("path"))


def read_column(manifest: Location, column: str) -> dict[str, str | None]:
    """A further column of a manifest, by image id.

    Raises:
        UsageError: it cannot be read, or has no such column.
    """
    table = read_manifest(manifest, ["path", column])
    if column not in table.column_names:
        raise UsageError(f"{manifest} has no column `{column}`")
    root = _root_of(manifest)
    paths = (
        resolve_path(path, root, manifest, row) for row, path in enumerate(_cells(table, "path"))
    )
    ids = [make_image_id(relative_name(path, root)) for path in paths]
    return dict(zip(ids, _cells(table, column), strict=True))


def _root_of(manifest: Location) -> Location:
    """What a manifest's relative paths count from."""
    return Location(manifest.prefix, posixpath.dirname(manifest.path), manifest.options)


def _cells(table: pa.Table, column: str) -> list[Any]:
    return list(table.column(column).to_pylist())


def resolve_path(path: str | None, root: Location, manifest: Location, row: int) -> str:
    """A manifest's path as it is opened: relative ones count from the manifest's folder.

    `.`, `..` and repeated slashes are resolved by name alone, so that a file has one path.

    Raises:
        UsageError: the cell is empty, or a relative path climbs out of the manifest's folder.
    """
    if not path:
        raise UsageError(f"{manifest}: row {row + 1} has an empty path")
    if path.startswith("file://"):
        path = locate(path).path
    if path.startswith("/"):
        return posixpath.normpath("/" + path.lstrip("/"))
    if "://" in path:
        return path
    normal = posixpath.normpath(path)
    if normal.startswith("../") or normal == "..":
        raise UsageError(
            f"{manifest}: row {row + 1}: {path!r} climbs out of {root}; write an absolute path "
            "if that is meant"
        )
    return root.prefix + posixpath.join(root.path, normal)


def _first_repeated(names: Iterable[str]) -> str:
    return next(name for name, count in Counter(names).items() if count > 1)


def _stat_paths(paths: Sequence[str], root: Location) -> tuple[list[int | None], list[int | None]]:
    """Sizes and modification times; None where a path does not exist."""

    def stat(path: str) -> tuple[int | None, int | None]:
        if "://" in path:
            return _stat_remote(locate_image(path, root.options))
        return stat_entry(path)

    if any("://" in path for path in paths):
        found = list(run_ahead(stat, paths, _REMOTE_STATS, 2 * _REMOTE_STATS))
    else:
        found = [stat_entry(path) for path in paths]
    return [size for size, _ in found], [mtime for _, mtime in found]


def _stat_remote(location: Location) -> tuple[int | None, int | None]:
    try:
        info = find_info(location)
    except PermissionError:  # a row without size, whose reading will fail
        return None, None
    is_there = info.type == pafs.FileType.File
    return (info.size, info.mtime_ns) if is_there else (None, None)


def _build_table(
    rows: _Rows, labels: Sequence[str | None], splits: Sequence[str | None] | None = None
) -> pa.Table:
    ids = [make_image_id(name) for name in rows.names]
    columns = [ids, rows.paths, labels, splits or [None] * len(ids), rows.sizes, rows.mtimes]
    arrays = [
        pa.array(cells, field.type) for cells, field in zip(columns, IMAGES_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=IMAGES_SCHEMA)


def locate_image(path: str, options: str = "") -> Location:
    """Where the image of a table's `path` lies; `options` are those of the data set's URI."""
    scheme, separator, rest = path.partition("://")
    if not separator or path.startswith("/"):
        return Location("", path)
    return Location(f"{scheme}://", rest, options)
