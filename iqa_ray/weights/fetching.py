"""Fetching files of networks from the network into a weights folder."""

from __future__ import annotations

import re
import tempfile
import threading
from pathlib import Path

import pyarrow as pa

from iqa_ray.errors import UsageError
from iqa_ray.progress import Progress, log
from iqa_ray.storage.files import Location, one_line, write_bytes
from iqa_ray.weights.files import (
    NETWORK_ERRORS,
    WeightFile,
    explain,
    hash_stream,
    name_file,
    open_url,
)

_MEGABYTE = 1_000_000
_PROBE_TIMEOUT_S = 5.0
_FULL_HASH = re.compile(r"^[0-9a-f]{64}$")


def find_network_trouble(url: str) -> str | None:
    """Why the file at `url` cannot be had; None if it can. Takes _PROBE_TIMEOUT_S at most."""
    answer: list[str | None] = []

    def ask() -> None:
        try:
            open_url(url).close()
            answer.append(None)
        except NETWORK_ERRORS as error:
            answer.append(explain(error))

    # looking a host's name up knows no timeout
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_TIMEOUT_S)
    return answer[0] if answer else "no answer"


def fetch_file(url: str, folder: Location) -> WeightFile:
    """Fetch the file at `url` into a weights folder.

    Raises:
        UsageError: it cannot be had, came damaged, or the folder cannot be written.
    """
    name = name_file(url)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "file"
        try:
            with open_url(url) as stream, open(path, "wb") as target:
                total = int(getattr(stream, "headers", {}).get("Content-Length") or 0)
                with Progress(total // _MEGABYTE, name, "MB") as progress:
                    left = 0

                    def keep(chunk: bytes) -> None:
                        nonlocal left
                        target.write(chunk)
                        done, left = divmod(left + len(chunk), _MEGABYTE)
                        progress.update(done)

                    entry = WeightFile(name, url, *hash_stream(stream, keep))
        except NETWORK_ERRORS as error:
            raise UsageError(f"cannot fetch {name} from {url}: {explain(error)}") from None
        promised = [part for part in url.split("/") if _FULL_HASH.match(part)]
        if (total and entry.bytes != total) or (promised and entry.sha256 not in promised):
            raise UsageError(f"{url} came damaged: {entry.bytes:,} bytes; run the same again")
        try:
            with pa.memory_map(str(path)) as content:
                write_bytes(folder / name, content.read_buffer())
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"--to {folder}: cannot write there: {one_line(error)}") from None
    log(f"{name}: {entry.bytes:,} bytes, SHA-256 {entry.sha256}")
    return entry
