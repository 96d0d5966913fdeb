"""One way to reach local folders and object stores: a `pyarrow.fs` file system and a path in it."""

from __future__ import annotations

import os
import posixpath
import re
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TypeVar, cast
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs
from pyarrow import parquet as pq

from iqa_ray.config import refuse_credentials
from iqa_ray.errors import UsageError
from iqa_ray.storage.object_stores import UnansweredError, ask, find_kind, name_error, open_store

AnswerT = TypeVar("AnswerT")

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_MAX_MESSAGE = 200
_NUM_READS = 5
_UNFINISHED = ".tmp"
_ABANDONED_S = 24 * 3600.0


@dataclass(frozen=True)
class Location:
    """A folder or file: `path` inside the file system that `prefix` (such as `s3://`) names.

    Local locations have an empty prefix and an absolute path, so `str(location)` can be handed
    to another process, on another node, with another working directory. `options` are those of
    a URI's query, such as `endpoint_override=localhost%3A9000&scheme=http`.
    """

    prefix: str
    path: str
    options: str = ""

    def __str__(self) -> str:
        return self.prefix + self.path + (f"?{self.options}" if self.options else "")

    def __truediv__(self, name: str) -> Location:
        return Location(self.prefix, posixpath.join(self.path, name), self.options)

    @property
    def is_local(self) -> bool:
        return not self.prefix

    @property
    def filesystem(self) -> pafs.FileSystem:
        if self.is_local:
            return _LOCAL
        return _open_filesystem(self.prefix, self.path.split("/")[0], self.options)


def locate(uri: str | Path) -> Location:
    """The location that a path or URI names; nothing is opened.

    Raises:
        UsageError: a URI holds credentials.
    """
    text = os.fspath(uri)
    refuse_credentials(text)
    if text.startswith("file://"):
        return Location("", os.path.abspath(unquote(urlsplit(text).path)))
    match = _SCHEME.match(text)
    if match is None:
        return Location("", os.path.abspath(os.path.expanduser(text)))
    rest, _, options = text[match.end() :].partition("?")
    return Location(match.group(), rest.rstrip("/"), options)


@lru_cache(maxsize=32)
def _open_filesystem(prefix: str, bucket: str, options: str) -> pafs.FileSystem:
    uri = f"{prefix}{bucket}" + (f"?{options}" if options else "")
    try:
        return open_store(prefix, bucket, options)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{prefix}{bucket.rpartition('@')[2]}: {one_line(error)}") from None
    except OSError as error:  # a bucket's region is looked up here
        raise UsageError(f"cannot reach {uri}: {one_line(error)}") from None


def _ask(location: Location, operation: Callable[[], AnswerT]) -> AnswerT:
    """Do something with `location`, and again where a store fails in passing.

    Raises a store's errors as the kinds that a local file's would be, with the file's name.
    """
    if location.is_local:
        return operation()
    try:
        return ask(operation)
    except OSError as error:
        kind = find_kind(error)
        if isinstance(error, kind):
            raise
        raise kind(f"{location.prefix}{location.path}: {name_error(error)}") from None


_LOCAL = pafs.LocalFileSystem()


def open_stream(location: Location) -> BinaryIO:
    """Open a file for reading from its start.

    Raises:
        UnansweredError: the object store failed on every try.
        OSError: the file is missing or cannot be read.
    """
    if location.is_local:
        return open(location.path, "rb")
    return cast(BinaryIO, _open_file(location))


def _open_file(location: Location) -> pa.NativeFile:
    # pyarrow's streams would be read in pieces of 256 KB, a request each
    return _ask(location, lambda: location.filesystem.open_input_file(location.path))


def read_bytes(location: Location) -> bytes:
    """The whole file. Raises as `open_stream`."""
    if location.is_local:
        return Path(location.path).read_bytes()
    with _open_file(location) as file:
        return _ask(location, lambda: file.read_at(file.size(), 0))


def parse_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in the bytes of a Parquet file, or some of its columns, in the file's order.

    Read by the calling thread alone: one of pyarrow's own may give the bytes back when Python is
    about to end, which would then abort the process.

    Raises:
        pyarrow.ArrowException: it is no such file.
    """
    return pq.ParquetFile(pa.BufferReader(data)).read(columns=columns, use_threads=False)


def read_whole(location: Location) -> bytes:
    """A file that may be replaced meanwhile: the old one or the new one, never some of each.

    pyarrow asks an object store for the size first and then for so many bytes, which may be
    another file's by then. Raises as `open_stream`.
    """
    if location.is_local:
        return read_bytes(location)
    for _ in range(_NUM_READS):
        data = read_bytes(location)
        if find_info(location).size == len(data):
            return data
    raise UnansweredError(f"{location} was replaced during each of {_NUM_READS} tries to read it")


def write_bytes(location: Location, data: bytes | pa.Buffer) -> None:
    """Write a file whole or not at all.

    Locally a temporary name, then a rename; on object stores one put or, of more than a few MB, an
    upload that shows when it is complete.
    """
    if not location.is_local:
        _ask(location, lambda: _put(location, data))
        return
    folder, name = os.path.split(location.path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}{_UNFINISHED}")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())  # or a node that loses power leaves an empty file
        os.replace(temporary, location.path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, location.path) from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _put(location: Location, data: bytes | pa.Buffer) -> None:
    with location.filesystem.open_output_stream(location.path, compression=None) as stream:
        stream.write(data)


def delete_file(location: Location) -> None:
    """Remove a file; one that is gone is no error. Raises as `open_stream`."""
    # where a store did so and its answer was lost, the file is gone at the second try
    with suppress(FileNotFoundError):
        _ask(location, lambda: location.filesystem.delete_file(location.path))


def delete_folder(folder: Location) -> None:
    """Remove a folder and all that is in it; one that is gone is no error. As `delete_file`."""
    with suppress(FileNotFoundError):
        _ask(folder, lambda: folder.filesystem.delete_dir(folder.path))


def check_writable(folder: Location, flag: str) -> None:
    """Make sure that files can be written into a folder, which is made if need be.

    Raises:
        UsageError: they cannot; names the `flag` that gave the folder, and the reason.
    """
    probe = folder / ".write-test"
    try:
        write_bytes(probe, b"")
        delete_file(probe)
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UsageError(f"{flag} {folder}: cannot write there: {reason}") from None


def find_info(location: Location) -> pafs.FileInfo:
    """What stands at `location`: its type (which may be NotFound), size and modification time.

    Raises:
        UnansweredError: the object store failed on every try.
        OSError: it cannot be looked at.
    """
    return _ask(location, lambda: location.filesystem.get_file_info(location.path))


def is_file(location: Location) -> bool:
    """Whether a file stands at `location`. Raises as `find_info`."""
    return bool(find_info(location).type == pafs.FileType.File)


def list_infos(folder: Location) -> list[pafs.FileInfo]:
    """What stands below `folder`, at any depth; nothing if it does not exist.

    Raises as `find_info`.
    """
    selector = pafs.FileSelector(folder.path, recursive=True, allow_not_found=True)
    return list(_ask(folder, lambda: folder.filesystem.get_file_info(selector)))


def remove_unfinished(folder: Location) -> None:
    """Remove what writers that were killed long ago left in a local folder."""
    if not folder.is_local or not os.path.isdir(folder.path):
        return
    for file in Path(folder.path).glob(f".*{_UNFINISHED}"):
        with suppress(FileNotFoundError):  # a living writer has just given it its name
            if time.time() - file.stat().st_mtime > _ABANDONED_S:
                file.unlink()


def list_files(folder: Location, suffix: str = "") -> list[Location]:
    """The visible files below `folder`, in the order of their paths. As `list_infos`."""
    infos = list_infos(folder)
    paths = sorted(info.path for info in infos if info.type == pafs.FileType.File)
    return [
        Location(folder.prefix, path, folder.options)
        for path in paths
        if path.endswith(suffix) and not posixpath.basename(path).startswith(".")
    ]


def one_line(error: BaseException | str) -> str:
    """An error's text on one line, not too long, without control characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 1] + "…"
