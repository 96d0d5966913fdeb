"""The files of tables: Parquet with a record in the metadata; parts have a fingerprint a row."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet as pq

from iqa_ray.errors import UsageError
from iqa_ray.storage.files import Location, one_line, parse_parquet, read_whole

Fingerprints = NDArray[np.uint64]

_METADATA_KEY = b"iqa_ray"


def to_parquet(table: pa.Table, record: Mapping[str, Any] | None = None) -> pa.Buffer:
    """The bytes of a Parquet file of `table`, with `record` in its metadata."""
    if record is not None:
        metadata = dict(table.schema.metadata or {})
        metadata[_METADATA_KEY] = json.dumps(record).encode()
        table = table.replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def to_part(table: pa.Table, fingerprints: Fingerprints, settings: str) -> pa.Buffer:
    """The bytes of a part: rows, their fingerprints and the settings that made them."""
    encoded = base64.b64encode(fingerprints.tobytes()).decode()
    return to_parquet(table, {"settings": settings, "fingerprints": encoded})


def record_of(schema: pa.Schema) -> dict[str, Any]:
    """The record in a file's metadata."""
    return dict(json.loads((schema.metadata or {}).get(_METADATA_KEY, b"{}")))


def settings_of(schema: pa.Schema) -> str:
    """The settings that made a part's rows."""
    return str(record_of(schema)["settings"])


def fingerprints_of(schema: pa.Schema) -> Fingerprints:
    """One a row of a part."""
    encoded = str(record_of(schema).get("fingerprints", ""))
    return np.frombuffer(base64.b64decode(encoded), np.uint64)


@contextmanager
def refuse_damaged(file: Location) -> Iterator[None]:
    """Around the parsing of a file's bytes.

    Raises:
        UsageError: they are damaged, as those of a copy that was broken off; says what to do.
    """
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UsageError(
            f"cannot read {file}: {one_line(error)}; remove it and run again what made it"
        ) from None


def read_part(file: Location, columns: Sequence[str] | None = None) -> pa.Table:
    """A part's rows. Raises as `refuse_damaged`."""
    data = read_whole(file)
    with refuse_damaged(file):
        return parse_parquet(data, columns)


def read_fingerprints(file: Location) -> Fingerprints:
    """One a row of a part. Raises as `refuse_damaged`."""
    data = read_whole(file)
    with refuse_damaged(file):
        return fingerprints_of(pq.read_schema(pa.BufferReader(data)))


def contains(ordered: Fingerprints, wanted: Fingerprints) -> NDArray[np.bool_]:
    """(n,) which of `wanted` are in `ordered`, which is sorted."""
    if not len(ordered):
        return np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.asarray(ordered[places] == wanted)


def choose_one_each(ids: pa.ChunkedArray, is_preferred: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n,) one row of each id: the first that is preferred or, without one, the first."""
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(~is_preferred, kind="stable")
    _, first = np.unique(codes[order], return_index=True)
    chosen = np.zeros(len(codes), bool)
    chosen[order[first]] = True
    return chosen
