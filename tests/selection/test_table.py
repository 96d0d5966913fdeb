"""The table of the selection: its columns, its record, and files of older versions."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from iqa_ray.errors import UsageError
from iqa_ray.selection.jobs import select
from iqa_ray.selection.table import (
    SELECTION_FILE,
    SELECTION_SCHEMA,
    read_selection,
    selection_schema,
)
from iqa_ray.storage.workspace import Workspace

COLUMNS = [
    "image_id", "path", "label", "lapm", "low_lapm", "wavs", "low_wavs", "num_low", "keep",
    "reason",
]  # fmt: skip


@pytest.fixture
def selected(desk):
    """Three images, of which two voters keep one; one has no score."""
    desk.put("a/0.bmp", 90, 90)
    desk.put("b/1.bmp", 10, 90)
    (desk.photos / "b" / "2.bmp").write_text("no image")
    desk.score("lapm", "wavs")
    desk.cutoffs(metrics=("lapm", "wavs"), cutoff={"lapm": 50, "wavs": 60})
    desk.select(rule=1)
    return desk


def add_columns(ws: str, *names: str, keeps_record: bool) -> None:
    """What another program does to the table; pandas keeps no record."""
    file = Path(ws, SELECTION_FILE)
    frame = pd.read_parquet(file).assign(**dict.fromkeys(names, True))
    if keeps_record:
        workspace = Workspace(ws)
        table, record = pa.Table.from_pandas(frame), workspace.read_record(SELECTION_FILE)
        workspace.write_table(SELECTION_FILE, table, record)
    else:
        frame.to_parquet(file)


def test_the_selection_keeps_who_voted_by_which_rule_and_cutoffs(selected):
    workspace = Workspace(selected.ws)
    assert workspace.read_record(SELECTION_FILE) == {
        "voters": ["lapm", "wavs"], "rule": 1, "cutoffs": {"lapm": 50, "wavs": 60},
    }  # fmt: skip
    selection, voters = read_selection(workspace)
    assert voters == ("lapm", "wavs")
    assert list(selection) == COLUMNS
    assert selection["low_lapm"].tolist() == [False, True, pd.NA]
    pd.testing.assert_frame_equal(selection, select(selected.ws, rule=1))


def test_the_columns_have_one_type_whatever_is_in_them(selected):
    text, number = pa.string(), pa.float64()
    types = [text, text, text, number, pa.bool_(), number, pa.bool_(), pa.int64(), pa.bool_(), text]
    schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
    assert selection_schema(["lapm", "wavs"]).equals(schema)
    assert SELECTION_SCHEMA.names == [*COLUMNS[:3], *COLUMNS[7:]]
    for file in selected.photos.glob("*/*"):
        file.write_text("no image")  # no score, so no vote
    selected.score("lapm", "wavs")
    selected.select()
    assert pq.read_schema(f"{selected.ws}/{SELECTION_FILE}").remove_metadata().equals(schema)
    assert read_selection(Workspace(selected.ws))[0]["low_lapm"].dtype == "boolean"


@pytest.mark.parametrize("keeps_record", [True, False])
def test_a_column_of_another_program_is_no_voter(selected, keeps_record):
    before = read_selection(Workspace(selected.ws))
    add_columns(selected.ws, "low_light", "low_label", keeps_record=keeps_record)
    selection, voters = read_selection(Workspace(selected.ws))
    assert voters == ("lapm", "wavs")
    pd.testing.assert_frame_equal(selection, before[0])


def test_a_record_counts_more_than_columns(selected):
    add_columns(selected.ws, "light", "low_light", keeps_record=True)
    assert read_selection(Workspace(selected.ws))[1] == ("lapm", "wavs")


def test_a_selection_without_a_column_of_a_voter_is_refused(selected):
    workspace = Workspace(selected.ws)
    table, record = workspace.read_table(SELECTION_FILE, ""), workspace.read_record(SELECTION_FILE)
    workspace.write_table(SELECTION_FILE, table.drop_columns("low_wavs"), record)
    with pytest.raises(UsageError, match=r"selection\.parquet has no column 'low_wavs': remove"):
        read_selection(workspace)
    workspace.write_table(SELECTION_FILE, table.drop_columns("keep"))
    with pytest.raises(UsageError, match=r"selection\.parquet has no column 'keep': remove it"):
        read_selection(workspace)
