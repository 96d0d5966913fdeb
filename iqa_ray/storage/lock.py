"""One run at a time where rows are removed: lock files with their owner and when it began.

On a file system the lock is one file that is created exclusively. pyarrow offers nothing like that
on object stores, but those list what was written at once. So there each run writes a file of its
own below `rescore.lock/` and then lists them: of two runs the later one to write sees the other's,
and only who sees no other has the lock, however slowly requests are answered. Of runs that see each
other the one whose name comes first waits a while for the others to go; a run that gives up its
place does not come back for it. The lock does not hold on stores that list late, as S3 did before
December 2020.

Whoever holds a lock renews it every few minutes, so that a lock whose owner cannot be looked at,
since it is on another machine, is known to be stale within the hour.
"""

from __future__ import annotations

import json
import os
import posixpath
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from iqa_ray.errors import IncompleteError
from iqa_ray.progress import log
from iqa_ray.storage.files import (
    Location,
    delete_file,
    find_info,
    list_files,
    one_line,
    read_whole,
    write_bytes,
)

LOCK_FILE = "rescore.lock"
# Clocks of machines may differ and stores may fail for minutes: many renewals must be missed.
STALE_AFTER_S = 3600.0
_RENEW_EVERY_S = 300.0
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
    """Who holds a lock.

    Attributes:
        token: of this lock alone.
        host, pid: its process; empty and 0 if the lock's file is unreadable.
        started: UTC time (ISO 8601) at which it took the lock.
        is_brief: whether it holds the lock for a moment only.
        process: what tells the process from later ones of the same number (`_identify`).
        renewed: UTC time (ISO 8601) of the last renewal; empty before the first.
    """

    token: str
    host: str
    pid: int
    started: str
    is_brief: bool = False
    process: str = ""
    renewed: str = ""

    def describe(self) -> str:
        if not self.host:
            return f"an unknown process since {self.started}"
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
    over, when its process on this machine is gone, or when it was not renewed for an hour.

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
    is_over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(file, own, is_over), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        is_over.set()
        renewing.join()
        _HELD.reset(held)
        _remove(file, own)


def _renew(file: Location, own: Owner, is_over: threading.Event) -> None:
    """Renew a lock until `is_over`, or until another run has taken it over."""
    while not is_over.wait(_RENEW_EVERY_S):
        try:
            found = _read(file)
            if found is None or found.token != own.token:
                log(f"the lock {file} is no longer held: another run may have taken it over")
                return
            write_bytes(file, _to_json(replace(own, renewed=_now())))
        except OSError as error:
            log(f"cannot renew the lock {file}: {one_line(error)}")


def _take_patiently(folder: Location, is_brief: bool) -> tuple[Location, Owner]:
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        host, pid = socket.gethostname(), os.getpid()
        own = Owner(uuid.uuid4().hex, host, pid, _now(), is_brief, _identify(pid))
        try:
            return _take(folder, own), own
        except _LockedError as error:
            may_wait = is_brief or error.holder is None or error.holder.is_brief
            if not may_wait or time.monotonic() >= deadline_s:
                raise
            time.sleep(_POLL_S)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def is_stale(owner: Owner) -> bool:
    """Whether the owner is certainly or very probably gone."""
    age = datetime.now(timezone.utc) - _parse_time(owner.renewed or owner.started)
    if age.total_seconds() > STALE_AFTER_S:
        return True
    return owner.host == socket.gethostname() and not _is_running(owner)


def _parse_time(text: str) -> datetime:
    time_ = datetime.fromisoformat(text)
    return time_ if time_.tzinfo else time_.replace(tzinfo=timezone.utc)


def _is_running(owner: Owner) -> bool:
    """Whether the owner, of this machine, still runs."""
    try:
        os.kill(owner.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    found = _identify(owner.pid)
    return found == owner.process or "" in (found, owner.process)


def _identify(pid: int) -> str:
    """The machine's boot and the time at which a process was started; empty if not known.

    A machine that was started anew has processes of the same numbers, and the first process of a
    container always has number 1.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        status = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, ValueError):  # no /proc, or processes are hidden
        return ""
    # after the program's name, which may hold spaces and brackets; see proc(5)
    return f"{boot} {status.rpartition(')')[2].split()[19]}"


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
    """The owner that a lock names; if it is unreadable, an unknown one since it was written."""
    try:
        owner = Owner(**json.loads(read_whole(file)))
        _parse_time(owner.renewed or owner.started)
        if not isinstance(owner.pid, int) or owner.pid <= 0:
            raise ValueError("no process has such a number")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        written = find_info(file).mtime
        since = written.isoformat() if written else _now()
        return Owner(since, "", 0, since, is_brief=True)  # it may be complete in a moment
    return owner


def _remove(file: Location, owner: Owner) -> None:
    found = _read(file)
    if found is not None and found.token == owner.token:
        delete_file(file)
