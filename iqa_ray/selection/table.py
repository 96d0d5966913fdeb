"""The table of the selection: each image's scores and votes, and whether it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import pyarrow as pa

from iqa_ray.selection.settings import Rule
from iqa_ray.storage.parquet import record_of
from iqa_ray.storage.workspace import Workspace

SELECTION_FILE = "selection.parquet"
_LOW = "low_"


def selection_schema(voters: Sequence[str]) -> pa.Schema:
    """The columns that a selection by `voters` has, as `cast_votes` returns them."""
    votes = (((name, pa.float64()), (_LOW + name, pa.bool_())) for name in voters)
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("path", pa.string()),
            ("label", pa.string()),
            *(field for pair in votes for field in pair),
            ("num_low", pa.int64()),
            ("keep", pa.bool_()),
            ("reason", pa.string()),
        ]
    )


SELECTION_SCHEMA = selection_schema(())  # what every selection has, whoever voted


def write_selection(
    workspace: Workspace, selection: pd.DataFrame, rule: Rule, cutoffs: Mapping[str, float | None]
) -> None:
    """Write `selection.parquet`.

    The record in its metadata keeps the voters, the rule and the cut-offs, since other programs may
    add columns.

    Args:
        workspace: where to.
        selection: what `cast_votes` returns.
        rule: by which low votes rejected an image.
        cutoffs: of the voters, in their order.
    """
    record = {"voters": list(cutoffs), "rule": rule, "cutoffs": dict(cutoffs)}
    schema = selection_schema(list(cutoffs))
    workspace.write_frame(SELECTION_FILE, selection, schema, record)


def read_selection(workspace: Workspace) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The selection (the columns of `selection_schema`) and who voted, in order.

    Raises:
        UsageError: there is none, or it lacks a column.
    """
    table = workspace.read_table(SELECTION_FILE, "select")
    voters = _find_voters(table)
    schema = selection_schema(voters)
    workspace.check_columns(SELECTION_FILE, table, "select", schema)
    return table.select(schema.names).to_pandas(), voters


def _find_voters(table: pa.Table) -> tuple[str, ...]:
    """Those on record; without a record, as in a file of an older version, by their columns."""
    record = record_of(table.schema)
    if "voters" in record:
        return tuple(record["voters"])
    scores = set(table.column_names) - set(SELECTION_SCHEMA.names)
    names = (column.removeprefix(_LOW) for column in table.column_names if column.startswith(_LOW))
    return tuple(name for name in names if name in scores)
