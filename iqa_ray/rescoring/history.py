"""What nights leave behind: one dated row each, the images that are gone, the last listing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from pyarrow import compute as pc

from iqa_ray.images.listing import IMAGES_SCHEMA
from iqa_ray.storage.workspace import Workspace

LISTING_FILE = "history/listing.parquet"
RUNS_FILE = "history/runs.parquet"
DELETED_FILE = "history/deleted.parquet"

_WHEN = pa.timestamp("ms", "UTC")  # Parquet keeps no whole seconds
RUNS_SCHEMA = pa.schema(
    [
        ("started", _WHEN),
        ("status", pa.string()),  # ok, alert, or why it is incomplete
        ("seconds", pa.float64()),
        ("images_per_s", pa.float64()),
        *(
            (f"num_{name}", pa.int64())
            for name in (
                "images", "new", "changed", "moved", "deleted", "retouched", "unchanged",
                "scored", "reused", "failed", "kept", "rejected",
            )
        ),
        ("rejected_share", pa.float64()),
        ("failures", pa.string()),  # JSON: by metric and status
        ("cutoffs", pa.string()),  # JSON: by metric
        ("drift", pa.string()),  # JSON: by metric
        ("alerts", pa.list_(pa.string())),
    ]
)  # fmt: skip
DELETED_SCHEMA = IMAGES_SCHEMA.append(pa.field("deleted", _WHEN))


def read_listing(workspace: Workspace) -> pa.Table | None:
    """The listing of the last night that was finished, with content hashes; None before it.

    A night of an older version kept no hashes: all are null then.
    """
    if not workspace.has(LISTING_FILE):
        return None
    table = workspace.read_table(LISTING_FILE, "rescore IMAGES", IMAGES_SCHEMA)
    if "content_hash" not in table.column_names:
        table = add_hashes(table, pa.nulls(table.num_rows, pa.string()))
    return table


def add_hashes(listing: pa.Table, hashes: pa.ChunkedArray | pa.Array) -> pa.Table:
    """A listing with the content hash of each image; null where it is not known."""
    return listing.append_column("content_hash", hashes)


def append_run(workspace: Workspace, row: Mapping[str, Any]) -> None:
    """Add a night's row to `history/runs.parquet`; what `row` lacks is null."""
    cells = {name: [row.get(name)] for name in RUNS_SCHEMA.names}
    _append(workspace, RUNS_FILE, pa.table(cells, schema=RUNS_SCHEMA))


def append_deleted(workspace: Workspace, deleted: pa.Table, when: Any) -> None:
    """Add images that are gone (IMAGES_SCHEMA) to `history/deleted.parquet`.

    A file that stands there already, by id and time, is not added again.
    """
    known: set[tuple[Any, ...]] = set()
    if workspace.has(DELETED_FILE):
        before = workspace.read_table(DELETED_FILE, "rescore IMAGES", DELETED_SCHEMA)
        known = set(_list_files(before))
    is_known = [file in known for file in _list_files(deleted)]
    deleted = deleted.filter(pc.invert(pa.array(is_known, pa.bool_())))
    if deleted.num_rows:
        dates = pa.array([when] * deleted.num_rows, _WHEN)
        rows = deleted.replace_schema_metadata(None).append_column("deleted", dates)
        _append(workspace, DELETED_FILE, rows.cast(DELETED_SCHEMA))


def _list_files(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    return zip(*(table.column(n).to_pylist() for n in ("image_id", "mtime_ns")), strict=True)


def _append(workspace: Workspace, name: str, rows: pa.Table) -> None:
    if workspace.has(name):
        before = workspace.read_table(name, "rescore IMAGES", rows.schema)
        # columns that another program has added stay, behind ours
        added = [field for field in before.schema if field.name not in rows.schema.names]
        schema = pa.schema([*rows.schema, *added])
        before = before.select(schema.names).cast(schema)
        rows = pa.concat_tables([before, rows], promote_options="default")
    workspace.write_table(name, rows)
