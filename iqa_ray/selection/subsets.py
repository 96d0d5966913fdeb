"""The selected subset as files: a list of what is kept, and a folder ready for ImageFolder."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Container, Mapping
from pathlib import Path

import pandas as pd

from iqa_ray.errors import UsageError
from iqa_ray.images.folders import LINKS_MARKER
from iqa_ray.images.listing import locate_image
from iqa_ray.progress import log
from iqa_ray.storage.files import Location, locate, one_line, read_bytes, write_bytes
from iqa_ray.storage.object_stores import UnansweredError

KEPT_FILE = "kept.csv"
UNLABELLED = "unlabelled"
# a spreadsheet runs a cell that begins so, unless it is a number
_RISKY = re.compile(r"(?![+-](\d+\.?\d*|\.\d+)(e[+-]?\d+)?\Z)[=+\-@\t\r\n]", re.IGNORECASE)


def list_kept(selection: pd.DataFrame) -> str:
    """The kept images as CSV: path, label, image_id.

    A label that a spreadsheet would run as a formula has a `'` before it. Paths are for programs
    and stay as they are: they begin with `/` or the name of a store, which no spreadsheet runs.
    All cells are quoted, so that neither a carriage return nor a `;` in a path begins another.
    """
    kept = selection.loc[selection["keep"], ["path", "label", "image_id"]]
    kept = kept.assign(label=kept["label"].map(_defuse))
    return str(kept.to_csv(index=False, quoting=csv.QUOTE_ALL))


def _defuse(label: object) -> object:
    return f"'{label}" if isinstance(label, str) and _RISKY.match(label) else label


def link_kept(
    selection: pd.DataFrame, folder: str, *, copy: bool = False, options: str = ""
) -> int:
    """Make `folder/<label>/<name>` for every kept image, as torchvision's ImageFolder reads it.

    Local images are linked (absolute symbolic links), or copied with `copy`; images of an object
    store are copied. A folder that an earlier call made is renewed: what that call wrote, which a
    file in the folder lists, is removed, and nothing else. Returns the number of files.

    Raises:
        UsageError: the folder is in an object store, holds other things, or cannot be written.
        UnansweredError: the images' object store failed on every try.
    """
    location = locate(folder)
    if not location.is_local:
        raise UsageError(
            f"--link makes a local folder, not one in {location.prefix}: give such a folder; "
            f"{KEPT_FILE} in the workspace lists the same images"
        )
    target = Path(location.path)
    sources = _name_files(selection)
    try:
        written = _find_written(target)
        for name in sources:
            if os.path.lexists(target / name) and name not in written:
                raise UsageError(f"--link did not write {target / name}: move that file away")
        _remove(target, written)
        links = {name: _link_to(path, copy) for name, path in sources.items()}
        _record(target, links)
        for name, link in links.items():
            (target / name).parent.mkdir(exist_ok=True)
            _place(locate_image(sources[name], options), target / name, link)
    except UnansweredError:
        raise
    except OSError as error:
        raise UsageError(f"--link {target}: {one_line(error)}") from None
    return len(sources)


def _name_files(selection: pd.DataFrame) -> dict[str, str]:
    """The path of every kept image by the name of its file below the folder."""
    named: dict[str, str] = {}
    kept = selection.loc[selection["keep"]]
    for path, label, image_id in zip(kept["path"], kept["label"], kept["image_id"], strict=True):
        named[_unused_name(label, path, image_id, named)] = path
    return named


def _unused_name(label: object, path: str, image_id: str, taken: Container[str]) -> str:
    folder = label if isinstance(label, str) and label else UNLABELLED
    folder = folder.replace("/", "_").replace("\0", "_")
    if folder.startswith("."):  # neither `..` nor a class that nobody sees
        folder = "_" + folder[1:]
    stem, extension = os.path.splitext(os.path.basename(path))
    name = f"{folder}/{stem}{extension}"
    return f"{folder}/{stem}-{image_id}{extension}" if name in taken else name


def _find_written(target: Path) -> set[str]:
    """Names of the files below `target` that an earlier call wrote, where they are as it did.

    Raises:
        UsageError: other things are there, and no list of what was written.
    """
    try:
        content = (target / LINKS_MARKER).read_bytes()
    except FileNotFoundError:
        if target.exists() and any(target.iterdir()):
            raise UsageError(
                f"--link {target} is not empty and was not made by iqa-ray: give another"
            ) from None
        return set()
    try:
        links: dict[str, str | None] = json.loads(content)["links"]
        is_list = all(_is_name(name) for name in links)
    except (ValueError, TypeError, KeyError):
        is_list = False
    if not is_list:
        raise UsageError(
            f"--link {target} has no list of what was written into it, as older versions kept "
            "none: remove the folder if nothing in it is yours, or give another"
        )
    return {name for name, link in links.items() if _is_written(target / name, link)}


def _is_name(name: str) -> bool:
    """Whether a name is one of `_unused_name`, and not of a file elsewhere."""
    folder, _, file = name.partition("/")
    return not folder.startswith(".") and file not in {"", ".", ".."} and "/" not in file


def _is_written(file: Path, link: str | None) -> bool:
    if file.is_symlink():
        return os.readlink(file) == link
    return link is None and file.is_file()


def _remove(target: Path, written: set[str]) -> None:
    for name in written:
        (target / name).unlink()
    for folder in {(target / name).parent for name in written}:
        if any(folder.iterdir()):
            log(f"{folder} also holds what --link did not write: it stays there")
        else:
            folder.rmdir()


def _record(target: Path, links: Mapping[str, str | None]) -> None:
    """List what is going to be written, so that a run that is killed leaves nothing unlisted."""
    note = "made by iqa-ray select --link, which removes these files when it runs again"
    content = json.dumps({"note": note, "links": links}, ensure_ascii=False, indent=1)
    write_bytes(locate(target / LINKS_MARKER), content.encode())


def _link_to(path: str, copy: bool) -> str | None:
    """Where the link to an image leads; None for one that is copied."""
    source = locate_image(path)
    return source.path if source.is_local and not copy else None


def _place(source: Location, file: Path, link: str | None) -> None:
    if link is not None:
        file.symlink_to(link)
    elif source.is_local:
        shutil.copy2(source.path, file)
    else:
        file.write_bytes(read_bytes(source))
