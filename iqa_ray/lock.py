"""One run at a time where rows are removed: a lock file with its owner and when it began."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from iqa_ray.errors import IncompleteError
from iqa_ray.files import Location, read_bytes, write_bytes
from iqa_ray.progress import log

LOCK_FILE = "rescore.lock"
STALE_AFTER_S = 24 * 3600.0
# how long those wait that need the lock for a moment
_PATIENCE_S = 60.0
_POLL_S = 0.2
# an object store knows no exclusive creation: who still stands there after a while has it
_SETTLE_S = 2.0

# the folders whose lock the present call stack holds
_HELD: ContextVar[frozenset[Location]] = ContextVar("_HELD", default=frozenset())


@dataclass(frozen=True)
class Owner:
    """Who holds a lock: a process of a machine, since a UTC time (ISO 8601)."""

    token: str
    host: str
    pid: int
    started: str

    def describe(self) -> str:
        return f"process {self.pid} on {self.host} since {self.started}"


@contextmanager
def hold_lock(folder: Location) -> Iterator[None]:
    """Hold the lock of a workspace, whose folder this is, for a whole run.

    A lock is stale, and taken over, when its process on this machine is gone, or when it is older
    than a day.

    Raises:
        IncompleteError: another run holds it.
    """
    with _hold(folder, patience_s=0.0):
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
    with _hold(folder, _PATIENCE_S):
        yield


@contextmanager
def _hold(folder: Location, patience_s: float) -> Iterator[None]:
    file = folder / LOCK_FILE
    own = Owner(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_now(),
    )
    deadline_s = time.monotonic() + patience_s
    while holder := _find_holder(file, own):
        if time.monotonic() >= deadline_s:
            raise IncompleteError(_refuse(folder, holder))
        time.sleep(_POLL_S)
    held = _HELD.set(_HELD.get() | {folder})
    try:
        yield
    finally:
        _HELD.reset(held)
        _remove(file, own)


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


def _refuse(folder: Location, holder: Owner) -> str:
    return (
        f"{folder} is being written by {holder.describe()}: wait for it, or remove "
        f"{folder / LOCK_FILE} if it is gone"
    )


def _find_holder(file: Location, own: Owner) -> Owner | None:
    """Take the lock if it is free or stale; otherwise who holds it."""
    holder = _read(file)
    if holder is not None:
        if not is_stale(holder):
            return holder
        log(f"took over the lock of {holder.describe()}, which is stale")
        _remove(file, holder)
    if _take(file, own):
        return None
    return _read(file) or _find_holder(file, own)  # the other may have given it back meanwhile


def _take(file: Location, own: Owner) -> bool:
    """Write the lock; whether it is ours."""
    content = json.dumps(asdict(own)).encode()
    if file.is_local:
        try:
            handle = os.open(file.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
        except BaseException:  # a full disk must not leave a lock that nobody holds
            os.unlink(file.path)
            raise
        return True
    if _read(file) is not None:
        return False
    write_bytes(file, content)
    time.sleep(_SETTLE_S)
    return _read(file) == own


def _read(file: Location) -> Owner | None:
    try:
        return Owner(**json.loads(read_bytes(file)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # half written
        return Owner("", "unknown", 0, _now())


def _remove(file: Location, owner: Owner) -> None:
    if _read(file) == owner:
        file.filesystem.delete_file(file.path)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
