"""Walking a folder or an object store for image files; no file is opened for it."""

from __future__ import annotations

import heapq
import os
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pyarrow as pa
from pyarrow import fs as pafs

from iqa_ray.errors import UsageError
from iqa_ray.progress import log
from iqa_ray.storage.files import Location, list_infos, one_line

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
# what marks a folder that `select --link` made of images that are listed elsewhere
LINKS_MARKER = ".iqa-ray-links"

# name, path, size and modification time, which are None where there is no such file
Entry = tuple[str, str, int | None, int | None]


def walk_local(root: Location, exclude: Sequence[Location]) -> Iterator[Entry]:
    """Images below `root`, without hidden names, folders in `exclude` and those of `select --link`.

    Links to folders are followed. A folder that can be reached in several ways is listed once:
    where it lies if that is below the root, else at the first link by name.
    """
    excluded: set[tuple[int, int]] = set()
    seen: set[tuple[int, int]] = set()
    for location in (location for location in exclude if location.is_local):
        with suppress(OSError):  # a workspace that is not made yet
            excluded.add(_identify(location.path))
    pending = [(False, "", root.path)]  # a heap: those behind a link come last
    while pending:
        is_linked, prefix, folder = heapq.heappop(pending)
        try:
            identity, entries = _identify(folder), list(os.scandir(folder))
        except OSError as error:
            log(f"skipped folder {folder!r}: {error.strerror}")
            continue
        if identity in seen:
            log(f"skipped {folder!r}: this folder was listed already (a looping link?)")
            continue
        seen.add(identity)
        if prefix and identity in excluded:
            continue
        if prefix and any(entry.name == LINKS_MARKER for entry in entries):
            log(f"skipped folder {folder!r}: `iqa-ray select --link` made it")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_dir(entry):
                behind_link = is_linked or entry.is_symlink()
                heapq.heappush(pending, (behind_link, f"{prefix}{entry.name}/", entry.path))
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                size, mtime = stat_entry(entry.path)
                yield _printable(prefix + entry.name), _printable(entry.path), size, mtime


def _identify(folder: str) -> tuple[int, int]:
    """What a folder has in common with itself behind a link."""
    info = os.stat(folder)
    return info.st_dev, info.st_ino


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def stat_entry(path: str) -> tuple[int | None, int | None]:
    """Size and modification time; None where there is no such file."""
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


def walk_remote(root: Location, exclude: Sequence[Location]) -> Iterator[Entry]:
    """As `walk_local`, of an object store, which has no links."""
    base = root.path.strip("/") + "/"
    others = [location.path.strip("/") for location in exclude if location.prefix == root.prefix]
    excluded = tuple(f"{path}/" for path in others if path.startswith(base))
    try:
        infos = list_infos(root)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot list {root}: {one_line(error)}") from None
    for info in infos:
        path = info.path.lstrip("/")  # some stores of fsspec begin with one
        name = path.removeprefix(base)
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        extension = posixpath.splitext(name)[1].lower()
        if info.type != pafs.FileType.File or is_hidden or path.startswith(excluded):
            continue
        if extension in EXTENSIONS:
            yield name, root.prefix + info.path, info.size, info.mtime_ns
