"""One run at a time where rows are removed: lock files with their owner and when it began.

On a file system the lock is one file that is created exclusively. pyarrow offers nothing like that
on object stores, but those list what was written at once. So there each run writes a file of its
own below `rescore.lock/` and then lists them: of two runs the later one to write sees the other's,
and only who sees no other has the lock, however slowly requests are answered. Of runs that see each
other the one whose name comes first waits a while for the others to go; a run that goes, goes for
good. It does not hold on stores that list late, as S3 did before December 2020.
"""

from __future__ import annotations

import json
import os
import posixpath
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from iqa_ray.errors import IncompleteError
from iqa_ray.files import Location, delete_file, list_files, read_bytes, write_bytes
from iqa_ray.progress import log

LOCK_FILE = "rescore.lock"
STALE_AFTER_S = 24 * 3600.0
# how long those wait that need the lock for a moment
_PATIENCE_S = 60.0
_POLL_S = 0.2
# how long the first of several runs that came together waits for the others to go, and looks again
_STANDOFF_S = 5.0
_LOOK_AGAIN_S = 0.5

# the folders whose lock the present call stack holds
_HELD: ContextVar[frozenset[Location]] = ContextVar("_HELD", default=frozenset())


@dataclass(frozen=True)
class Owner:
    """Who holds a lock: a process of a machine, since a UTC time (ISO 8601), maybe for a moment."""

    token: str
    host: str
    pid: int
    started: str
    is_brief: bool = False

    def describe(self) -> str:
        return f"process {self.pid} on {self.host} since {self.started}"


class _LockedError(IncompleteError):
    """`holder` has the lock; None if it has just given it back."""

    def __init__(self, message: str, holder: Owner | None) -> None:
        super().__init__(message)
        self.holder = holder


@contextmanager
def hold_lock(folder: Location) -> Iterator[None]:
    """Hold the lock of a workspace, whose folder this is, for a whole run.

    It is waited for only where another run holds it for a moment. A lock is stale, and taken
    over, when its process on this machine is gone, or when it is older than a day.

    Raises:
        IncompleteError: another run holds it.
    """
    with _hold(folder, is_brief=False):
        yield


@contextmanager
def hold_lock_briefly(folder: Location) -> Iterator[None]:
    """Hold the lock for a moment, such as to remove a few rows; wait a while where it is held.

    Within a run that holds it, at once.

    Raises:
        IncompleteError: another run holds it, and goes on.
    """
    if folder in _HELD.get():
        yield
        return
    with _hold(folder, is_brief=True):
        yield


@contextmanager
def _hold(folder: Location, is_brief: bool) -> Iterator[None]:
    file, own = _take_patiently(folder, is_brief)
    held = _HELD.set(_HELD.get() | {folder})
    try:
        yield
    finally:
        _HELD.reset(held)
        _remove(file, own)


def _take_patiently(folder: Location, is_brief: bool) -> tuple[Location, Owner]:
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        own = Owner(uuid.uuid4().hex, socket.gethostname(), os.getpid(), started, is_brief)
        try:
            return _take(folder, own), own
        except _LockedError as error:
            may_wait = is_brief or error.holder is None or error.holder.is_brief
            if not may_wait or time.monotonic() >= deadline_s:
                raise
            time.sleep(_POLL_S)


def is_stale(owner: Owner) -> bool:
    """Whether the owner is certainly or very probably gone."""
    age = datetime.now(timezone.utc) - datetime.fromisoformat(owner.started)
    if age.total_seconds() > STALE_AFTER_S:
        return True
    return owner.host == socket.gethostname() and not _is_running(owner.pid)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _take(folder: Location, own: Owner) -> Location:
    """Write the lock, and return its file.

    Raises:
        _LockedError: the lock is another's.
    """
    place = folder / LOCK_FILE
    if place.is_local:
        _check_free(folder, [place])
        if not _create(place, own):
            _check_free(folder, [place])
            raise _LockedError("another run was quicker", None)
        return place
    _check_free(folder, list_files(place))
    file = place / f"{own.token}.json"
    write_bytes(file, _to_json(own))
    try:
        deadline_s = time.monotonic() + _STANDOFF_S
        # by their names: some stores list paths that are written in another way
        while others := [other for other in list_files(place) if _name(other) != _name(file)]:
            if _name(others[0]) < _name(file) or time.monotonic() > deadline_s:
                _check_free(folder, others)
            time.sleep(_LOOK_AGAIN_S)
    except BaseException:
        delete_file(file)
        raise
    return file


def _name(file: Location) -> str:
    return posixpath.basename(file.path)


def _check_free(folder: Location, files: Sequence[Location]) -> None:
    """Remove stale locks.

    Raises:
        _LockedError: one of `files` is there and not stale.
    """
    for file in files:
        holder = _read(file)
        if holder is None:
            continue
        if not is_stale(holder):
            raise _LockedError(
                f"{folder} is being written by {holder.describe()}: wait for it, or remove {file} "
                "if it is gone",
                holder,
            )
        log(f"took over the lock of {holder.describe()}, which is stale")
        _remove(file, holder)


def _create(file: Location, own: Owner) -> bool:
    """Write a local lock; False if there is one."""
    try:
        handle = os.open(file.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(_to_json(own))
    except BaseException:  # a full disk must not leave a lock that nobody holds
        os.unlink(file.path)
        raise
    return True


def _to_json(owner: Owner) -> bytes:
    return json.dumps(asdict(owner)).encode()


def _read(file: Location) -> Owner | None:
    try:
        return Owner(**json.loads(read_bytes(file)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # half written
        return Owner("", "unknown", 0, datetime.now(timezone.utc).isoformat(timespec="seconds"))


def _remove(file: Location, owner: Owner) -> None:
    if _read(file) == owner:
        delete_file(file)
