"""The tables of the study: where they lie in the workspace, and their columns."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from iqa_ray.study.verdicts import STUDY_FOLDER

TABLE_FILE = f"{STUDY_FOLDER}/table.parquet"
SCORES_FILE = f"{STUDY_FOLDER}/series_scores.parquet"
AGREEMENT_FILE = f"{STUDY_FOLDER}/agreement.parquet"
SERIES_FILE = f"{STUDY_FOLDER}/series.parquet"
MANIFEST_FILE = f"{STUDY_FOLDER}/manifest.parquet"

# `table.parquet`: what `summarise` returns, and the metric's verdict with its reason
TABLE_SCHEMA = pa.schema(
    [
        ("metric", pa.string()),
        ("configuration", pa.string()),
        *(
            (f"{name}{suffix}", pa.float64())
            for name in ("pcc", "srcc")
            for suffix in ("", "_std", "_low", "_high")
        ),
        ("srcc_quality", pa.float64()),
        ("pcc_of_mean", pa.float64()),
        ("srcc_of_mean", pa.float64()),
        ("monotone_share", pa.float64()),
        ("num_samples", pa.int64()),
        ("num_undefined", pa.int64()),
        ("num_too_few", pa.int64()),
        ("num_images", pa.int64()),
        ("num_failed", pa.int64()),
        ("num_constant", pa.int64()),
        *((name, pa.float64()) for name in ("effect", "effect_low", "effect_high")),
        ("num_effects", pa.int64()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
    ]
)

# `series.parquet`: the images of the series that were made, by their paths in the workspace
SERIES_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("sample", pa.string()),
        ("index", pa.int64()),
        ("configuration", pa.string()),
    ]
)

# `manifest.parquet`: the images to be scored, each once
MANIFEST_SCHEMA = pa.schema([("path", pa.string())])


def scores_schema(index: pa.DataType) -> pa.Schema:
    """`series_scores.parquet`: a row a metric and image; a user's `index` may have fractions."""
    place = SERIES_SCHEMA.get_field_index("index")
    return pa.schema(
        [
            *SERIES_SCHEMA.set(place, pa.field("index", index)),
            ("score", pa.float64()),
            ("status", pa.string()),
            ("error", pa.string()),
            ("metric", pa.string()),
        ]
    )


def agreement_schema(metrics: Sequence[str]) -> pa.Schema:
    """`agreement.parquet`: what `measure_agreement` returns, a row and a column a metric."""
    return pa.schema([("metric", pa.string()), *((name, pa.float64()) for name in metrics)])
