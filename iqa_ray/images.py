"""The images of a data set: listing them with ids and labels; no image is opened for it."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pyarrow import compute as pc
from pyarrow import csv as pacsv
from pyarrow import fs as pafs

from iqa_ray.credentials import refuse_credentials
from iqa_ray.errors import UsageError
from iqa_ray.files import (
    Location,
    find_info,
    list_infos,
    locate,
    one_line,
    parse_parquet,
    read_bytes,
)
from iqa_ray.progress import log
from iqa_ray.reading import run_ahead

LabelMode = Literal["parent", "top", "none"]

_JPEG_2000 = (".jp2", ".j2k", ".j2c", ".jpx")
EXTENSIONS = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".webp",
        *_JPEG_2000,
    )
)
MANIFEST_EXTENSIONS = (".csv", ".parquet")
# an object store answers slowly and many at a time
_REMOTE_STATS = 16

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
        exclude: local folders to leave out (a workspace inside the image folder).

    Raises:
        UsageError: nothing is there, no image is in it, or the manifest is unusable.
    """
    root = locate(source)
    if root.path.lower().endswith(MANIFEST_EXTENSIONS) and not _is_folder(root):
        listing = _list_manifest(root, labels)
    else:
        listing = _list_folder(root, labels, {location.path for location in exclude})
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


def _list_folder(root: Location, labels: LabelMode, exclude: set[str]) -> Listing:
    kind = _file_info(root).type
    if kind == pafs.FileType.NotFound:
        raise UsageError(f"{root} does not exist: give a folder of images or a manifest")
    if kind != pafs.FileType.Directory:
        raise UsageError(f"{root} is neither a folder of images nor a .csv or .parquet manifest")
    rows = _Rows([], [], [], [])
    entries = _walk_local(root.path, exclude) if root.is_local else _walk_remote(root)
    for name, path, size, mtime in sorted(entries):
        rows.add(name, path, size, mtime)
    root_name = posixpath.basename(root.path.rstrip("/"))
    return Listing(root, _build_table(rows, [_label_of(n, root_name, labels) for n in rows.names]))


def _walk_local(root: str, exclude: set[str]) -> Iterator[tuple[str, str, int | None, int | None]]:
    """Images below `root`; links to folders are followed once, hidden names are skipped."""
    seen: set[tuple[int, int]] = set()
    pending = [("", root)]
    while pending:
        prefix, folder = pending.pop()
        try:
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in seen:
                log(f"skipped {folder!r}: this folder was listed already (a looping link?)")
                continue
            seen.add((info.st_dev, info.st_ino))
            entries = list(os.scandir(folder))
        except OSError as error:
            log(f"skipped folder {folder!r}: {error.strerror}")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_dir(entry):
                if entry.path not in exclude:
                    pending.append((f"{prefix}{entry.name}/", entry.path))
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                size, mtime = _stat_entry(entry.path)
                yield _printable(prefix + entry.name), _printable(entry.path), size, mtime


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _stat_entry(path: str) -> tuple[int | None, int | None]:
    try:
        info = os.stat(path)
    except OSError:  # a broken or looping link: a row without size, whose reading will fail
        return None, None
    return info.st_size, info.st_mtime_ns


def _printable(name: str) -> str:
    """A name that a table can hold: bytes that are not UTF-8 are escaped."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    return name


def _walk_remote(root: Location) -> Iterator[tuple[str, str, int | None, int | None]]:
    try:
        infos = list_infos(root)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot list {root}: {one_line(error)}") from None
    for info in infos:
        name = info.path[len(root.path) :].lstrip("/")
        hidden = any(part.startswith(".") for part in name.split("/"))
        extension = posixpath.splitext(name)[1].lower()
        if info.type == pafs.FileType.File and not hidden and extension in EXTENSIONS:
            yield name, root.prefix + info.path, info.size, info.mtime_ns


def _label_of(name: str, root_name: str, labels: LabelMode) -> str | None:
    parts = name.split("/")
    if labels == "none":
        return None
    if labels == "top":
        return parts[0] if len(parts) > 1 else None
    return parts[-2] if len(parts) > 1 else root_name


# --- manifests -------------------------------------------------------------------------------


def read_manifest(location: Location, columns: Sequence[str]) -> pa.Table:
    """Read those of `columns` that a CSV or Parquet table has, all as strings.

    Raises:
        UsageError: it does not exist, cannot be read, or has no column `path`.
    """
    try:
        data = read_bytes(location)
        if location.path.lower().endswith(".parquet"):
            table = parse_parquet(data)
        else:
            options = pacsv.ConvertOptions(
                column_types={name: pa.string() for name in columns},
                strings_can_be_null=True,
                null_values=[""],
                quoted_strings_can_be_null=True,
            )
            parsing = pacsv.ParseOptions(newlines_in_values=True)
            alone = pacsv.ReadOptions(use_threads=False)  # as in `parse_parquet`
            table = pacsv.read_csv(
                pa.BufferReader(data),
                read_options=alone,
                parse_options=parsing,
                convert_options=options,
            )
    except FileNotFoundError:
        raise UsageError(f"{location} does not exist") from None
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot read {location}: {one_line(error)}") from None
    if "path" not in table.column_names:
        found = ", ".join(table.column_names) or "none"
        raise UsageError(f"{location} has no column `path` (it has: {found})")
    table = table.select([name for name in columns if name in table.column_names])
    try:
        table = table.cast(pa.schema([(name, pa.string()) for name in table.column_names]))
    except pa.ArrowException as error:
        raise UsageError(f"{location}: columns must hold text: {one_line(error)}") from None
    paths = table.column("path")
    for path in paths.filter(pc.match_substring(paths, ":/")).to_pylist():
        refuse_credentials(path, f"{location}: ")
    return table


def _list_manifest(location: Location, labels: LabelMode) -> Listing:
    table = read_manifest(location, ["path", "label", "split"])
    root = Location(location.prefix, posixpath.dirname(location.path), location.options)
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


def _cells(table: pa.Table, column: str) -> list[Any]:
    return list(table.column(column).to_pylist())


def resolve_path(path: str | None, root: Location, manifest: Location, row: int) -> str:
    """A manifest's path as it is opened: relative ones count from the manifest's folder.

    Raises:
        UsageError: the cell is empty, or a relative path climbs out of the manifest's folder.
    """
    if not path:
        raise UsageError(f"{manifest}: row {row + 1} has an empty path")
    if "://" in path or path.startswith("/"):
        return str(locate(path)) if path.startswith("file://") else path
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
        return _stat_entry(path)

    if any("://" in path for path in paths):
        found = list(run_ahead(stat, paths, _REMOTE_STATS, 2 * _REMOTE_STATS))
    else:
        found = [_stat_entry(path) for path in paths]
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
