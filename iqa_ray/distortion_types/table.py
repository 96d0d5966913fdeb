"""The table of distortions: what each image looks like, and how a reason says it."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from iqa_ray.images.listing import IMAGES_FILE
from iqa_ray.storage.parts import make_fingerprints
from iqa_ray.storage.workspace import Workspace

DISTORTIONS_FILE = "distortions.parquet"
DISTORTIONS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("distortion", pa.string()),
        ("distortion_probability", pa.float64()),
        ("severity", pa.int64()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)

_WORDS = {
    "bad_lighting": "bad lighting",
    "fastfading": "fast fading",
    "gblur": "gaussian blur",
    "jp2k": "JPEG 2000 compression",
    "jpeg": "JPEG compression",
    "wn": "white noise",
    "motion_blur": "motion blur",
}
_SEVERITIES = ("just visible", "slight", "moderate", "strong", "severe")


def parts_folder(key: str) -> str:
    """Where the workspace keeps what a model found."""
    return f"distortions/model={key}"


def read_found(workspace: Workspace, images: pa.Table, key: str) -> pa.Table:
    """What a model found in `images` as they are now, row for row; nulls where it has not looked.

    Args:
        workspace: of the images.
        images: image_id, size_bytes and mtime_ns, as listed.
        key: of the model.

    Returns:
        The columns of DISTORTIONS_SCHEMA.
    """
    parts = workspace.parts(parts_folder(key))
    return parts.read_listed(make_fingerprints(images, key), DISTORTIONS_SCHEMA)


def read_looks(workspace: Workspace) -> pd.Series[str] | None:
    """What each image looks like in words, by image id; empty where it looks fine or is unknown.

    Only images that are as they were when the model looked at them have any. None where
    `distortions apply` was never run.
    """
    record = workspace.read_record(DISTORTIONS_FILE)
    if record is None or "model" not in record:
        return None
    images = workspace.read_table(IMAGES_FILE, "score IMAGES")
    found = read_found(workspace, images, str(record["model"]))
    columns = (found.column(name).to_pylist() for name in DISTORTIONS_SCHEMA.names[2:5])
    looks = [describe_look(*cells) for cells in zip(*columns, strict=True)]
    return pd.Series(looks, images.column("image_id").to_pylist(), dtype=object)


def describe_look(distortion: str | None, probability: float | None, severity: int | None) -> str:
    """Such as `looks like gaussian blur, severe (0.93)`; empty for no distortion, or none known."""
    if distortion not in _WORDS or probability is None or severity is None:
        return ""
    return f"looks like {_WORDS[distortion]}, {_SEVERITIES[severity - 1]} ({probability:.2f})"
