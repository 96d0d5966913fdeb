"""Reading scores: which rows are valid, and what is said of images without one; without Ray."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from iqa_ray.errors import UsageError
from iqa_ray.images.listing import IMAGES_SCHEMA
from iqa_ray.metrics.spec import MetricSpec, get_spec
from iqa_ray.scoring import tables as module
from iqa_ray.scoring.tables import (
    SCORES_SCHEMA,
    ListedScores,
    count_failures,
    find_spec,
    known_metrics,
    make_row_settings,
    open_parts,
    read_scores,
    read_specs,
    record_specs,
    scored_metrics,
    scores_folder,
    scores_frame,
)
from iqa_ray.storage.parts import make_fingerprints, mark_missing
from iqa_ray.storage.workspace import Workspace

SETTINGS = make_row_settings(100)
Row = tuple[str | None, float | None, str, str]  # content hash, score, status, error


def listing(**sizes: int) -> pa.Table:
    """Images of those ids and sizes."""
    images = {
        "image_id": list(sizes),
        "path": [f"/photos/{image_id}.jpg" for image_id in sizes],
        "label": ["cat"] * len(sizes),
        "split": [None] * len(sizes),
        "size_bytes": list(sizes.values()),
        "mtime_ns": [7] * len(sizes),
    }
    return pa.table(images, schema=IMAGES_SCHEMA)


def ok(content_hash: str, score: float) -> Row:
    return content_hash, score, "ok", ""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Of three images, without scores."""
    workspace = Workspace(str(tmp_path))
    record = {"images": "/photos", "max_pixels": 100}
    workspace.write_table("images.parquet", listing(a=1, b=2, c=3), record)
    return workspace


def add_rows(
    workspace: Workspace,
    metric: str,
    images: pa.Table,
    rows: list[Row],
    settings: str = SETTINGS,
    are_away: bool = False,
) -> None:
    columns = {
        "image_id": images.column("image_id"),
        "path": images.column("path"),
        **dict(zip(SCORES_SCHEMA.names[2:], zip(*rows, strict=True), strict=True)),
    }
    columns = {name: pa.array(_to_list(cells)) for name, cells in columns.items()}
    table = pa.table({n: c.cast(SCORES_SCHEMA.field(n).type) for n, c in columns.items()})
    prints = make_fingerprints(images, settings)
    if are_away:
        prints = mark_missing(prints, images, np.ones(images.num_rows, bool), settings)
    open_parts(workspace, find_spec(workspace, metric)).write(table, prints, settings)


def _to_list(cells: Any) -> list[Any]:
    return cells.to_pylist() if isinstance(cells, pa.ChunkedArray) else list(cells)


def read_rows(table: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(row.values())[2:] for row in table.to_pylist()]


# --- one metric ------------------------------------------------------------------------------


def test_valid_rows_come_in_the_order_of_the_listing(workspace):
    failed: Row = ("hb", None, "too_small", "3x3 px")
    add_rows(workspace, "lapm", listing(c=3, b=2, a=1), [ok("hc", 3.0), failed, ok("ha", 1.0)])
    table = read_scores(workspace, "lapm")
    assert table.schema.equals(SCORES_SCHEMA)
    assert table["image_id"].to_pylist() == ["a", "b", "c"]
    assert read_rows(table) == [ok("ha", 1.0), failed, ok("hc", 3.0)]


def test_an_image_without_a_valid_row_is_unscored_and_says_why(workspace):
    """`a` has another size since, `c` was never scored."""
    add_rows(workspace, "lapm", listing(a=9, b=2), [ok("old", 9.0), ok("hb", 2.0)])
    table = read_scores(workspace, "lapm")
    remedy = f"run `iqa-ray rescore /photos --workspace {workspace}`"
    assert read_rows(table) == [
        (None, None, "unscored", f"the image changed since it was scored: {remedy}"),
        ok("hb", 2.0),
        (None, None, "unscored", f"not scored yet: {remedy}"),
    ]
    assert table["image_id"].to_pylist() == ["a", "b", "c"]
    assert table["path"].to_pylist() == [f"/photos/{name}.jpg" for name in "abc"]


def test_a_row_made_with_another_limit_of_pixels_is_not_valid(workspace):
    images = listing(a=1, b=2, c=3)
    rows = [ok("ha", 1.0), ok("hb", 2.0), ok("hc", 3.0)]
    add_rows(workspace, "lapm", images, rows, make_row_settings(101))
    assert set(read_scores(workspace, "lapm")["status"].to_pylist()) == {"unscored"}
    workspace.write_table("images.parquet", images, {"max_pixels": 101})
    assert read_rows(read_scores(workspace, "lapm")) == rows


def test_without_a_record_the_limit_of_pixels_is_the_default(workspace):
    workspace.write_table("images.parquet", listing(a=1))
    listed = ListedScores(workspace)
    assert listed.row_settings == '{"max_pixels": 50000000}'
    add_rows(workspace, "lapm", listing(b=2), [ok("hb", 2.0)])
    assert "`iqa-ray rescore IMAGES --work" in listed.read("lapm")["error"][0].as_py()


def test_the_listing_may_be_another_than_the_workspace_s(workspace):
    add_rows(workspace, "lapm", listing(c=3, d=4), [ok("hc", 3.0), ok("hd", 4.0)])
    listed = ListedScores(workspace, listing(d=4, c=3))
    assert listed.images["image_id"].to_pylist() == ["d", "c"]
    assert read_rows(listed.read("lapm")) == [ok("hd", 4.0), ok("hc", 3.0)]


def test_a_metric_without_any_score_names_the_remedy(workspace):
    with pytest.raises(UsageError, match=r"has no wavs scores: run `iqa-ray score IMAGES --work"):
        read_scores(workspace, "wavs")


def test_nothing_is_read_before_images_are_listed(tmp_path):
    with pytest.raises(UsageError, match=r"has no images\.parquet: run `iqa-ray score IMAGES"):
        ListedScores(Workspace(str(tmp_path)))


def test_files_that_were_away_keep_the_row_that_says_so(workspace):
    """Unless a valid row is there as well: `b` came back, and `c` was away on another day."""
    away: Row = (None, None, "unreadable", "No such file")
    add_rows(workspace, "lapm", listing(b=2), [ok("hb", 2.0)])
    add_rows(workspace, "lapm", listing(c=3, b=2), [away, away], are_away=True)
    listed = ListedScores(workspace)
    assert read_rows(listed.read("lapm"))[1:] == [ok("hb", 2.0), away]
    statuses = listed.read_statuses("lapm")
    assert statuses.column_names == ["status", "error"]
    assert statuses["status"].to_pylist() == [None, "ok", "unreadable"]
    assert statuses["error"].to_pylist() == [None, "", "No such file"]


# --- several metrics -------------------------------------------------------------------------


@pytest.fixture
def mixed(workspace: Workspace) -> Workspace:
    """The metrics saw different contents of `a`, the same of `b`, and only wavs could read `c`."""
    rows = [ok("ha", 1.0), ok("hb", 2.0), (None, None, "unreadable", "denied")]
    add_rows(workspace, "lapm", listing(a=1, b=2, c=3), rows)
    rows = [ok("new", 4.0), ok("hb", 5.0), ok("hc", 6.0)]
    add_rows(workspace, "wavs", listing(a=1, b=2, c=3), rows)
    return workspace


def test_scores_of_different_contents_are_taken_away_from_all_metrics(mixed):
    reason = (
        f"its scores are of different contents: run `iqa-ray rescore /photos --workspace {mixed}`"
    )
    unscored = (None, None, "unscored", reason)
    tables = ListedScores(mixed).read_all(["wavs", "lapm"])
    assert list(tables) == ["wavs", "lapm"]
    assert read_rows(tables["wavs"]) == [unscored, ok("hb", 5.0), ok("hc", 6.0)]
    assert read_rows(tables["lapm"]) == [
        unscored, ok("hb", 2.0), (None, None, "unreadable", "denied"),
    ]  # fmt: skip
    assert all(table.schema.equals(SCORES_SCHEMA) for table in tables.values())


def test_one_metric_alone_is_not_mixed(mixed):
    tables = ListedScores(mixed).read_all(["wavs"])
    assert read_rows(tables["wavs"]) == [ok("new", 4.0), ok("hb", 5.0), ok("hc", 6.0)]


def test_contents_are_compared_with_the_first_that_is_known(workspace):
    """The second and the third metric differ in `a`; the first could read nothing."""
    unread: Row = (None, None, "unreadable", "denied")
    add_rows(workspace, "lapv", listing(a=1, b=2, c=3), [unread] * 3)
    for metric, content_hash in (("lapm", "x"), ("wavs", "y")):
        rows = [ok(content_hash, 1.0), ok("hb", 1.0), unread]
        add_rows(workspace, metric, listing(a=1, b=2, c=3), rows)
    listed = ListedScores(workspace)
    assert listed.find_mixed().tolist() == [True, False, False]
    assert listed.read_hashes().to_pylist() == [None, "hb", None]


def test_a_content_is_known_where_any_metric_read_it(mixed):
    listed = ListedScores(mixed)
    assert listed.read_hashes().to_pylist() == [None, "hb", "hc"]
    assert listed.find_mixed().tolist() == [True, False, False]


def test_without_metrics_no_content_is_known(workspace):
    listed = ListedScores(workspace)
    assert listed.read_hashes().to_pylist() == [None] * 3
    assert listed.find_mixed().tolist() == [False] * 3
    assert listed.read_all([]) == {}


def test_images_that_fail_are_counted_once_with_an_example_of_each_status(workspace):
    small: Row = ("h", None, "too_small", "3x3 px")
    add_rows(workspace, "lapm", listing(b=2, c=3), [small, small])
    add_rows(workspace, "wavs", listing(a=1, b=2, c=3), [ok("ha", 1.0), ok("hb", 2.0), small])
    images = listing(a=1, b=2, c=3)
    assert count_failures(ListedScores(workspace, images), ["lapm", "wavs"]) == (
        3,
        {
            "lapm": {
                "unscored": {
                    "num_images": 1,
                    "example": "/photos/a.jpg",
                    "error": "not scored yet",
                },
                "too_small": {"num_images": 2, "example": "/photos/b.jpg", "error": "3x3 px"},
            },
            "wavs": {"too_small": {"num_images": 1, "example": "/photos/c.jpg", "error": "3x3 px"}},
        },
    )
    assert count_failures(ListedScores(workspace, images.slice(0, 2)), ["wavs"]) == (0, {})


def test_a_frame_has_the_first_problem_and_every_error_of_an_image(workspace):
    denied: Row = (None, None, "unreadable", "denied")
    add_rows(workspace, "lapm", listing(a=1, b=2, c=3), [ok("ha", 1.0), denied, ok("hc", 3.0)])
    small: Row = ("hc", None, "too_small", "3x3 px")
    unread: Row = (None, None, "undefined", "flat")
    add_rows(workspace, "wavs", listing(a=1, b=2, c=3), [ok("ha", 4.0), unread, small])
    frame = scores_frame(workspace, ["lapm", "wavs"])
    assert list(frame.columns) == [
        "image_id", "path", "label", "split", "content_hash", "lapm", "wavs", "status", "error",
    ]  # fmt: skip
    assert frame["image_id"].tolist() == ["a", "b", "c"]
    assert frame["content_hash"].where(frame["content_hash"].notna(), None).tolist() == [
        "ha", None, "hc",
    ]  # fmt: skip
    assert frame["lapm"].fillna(-1).tolist() == [1.0, -1.0, 3.0]
    assert frame["wavs"].fillna(-1).tolist() == [4.0, -1.0, -1.0]
    assert str(frame["wavs"].dtype) == "float64"
    assert frame["status"].tolist() == ["ok", "unreadable", "too_small"]
    assert frame["error"].tolist() == ["", "lapm: denied; wavs: flat", "wavs: 3x3 px"]


def test_a_metric_that_never_gave_a_score_is_a_column_of_numbers(workspace):
    denied: Row = (None, None, "unreadable", "denied")
    add_rows(workspace, "lapm", listing(a=1, b=2, c=3), [denied] * 3)
    frame = scores_frame(workspace, ["lapm"])
    assert str(frame["lapm"].dtype) == "float64"
    assert frame["lapm"].isna().all()


# --- entries of metrics ----------------------------------------------------------------------


def pyiqa_spec(name: str, version: str = "1", top: float = inf) -> MetricSpec:
    return MetricSpec(
        name=name,
        higher_is_better=True,
        range=(-inf, top),
        version=version,
        min_side=3,
        summary="a metric",
        source="a paper",
    )


def test_entries_are_read_as_they_were_recorded(workspace):
    assert read_specs(workspace) == {}
    first, second = pyiqa_spec("m"), pyiqa_spec("n", top=5.0)
    record_specs(workspace, [first])
    record_specs(workspace, [second])
    assert read_specs(workspace) == {"m": first, "n": second}
    assert workspace.read_json("metrics.json", "score")["n"]["range"] == [None, 5.0]
    newer = pyiqa_spec("m", version="2")
    record_specs(workspace, [newer])
    assert read_specs(workspace) == {"m": newer, "n": second}
    assert find_spec(workspace, "m") == newer


def test_entries_are_recorded_under_the_lock_and_only_if_they_are_new(workspace, monkeypatch):
    record_specs(workspace, [pyiqa_spec("m"), pyiqa_spec("n")])

    def refuse(folder: Any) -> Any:
        assert folder == workspace.location
        raise InterruptedError

    monkeypatch.setattr(module, "hold_lock_briefly", refuse)
    record_specs(workspace, [pyiqa_spec("m")])
    record_specs(workspace, [])
    for spec in (pyiqa_spec("o"), pyiqa_spec("m", version="2")):
        with pytest.raises(InterruptedError):
            record_specs(workspace, [spec])


def test_entries_that_another_run_adds_meanwhile_are_kept(workspace, monkeypatch):
    real = module.hold_lock_briefly

    def come_second(folder: Any) -> Any:
        monkeypatch.setattr(module, "hold_lock_briefly", real)
        record_specs(workspace, [pyiqa_spec("theirs")])
        return real(folder)

    monkeypatch.setattr(module, "hold_lock_briefly", come_second)
    record_specs(workspace, [pyiqa_spec("ours")])
    assert set(read_specs(workspace)) == {"ours", "theirs"}


def test_a_metric_that_is_neither_recorded_nor_known_is_refused(workspace):
    assert find_spec(workspace, "lapm") == get_spec("lapm")
    with pytest.raises(UsageError, match="sharpnes"):
        find_spec(workspace, "sharpnes")


def test_metrics_have_scores_at_their_present_version_or_at_another(workspace):
    assert scores_folder("lapm", "2") == "scores/metric=lapm/version=2"
    record_specs(workspace, [pyiqa_spec("m")])
    for name in ("wavs", "lapm", "m"):
        add_rows(workspace, name, listing(a=1), [ok("ha", 1.0)])
    assert scored_metrics(workspace) == ["lapm", "wavs", "m"]
    record_specs(workspace, [pyiqa_spec("m", version="2")])
    assert scored_metrics(workspace) == ["lapm", "wavs"]
    assert known_metrics(workspace) == ["lapm", "m", "wavs"]
