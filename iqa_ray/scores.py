"""The tables of scores: where they lie in the workspace, and reading them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import compute as pc

from iqa_ray.errors import UsageError
from iqa_ray.files import list_files
from iqa_ray.lock import hold_lock_briefly
from iqa_ray.metrics.spec import SPECS, MetricSpec, get_spec
from iqa_ray.store import Workspace

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


# the entries of pyiqa's metrics, as they were when the workspace was last scored with them
SPECS_FILE = "metrics.json"


def scores_folder(metric: str, version: str) -> str:
    """Where the workspace keeps a metric's scores."""
    return f"scores/metric={metric}/version={version}"


def record_specs(workspace: Workspace, specs: Sequence[MetricSpec]) -> None:
    """Record the present entries of pyiqa's metrics, which later jobs read in place of pyiqa's.

    Raises:
        IncompleteError: they are new, and another run holds the workspace.
    """
    added = {spec.name: spec for spec in specs}
    if (recorded := read_specs(workspace)) | added == recorded:
        return
    with hold_lock_briefly(workspace.location):  # another run may add others meanwhile
        entries = {}
        for spec in (read_specs(workspace) | added).values():
            entry = asdict(spec)
            entry["range"] = [bound if isfinite(bound) else None for bound in spec.range]
            entries[spec.name] = entry
        workspace.write_json(SPECS_FILE, entries)


def read_specs(workspace: Workspace) -> dict[str, MetricSpec]:
    """The entries of pyiqa's metrics that the workspace was scored with."""
    if not workspace.has(SPECS_FILE):
        return {}
    specs = {}
    for name, entry in workspace.read_json(SPECS_FILE, "score IMAGES").items():
        low, high = entry["range"]
        bounds = (-inf if low is None else low, inf if high is None else high)
        specs[name] = MetricSpec(**{**entry, "range": bounds})
    return specs


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
    return [
        name
        for name, spec in specs.items()
        if workspace.parts(scores_folder(name, spec.version)).exist()
    ]


def known_metrics(workspace: Workspace) -> list[str]:
    """The metrics that have scores at whatever version."""
    folders = list_files(workspace.location / "scores", ".parquet")
    found = (re.search(r"/metric=([^/]+)/", file.path) for file in folders)
    return sorted({match.group(1) for match in found if match})


def read_scores(workspace: Workspace, name: str) -> pa.Table:
    """A metric's scores (SCORES_SCHEMA) at its present version.

    Raises:
        UsageError: there are none, or no such metric.
    """
    table = workspace.parts(scores_folder(name, find_spec(workspace, name).version)).read()
    if table is None:
        raise UsageError(
            f"{workspace} has no {name} scores: run `iqa-ray score IMAGES --workspace {workspace} "
            f"--metrics {name}` first"
        )
    return table


def count_failures(workspace: Workspace, names: Sequence[str], images: pa.Table) -> dict[str, Any]:
    """Images without a score for some metric: their number, and examples by metric and status."""
    failed: set[str] = set()
    report: dict[str, Any] = {}
    listed = images.column("image_id").combine_chunks()
    for name in names:
        parts = workspace.parts(scores_folder(name, find_spec(workspace, name).version))
        table = parts.read(
            ["image_id", "path", "status", "error"],
            lambda rows: pc.not_equal(rows.column("status"), "ok"),
        )
        if table is None:
            continue
        table = table.filter(pc.is_in(table.column("image_id"), value_set=listed))
        for row in table.to_pylist():
            failed.add(row["image_id"])
            entry = report.setdefault(name, {}).setdefault(
                row["status"], {"num_images": 0, "example": row["path"], "error": row["error"]}
            )
            entry["num_images"] += 1
    return {"images": len(failed), **report}


def scores_frame(workspace: Workspace, names: Sequence[str]) -> pd.DataFrame:
    """One row a listed image: image_id, path, label, split, content_hash, a column a metric
    (float64, NaN without a score), status (`ok`, or the first metric's that is not) and error.
    """
    import pandas as pd

    frame = workspace.read_table("images.parquet", "score IMAGES").to_pandas()
    frame = frame.drop(columns=["size_bytes", "mtime_ns"]).set_index("image_id", drop=False)
    frame["content_hash"] = None
    statuses, errors = [], []
    for name in names:
        scores = read_scores(workspace, name).to_pandas().set_index("image_id")
        scores = scores.reindex(frame.index)
        frame[name] = scores["score"].astype("float64")
        frame["content_hash"] = frame["content_hash"].fillna(scores["content_hash"])
        statuses.append(scores["status"].fillna("unscored"))
        errors.append((name + ": " + scores["error"]).where(scores["status"] != "ok"))
    frame["status"] = pd.concat(statuses, axis=1).apply(_first_problem, axis=1)
    frame["error"] = pd.concat(errors, axis=1).apply(lambda row: "; ".join(row.dropna()), axis=1)
    return frame.reset_index(drop=True)


def _first_problem(statuses: pd.Series[str]) -> str:
    problems = [status for status in statuses if status != "ok"]
    return problems[0] if problems else "ok"
