"""One way to reach local folders and object stores: a `pyarrow.fs` file system and a path in it."""

from __future__ import annotations

import os
import posixpath
import re
import time
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from iqa_ray.errors import UsageError

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_MAX_MESSAGE = 200
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
    """The location that a path or URI names; nothing is opened."""
    text = os.fspath(uri)
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
        return pafs.FileSystem.from_uri(uri)[0]
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise UsageError(f"{uri}: {one_line(error)}") from None
    except OSError as error:  # a bucket's region is looked up here
        raise UsageError(f"cannot reach {uri}: {one_line(error)}") from None
    import fsspec

    try:
        return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(prefix.removesuffix("://"))))
    except (ValueError, ImportError) as error:
        raise UsageError(f"{uri}: {one_line(error)}") from None


_LOCAL = pafs.LocalFileSystem()


def open_stream(location: Location) -> BinaryIO:
    """Open a file for reading from its start.

    Raises:
        OSError: it is missing or cannot be read.
    """
    if location.is_local:
        return open(location.path, "rb")
    return cast(BinaryIO, location.filesystem.open_input_stream(location.path))


def read_bytes(location: Location) -> bytes:
    """The whole file. Raises as `open_stream`."""
    with open_stream(location) as stream:
        return stream.read()


def write_bytes(location: Location, data: bytes | pa.Buffer) -> None:
    """Write a file whole or not at all: temporary name, then rename; on object stores one put."""
    filesystem = location.filesystem
    if not location.is_local:
        with filesystem.open_output_stream(location.path) as stream:
            stream.write(data)
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


def remove_unfinished(folder: Location) -> None:
    """Remove what writers that were killed long ago left in a local folder."""
    if not folder.is_local or not os.path.isdir(folder.path):
        return
    for file in Path(folder.path).glob(f".*{_UNFINISHED}"):
        if time.time() - file.stat().st_mtime > _ABANDONED_S:
            file.unlink(missing_ok=True)


def list_files(folder: Location, suffix: str = "") -> list[Location]:
    """The visible files below `folder` (none if it does not exist), in the order of their paths."""
    infos = folder.filesystem.get_file_info(
        pafs.FileSelector(folder.path, recursive=True, allow_not_found=True)
    )
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
