"""One run at a time on a workspace: lock files with their owner and when it began.

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
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from iqa_ray.errors import IncompleteError
from iqa_ray.files import Location, delete_file, list_files, read_bytes, write_bytes
from iqa_ray.progress import log
from iqa_ray.store import Workspace

LOCK_FILE = "rescore.lock"
STALE_AFTER_S = 24 * 3600.0
# how long the first of several runs that came together waits for the others to go, and looks again
_PATIENCE_S = 5.0
_LOOK_AGAIN_S = 0.5


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
def hold_lock(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace's lock.

    A lock is stale, and taken over, when its process on this machine is gone, or when it is older
    than a day.

    Raises:
        IncompleteError: another run holds it.
    """
    own = Owner(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    file = workspace.location / LOCK_FILE
    if not file.is_local:
        file = file / f"{own.token}.json"
    _take(workspace, file, own)
    try:
        yield
    finally:
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


def _take(workspace: Workspace, file: Location, own: Owner) -> None:
    """Write the lock `file`.

    Raises:
        IncompleteError: the lock is another's.
    """
    if file.is_local:
        _check_free(workspace, [file])
        if not _create(file, own):
            _check_free(workspace, [file])
            raise IncompleteError("another run was quicker")
        return
    folder = workspace.location / LOCK_FILE
    _check_free(workspace, list_files(folder))
    write_bytes(file, _to_json(own))
    try:
        deadline_s = time.monotonic() + _PATIENCE_S
        while others := [other for other in list_files(folder) if other != file]:
            if others[0].path < file.path or time.monotonic() > deadline_s:
                _check_free(workspace, others)
            time.sleep(_LOOK_AGAIN_S)
    except BaseException:
        delete_file(file)
        raise


def _check_free(workspace: Workspace, files: Sequence[Location]) -> None:
    """Remove stale locks.

    Raises:
        IncompleteError: one of `files` is there and not stale.
    """
    for file in files:
        holder = _read(file)
        if holder is None:
            continue
        if not is_stale(holder):
            raise IncompleteError(
                f"{workspace} is being written by {holder.describe()}: wait for it, or remove "
                f"{file} if it is gone"
            )
        log(f"took over the lock of {holder.describe()}, which is stale")
        _remove(file, holder)


def _create(file: Location, own: Owner) -> bool:
    """Write a local lock; False if there is one."""
    try:
        handle = os.open(file.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as stream:
        stream.write(_to_json(own))
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
