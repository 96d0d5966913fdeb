"""A workspace that the version before wrote stays valid: nothing is done again, nothing differs.

`tests/data/workspace-before` was written by commit cf5c2e4, in /tmp/oldws:

    iqa-ray make-data codes --num-images 60 --image-size 96
    iqa-ray score codes --workspace ws --metrics lapm,wavs --num-actors 1
    iqa-ray predict --workspace ws --predictions mine.csv
    iqa-ray cutoffs --workspace ws
    iqa-ray select --workspace ws
    iqa-ray rescore codes --workspace ws

with predictions that are wrong of most of the blurred images. Tables hold absolute paths, so the
tests write them anew with other ones. Of the images only sizes and times are made: they hold no
picture, and whatever opens one has no score for it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from desk import Desk
from inline import run_inline
from pyarrow import compute as pc
from pyarrow import parquet as pq

from iqa_ray.experiments.arms import read_candidates
from iqa_ray.storage.workspace import Workspace

BEFORE = Path(__file__).parent / "data" / "workspace-before"
ROOT = "/tmp/oldws"
NUM_IMAGES = 60


def move_table(file: Path, root: str) -> None:
    """Write a table with the paths that it has below another root."""
    table = pq.read_table(file)
    if "path" in table.column_names:
        at = table.column_names.index("path")
        paths = pc.replace_substring(table.column("path"), ROOT, root)
        table = table.set_column(at, table.schema.field(at), paths)
    metadata = table.schema.metadata or {}
    moved = {name: text.replace(ROOT.encode(), root.encode()) for name, text in metadata.items()}
    pq.write_table(table.replace_schema_metadata(moved), file)


def move_text(file: Path, root: str) -> None:
    file.write_text(file.read_text().replace(ROOT, root))


@pytest.fixture
def desk(tmp_path) -> Iterator[Desk]:
    shutil.copytree(BEFORE, tmp_path / "ws")
    for file in tmp_path.rglob("*.parquet"):
        move_table(file, str(tmp_path))
    for row in pq.read_table(tmp_path / "ws" / "images.parquet").to_pylist():
        Path(row["path"]).parent.mkdir(parents=True, exist_ok=True)
        Path(row["path"]).write_bytes(bytes(row["size_bytes"]))
        os.utime(row["path"], ns=(row["mtime_ns"], row["mtime_ns"]))
    desk = Desk(tmp_path)
    desk.photos = tmp_path / "codes"
    move_text(tmp_path / "ws" / "kept.csv", str(tmp_path))
    with run_inline(desk.see_shard):
        yield desk


def read(name: str) -> pd.DataFrame:
    return pd.read_parquet(BEFORE / name).drop(columns="path", errors="ignore")


def check_same(name: str, desk: Desk) -> None:
    """The rows and columns of before are the first; others may follow."""
    before = read(name)
    now = pd.read_parquet(Path(desk.ws, name))[list(before)]
    pd.testing.assert_frame_equal(now.iloc[: len(before)], before)


def test_no_score_is_computed_again(desk):
    desk.score("lapm", "wavs")
    assert desk.scored == []
    frame = desk.frame("lapm", "wavs")
    assert (frame["status"] == "ok").all()
    assert len(frame) == NUM_IMAGES


def test_its_cutoffs_vote_as_they_did(desk):
    kept = pd.read_csv(f"{desk.ws}/kept.csv")
    summary = desk.select()
    check_same("selection.parquet", desk)
    assert len(pd.read_parquet(f"{desk.ws}/selection.parquet")) == NUM_IMAGES
    pd.testing.assert_frame_equal(pd.read_csv(f"{desk.ws}/kept.csv"), kept)
    # its cut-offs do not say what they are without each fold
    assert summary["cross_fitted"] is None
    assert summary["in_sample"]["num_all"] > 0


def test_its_predictions_give_cutoffs_by_the_present_rule(desk):
    before = json.loads((BEFORE / "cutoffs.json").read_text())
    entries = desk.cutoffs()
    assert list(entries) == list(before)
    for name, entry in before.items():
        assert entries[name]["counts"] == entry["counts"]
        assert entries[name]["separation"] == pytest.approx(entry["separation"])
        assert entries[name]["value"] is not None
    assert desk.select()["cross_fitted"]["num_folds"] == 5


def test_a_night_finds_nothing_new(desk):
    row = desk.rescore()
    assert desk.scored == []
    kinds = ("new", "changed", "moved", "deleted", "retouched")
    assert [row[f"num_{kind}"] for kind in kinds] == [0] * 5
    assert row["num_unchanged"] == row["num_reused"] == NUM_IMAGES
    check_same("selection.parquet", desk)
    assert list(desk.runs()["status"]) == ["ok", "ok"]
    check_same("history/runs.parquet", desk)


@pytest.mark.parametrize("selects_again", [False, True])
def test_its_images_are_those_that_compare_trains_on(desk, selects_again):
    if selects_again:
        desk.select()
    candidates = read_candidates(Workspace(desk.ws))
    selection = read("selection.parquet")
    assert candidates.metrics == ("lapm", "wavs")
    columns = ["image_id", "label", "lapm", "wavs", "keep"]
    found = candidates.frame[columns].sort_values("image_id", ignore_index=True)
    expected = selection[columns].sort_values("image_id", ignore_index=True)
    pd.testing.assert_frame_equal(found, expected)
    assert str(candidates.source.root) == str(desk.photos)
