"""The tables of scores: where they lie in the workspace, and reading them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from math import inf, isfinite
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute as pc

from iqa_ray.errors import Status, UsageError
from iqa_ray.images.listing import IMAGES_FILE, IMAGES_SCHEMA
from iqa_ray.images.source import ImageSource
from iqa_ray.metrics.spec import SPECS, MetricSpec, get_spec
from iqa_ray.storage.files import list_files
from iqa_ray.storage.lock import hold_lock_briefly
from iqa_ray.storage.parquet import record_of
from iqa_ray.storage.parts import Parts, make_fingerprints, mark_missing
from iqa_ray.storage.workspace import Workspace, list_parts_folders

if TYPE_CHECKING:  # actors, which import this module, need no pandas
    import pandas as pd

SCORES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("content_hash", pa.string()),
        ("score", pa.float64()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)
HASH_SCHEMA = pa.schema([SCORES_SCHEMA.field("content_hash")])

UNSCORED: Status = "unscored"

# the entries of pyiqa's metrics, as they were when the workspace was last scored with them
SPECS_FILE = "metrics.json"
_RECORDED = ("name", "higher_is_better", "range", "version", "min_side", "summary", "source")


def scores_folder(metric: str, version: str) -> str:
    """Where the workspace keeps a metric's scores; a name that is a path becomes one folder's."""
    return f"scores/metric={quote(metric, safe='+')}/version={version}"


def open_parts(workspace: Workspace, spec: MetricSpec) -> Parts:
    """The parts with a metric's scores at the version of `spec`."""
    return workspace.parts(scores_folder(spec.name, spec.version))


def record_specs(workspace: Workspace, specs: Sequence[MetricSpec]) -> None:
    """Record the present entries of pyiqa's metrics, which later jobs read in place of pyiqa's.

    Raises:
        IncompleteError: they are new, and another run holds the workspace.
    """
    added = {spec.name: _to_entry(spec) for spec in specs}
    if (recorded := _read_entries(workspace)) | added == recorded:
        return
    with hold_lock_briefly(workspace.location):  # another run may add others meanwhile
        workspace.write_json(SPECS_FILE, _read_entries(workspace) | added)


def read_specs(workspace: Workspace) -> dict[str, MetricSpec]:
    """The entries of pyiqa's metrics that the workspace was scored with."""
    specs = {}
    for name, entry in _read_entries(workspace).items():
        low, high = entry["range"]
        bounds = (-inf if low is None else low, inf if high is None else high)
        recorded = {field: entry[field] for field in _RECORDED}
        specs[name] = MetricSpec(**{**recorded, "range": bounds})
    return specs


def _to_entry(spec: MetricSpec) -> dict[str, Any]:
    entry = {field: getattr(spec, field) for field in (*_RECORDED, "backend")}
    return {**entry, "range": [bound if isfinite(bound) else None for bound in spec.range]}


def _read_entries(workspace: Workspace) -> dict[str, Any]:
    if not workspace.has(SPECS_FILE):
        return {}
    return workspace.read_json(SPECS_FILE, "score IMAGES")


def find_spec(workspace: Workspace, name: str) -> MetricSpec:
    """A metric's entry; for pyiqa's metrics the version that the workspace was last scored with.

    Raises:
        UsageError: there is no such metric.
    """
    recorded = read_specs(workspace)
    if name in recorded:
        return recorded[name]
    try:
        return get_spec(name)
    except ValueError as error:
        raise UsageError(str(error)) from None


def scored_metrics(workspace: Workspace) -> list[str]:
    """The metrics that have scores at their present version, in the order of the spec table."""
    specs = {**SPECS, **read_specs(workspace)}
    return [name for name, spec in specs.items() if open_parts(workspace, spec).exist()]


def list_score_parts(workspace: Workspace) -> list[Parts]:
    """The parts with scores of all metrics at whatever version."""
    folders = list_parts_folders(workspace)
    return [workspace.parts(folder) for folder in folders if folder.startswith("scores/")]


def known_metrics(workspace: Workspace) -> list[str]:
    """The metrics that have scores at whatever version."""
    folders = list_files(workspace.location / "scores", ".parquet")
    found = (re.search(r"/metric=([^/]+)/", file.path) for file in folders)
    return sorted({unquote(match.group(1)) for match in found if match})


def make_row_settings(max_pixels: int) -> str:
    """The settings that a row's fingerprint is made with, beside the metric's version."""
    return json.dumps({"max_pixels": max_pixels})


class ListedScores:
    """The scores of listed images, each of the image's present content.

    A row counts only while its fingerprint is the listing's: the scores of an image that changed
    since are those of another content.

    Args:
        workspace: where the scores are.
        images: the listing (default: the workspace's `images.parquet`).

    Attributes:
        record: of `images.parquet`: images, root, labels, max_pixels.
        images: the listing.
        row_settings, fingerprints: what valid rows were made with, and one fingerprint an image.

    Raises:
        UsageError: nothing was scored there yet.
    """

    def __init__(self, workspace: Workspace, images: pa.Table | None = None) -> None:
        self._workspace = workspace
        listed = workspace.read_table(IMAGES_FILE, "score IMAGES", IMAGES_SCHEMA)
        self.record = record_of(listed.schema)
        self.images = listed if images is None else images
        self.row_settings = make_row_settings(ImageSource.from_record(self.record).max_pixels)
        self.fingerprints = make_fingerprints(self.images, self.row_settings)

    def read(self, name: str) -> pa.Table:
        """A metric's scores at its present version, one row a listed image, in its order.

        The columns are those of SCORES_SCHEMA. An image without a valid row has the status
        `unscored`, and an error that says why and which command mends it.

        Raises:
            UsageError: the metric has no scores at all, or there is no such metric.
        """
        rows = self._read_columns(name, SCORES_SCHEMA)
        if rows.column("status").null_count == 0:
            return rows
        known = self._open(name).read(["image_id"])
        if known is None:
            raise UsageError(
                f"{self._workspace} has no {name} scores: run `iqa-ray score IMAGES --workspace "
                f"{self._workspace} --metrics {name}` first"
            )
        return self._explain_gaps(rows, known.column("image_id").combine_chunks())

    def read_all(self, names: Sequence[str]) -> dict[str, pa.Table]:
        """The scores of several metrics, as `read` gives them.

        An image whose metrics saw different contents is unscored for all of them: some of its
        scores are of a file that was replaced without another size or time.
        """
        tables = {name: self.read(name) for name in names}
        hashes = [rows.column("content_hash") for rows in tables.values()]
        is_mixed = _mark_mixed(hashes, self.images.num_rows)
        if not is_mixed.any():
            return tables
        reason = f"its scores are of different contents: {self._remedy}"
        return {name: _unscore(rows, pa.array(is_mixed), reason) for name, rows in tables.items()}

    def read_statuses(self, name: str) -> pa.Table:
        """Columns status and error of a metric, one row a listed image; null without a row."""
        schema = pa.schema([SCORES_SCHEMA.field(column) for column in ("status", "error")])
        return self._read_columns(name, schema)

    def _read_columns(self, name: str, schema: pa.Schema) -> pa.Table:
        """Valid rows, and rows that say so for files that were absent when they were to be read."""
        parts = self._open(name)
        rows = parts.read_listed(self.fingerprints, schema)
        is_gap = pc.is_null(rows.column("status")).to_numpy()
        if not is_gap.any():
            return rows
        gaps = self.images.filter(pa.array(is_gap))
        away = mark_missing(
            self.fingerprints[is_gap], gaps, np.ones(gaps.num_rows, bool), self.row_settings
        )
        order = np.arange(len(rows))
        order[is_gap] = len(rows) + np.arange(gaps.num_rows)
        return pa.concat_tables([rows, parts.read_listed(away, schema)]).take(pa.array(order))

    def read_hashes(self) -> pa.ChunkedArray:
        """The content hash of each listed image.

        It is null where no metric knows it, and where metrics saw different contents.
        """
        columns = list(self._list_hashes())
        unknown = pa.chunked_array([pa.nulls(self.images.num_rows, pa.string())])
        is_mixed = pa.array(_mark_mixed(columns, self.images.num_rows))
        return pc.if_else(is_mixed, unknown, pc.coalesce(unknown, *columns))

    def find_mixed(self) -> NDArray[np.bool_]:
        """(n,) which listed images have scores of different contents."""
        return _mark_mixed(self._list_hashes(), self.images.num_rows)

    def _list_hashes(self) -> Iterator[pa.ChunkedArray]:
        for name in scored_metrics(self._workspace):
            rows = self._open(name).read_listed(self.fingerprints, HASH_SCHEMA)
            yield rows.column("content_hash")

    def _explain_gaps(self, rows: pa.Table, scored_ids: pa.Array) -> pa.Table:
        """Complete the rows of images that have no valid one."""
        ids, statuses = self.images.column("image_id"), rows.column("status")
        reasons = pc.if_else(
            pc.is_in(ids, value_set=scored_ids),
            f"the image changed since it was scored: {self._remedy}",
            f"not scored yet: {self._remedy}",
        )
        columns = {
            "image_id": ids,
            "path": self.images.column("path"),
            "content_hash": rows.column("content_hash"),
            "score": rows.column("score"),
            "status": pc.fill_null(statuses, UNSCORED),
            "error": pc.if_else(pc.is_null(statuses), reasons, rows.column("error")),
        }
        return pa.table(columns, schema=SCORES_SCHEMA)

    def _open(self, name: str) -> Parts:
        return open_parts(self._workspace, find_spec(self._workspace, name))

    @property
    def _remedy(self) -> str:
        """The command that scores what lacks a score, each metric with its own settings."""
        images = self.record.get("images", "IMAGES")
        return f"run `iqa-ray rescore {images} --workspace {self._workspace}`"


def _mark_mixed(columns: Iterable[pa.ChunkedArray], num_images: int) -> NDArray[np.bool_]:
    """Which images have different content hashes in `columns`, one a metric; null is unknown."""
    known = pa.chunked_array([pa.nulls(num_images, pa.string())])
    is_mixed = np.zeros(num_images, bool)
    for hashes in columns:
        is_mixed |= pc.fill_null(pc.not_equal(known, hashes), False).to_numpy()
        known = pc.coalesce(known, hashes)
    return is_mixed


def _unscore(rows: pa.Table, is_unscored: pa.Array, reason: str) -> pa.Table:
    """Take the scores of some images away."""
    for name, value in (
        ("content_hash", pa.scalar(None, pa.string())),
        ("score", pa.scalar(None, pa.float64())),
        ("status", UNSCORED),
        ("error", reason),
    ):
        column = rows.schema.get_field_index(name)
        cells = pc.if_else(is_unscored, value, rows.column(name))
        rows = rows.set_column(column, rows.schema.field(name), cells)
    return rows


def read_scores(workspace: Workspace, name: str) -> pa.Table:
    """A metric's scores, one row a listed image. As `ListedScores.read`."""
    return ListedScores(workspace).read(name)


def count_failures(
    listed: ListedScores, names: Sequence[str]
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Images without a score for some metric: their number, and examples by metric and status."""
    images = listed.images
    failed = np.zeros(images.num_rows, bool)
    report: dict[str, dict[str, Any]] = {}
    for name in names:
        rows = listed.read_statuses(name)
        statuses = pc.fill_null(rows.column("status"), UNSCORED)
        is_failed = pc.not_equal(statuses, "ok").to_numpy()
        failed |= is_failed
        for row in np.flatnonzero(is_failed):
            entry = report.setdefault(name, {}).setdefault(
                statuses[row].as_py(),
                {
                    "num_images": 0,
                    "example": images.column("path")[row].as_py(),
                    "error": rows.column("error")[row].as_py() or "not scored yet",
                },
            )
            entry["num_images"] += 1
    return int(failed.sum()), report


def scores_frame(workspace: Workspace, names: Sequence[str]) -> pd.DataFrame:
    """One row a listed image: image_id, path, label, split, content_hash, a column a metric
    (float64, NaN without a score), status (`ok`, or the first metric's that is not) and error.

    A score is of the image's present content, or the status is `unscored` (see `ListedScores`).
    """
    import pandas as pd

    listed = ListedScores(workspace)
    frame = listed.images.to_pandas().drop(columns=["size_bytes", "mtime_ns"])
    frame["content_hash"] = None
    statuses, errors = [], []
    for name, rows in listed.read_all(names).items():
        scores = rows.to_pandas()
        frame[name] = scores["score"].astype("float64")
        frame["content_hash"] = frame["content_hash"].fillna(scores["content_hash"])
        statuses.append(scores["status"])
        errors.append((name + ": " + scores["error"]).where(scores["status"] != "ok"))
    frame["status"] = pd.concat(statuses, axis=1).apply(_first_problem, axis=1)
    frame["error"] = pd.concat(errors, axis=1).apply(lambda row: "; ".join(row.dropna()), axis=1)
    return frame


def _first_problem(statuses: pd.Series[str]) -> str:
    problems = [status for status in statuses if status != "ok"]
    return problems[0] if problems else "ok"
