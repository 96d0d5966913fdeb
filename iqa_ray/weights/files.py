"""Files of networks: their names, the lock, whether they are sound, and one copy a node.

A weights folder (local, or a URI) holds checkpoints under the names of `name_file` and
`weights.lock`, a JSON record of every file's address, size and SHA-256 and of the files that each
metric needs. A folder without a lock, filled by hand, works too.

Actors never read the folder itself but a copy on their own node, kept under the file's SHA-256 and
made by whichever actor comes first. So what was verified once is what is loaded.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from iqa_ray.config import refuse_credentials
from iqa_ray.errors import UsageError
from iqa_ray.storage.files import (
    Location,
    is_file,
    locate,
    one_line,
    open_stream,
    read_bytes,
    write_bytes,
)

WEIGHTS_LOCK = "weights.lock"
FOLDER_VARIABLE = "IQA_RAY_WEIGHTS"
NETWORK_TIMEOUT_S = 10.0
# what opening an address and reading from it may raise: urllib lets http.client's errors through
NETWORK_ERRORS = (OSError, HTTPException)
_PYIQA_REPOSITORY = "chaofengc/IQA-PyTorch-Weights"
_CHUNK_BYTES = 1 << 22
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class WeightFile:
    """A file of a network: its name in a weights folder, address, size and SHA-256."""

    name: str
    url: str
    bytes: int
    sha256: str


@dataclass
class Lock:
    """What `weights.lock` records."""

    pyiqa: str
    metrics: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, WeightFile] = field(default_factory=dict)


def name_file(url: str) -> str:
    """The name under which a weights folder keeps the file at `url`.

    That is the file's own name; a file of a model hub other than pyiqa's goes below its
    repository, since its own name (`model.safetensors`) says nothing.
    """
    path = unquote(urlsplit(url).path).strip("/")
    repository, separator, rest = path.partition("/resolve/")
    if separator and repository != _PYIQA_REPOSITORY:
        return f"{repository}/{rest.partition('/')[2]}"
    return path.rpartition("/")[2]


def cache_folder() -> Path:
    """Where this machine keeps weights: `$XDG_CACHE_HOME/iqa_ray` or `~/.cache/iqa_ray`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iqa_ray"


def resolve_folder(given: str | None) -> str | None:
    """The weights folder that the user names: `given`, or `$IQA_RAY_WEIGHTS`."""
    if given:
        return given
    folder = os.environ.get(FOLDER_VARIABLE)
    refuse_credentials(folder, f"{FOLDER_VARIABLE}: ")
    return folder


def default_folder() -> Location:
    """The weights folder of this machine, used where none is given."""
    return locate(cache_folder() / "weights")


# --- the lock -----------------------------------------------------------------------------------


def read_lock(folder: Location) -> Lock | None:
    """The folder's lock; None without one.

    Raises:
        UsageError: it is not a lock.
    """
    try:
        loaded = json.loads(read_bytes(folder / WEIGHTS_LOCK))
        files = {name: _read_entry(name, entry) for name, entry in loaded["files"].items()}
        metrics = {name: list(files) for name, files in loaded["metrics"].items()}
        if unknown := {name for names in metrics.values() for name in names} - set(files):
            raise ValueError(f"no entry for {', '.join(sorted(unknown))}")
        return Lock(str(loaded["pyiqa"]), metrics, files)
    except UsageError:  # a ValueError too, which says what is wrong with the store
        raise
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot read {folder / WEIGHTS_LOCK}: {one_line(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{folder / WEIGHTS_LOCK} is not a lock: {one_line(error)}; make it again with "
            "`iqa-ray weights pull`"
        ) from None


def _read_entry(name: str, fields: Mapping[str, Any]) -> WeightFile:
    """An entry of a lock, whose fields become paths in the weights folder and on every node.

    Raises:
        ValueError, TypeError: it is not one that `write_lock` writes.
    """
    entry = WeightFile(name, **fields)
    path = PurePosixPath(name)
    if path.is_absolute() or not path.name or ".." in path.parts:
        raise ValueError(f"{name!r} is not the name of a file in the folder")
    if name_file(entry.url) != name:
        raise ValueError(f"{entry.url!r} is not the address of {name}")
    if type(entry.bytes) is not int or entry.bytes < 0:
        raise ValueError(f"{entry.bytes!r} is not the size of {name}")
    if not _SHA256.fullmatch(entry.sha256):
        raise ValueError(f"{entry.sha256!r} is not the SHA-256 of {name}")
    return entry


def write_lock(folder: Location, lock: Lock) -> None:
    """Write the folder's lock, whole or not at all."""
    record = {
        "pyiqa": lock.pyiqa,
        "metrics": dict(sorted(lock.metrics.items())),
        "files": {
            name: {key: value for key, value in asdict(entry).items() if key != "name"}
            for name, entry in sorted(lock.files.items())
        },
    }
    write_bytes(folder / WEIGHTS_LOCK, json.dumps(record, indent=2).encode() + b"\n")


# --- files --------------------------------------------------------------------------------------


def has_file(folder: Location, name: str) -> bool:
    """Whether the folder has a file of that name."""
    try:
        return is_file(folder / name)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot read the weights folder {folder}: {one_line(error)}") from None


def hash_stream(stream: Any, on_chunk: Callable[[bytes], Any] = len) -> tuple[int, str]:
    """Size and SHA-256 of what a binary stream gives; each chunk is also handed to `on_chunk`."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
        on_chunk(chunk)
    return size, digest.hexdigest()


def describe_file(folder: Location, url: str) -> WeightFile:
    """Read the folder's file for `url` and describe it."""
    name = name_file(url)
    with open_stream(folder / name) as stream:
        return WeightFile(name, url, *hash_stream(stream))


def describe_files(folder: Location, urls: Iterable[str]) -> tuple[WeightFile, ...]:
    """The files at `urls` as the folder's lock has them or, where it does not, as they are."""
    lock = read_lock(folder)
    known = lock.files if lock else {}
    return tuple(
        known.get(name_file(url)) or describe_file(folder, url) for url in dict.fromkeys(urls)
    )


def find_damage(folder: Location, entry: WeightFile) -> str | None:
    """What is wrong with the folder's copy of `entry`; None if nothing."""
    if not has_file(folder, entry.name):
        return f"{entry.name} is missing"
    found = describe_file(folder, entry.url)
    if (found.bytes, found.sha256) != (entry.bytes, entry.sha256):
        return (
            f"{entry.name} is not the file that {WEIGHTS_LOCK} names: {found.bytes:,} bytes with "
            f"SHA-256 {found.sha256[:16]}…, not {entry.bytes:,} with {entry.sha256[:16]}…"
        )
    return None


# --- the network --------------------------------------------------------------------------------


def open_url(url: str) -> BinaryIO:
    """Open a file on the network for reading.

    Raises:
        NETWORK_ERRORS: it cannot be had, or nothing answers for NETWORK_TIMEOUT_S. Reading from it
            raises the same.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "iqa_ray"})
    return cast(BinaryIO, urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT_S))


def explain(error: Exception) -> str:
    """What a network error says, on one line."""
    if isinstance(error, URLError) and not isinstance(error, HTTPError):
        return one_line(str(error.reason))
    return one_line(repr(error) if isinstance(error, HTTPException) else error)


# --- one copy a node ----------------------------------------------------------------------------


def open_node_copy(entry: WeightFile, folder: str | None) -> Path:
    """This node's copy of a file, made from `folder` (or the network) if it is not there in whole.

    Only one process of a node makes it; the others wait for it. `folder` is None for the network.

    Raises:
        UsageError: the folder does not have the file, or another one under its name.
    """
    target = cache_folder() / "nodes" / entry.sha256 / Path(entry.name).name
    if _is_whole(target, entry):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_whole(target, entry):
            _copy(entry, folder, target)
    return target


def _is_whole(copy: Path, entry: WeightFile) -> bool:
    """Whether a copy, which was verified when it was made, still has its size."""
    try:
        return copy.stat().st_size == entry.bytes
    except FileNotFoundError:
        return False


def _copy(entry: WeightFile, folder: str | None, target: Path) -> None:
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    place = locate(folder) / entry.name if folder is not None else None
    try:
        with (
            open_stream(place) if place else open_url(entry.url) as stream,
            open(temporary, "wb") as copy,
        ):
            size, sha256 = hash_stream(stream, copy.write)
            copy.flush()
            os.fsync(copy.fileno())  # or a node that loses power keeps a shorter file
        if (size, sha256) != (entry.bytes, entry.sha256):
            raise UsageError(
                f"{entry.name} in {folder or 'the network'} is damaged or another file: "
                f"{size:,} bytes with SHA-256 {sha256[:16]}…, not {entry.bytes:,} with "
                f"{entry.sha256[:16]}…; get it again with `iqa-ray weights pull`"
            )
        os.replace(temporary, target)
    except (*NETWORK_ERRORS, pa.ArrowException) as error:
        raise UsageError(
            f"cannot read {place or entry.url} on {socket.gethostname()}: {explain(error)}; the "
            "weights folder must be one that every node can reach"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
