"""The selected subset as files: a list of what is kept, and a folder ready for ImageFolder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd

from iqa_ray.errors import UsageError
from iqa_ray.files import read_bytes
from iqa_ray.images import locate_image

UNLABELLED = "unlabelled"
# what says that a folder of links is ours to renew
_MARKER = ".iqa-ray-links"


def list_kept(selection: pd.DataFrame) -> str:
    """The kept images as CSV: path, label, image_id."""
    kept = selection.loc[selection["keep"], ["path", "label", "image_id"]]
    return str(kept.to_csv(index=False))


def link_kept(
    selection: pd.DataFrame, folder: str, *, copy: bool = False, options: str = ""
) -> int:
    """Make `folder/<label>/<name>` for every kept image, as torchvision's ImageFolder reads it.

    Local images are linked (absolute symbolic links), or copied with `copy`; images of an object
    store are copied. A folder that an earlier call made is renewed. Returns the number of files.

    Raises:
        UsageError: the folder holds other things, or cannot be written.
    """
    target = Path(folder).expanduser().absolute()
    try:
        _clear_links(target)
        taken: set[str] = set()
        kept = selection.loc[selection["keep"]]
        for path, label, image_id in zip(
            kept["path"], kept["label"], kept["image_id"], strict=True
        ):
            name = _unused_name(label, path, image_id, taken)
            file = target / name
            file.parent.mkdir(exist_ok=True)
            _place(path, file, copy, options)
    except OSError as error:
        raise UsageError(f"--link {folder}: {error.strerror}: {error.filename}") from None
    return len(taken)


def _clear_links(target: Path) -> None:
    marker = target / _MARKER
    if target.exists() and not marker.exists() and any(target.iterdir()):
        raise UsageError(f"--link {target} is not empty and was not made by iqa-ray: give another")
    if marker.exists():
        for entry in target.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
    target.mkdir(parents=True, exist_ok=True)
    marker.write_text(
        "made by iqa-ray select --link, which empties this folder when it runs again\n"
    )


def _unused_name(label: object, path: str, image_id: str, taken: set[str]) -> str:
    folder = label if isinstance(label, str) and label else UNLABELLED
    folder = folder.replace("/", "_").replace("\0", "_")
    if folder.startswith("."):  # neither `..` nor a class that nobody sees
        folder = "_" + folder[1:]
    stem, extension = os.path.splitext(os.path.basename(path))
    name = f"{folder}/{stem}{extension}"
    if name in taken:
        name = f"{folder}/{stem}-{image_id}{extension}"
    taken.add(name)
    return name


def _place(path: str, file: Path, copy: bool, options: str) -> None:
    source = locate_image(path, options)
    if not source.is_local:
        file.write_bytes(read_bytes(source))
    elif copy:
        shutil.copy2(source.path, file)
    else:
        file.symlink_to(source.path)
