"""One run at a time on a workspace: a lock file with its owner and when it began."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from iqa_ray.errors import IncompleteError
from iqa_ray.files import Location, read_bytes, write_bytes
from iqa_ray.progress import log
from iqa_ray.store import Workspace

LOCK_FILE = "rescore.lock"
STALE_AFTER_S = 24 * 3600.0
# an object store knows no exclusive creation: who still stands there after a while has it
_SETTLE_S = 2.0


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
    file = workspace.location / LOCK_FILE
    own = Owner(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    holder = _read(file)
    if holder is not None:
        if not is_stale(holder):
            raise IncompleteError(_refuse(workspace, holder))
        log(f"took over the lock of {holder.describe()}, which is stale")
        _remove(file, holder)
    if not _take(file, own):
        now = _read(file)
        raise IncompleteError(_refuse(workspace, now) if now else "another run was quicker")
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


def _refuse(workspace: Workspace, holder: Owner) -> str:
    return (
        f"{workspace} is being written by {holder.describe()}: wait for it, or remove "
        f"{workspace.location / LOCK_FILE} if it is gone"
    )


def _take(file: Location, own: Owner) -> bool:
    """Write the lock; whether it is ours."""
    content = json.dumps(asdict(own)).encode()
    if file.is_local:
        try:
            handle = os.open(file.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
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
        return Owner("", "unknown", 0, datetime.now(timezone.utc).isoformat(timespec="seconds"))


def _remove(file: Location, owner: Owner) -> None:
    if _read(file) == owner:
        file.filesystem.delete_file(file.path)
