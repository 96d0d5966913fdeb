"""The workspace: its tables, records and configurations; tables kept as parts are in `parts`."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml
from pyarrow import parquet as pq

from iqa_ray.config import Job, dump_settings
from iqa_ray.errors import UsageError
from iqa_ray.storage.files import (
    check_writable,
    is_file,
    list_files,
    locate,
    one_line,
    parse_parquet,
    read_whole,
    write_bytes,
)
from iqa_ray.storage.parquet import record_of, refuse_damaged, to_parquet
from iqa_ray.storage.parts import Parts

if TYPE_CHECKING:
    import pandas as pd

_CONFIGS = "configs"


class Workspace:
    """A folder or URI that holds a data set's tables (see docs/architecture.md)."""

    def __init__(self, uri: str) -> None:
        self.location = locate(uri)

    def __str__(self) -> str:
        return str(self.location)

    def prepare(self) -> None:
        """Make sure that the workspace can be written.

        Raises:
            UsageError: it cannot.
        """
        check_writable(self.location, "--workspace")

    def check_exists(self) -> None:
        """Make sure that this is a workspace: some job has left its configuration there.

        Raises:
            UsageError: it is not.
        """
        if not list_files(self.location / _CONFIGS, ".yaml"):
            raise UsageError(
                f"{self} is not a workspace: it has no {_CONFIGS}/, which every job writes"
            )

    # --- whole tables -------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether the file `name` exists."""
        return is_file(self.location / name)

    def read_table(self, name: str, made_by: str, schema: pa.Schema | None = None) -> pa.Table:
        """Read `name` (such as `images.parquet`), whose columns `schema` lists at least.

        Raises:
            UsageError: it is not there, damaged, or lacks a column; says that `iqa-ray <made_by>`
                makes it.
        """
        file = self.location / name
        try:
            data = read_whole(file)
        except FileNotFoundError:
            raise UsageError(
                f"{self} has no {name}: run `iqa-ray {made_by} … --workspace {self}` first"
            ) from None
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"cannot read {file}: {one_line(error)}") from None
        with refuse_damaged(file):
            table = parse_parquet(data)
        if schema is not None:
            self.check_columns(name, table, made_by, schema)
        return table

    def check_columns(self, name: str, table: pa.Table, made_by: str, schema: pa.Schema) -> None:
        """Make sure that `table`, read from `name`, has the columns of `schema` at least.

        Raises:
            UsageError: it lacks one; says that `iqa-ray <made_by>` makes it.
        """
        for column in schema.names:
            if column not in table.column_names:
                raise UsageError(
                    f"{self.location / name} has no column {column!r}: remove it and run `iqa-ray "
                    f"{made_by} … --workspace {self}`"
                )

    def write_table(
        self, name: str, table: pa.Table, record: Mapping[str, Any] | None = None
    ) -> None:
        """Write `table` whole or not at all, with `record` in its metadata."""
        write_bytes(self.location / name, to_parquet(table, record))

    def write_frame(
        self,
        name: str,
        frame: pd.DataFrame,
        schema: pa.Schema,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        """Write `frame`, less its index, as `write_table` does; its columns are `schema`'s."""
        assert list(frame.columns) == schema.names, f"{list(frame.columns)} in {name}"
        # pandas makes numbers of a column without values, which may be one of texts or lists
        numbers = frame.select_dtypes("float64")
        frame = frame.astype(dict.fromkeys(numbers.columns[numbers.isna().all()], object))
        table = pa.Table.from_pandas(frame, schema, preserve_index=False)
        self.write_table(name, table, record)

    def read_record(self, name: str) -> dict[str, Any] | None:
        """The record in the metadata of table `name`; None if there is no such table.

        Raises:
            UsageError: it is damaged.
        """
        if not self.has(name):
            return None
        data = read_whole(self.location / name)
        with refuse_damaged(self.location / name):
            return record_of(pq.read_schema(pa.BufferReader(data)))

    def read_json(self, name: str, made_by: str) -> dict[str, Any]:
        """Read a JSON object.

        Raises:
            UsageError: it is not there or not an object; says that `iqa-ray <made_by>` makes it.
        """
        remedy = f"remove it and run `iqa-ray {made_by} --workspace {self}` again"
        try:
            loaded = json.loads(read_whole(self.location / name))
        except UsageError:  # a ValueError too, which says what is wrong with the store
            raise
        except FileNotFoundError:
            raise UsageError(
                f"{self} has no {name}: run `iqa-ray {made_by} --workspace {self}` first"
            ) from None
        except ValueError as error:
            raise UsageError(
                f"{self.location / name} is not JSON: {one_line(error)}; {remedy}"
            ) from None
        if not isinstance(loaded, dict):
            raise UsageError(f"{self.location / name} must hold a JSON object; {remedy}")
        return loaded

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON object whole or not at all."""
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        write_bytes(self.location / name, text.encode() + b"\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file whole or not at all."""
        write_bytes(self.location / name, text.encode())

    def record_config(self, name: str, job: Job) -> None:
        """Keep the resolved configuration of a run: `configs/<job>-<utc>.yaml`."""
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
        self.write_text(f"{_CONFIGS}/{name}-{now}.yaml", dump_settings(job))

    def read_configs(self, name: str) -> Iterator[dict[str, Any]]:
        """The settings of a job's runs, the last one first.

        Raises:
            UsageError: it was never run.
        """
        files = [
            file
            for file in list_files(self.location / _CONFIGS, ".yaml")
            if posixpath.basename(file.path).startswith(f"{name}-")
        ]
        if not files:
            raise UsageError(f"{self} has no record of `iqa-ray {name}`: run it once first")
        for file in reversed(files):
            yield dict(yaml.safe_load(read_whole(file)))

    def parts(self, name: str) -> Parts:
        """The table that is kept as parts below the folder `name`."""
        return Parts(self.location / name, self.location)


def list_parts_folders(workspace: Workspace) -> list[str]:
    """The folders in a workspace that hold parts, such as `scores/metric=lapm/version=1`."""
    base = workspace.location.path.strip("/") + "/"
    files = list_files(workspace.location, ".parquet")
    # some stores of fsspec list paths that begin with a slash
    names = [file.path.lstrip("/").removeprefix(base) for file in files]
    return sorted(
        {posixpath.dirname(n) for n in names if posixpath.basename(n).startswith("part-")}
    )
