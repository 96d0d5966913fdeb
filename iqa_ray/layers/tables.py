"""What `layers` writes into the workspace: names of its files, and columns of its table."""

from __future__ import annotations

import pyarrow as pa

FOLDER = "layers"
LAYERS_FILE = f"{FOLDER}/layers.parquet"
FINDINGS_FILE = f"{FOLDER}/findings.json"
FIGURE_FILE = f"{FOLDER}/layers.png"
ALL = "all"  # stands for the mean over all distortions and levels; its level is null

# A row a layer, dropout inactive or active, distortion and level.
LAYERS_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("depth", pa.int64()),  # 1 ran first
        ("kind", pa.string()),  # such as Conv2d
        ("dropout", pa.bool_()),  # whether it was active
        ("distortion", pa.string()),
        ("level", pa.int64()),
        ("num_images", pa.int64()),
        *(
            (f"{name}{end}", pa.float64())
            for name in ("distance", "cka", "srcc_loss")
            for end in ("", "_low", "_high")
        ),
    ]
)


def parts_folder(key: str) -> str:
    """Where the workspace keeps what was measured in the network of the hash `key`."""
    return f"{FOLDER}/measures/network={key}"
