from __future__ import annotations

import builtins
import json
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from math import inf
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import compute as pc

from iqa_ray.cli import main
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.metrics.spec import get_spec
from iqa_ray.rescoring.settings import CompactJob
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import read_specs, record_specs
from iqa_ray.storage import lock
from iqa_ray.storage.files import (
    delete_file,
    delete_folder,
    is_file,
    list_files,
    locate,
    one_line,
    read_bytes,
    remove_unfinished,
    write_bytes,
)
from iqa_ray.storage.lock import hold_lock
from iqa_ray.storage.parts import find_missing, make_fingerprints
from iqa_ray.storage.workspace import Workspace, list_parts_folders


def images_table(sizes: dict[str, int]) -> pa.Table:
    return pa.table(
        {
            "image_id": list(sizes),
            "size_bytes": pa.array(sizes.values(), pa.int64()),
            "mtime_ns": pa.array([7] * len(sizes), pa.int64()),
        }
    )


def rows(ids) -> pa.Table:
    return pa.table({"image_id": list(ids), "score": [float(len(i)) for i in ids]})


@pytest.fixture(params=["local", "memory"])
def workspace(request, tmp_path):
    if request.param == "local":
        return Workspace(str(tmp_path / "ws"))
    return Workspace(f"memory://{tmp_path.name}/ws")


def test_tables_json_and_records(workspace):
    table = pa.table({"image_id": ["a"], "n": [1]})
    workspace.write_table("sub/x.parquet", table, {"root": "r", "n": [1]})
    assert workspace.read_table("sub/x.parquet", "score").equals(table)
    assert workspace.read_record("sub/x.parquet") == {"root": "r", "n": [1]}
    assert workspace.read_record("none.parquet") is None
    workspace.write_json("c.json", {"ü": 1.5})
    assert workspace.read_json("c.json", "cutoffs") == {"ü": 1.5}
    assert workspace.has("c.json")
    assert not workspace.has("d.json")


def test_missing_and_broken_tables_name_the_remedy(workspace):
    with pytest.raises(UsageError, match=r"has no images\.parquet: run `iqa-ray score"):
        workspace.read_table("images.parquet", "score IMAGES")
    with pytest.raises(UsageError, match=r"has no cutoffs\.json: run `iqa-ray cutoffs"):
        workspace.read_json("cutoffs.json", "cutoffs")
    workspace.write_text("cutoffs.json", "{broken")
    with pytest.raises(UsageError, match="is not JSON"):
        workspace.read_json("cutoffs.json", "cutoffs")
    workspace.write_text("images.parquet", "text")
    with pytest.raises(UsageError, match="cannot read"):
        workspace.read_table("images.parquet", "score")


@pytest.mark.parametrize("text", ["", "{broken", "[1]", "\xff"])
def test_json_that_is_malformed_is_refused_with_the_remedy(workspace, text):
    write_bytes(workspace.location / "cutoffs.json", text.encode("latin-1"))
    with pytest.raises(
        UsageError, match=r"cutoffs\.json .*JSON.*; remove it and run `iqa-ray cutoffs"
    ):
        workspace.read_json("cutoffs.json", "cutoffs")


READERS = {
    "table": lambda workspace: workspace.read_table("x.parquet", "score"),
    "record": lambda workspace: workspace.read_record("x.parquet"),
    "rows": lambda workspace: workspace.parts("").read(["image_id"]),
    "fingerprints": lambda workspace: workspace.parts("").done(),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_is_cut_off_is_refused_with_the_remedy(tmp_path, reader):
    """At whatever length; a file without any byte is what a node that loses power may leave."""
    workspace = Workspace(str(tmp_path))
    workspace.parts("").write(rows("abc"), np.arange(3, dtype=np.uint64), "s")
    (part,) = tmp_path.iterdir()
    data = part.read_bytes()
    part.rename(tmp_path / "x.parquet")
    READERS[reader](workspace)
    for length in range(0, len(data), 7):
        (tmp_path / "x.parquet").write_bytes(data[:length])
        with pytest.raises(
            UsageError, match=r"cannot read .*/x\.parquet: .*; remove it and"
        ) as error:
            READERS[reader](workspace)
        assert "\n" not in str(error.value)


def test_json_never_holds_nan(workspace):
    with pytest.raises(ValueError, match="not JSON compliant"):
        workspace.write_json("c.json", {"x": float("nan")})


def test_fingerprints_cover_id_size_time_and_settings():
    images = images_table({"a": 1, "b": 1, "c": 2})
    base = make_fingerprints(images, "s")
    assert len(set(base.tolist())) == 3
    assert (make_fingerprints(images, "s") == base).all()
    assert not (make_fingerprints(images, "t") == base).any()
    grown = make_fingerprints(images_table({"a": 1, "b": 9, "c": 2}), "s")
    assert (grown == base).tolist() == [True, False, True]


def test_parts_remember_what_is_done(workspace):
    parts = workspace.parts("scores/metric=m/version=1")
    assert not parts.exist()
    assert parts.read() is None
    assert len(parts.done()) == 0
    images = images_table({"a": 1, "b": 1, "c": 2})
    prints = make_fingerprints(images, "s")
    parts.write(rows("ab"), prints[:2], "s")
    assert find_missing(parts.done(), prints).tolist() == [False, False, True]
    parts.write(rows("c"), prints[2:], "s")
    parts.write(rows("c"), prints[2:], "s")  # the same shard again
    assert not find_missing(parts.done(), prints).any()
    assert sorted(parts.read()["image_id"].to_pylist()) == ["a", "b", "c"]
    found = parts.read(["image_id"], lambda rows: pc.equal(rows.column("image_id"), "b"))
    assert found.to_pydict() == {"image_id": ["b"]}
    assert len(list_files(parts.folder, ".parquet")) == 2


def test_overlapping_parts_are_read_once(workspace):
    parts = workspace.parts("t")
    prints = make_fingerprints(images_table({"a": 1, "b": 1, "c": 2}), "s")
    parts.write(rows("ab"), prints[:2], "s")
    parts.write(rows("bc"), prints[1:], "s")
    assert sorted(parts.read()["image_id"].to_pylist()) == ["a", "b", "c"]


def test_stale_rows_are_dropped_and_unlisted_ones_kept(workspace):
    parts = workspace.parts("t")
    before = images_table({"a": 1, "b": 1, "gone": 5})
    parts.write(rows(["a", "b", "gone"]), make_fingerprints(before, "s"), "s")
    after = images_table({"a": 1, "b": 2})
    prints = make_fingerprints(after, "s")
    assert parts.drop_stale(pa.array(["a", "b"]), prints) == 1
    assert parts.read()["image_id"].to_pylist() == ["a", "gone"]
    assert find_missing(parts.done(), prints).tolist() == [False, True]
    assert parts.drop_stale(pa.array(["a", "b"]), prints) == 0
    assert parts.drop_stale(pa.array(["a", "gone"]), np.empty(0, np.uint64)) == 2
    assert not parts.exist()


def test_rows_that_are_there_twice_are_dropped(workspace):
    parts = workspace.parts("t")
    current = make_fingerprints(images_table({"a": 1, "b": 1, "c": 2}), "s")
    outdated = make_fingerprints(images_table({"a": 9, "b": 9, "c": 9}), "s")
    parts.write(rows("ab"), current[:2], "s")
    assert parts.drop_repeated(current) == 0
    parts.write(rows("bc"), np.array([outdated[1], outdated[2]]), "s")
    parts.write(rows("c"), current[2:], "s")
    parts.write(rows("ac"), current[[0, 2]], "s")
    assert parts.drop_repeated(current) == 4
    assert sorted(parts.done()) == sorted(current)  # of each image the row of its listing
    assert sorted(parts.read()["image_id"].to_pylist()) == ["a", "b", "c"]


def test_readers_find_parts_that_are_merged_while_they_list(tmp_path, monkeypatch):
    """A listing that began before the merged part was written and ended after the others went."""
    from iqa_ray.storage import parts as module

    parts = Workspace(str(tmp_path)).parts("t")
    parts.write(rows("ab"), np.arange(2, dtype=np.uint64), "s")
    real, num_calls = module.list_files, []

    def list_late(*given):
        num_calls.append(given)
        return [] if len(num_calls) == 1 else real(*given)

    monkeypatch.setattr(module, "list_files", list_late)
    assert parts.read().num_rows == 2


def test_readers_see_no_gap(tmp_path):
    """Tables are read over and over while their parts are split and merged."""
    parts = Workspace(str(tmp_path)).parts("t")
    table = rows([f"{number:03}" for number in range(30)])
    prints = np.arange(30, dtype=np.uint64)
    parts.write(table, prints, "s")
    stop = threading.Event()

    def read():
        sizes = []
        while not stop.is_set():
            sizes.append(Workspace(str(tmp_path)).parts("t").read(["image_id"]).num_rows)
        return sizes

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            for _ in range(15):
                for row in range(30):
                    parts.write(table.slice(row, 1), prints[row : row + 1], "s")
                assert parts.compact(100_000)[1] == 1
        finally:
            stop.set()
        sizes = reading.result()  # raises what the reader met
    assert len(sizes) > 3
    assert set(sizes) == {30}


def test_large_parts_stay(tmp_path):
    parts = Workspace(str(tmp_path)).parts("table")
    for start in range(0, 50, 10):
        ids = [f"{number:03}" for number in range(start, start + 10)]
        prints = np.arange(start, start + 10, dtype=np.uint64)
        parts.write(pa.table({"image_id": ids}), prints, "{}")
    assert parts.compact(25) == (5, 3)
    assert parts.read().num_rows == 50
    assert sorted(parts.done()) == list(range(50))
    assert parts.compact(5) == (3, 3)


@pytest.fixture
def held(tmp_path):
    """A workspace with a row that is out of date, and how to have another run hold it."""
    workspace = Workspace(str(tmp_path))
    workspace.parts("t").write(rows("ab"), np.arange(2, dtype=np.uint64), "s")
    begin, end = threading.Event(), threading.Event()

    def hold():
        with hold_lock(workspace.location):
            begin.set()
            end.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    begin.wait(60)
    yield workspace.parts("t"), end
    end.set()
    thread.join()


def test_a_folder_that_no_job_has_written_to_is_no_workspace(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "ws" / "scores").mkdir(parents=True)
    (tmp_path / "ws" / "configs").mkdir()
    names = ["", "ws", "ws/scores", "file", "missing", "file/below"]
    for name in names:
        with pytest.raises(UsageError, match="is not a workspace: it has no configs/"):
            Workspace(str(tmp_path / name)).check_exists()
    workspace = Workspace(str(tmp_path / "ws"))
    workspace.record_config("compact", CompactJob(ws="ws"))
    workspace.check_exists()
    with pytest.raises(UsageError):
        Workspace(str(tmp_path)).check_exists()


def test_compacting_needs_a_workspace(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for name in ("TYPO", "photos"):
        assert main(["compact", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"iqa-ray: error: {tmp_path / name} is not a workspace")
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["photos"]


def test_a_file_that_gets_its_name_beside_the_cleaning_is_no_error(tmp_path, monkeypatch):
    day_ago = time.time() - 25 * 3600
    for name in (".a.tmp", ".b.tmp", ".c.tmp", ".d.tmp"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (day_ago, day_ago))
    real = Path.glob

    def finish_some(folder, pattern):
        found = sorted(real(folder, pattern))
        (tmp_path / ".a.tmp").rename(tmp_path / "a")
        (tmp_path / ".c.tmp").unlink()
        return found

    monkeypatch.setattr(Path, "glob", finish_some)
    (tmp_path / ".d.tmp").touch()  # of a writer at work
    remove_unfinished(locate(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".d.tmp", "a"]


def test_rows_are_removed_under_the_lock(held, monkeypatch):
    parts, end = held
    ids, current = pa.array(["a", "b"]), np.arange(2, dtype=np.uint64)
    assert parts.drop_stale(ids, current) == 0  # nothing to do, no lock
    with monkeypatch.context() as context:
        context.setattr(lock, "_PATIENCE_S", 0.3)
        with pytest.raises(IncompleteError, match="is being written by process"):
            parts.drop_stale(ids, current[1:])
        assert parts.read().num_rows == 2
    threading.Timer(0.5, end.set).start()
    assert parts.drop_stale(ids, current[1:]) == 1  # it waits for its turn
    assert parts.read()["image_id"].to_pylist() == ["b"]


def test_a_run_that_holds_the_lock_removes_rows_at_once(tmp_path):
    workspace = Workspace(str(tmp_path))
    parts = workspace.parts("t")
    parts.write(rows("ab"), np.arange(2, dtype=np.uint64), "s")
    with hold_lock(workspace.location):
        assert parts.drop_stale(pa.array(["a"]), np.empty(0, np.uint64)) == 1
        assert (tmp_path / lock.LOCK_FILE).exists()
        with pytest.raises(IncompleteError), hold_lock(workspace.location):
            pass
    assert not (tmp_path / lock.LOCK_FILE).exists()


def test_a_whole_run_waits_for_one_that_holds_the_lock_for_a_moment(tmp_path):
    workspace, begin, end = Workspace(str(tmp_path)), threading.Event(), threading.Event()

    def hold():
        with lock.hold_lock_briefly(workspace.location):
            begin.set()
            time.sleep(0.5)
            end.set()

    thread = threading.Thread(target=hold)
    thread.start()
    assert begin.wait(60)
    with hold_lock(workspace.location):
        assert end.is_set()
    thread.join()


def test_one_of_many_gets_the_lock(tmp_path):
    workspace = Workspace(str(tmp_path)).location
    barrier, held, refused = threading.Barrier(8), [], []

    def run():
        barrier.wait()
        try:
            with hold_lock(workspace):
                held.append(1)
                end.wait(5)
        except IncompleteError:
            refused.append(1)

    end = threading.Event()
    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(0.5)
    assert (len(held), len(refused)) == (1, 7)
    end.set()
    for thread in threads:
        thread.join()
    assert not (tmp_path / lock.LOCK_FILE).exists()


def test_a_full_disk_leaves_no_lock(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(lock, "_to_json", fail)
        with pytest.raises(OSError, match="No space"), hold_lock(locate(tmp_path)):
            pass
    assert os.listdir(tmp_path) == []


def test_two_runs_that_record_their_metrics_lose_none(tmp_path):
    workspace, barrier = Workspace(str(tmp_path)), threading.Barrier(4)
    specs = [
        replace(get_spec("lapm"), name=f"m{number}", function=None, is_default=False)
        for number in range(4)
    ]

    def record(spec):
        barrier.wait()
        record_specs(workspace, [spec])

    threads = [threading.Thread(target=record, args=(spec,)) for spec in specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_specs(workspace) == {spec.name: spec for spec in specs}


def test_metrics_that_the_version_before_recorded_are_read_and_not_written_again(
    tmp_path, monkeypatch
):
    entry = {
        "name": "cnniqa", "higher_is_better": False, "range": [0.0, None], "version": "1+ab",
        "min_side": 32, "backend": "pyiqa", "summary": "a network", "source": "pyiqa",
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps({"cnniqa": entry}))
    workspace = Workspace(str(tmp_path))
    spec = read_specs(workspace)["cnniqa"]
    assert (spec.name, spec.range, spec.version) == ("cnniqa", (0.0, inf), "1+ab")
    assert (spec.backend, spec.higher_is_better, spec.min_side) == ("pyiqa", False, 32)
    with monkeypatch.context() as context:
        context.setattr(Workspace, "write_json", lambda *_: pytest.fail("written again"))
        record_specs(workspace, [replace(spec, supports_max_side=True)])
    record_specs(workspace, [replace(spec, version="2+cd")])
    assert json.loads((tmp_path / "metrics.json").read_text())["cnniqa"] == {
        **entry, "version": "2+cd",
    }  # fmt: skip


def test_a_file_shows_under_its_name_when_it_is_on_the_disk(tmp_path, monkeypatch):
    """Or a node that loses power after the rename leaves an empty file under the name."""
    target, synced = tmp_path / "x.bin", []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor):
        assert not target.exists()
        synced.append((os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        real_sync(descriptor)

    def replace_synced(source, destination):
        assert synced == [(os.stat(source).st_ino, 3)]
        real_replace(source, destination)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace_synced)
    write_bytes(locate(target), b"new")
    assert len(synced) == 1
    assert target.read_bytes() == b"new"


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    target = locate(tmp_path / "x.bin")
    write_bytes(target, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left") as failure:
        write_bytes(target, b"new")
    assert failure.value.filename == str(target)
    assert read_bytes(target) == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A node that loses power leaves the old file or the new one, not an empty one."""
    target, calls = tmp_path / "sub" / "x.bin", []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle):
        calls.append(("fsync", os.fstat(handle).st_size))
        real_fsync(handle)

    def replace(source, name):
        calls.append(("replace", name))
        real_replace(source, name)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_bytes(locate(target), b"new")
    assert calls == [("fsync", 3), ("replace", str(target))]
    assert target.read_bytes() == b"new"


def test_a_file_that_is_gone_can_be_deleted(tmp_path):
    file = locate(tmp_path / "x.bin")
    write_bytes(file, b"x")
    assert is_file(file)
    for _ in range(2):
        delete_file(file)
        assert not is_file(file)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, kind):
    def fail(*_):
        raise kind

    for module, name in ((os, "fsync"), (builtins, "open")):  # with half a file, and without any
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(kind):
                write_bytes(locate(tmp_path / "x.bin"), b"new")
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    def fail(name, _):
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(builtins, "open", fail)
    with pytest.raises(PermissionError, match="/x.bin'$"):
        write_bytes(locate(tmp_path / "x.bin"), b"new")


def test_unfinished_writes_are_not_listed(tmp_path):
    (tmp_path / ".part-1.parquet.abc.tmp").touch()
    (tmp_path / "part-2.parquet").touch()
    assert [f.path for f in list_files(locate(tmp_path), ".parquet")] == [
        str(tmp_path / "part-2.parquet")
    ]


def test_a_folder_goes_with_all_that_is_in_it(tmp_path):
    folder = locate(tmp_path)
    write_bytes(folder / "a/b/c.bin", b"x")
    write_bytes(folder / "ab.bin", b"x")
    delete_folder(folder / "a")
    delete_folder(folder / "a")
    assert os.listdir(tmp_path) == ["ab.bin"]


def test_unwritable_workspace(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--workspace .*cannot write there"):
        Workspace(str(tmp_path / "file" / "ws")).prepare()
    if os.geteuid() != 0:
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        with pytest.raises(UsageError, match="cannot write there"):
            Workspace(str(tmp_path / "ws")).prepare()
    Workspace(str(tmp_path / "new" / "ws")).prepare()
    assert os.listdir(tmp_path / "new" / "ws") == []


def test_config_record(tmp_path):
    import yaml

    from iqa_ray.scoring.jobs import ScoreJob

    workspace = Workspace(str(tmp_path))
    workspace.record_config("score", ScoreJob(images="x", workspace=str(tmp_path)))
    (file,) = (tmp_path / "configs").iterdir()
    assert file.name.startswith("score-2")
    assert yaml.safe_load(file.read_text())["metrics"] == [
        "lapv",
        "lapm",
        "wavs",
        "brisque",
        "niqe",
    ]


def test_records_of_runs_are_named_by_utc_and_read_the_last_one_first(workspace, monkeypatch):
    job = ScoreJob(images="x", workspace="ws")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        before = datetime.now(timezone.utc)
        workspace.record_config("score", job)
        workspace.record_config("score", job.model_copy(update={"images": "ü"}))
        workspace.record_config("study", job)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [entry["images"] for entry in workspace.read_configs("score")] == ["ü", "x"]
    first = list_files(workspace.location / "configs")[0].path.rpartition("score-")[2]
    written = datetime.strptime(first, "%Y%m%dT%H%M%S.%fZ.yaml").replace(tzinfo=timezone.utc)
    assert before <= written <= before + timedelta(minutes=1)
    with pytest.raises(UsageError, match="has no record of `iqa-ray select`: run it once first"):
        next(workspace.read_configs("select"))


def test_frames_are_written_without_their_index(workspace):
    frame = pd.DataFrame({"n": [1, 2]}, index=[7, 8])
    schema = pa.schema([("n", pa.int64())])
    workspace.write_frame("x.parquet", frame, schema, {"voters": ["lapm"]})
    assert workspace.read_table("x.parquet", "select").to_pydict() == {"n": [1, 2]}
    assert workspace.read_record("x.parquet") == {"voters": ["lapm"]}


def test_the_columns_of_a_frame_have_the_types_of_the_schema_whatever_is_in_them(workspace):
    lists = pa.list_(pa.int64())
    schema = pa.schema([("label", pa.string()), ("epoch", pa.int64()), ("rows", lists)])
    frame = pd.DataFrame({"label": [None, None], "epoch": [1, np.nan], "rows": np.nan})
    workspace.write_frame("x.parquet", frame, schema)
    table = workspace.read_table("x.parquet", "select")
    assert table.schema.remove_metadata().equals(schema)
    assert table.to_pydict() == {
        "label": [None, None], "epoch": [1, None], "rows": [None, None],
    }  # fmt: skip
    for other in (frame[["epoch", "label", "rows"]], frame[["label"]], frame.assign(more=1)):
        with pytest.raises(AssertionError, match=r"in x\.parquet"):
            workspace.write_frame("x.parquet", other, schema)


def test_a_table_without_a_column_that_it_should_have_is_refused(workspace):
    workspace.write_table("x.parquet", pa.table({"n": [1]}))
    schema = pa.schema([("n", pa.int64()), ("m", pa.int64())])
    problem = r"x\.parquet has no column 'm': remove it and run `iqa-ray vary … --workspace "
    with pytest.raises(UsageError, match=problem):
        workspace.read_table("x.parquet", "vary", schema)
    assert workspace.read_table("x.parquet", "vary", schema.remove(1)).num_rows == 1


def test_the_folders_of_parts_are_found_at_any_depth_and_once(workspace):
    for folder in ("scores/metric=b/version=1", "scores/metric=a/version=1", "predictions/model=x"):
        for start in range(2):
            prints = np.arange(start, start + 1, dtype=np.uint64)
            workspace.parts(folder).write(rows("a"), prints, "s")
    workspace.write_table("images.parquet", rows("a"))
    workspace.write_table("study/part.parquet", rows("a"))
    workspace.write_text("notes/part-1.txt", "a")
    assert list_parts_folders(workspace) == [
        "predictions/model=x", "scores/metric=a/version=1", "scores/metric=b/version=1",
    ]  # fmt: skip


def test_one_line():
    assert one_line("a\n  b\x07\tc") == "a b? c"
    assert len(one_line("x" * 1000)) == 200
    assert one_line(KeyError()) == "KeyError"
    assert json.dumps(one_line("é"))


def test_files_of_a_uri_keep_its_options(tmp_path):
    folder = locate(f"memory://{tmp_path.name}?region=eu")
    write_bytes(folder / "a.parquet", b"x")
    (file,) = list_files(folder, ".parquet")
    assert file.options == "region=eu"
    assert read_bytes(file) == b"x"


def test_locations():
    assert str(locate("s3://bucket/key/")) == "s3://bucket/key"
    inside = locate("s3://bucket/key?region=eu") / "x.parquet"
    assert str(inside) == "s3://bucket/key/x.parquet?region=eu"
    assert locate("file:///tmp/a%20b").path == "/tmp/a b"
    assert locate("relative").path == os.path.abspath("relative")


def test_json_is_written_for_people(tmp_path):
    Workspace(str(tmp_path)).write_json("c.json", {"ü": [1.5]})
    assert (tmp_path / "c.json").read_text("utf-8") == '{\n  "ü": [\n    1.5\n  ]\n}\n'
