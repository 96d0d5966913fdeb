"""What a night finds: the present listing, what changed since, and which scores stay."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property

import pyarrow as pa
from pyarrow import compute as pc

from iqa_ray.images.listing import Listing
from iqa_ray.images.settings import LabelMode
from iqa_ray.images.source import ImageSource
from iqa_ray.rescoring.changes import (
    Changes,
    ResolvedChanges,
    compare_listings,
    find_candidates,
    resolve_changes,
)
from iqa_ray.rescoring.history import add_hashes, read_listing
from iqa_ray.scoring.tables import (
    SCORES_SCHEMA,
    ListedScores,
    find_spec,
    open_parts,
    scored_metrics,
)
from iqa_ray.storage.files import locate
from iqa_ray.storage.workspace import Workspace

CLASSES = ("new", "changed", "moved", "deleted", "retouched", "unchanged")
_STATUS = pa.schema([SCORES_SCHEMA.field("status")])


@dataclass(frozen=True)
class Night:
    """What was found at the beginning of a night.

    Attributes:
        started: when.
        listing: the images that are there now.
        changes: since the last night or, before the first, since `score`.
        contents: image_id, path, content_hash (null where it is not known) and source_id of each
            listed image: the image whose scores it may take, itself or the one that moved there.
    """

    started: datetime
    listing: Listing
    changes: ResolvedChanges
    contents: pa.Table

    @property
    def counts(self) -> dict[str, int]:
        return {f"num_{name}": getattr(self.changes, name).num_rows for name in CLASSES}

    @cached_property
    def tonight(self) -> pa.Array:
        """Ids of the images that are new or have changed."""
        tables = [self.changes.new, self.changes.changed]
        return pa.concat_tables(tables).column("image_id").combine_chunks()


def begin_night(workspace: Workspace, images: str, labels: LabelMode) -> Night:
    """List the images and find out what changed, opening only those whose content decides.

    Raises:
        UsageError: nothing was scored before, or there are no images.
    """
    started = datetime.now(timezone.utc).replace(microsecond=0)
    scored = ListedScores(workspace)
    at_score = add_hashes(scored.images, scored.read_hashes())
    source = ImageSource(locate(images))
    listing = source.list(labels, exclude=[workspace.location])
    since_score = _compare(at_score, listing.table)
    last_night = read_listing(workspace)
    since_night = since_score if last_night is None else _compare(last_night, listing.table)
    hashes = _find_hashes(at_score, since_score, since_night, source)
    moved = resolve_changes(since_score, hashes).moved
    return Night(
        started,
        listing,
        resolve_changes(since_night, hashes),
        _describe_contents(listing.table, hashes, moved),
    )


def _compare(before: pa.Table, now: pa.Table) -> Changes:
    return compare_listings(before, now, before.select(["image_id", "content_hash"]))


def _find_hashes(
    at_score: pa.Table, since_score: Changes, since_night: Changes, source: ImageSource
) -> pa.Table:
    """image_id and content_hash of images that are as they were scored, and of candidates."""
    unchanged = since_score.unchanged.column("image_id").combine_chunks()
    known = at_score.filter(
        pc.and_(
            pc.is_in(at_score.column("image_id"), value_set=unchanged),
            pc.is_valid(at_score.column("content_hash")),
        )
    ).select(["image_id", "content_hash"])
    candidates = pa.concat_tables([find_candidates(since_score), find_candidates(since_night)])
    paths = dict(
        zip(*(candidates.column(n).to_pylist() for n in ("image_id", "path")), strict=True)
    )
    for image_id in known.column("image_id").to_pylist() if paths else ():
        paths.pop(image_id, None)
    found = list(source.hash_each(paths.values()))
    read = pa.table(
        [pa.array(list(paths), pa.string()), pa.array(found, pa.string())], known.schema
    )
    return pa.concat_tables([known, read])


def _describe_contents(images: pa.Table, hashes: pa.Table, moved: pa.Table) -> pa.Table:
    ids = images.column("image_id")
    places = pc.index_in(ids, value_set=hashes.column("image_id").combine_chunks())
    origins = pc.index_in(ids, value_set=moved.column("image_id").combine_chunks())
    return pa.table(
        {
            "image_id": ids,
            "path": images.column("path"),
            "content_hash": hashes.column("content_hash").take(places),
            "source_id": pc.coalesce(moved.column("previous_id").take(origins), ids),
        }
    )


def carry_scores(workspace: Workspace, night: Night) -> None:
    """Give images that only moved, or were only touched, the scores of their content.

    Rows of images that could not be read are dropped, so that those are tried again: what is
    wrong with them need not show in size or time.
    """
    listed = ListedScores(workspace, night.listing.table)
    is_known = pc.is_valid(night.contents.column("content_hash"))
    for name in scored_metrics(workspace):
        parts = open_parts(workspace, find_spec(workspace, name))
        statuses = parts.read_listed(listed.fingerprints, _STATUS).column("status")
        lacks_row = pc.and_(pc.is_null(statuses), is_known)
        parts.copy_rows(
            night.contents.filter(lacks_row),
            listed.fingerprints[lacks_row.to_numpy()],
            listed.row_settings,
        )
        is_unreadable = pc.fill_null(pc.equal(statuses, "unreadable"), False)
        ids = listed.images.column("image_id").filter(is_unreadable).combine_chunks()
        parts.drop_stale(ids, listed.fingerprints[~is_unreadable.to_numpy()])
