"""Locks that nobody holds any more, and those that somebody does; all on local files, without Ray.

Locks in object stores are tested in test_object_stores.py, nights that meet in test_rescoring.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from iqa_ray.errors import IncompleteError
from iqa_ray.storage import lock
from iqa_ray.storage.files import Location, locate
from iqa_ray.storage.lock import LOCK_FILE, hold_lock

HERE = "fixed-name"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Location:
    """A workspace's folder, on a machine of that name that waits for no lock."""
    monkeypatch.setattr(lock.socket, "gethostname", lambda: HERE)
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.0)
    return locate(tmp_path)


def write_lock(folder: Location, **changes) -> None:
    owner = {"token": "t", "host": HERE, "pid": os.getpid(), "started": ago(0)}
    Path(folder.path, LOCK_FILE).write_text(json.dumps({**owner, **changes}))


def ago(minutes: float) -> str:
    return (datetime.now(timezone.utc) - timedelta(minutes=minutes)).isoformat()


def is_taken_over(folder: Location) -> bool:
    """Whether a run gets the lock; afterwards it is free or, untouched, the other's."""
    file = Path(folder.path, LOCK_FILE)
    before = file.read_bytes()
    try:
        with hold_lock(folder):
            assert file.read_bytes() != before
    except IncompleteError:
        assert file.read_bytes() == before
        return False
    assert not file.exists()
    return True


def find_unused_pid() -> int:
    process = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True)
    return int(process.stdout)


def test_a_lock_of_a_process_that_has_gone_is_taken_over(folder, capsys):
    pid = find_unused_pid()
    write_lock(folder, pid=pid)
    assert is_taken_over(folder)
    assert f"took over the lock of process {pid} on {HERE} since" in capsys.readouterr().err


def test_a_lock_of_a_running_process_is_kept(folder):
    write_lock(folder)
    assert not is_taken_over(folder)


def test_processes_of_another_machine_are_not_looked_for_here(folder):
    write_lock(folder, host="elsewhere", pid=find_unused_pid())
    assert not is_taken_over(folder)
    write_lock(folder, host="elsewhere", pid=1, process="boot 1")
    assert not is_taken_over(folder)


@pytest.mark.parametrize(("minutes", "is_over"), [(58, False), (62, True)])
def test_a_lock_that_was_not_renewed_for_an_hour_is_taken_over(folder, minutes, is_over):
    write_lock(folder, host="elsewhere", started=ago(minutes))
    assert is_taken_over(folder) == is_over
    write_lock(folder, host="elsewhere", started=ago(10_000), renewed=ago(minutes))
    assert is_taken_over(folder) == is_over


def test_times_without_a_time_zone_are_utc(folder):
    write_lock(folder, host="elsewhere", started=ago(58).removesuffix("+00:00"))
    assert not is_taken_over(folder)
    write_lock(folder, host="elsewhere", renewed=ago(62).removesuffix("+00:00"))
    assert is_taken_over(folder)


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "\0", "{}",
        '{"token": "t", "host": "h", "pid": 1, "started": "yesterday"}',
        '{"token": "t", "host": "fixed-name", "pid": 1, "started": 5}',
        '{"token": "t", "host": "fixed-name", "pid": "x", "started": "2026-01-01"}',
        '{"token": "t", "host": "fixed-name", "pid": 0.5, "started": "2026-01-01"}',
        '{"token": "t", "host": "fixed-name", "pid": -1, "started": "2026-01-01"}',
    ],
)  # fmt: skip
def test_an_unreadable_lock_counts_since_its_file_was_written(folder, capsys, content):
    file = Path(folder.path, LOCK_FILE)
    file.write_text(content)
    assert not is_taken_over(folder)
    written = time.time() - 58 * 60
    os.utime(file, (written, written))
    assert not is_taken_over(folder)
    written = time.time() - 62 * 60
    os.utime(file, (written, written))
    assert is_taken_over(folder)
    assert "took over the lock of an unknown process since 20" in capsys.readouterr().err


def test_a_lock_that_is_being_written_is_waited_for(folder, monkeypatch):
    file = Path(folder.path, LOCK_FILE)
    file.touch()
    monkeypatch.setattr(lock, "_PATIENCE_S", 30.0)
    threading.Timer(0.5, file.unlink).start()
    with hold_lock(folder):
        assert json.loads(file.read_text())["host"] == HERE


def test_a_number_that_no_process_can_have(folder):
    write_lock(folder, pid=2**80)
    assert is_taken_over(folder)


def test_a_restarted_container_takes_over_its_own_old_lock(folder):
    """The host name is fixed, and the first process always has the same number."""
    with hold_lock(folder):
        own = json.loads(Path(folder.path, LOCK_FILE).read_text())
    boot, started = own["process"].split()
    write_lock(folder, **own)
    assert not is_taken_over(folder)
    write_lock(folder, **{**own, "process": f"{boot} {int(started) - 1}"})
    assert is_taken_over(folder)
    write_lock(folder, **{**own, "process": f"another-boot {started}"})
    assert is_taken_over(folder)


def test_a_process_has_the_same_identity_wherever_it_is_looked_at_from():
    code = (
        "import os; from iqa_ray.storage.lock import _identify; "
        "print(_identify(os.getppid())); print(_identify(os.getpid()))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    parent, child = process.stdout.splitlines()
    assert parent == lock._identify(os.getpid()) != ""
    assert child != parent


def test_without_proc_the_number_decides(folder, monkeypatch):
    write_lock(folder, process="boot 1")
    monkeypatch.setattr(lock, "_identify", lambda pid: "")
    assert not is_taken_over(folder)
    write_lock(folder, pid=find_unused_pid(), process="boot 1")
    assert is_taken_over(folder)


def test_unknown_processes_have_no_identity(monkeypatch):
    assert lock._identify(find_unused_pid()) == ""
    monkeypatch.setattr(lock, "Path", lambda _: Path("nowhere"))
    assert lock._identify(os.getpid()) == ""


def test_a_lock_that_is_held_is_renewed(folder, monkeypatch):
    monkeypatch.setattr(lock, "_RENEW_EVERY_S", 0.05)
    file = Path(folder.path, LOCK_FILE)
    with hold_lock(folder):
        first = last = json.loads(file.read_text())
        end_s = time.monotonic() + 30
        while last["renewed"] == first["renewed"] and time.monotonic() < end_s:
            time.sleep(0.1)
            last = json.loads(file.read_text())
    assert last.pop("renewed") > first.pop("renewed")
    assert last == first
    assert not file.exists()
    time.sleep(0.3)
    assert not file.exists()  # nobody renews it any more


def test_a_lock_is_renewed_often_enough():
    assert lock.STALE_AFTER_S >= 10 * lock._RENEW_EVERY_S


def test_a_lock_that_was_taken_over_is_neither_renewed_nor_removed(folder, monkeypatch, capsys):
    monkeypatch.setattr(lock, "_RENEW_EVERY_S", 0.05)
    with hold_lock(folder):
        write_lock(folder, token="of another", renewed=ago(1))
        others = Path(folder.path, LOCK_FILE).read_bytes()
        time.sleep(0.5)
        assert Path(folder.path, LOCK_FILE).read_bytes() == others
    assert Path(folder.path, LOCK_FILE).read_bytes() == others
    assert capsys.readouterr().err.count("is no longer held") == 1


def test_a_renewal_that_fails_is_tried_again(folder, monkeypatch, capsys):
    monkeypatch.setattr(lock, "_RENEW_EVERY_S", 0.05)
    write, failures = lock.write_bytes, []

    def fail_once(file, data):
        if not failures:
            failures.append(file)
            raise OSError("no space left")
        write(file, data)

    monkeypatch.setattr(lock, "write_bytes", fail_once)
    file = Path(folder.path, LOCK_FILE)
    with hold_lock(folder):
        before, end_s = file.stat().st_ino, time.monotonic() + 30
        while file.stat().st_ino == before and time.monotonic() < end_s:
            time.sleep(0.02)
        assert file.stat().st_ino != before
    assert f"cannot renew the lock {file}: no space left" in capsys.readouterr().err


def test_every_user_may_read_who_holds_a_lock_and_only_its_owner_may_write_it(folder):
    umask = os.umask(0)
    try:
        with hold_lock(folder):
            assert Path(folder.path, LOCK_FILE).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(umask)
