"""What changed between two listings of a data set: new, changed, moved and deleted images.

It takes two steps, so that no image is opened without need. `compare_listings` goes by id, size
and modification time alone; `find_candidates` names the few images whose content hash decides;
`resolve_changes` takes those hashes and puts every image in one class. Pure: tables in, tables out.

An image that cannot be shown to be as it was counts as new or changed: to score it once more costs
seconds, to keep the score of other pixels would be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute as pc

Mask = NDArray[np.bool_]

_PREVIOUS_SIZE = "previous_size"
_PREVIOUS_HASH = "previous_hash"


@dataclass(frozen=True)
class Changes:
    """What two listings say, before any image is opened. Rows keep the order of their listing.

    Attributes:
        unchanged: rows of the present listing with the size and time of before.
        touched: rows of the present listing with another size or time, or with one that is not
            known; and previous_size, previous_hash (as they were before, null where not known).
        new: rows of the present listing whose id was not listed before.
        gone: rows of the former listing whose id is not listed now; and previous_hash.
    """

    unchanged: pa.Table
    touched: pa.Table
    new: pa.Table
    gone: pa.Table


@dataclass(frozen=True)
class ResolvedChanges:
    """Every image in one class.

    Each row of the present listing is in one of the first five tables, each row of the former one
    in unchanged, retouched, changed, deleted or, by previous_id, moved.

    Attributes:
        unchanged: size and time as before.
        retouched: another size or time on record, but the same content: the score stands.
        changed: the content is another, or not known to be the same.
        new: not listed before, and not moved.
        moved: the content of an image that is gone, at another path; and previous_id,
            previous_path.
        deleted: rows of the former listing that are gone and have not moved.
    """

    unchanged: pa.Table
    retouched: pa.Table
    changed: pa.Table
    new: pa.Table
    moved: pa.Table
    deleted: pa.Table


def compare_listings(before: pa.Table, now: pa.Table, hashes_before: pa.Table) -> Changes:
    """Compare two listings by id, size and modification time.

    A size and time that are both missing, then as now, are those of a file that was not there and
    is not there: unchanged. A time that is missing where there is a size proves nothing: touched.

    Args:
        before: the former listing (IMAGES_SCHEMA), each image_id once.
        now: the present listing, likewise.
        hashes_before: image_id (once each) and content_hash, both text, of images when they were
            last read; null or absent for one that could not be read.
    """
    places = _find(now, before)
    listed = places >= 0
    kept, former = now.filter(pa.array(listed)), before.take(pa.array(places[listed]))
    same = _have_same_stat(kept, former)
    touched = kept.append_column(_PREVIOUS_SIZE, former.column("size_bytes"))
    touched = touched.append_column(_PREVIOUS_HASH, _look_up(touched, hashes_before))
    gone = before.filter(pa.array(_all_but(before.num_rows, places[listed])))
    return Changes(
        unchanged=kept.filter(pa.array(same)),
        touched=touched.filter(pa.array(~same)),
        new=now.filter(pa.array(~listed)),
        gone=gone.append_column(_PREVIOUS_HASH, _look_up(gone, hashes_before)),
    )


def find_candidates(changes: Changes) -> pa.Table:
    """The images whose content hash `resolve_changes` has use for: rows of the present listing.

    Content of another size is other content, and without a hash of before there is nothing to
    compare with. So these are the touched images of unchanged size, and the new ones of the size
    of some image that is gone, where the former hash is known.
    """
    touched, gone = changes.touched, changes.gone
    same_size = pc.equal(touched.column("size_bytes"), touched.column(_PREVIOUS_SIZE))
    is_open = pc.and_(pc.fill_null(same_size, False), pc.is_valid(touched.column(_PREVIOUS_HASH)))
    known = gone.filter(pc.is_valid(gone.column(_PREVIOUS_HASH)))
    sizes = known.column("size_bytes").drop_null().combine_chunks()
    may_have_moved = pc.is_in(changes.new.column("size_bytes"), value_set=sizes)
    touched = touched.filter(is_open).select(changes.new.column_names)
    return pa.concat_tables([touched, changes.new.filter(may_have_moved)])


def resolve_changes(changes: Changes, hashes_now: pa.Table) -> ResolvedChanges:
    """Put every image in one class, once the contents of the candidates are known.

    Only a new path can be where an image has moved to: when two files swap their names both have
    changed, and a file that was replaced by a moved one has changed while the moved one's former
    path is deleted. A copy of an image that is still there is new. Each image that is gone is
    claimed by one new image at most; among several of the same content, those of the same file
    name belong together, the rest in the order of the two listings.

    Args:
        changes: what `compare_listings` returns.
        hashes_now: image_id (once each) and content_hash, both text, of `find_candidates`; null or
            absent for one that could not be read, which is then new or changed.
    """
    touched, new, gone = changes.touched, changes.new, changes.gone
    hashes = _look_up(touched, hashes_now)
    same = pc.fill_null(pc.equal(hashes, touched.column(_PREVIOUS_HASH)), False)
    touched = touched.select(new.column_names)
    targets, sources = _pair_moved(new, _look_up(new, hashes_now), gone)
    left = gone.select(new.column_names)
    origins = left.take(pa.array(sources))
    moved = new.take(pa.array(targets))
    moved = moved.append_column("previous_id", origins.column("image_id"))
    moved = moved.append_column("previous_path", origins.column("path"))
    return ResolvedChanges(
        unchanged=changes.unchanged,
        retouched=touched.filter(same),
        changed=touched.filter(pc.invert(same)),
        new=new.filter(pa.array(_all_but(new.num_rows, targets))),
        moved=moved,
        deleted=left.filter(pa.array(_all_but(left.num_rows, sources))),
    )


def _find(wanted: pa.Table, table: pa.Table) -> NDArray[np.int64]:
    """The row of `table` that each image of `wanted` has; -1 where it has none."""
    ids = table.column("image_id").combine_chunks()
    places = pc.index_in(wanted.column("image_id"), value_set=ids)
    return np.asarray(pc.fill_null(places, -1).to_numpy(), np.int64)


def _look_up(images: pa.Table, hashes: pa.Table) -> pa.ChunkedArray:
    """The content hash of each of `images`; null where there is none."""
    places = _find(images, hashes)
    return hashes.column("content_hash").take(pa.array(places, mask=places < 0))


def _have_same_stat(now: pa.Table, before: pa.Table) -> Mask:
    known: Mask = np.ones(now.num_rows, bool)
    absent: Mask = np.ones(now.num_rows, bool)
    for name in ("size_bytes", "mtime_ns"):
        present, former = now.column(name), before.column(name)
        known &= pc.fill_null(pc.equal(present, former), False).to_numpy()
        absent &= pc.is_null(present).to_numpy() & pc.is_null(former).to_numpy()
    return known | absent


def _pair_moved(
    new: pa.Table, hashes: pa.ChunkedArray, gone: pa.Table
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of `new`, ascending, and for each the row of `gone` that has moved there."""
    former = pc.unique(gone.column(_PREVIOUS_HASH)).drop_null()
    shared = former.filter(pc.is_in(former, value_set=pc.unique(hashes)))
    targets = _keep_shared(new, hashes, shared)
    sources = _keep_shared(gone, gone.column(_PREVIOUS_HASH), shared)
    by_name = _pair(targets, sources, ["content", "name"])
    targets = targets[~targets["row"].isin(by_name["row_new"])]
    sources = sources[~sources["row"].isin(by_name["row_gone"])]
    pairs = pd.concat([by_name, _pair(targets, sources, ["content"])]).sort_values("row_new")
    return pairs["row_new"].to_numpy(np.int64), pairs["row_gone"].to_numpy(np.int64)


def _keep_shared(images: pa.Table, hashes: pa.ChunkedArray, shared: pa.Array) -> pd.DataFrame:
    """row, content (its place in `shared`) and name of the images whose hash is shared.

    The name is a 64-bit hash of the file name: integers pair faster than text, and a collision
    would do no more than prefer one of several images of the same content.
    """
    places = pc.index_in(hashes, value_set=shared)
    rows = np.flatnonzero(pc.is_valid(places))
    paths = images.column("path").take(pa.array(rows))
    names = pc.replace_substring_regex(paths, pattern="(?s)^.*/", replacement="")
    hashed = pd.util.hash_array(names.to_pandas().to_numpy(), categorize=False)
    return pd.DataFrame({"row": rows, "content": places.drop_null().to_numpy(), "name": hashed})


def _pair(targets: pd.DataFrame, sources: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """row_new and row_gone: the first of each side that agree in `keys`, the second, and so on."""
    targets = targets.assign(turn=targets.groupby(keys).cumcount())
    sources = sources.assign(turn=sources.groupby(keys).cumcount())
    pairs = targets.merge(sources, on=[*keys, "turn"], suffixes=("_new", "_gone"))
    return pairs[["row_new", "row_gone"]]


def _all_but(num_rows: int, rows: NDArray[np.int64]) -> Mask:
    mask = np.ones(num_rows, bool)
    mask[rows] = False
    return mask
