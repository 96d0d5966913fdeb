"""Which files a deep metric needs, and its network built from this node's copies of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from iqa_ray.errors import UsageError
from iqa_ray.storage.files import Location
from iqa_ray.weights import pyiqa_builder
from iqa_ray.weights.files import (
    WeightFile,
    describe_file,
    has_file,
    name_file,
    open_node_copy,
    read_lock,
)


@dataclass(frozen=True)
class Weights:
    """A metric's files, in the order in which pyiqa asks for them, and where they are.

    `folder` is None where each node fetches them from the network itself.
    """

    metric: str
    files: tuple[WeightFile, ...]
    folder: str | None


class MissingFileError(UsageError):
    """A file that a metric needs is not in the folder."""

    def __init__(self, url: str) -> None:
        super().__init__(f"{name_file(url)} is missing")
        self.url = url


def find_pyiqa_version() -> str:
    """The installed pyiqa's version.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return version("pyiqa")
    except PackageNotFoundError:
        raise UsageError(
            "this metric needs pyiqa: `pip install 'iqa_ray[deep]'` (its licence is PolyForm "
            "Noncommercial)"
        ) from None


def list_urls(metric: str, folder: Location) -> tuple[list[str], list[str]]:
    """Addresses of the files that a metric needs, and those of them that the folder lacks.

    Where pyiqa does not tell all of them before it has the first (CLIP's networks take their
    shape from the file), the list of missing ones may grow when those are there.
    """
    lock = read_lock(folder)
    if lock and metric in lock.metrics and lock.pyiqa == find_pyiqa_version():
        urls = [lock.files[name].url for name in lock.metrics[metric]]
        return urls, _pick_missing(folder, urls)
    urls, is_complete = pyiqa_builder.trace_files(metric)
    missing = _pick_missing(folder, urls)
    if is_complete or missing:
        return urls, missing
    urls = []

    def find(url: str) -> Path:
        urls.append(url)
        if not has_file(folder, name_file(url)):
            raise MissingFileError(url)
        return open_node_copy(describe_file(folder, url), str(folder))

    try:
        pyiqa_builder.build_network(metric, find)
    except MissingFileError as error:
        missing.append(error.url)
    return list(dict.fromkeys(urls)), missing


def _pick_missing(folder: Location, urls: Iterable[str]) -> list[str]:
    return [url for url in urls if not has_file(folder, name_file(url))]


def build_model(weights: Weights) -> Any:
    """Build pyiqa's network from this node's copies (see `loading.build_network`)."""
    entries = {entry.name: entry for entry in weights.files}

    def find(url: str) -> Path:
        name = name_file(url)
        if name not in entries:
            raise UsageError(
                f"pyiqa {find_pyiqa_version()} asks for {name} for {weights.metric}, which the "
                "weights folder was not made for: run `iqa-ray weights pull` again"
            )
        return open_node_copy(entries[name], weights.folder)

    return pyiqa_builder.build_network(weights.metric, find)
