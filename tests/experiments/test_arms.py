"""What `compare` and `vary` read and write, without Ray or training."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from trainings import replace_training

from iqa_ray.config import make_job
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.experiments.arms import RUNS_SCHEMA, note_fitted, read_candidates
from iqa_ray.experiments.compare import CompareJob, run_compare
from iqa_ray.experiments.splits import SPLITS_SCHEMA, Splits
from iqa_ray.experiments.statistics import COMPARISON_SCHEMA
from iqa_ray.experiments.vary import VaryJob, run_vary
from iqa_ray.selection.judged import write_folds
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training.runs import RunFiles

SETTINGS = {"weights": "none", "epochs": 1, "image_size": 32, "seeds": (0,)}
RESULT = {
    "status": "ok", "error": "", "accuracy": 0.5, "auc": 0.5, "best_epoch": 1,
    "last_accuracy": 0.5, "last_auc": 0.5, "history": [{"epoch": 1, "loss": 1}], "seconds": 1.0,
    "device": "cpu", "num_train": 9,
}  # fmt: skip


@pytest.fixture
def selected(desk):
    """Two classes of fourteen images, of which two voters keep twelve."""
    for label in range(2):
        for number in range(14):
            desk.put(f"{'ab'[label]}/{number:02}.bmp", 10 * number + label, 10 * number + label)
    desk.score("lapm", "wavs")
    desk.cutoffs(metrics=("lapm", "wavs"), cutoff={"lapm": 20, "wavs": 20})
    desk.select()
    return desk


@pytest.mark.parametrize("keeps_record", [True, False])
def test_a_column_of_another_program_is_no_metric(selected, keeps_record):
    """With a record and, as in workspaces of older versions, without one."""
    workspace = Workspace(selected.ws)
    before = read_candidates(workspace)
    table = workspace.read_table("selection.parquet", "")
    light = pa.array([True] * table.num_rows)
    record = workspace.read_record("selection.parquet") if keeps_record else {}
    workspace.write_table("selection.parquet", table.append_column("low_light", light), record)
    after = read_candidates(workspace)
    assert after.metrics == before.metrics == ("lapm", "wavs")
    pd.testing.assert_frame_equal(after.frame, before.frame)


def test_other_tables_under_the_names_of_ours_are_refused(selected):
    workspace = Workspace(selected.ws)
    tables = {n: workspace.read_table(n, "") for n in ("images.parquet", "selection.parquet")}
    for name, table in tables.items():
        workspace.write_table(name, table.drop_columns("image_id"))
        with pytest.raises(UsageError, match=f"{name} has no column 'image_id': remove it and "):
            read_candidates(workspace)
        workspace.write_table(name, table)


def pretend(monkeypatch, result) -> None:
    """Let runs of the arms `high` and `removed-0` fail, the others come to `result` or fail too."""

    def train(todo, material, place, plan, on_event):
        for run in todo:
            if result and run.arm not in ("high", "removed-0"):
                RunFiles(place).write_result(run, result)
        return []

    replace_training(monkeypatch, train)


@pytest.mark.parametrize(
    "result",
    [
        RESULT,
        {**RESULT, "status": "diverged", "history": []}
        | dict.fromkeys(("accuracy", "auc", "best_epoch", "last_accuracy", "last_auc")),
        None,
    ],
    ids=["one is ok", "one diverged", "all failed"],
)
def test_columns_of_results_have_one_type_whichever_runs_failed(selected, monkeypatch, result):
    pretend(monkeypatch, result)
    given = {"workspace": selected.ws, **SETTINGS}
    with pytest.raises(IncompleteError, match="of 2 runs gave no result"):
        run_compare(make_job(CompareJob, {**given, "backbones": ("resnet18",)}))
    with pytest.raises(IncompleteError, match="of 3 runs gave no result"):
        run_vary(make_job(VaryJob, {**given, "backbone": "resnet18", "removed": (0, 50)}))
    summaries = {}
    for study in ("quality", "varying"):
        folder = Path(selected.ws, "comparisons", study)
        schemas = {
            name: pq.read_schema(folder / f"{name}.parquet").remove_metadata()
            for name in ("runs", "splits", "summary")
        }
        assert schemas["runs"].equals(RUNS_SCHEMA)
        assert schemas["splits"].equals(SPLITS_SCHEMA)
        summaries[study] = schemas["summary"]
    differences = Path(selected.ws, "comparisons/varying/differences.parquet")
    assert pq.read_schema(differences).remove_metadata().equals(COMPARISON_SCHEMA)
    number, count = pa.float64(), pa.int64()
    counts = [field.name for field in RUNS_SCHEMA if field.type == count]
    assert counts == ["seed", "best_epoch", "num_train"]
    own = [
        ("backbone", pa.string()), ("arm", pa.string()), ("accuracy_mean", number),
        ("accuracy_std", number), ("auc_mean", number), ("auc_std", number), ("num_seeds", count),
        ("num_failed", count),
    ]  # fmt: skip
    assert summaries["varying"].equals(pa.schema([*own, ("removed_percent", count)]))
    assert list(summaries["quality"])[:8] == list(pa.schema(own))
    assert [field.name for field in summaries["quality"] if field.type == number][4:] == [
        f"{name}_{of}" for name in ("accuracy", "auc")
        for of in ("difference", "low", "high", "t_p", "wilcoxon_p")
    ] + [
        f"{name}_{of}_p_holm" for name in ("accuracy", "auc") for of in ("t", "wilcoxon")
    ]  # fmt: skip


def test_results_are_written_as_they_are(selected, monkeypatch):
    pretend(monkeypatch, RESULT)
    with pytest.raises(IncompleteError, match="1 of 2 runs gave no result"):
        run_compare(
            make_job(CompareJob, {"workspace": selected.ws, **SETTINGS, "backbones": ("resnet18",)})
        )
    file = Path(selected.ws, "comparisons/quality/runs.parquet")
    failed, finished = pq.read_table(file).to_pylist()
    assert {name for name, value in failed.items() if value is None} == {
        name for name in RESULT if name not in ("status", "error")
    }
    epoch = dict.fromkeys(("accuracy", "validation_loss", "validation_accuracy", "seconds"))
    named = {"arm": "all", "backbone": "resnet18", "seed": 0}
    assert finished == {**named, **RESULT, "history": [{"epoch": 1, "loss": 1.0, **epoch}]}


def test_test_images_that_chose_the_cutoffs_are_counted(selected):
    candidates = read_candidates(Workspace(selected.ws))
    rows = candidates.frame[["image_id", "path", "label"]].assign(arm="high", part="train")
    rows.loc[rows.index[:8], "part"] = "test"
    splits = Splits(rows, ["before"], 0)
    workspace = Workspace(selected.ws)
    by_hand = note_fitted(workspace, splits, candidates)
    assert by_hand.num_fitted is None
    assert by_hand.notes[1].startswith("the cut-offs were set by hand")
    others = candidates.frame.iloc[20:][["image_id", "content_hash"]].assign(unit="", fold=0)
    write_folds(workspace, others, selected.ws)
    clean = note_fitted(workspace, splits, candidates)
    assert (clean.num_fitted, clean.notes) == (0, ["before"])
    fitted = candidates.frame.iloc[5:20][["image_id", "content_hash"]].assign(unit="", fold=0)
    write_folds(workspace, fitted, "s3://other/ws")
    noted = note_fitted(workspace, splits, candidates)
    assert noted.num_fitted == 3
    assert noted.notes == [
        "before",
        "3 of 8 test images are among those that the cut-offs were fitted on (in s3://other/ws)",
    ]
    Path(selected.ws, "folds.parquet").unlink()  # as where an older version fitted them
    unknown = note_fitted(workspace, splits, candidates)
    assert unknown.num_fitted is None
    assert unknown.notes[1] == "it is not on record which images the cut-offs were fitted on"
