"""What nights leave behind: rows of runs, images that are gone, and the listing before."""

from __future__ import annotations

from datetime import datetime, timezone

import pyarrow as pa
import pytest

from iqa_ray.errors import UsageError
from iqa_ray.images.listing import IMAGES_SCHEMA
from iqa_ray.rescoring.history import (
    DELETED_FILE,
    DELETED_SCHEMA,
    LISTING_FILE,
    RUNS_FILE,
    RUNS_SCHEMA,
    add_hashes,
    append_deleted,
    append_run,
    read_listing,
)
from iqa_ray.storage.workspace import Workspace

FIRST, SECOND = (datetime(2026, 11, day, 2, tzinfo=timezone.utc) for day in (24, 25))


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(str(tmp_path))


def images(**times: int) -> pa.Table:
    """Images by their ids, with the time at which each was last modified."""
    rows = [
        {"image_id": name, "path": f"/photos/{name}", "size_bytes": 1, "mtime_ns": time}
        for name, time in times.items()
    ]
    return pa.Table.from_pylist(rows, schema=IMAGES_SCHEMA)


def test_the_last_night_s_listing_has_content_hashes(workspace):
    assert read_listing(workspace) is None
    workspace.write_table(LISTING_FILE, images(a=1, b=2))  # as older versions did
    assert read_listing(workspace).column("content_hash").to_pylist() == [None, None]
    listing = add_hashes(images(a=1, b=2), pa.array(["f0", None]))
    workspace.write_table(LISTING_FILE, listing)
    assert read_listing(workspace).equals(listing)


def test_every_night_adds_a_row(workspace):
    append_run(workspace, {"started": FIRST, "status": "ok", "num_new": 3, "alerts": ["much"]})
    append_run(workspace, {"started": SECOND, "status": "alert", "other": 1})
    table = workspace.read_table(RUNS_FILE, "rescore")
    assert table.schema.equals(RUNS_SCHEMA)
    first, second = table.to_pylist()
    assert (first["started"], first["status"], first["num_new"]) == (FIRST, "ok", 3)
    assert first["alerts"] == ["much"]
    assert (second["started"], second["status"], second["num_new"]) == (SECOND, "alert", None)


def test_a_column_of_another_program_stays_in_the_history(workspace):
    append_run(workspace, {"started": FIRST, "status": "ok"})
    before = workspace.read_table(RUNS_FILE, "rescore")
    place = RUNS_SCHEMA.get_field_index("status")
    edited = before.add_column(0, "note", pa.array(["mine"])).set_column(
        place + 1, "status", before.column("status").cast(pa.large_string())
    )
    workspace.write_table(RUNS_FILE, edited)
    append_run(workspace, {"started": SECOND, "status": "alert"})
    table = workspace.read_table(RUNS_FILE, "rescore")
    assert table.schema.equals(RUNS_SCHEMA.append(pa.field("note", pa.string())))
    assert table.column("note").to_pylist() == ["mine", None]
    assert table.column("status").to_pylist() == ["ok", "alert"]


@pytest.mark.parametrize(
    ("name", "column", "use"),
    [
        (RUNS_FILE, "started", lambda workspace: append_run(workspace, {"started": FIRST})),
        (DELETED_FILE, "image_id", lambda workspace: append_deleted(workspace, images(a=1), FIRST)),
        (LISTING_FILE, "image_id", read_listing),
    ],
)
def test_other_tables_under_the_names_of_the_history_are_refused(workspace, name, column, use):
    workspace.write_table(name, pa.table({"n": [1]}))
    with pytest.raises(UsageError, match=f"{name} has no column '{column}': remove it and run "):
        use(workspace)


def test_a_deleted_file_is_noted_once(workspace):
    append_deleted(workspace, images(), FIRST)
    assert not workspace.has(DELETED_FILE)
    append_deleted(workspace, images(a=1, b=2), FIRST)
    # a again, as where a night was cut short; b came back, was modified, and is gone again
    append_deleted(workspace, images(a=1, b=3, c=1), SECOND)
    append_deleted(workspace, images(a=1), SECOND)
    table = workspace.read_table(DELETED_FILE, "rescore")
    assert table.schema.equals(DELETED_SCHEMA)
    found = [(row["image_id"], row["mtime_ns"], row["deleted"]) for row in table.to_pylist()]
    assert found == [("a", 1, FIRST), ("b", 2, FIRST), ("b", 3, SECOND), ("c", 1, SECOND)]
