from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqa_ray.images.listing import IMAGES_SCHEMA, make_image_id
from iqa_ray.rescoring.changes import (
    ResolvedChanges,
    compare_listings,
    find_candidates,
    resolve_changes,
)

HASHES_SCHEMA = pa.schema([("image_id", pa.string()), ("content_hash", pa.string())])


@dataclass(frozen=True)
class File:
    """A file of a made-up data set; content None cannot be read, size -1 is that of the content."""

    content: str | None
    mtime: int | None = 1
    size: int | None = -1

    @property
    def size_bytes(self) -> int | None:
        return len(self.content or "") if self.size == -1 else self.size


Files = dict[str, File]
GHOST = File(None, mtime=None, size=None)  # a link that leads nowhere


def list_files(files: Files) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "image_id": make_image_id(name),
                "path": f"/data/{name}",
                "label": "car",
                "size_bytes": file.size_bytes,
                "mtime_ns": file.mtime,
            }
            for name, file in files.items()
        ],
        schema=IMAGES_SCHEMA,
    )


def hash_files(files: Files) -> pa.Table:
    rows = [
        {"image_id": make_image_id(name), "content_hash": file.content}
        for name, file in files.items()
    ]
    return pa.Table.from_pylist(rows, schema=HASHES_SCHEMA)


def names_in(table: pa.Table, column: str = "path") -> list[str]:
    return [path.removeprefix("/data/") for path in table.column(column).to_pylist()]


def resolve(before: Files, now: Files) -> ResolvedChanges:
    """Compare, read no more than the candidates, resolve."""
    changes = compare_listings(list_files(before), list_files(now), hash_files(before))
    candidates = set(names_in(find_candidates(changes)))
    read = {name: file for name, file in now.items() if name in candidates}
    return resolve_changes(changes, hash_files(read))


def classify(before: Files, now: Files) -> dict[str, list[str]]:
    """The names in each class that is not empty; a moved one as `former > present`."""
    found = resolve(before, now)
    classes = {field.name: names_in(getattr(found, field.name)) for field in fields(found)}
    origins = names_in(found.moved, "previous_path")
    classes["moved"] = [f"{a} > {b}" for a, b in zip(origins, classes["moved"], strict=True)]
    return {name: names for name, names in classes.items() if names}


def test_a_night_with_one_of_each():
    before = {
        "a.jpg": File("apple"),
        "b.jpg": File("berry"),
        "c.jpg": File("cherry"),
        "d.jpg": File("date"),
        "e.jpg": File("elderberry"),
    }
    now = {
        "a.jpg": File("apple"),
        "b.jpg": File("bread", mtime=2),
        "c.jpg": File("cherry", mtime=2),
        "f.jpg": File("fig"),
        "sub/d.jpg": File("date", mtime=3),
    }
    assert classify(before, now) == {
        "unchanged": ["a.jpg"],
        "retouched": ["c.jpg"],
        "changed": ["b.jpg"],
        "new": ["f.jpg"],
        "moved": ["d.jpg > sub/d.jpg"],
        "deleted": ["e.jpg"],
    }


def test_rows_come_whole():
    before, now = {"a.jpg": File("apple")}, {"b.jpg": File("apple", mtime=7)}
    assert resolve(before, now).moved.to_pylist() == [
        {
            "image_id": make_image_id("b.jpg"),
            "path": "/data/b.jpg",
            "label": "car",
            "split": None,
            "size_bytes": 5,
            "mtime_ns": 7,
            "previous_id": make_image_id("a.jpg"),
            "previous_path": "/data/a.jpg",
        }
    ]
    found = resolve({"a.jpg": File("apple"), "b.jpg": File("b")}, {"b.jpg": File("c", mtime=2)})
    assert found.changed.schema == found.deleted.schema == found.new.schema == IMAGES_SCHEMA
    assert found.unchanged.schema == found.retouched.schema == IMAGES_SCHEMA


def test_what_the_listings_alone_say():
    before = {"a.jpg": File("apple"), "b.jpg": File("berry"), "c.jpg": File("cherry")}
    now = {"a.jpg": File("apple"), "b.jpg": File("bread", mtime=2), "d.jpg": File("date")}
    changes = compare_listings(list_files(before), list_files(now), hash_files(before))
    assert names_in(changes.unchanged) == ["a.jpg"]
    assert names_in(changes.touched) == ["b.jpg"]
    assert changes.touched.column("previous_size").to_pylist() == [5]
    assert changes.touched.column("previous_hash").to_pylist() == ["berry"]
    assert names_in(changes.new) == ["d.jpg"]
    assert names_in(changes.gone) == ["c.jpg"]
    assert changes.gone.column("previous_hash").to_pylist() == ["cherry"]


def find(before: Files, now: Files) -> list[str]:
    changes = compare_listings(list_files(before), list_files(now), hash_files(before))
    return names_in(find_candidates(changes))


def test_only_what_a_hash_can_decide_is_read():
    before = {
        "gone.jpg": File("12345"),
        "gone-unread.jpg": File(None, size=7),
        "unread.jpg": File(None, size=3),
        "same-size.jpg": File("abc"),
        "longer.jpg": File("abc"),
        "kept.jpg": File("123456"),
    }
    now = {
        "same-size.jpg": File("abd", mtime=2),
        "longer.jpg": File("abcd", mtime=2),
        "unread.jpg": File("abc", mtime=2),
        "kept.jpg": File("123456"),
        "as-gone.jpg": File("54321"),
        "as-gone-unread.jpg": File("1234567"),
        "as-kept.jpg": File("123456"),
        "sizeless.jpg": GHOST,
    }
    assert find(before, now) == ["same-size.jpg", "as-gone.jpg"]
    assert classify(before, now)["changed"] == ["same-size.jpg", "longer.jpg", "unread.jpg"]
    assert find(now, now) == []


def test_a_copy_is_new_while_the_original_stays():
    before = {"a.jpg": File("apple"), "z.jpg": File("zebra")}
    now = {"a.jpg": File("apple"), "copy.jpg": File("apple")}
    assert find(before, now) == ["copy.jpg"]  # of the size of z
    found = {"unchanged": ["a.jpg"], "new": ["copy.jpg"], "deleted": ["z.jpg"]}
    assert classify(before, now) == found


def test_each_gone_image_is_claimed_once():
    one, two, three = File("apple"), File("apple", 2), File("apple", 3)
    assert classify({"a.jpg": one}, {"b.jpg": two, "c.jpg": three}) == {
        "moved": ["a.jpg > b.jpg"],
        "new": ["c.jpg"],
    }
    assert classify({"a.jpg": one, "b.jpg": two}, {"c.jpg": three}) == {
        "moved": ["a.jpg > c.jpg"],
        "deleted": ["b.jpg"],
    }


def test_the_same_file_name_goes_first():
    file = File("apple")
    before = {"x/1.jpg": file, "x/2.jpg": file, "x/3.jpg": file, "y/3.jpg": file}
    now = {"new/3.jpg": file, "new/4.jpg": file, "new/2.jpg": file}
    assert classify(before, now) == {
        "moved": ["x/3.jpg > new/3.jpg", "x/1.jpg > new/4.jpg", "x/2.jpg > new/2.jpg"],
        "deleted": ["y/3.jpg"],
    }


def test_two_files_swap_their_names():
    before = {"a.jpg": File("apple"), "b.jpg": File("berry")}
    now = {"a.jpg": File("berry", mtime=2), "b.jpg": File("apple", mtime=2)}
    assert classify(before, now) == {"changed": ["a.jpg", "b.jpg"]}


def test_a_file_moves_over_another():
    before = {"a.jpg": File("apple", mtime=2), "b.jpg": File("berry")}
    assert classify(before, {"b.jpg": File("apple", mtime=2)}) == {
        "changed": ["b.jpg"],
        "deleted": ["a.jpg"],
    }


def test_a_file_moves_and_another_takes_its_place():
    before = {"a.jpg": File("apple")}
    now = {"a.jpg": File("other", mtime=2), "b.jpg": File("apple")}
    assert classify(before, now) == {"changed": ["a.jpg"], "new": ["b.jpg"]}


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (GHOST, GHOST, "unchanged"),
        (GHOST, File("apple"), "changed"),
        (File("apple"), GHOST, "changed"),
        (File("apple"), File(None, size=5), "unchanged"),
        (File("apple"), File(None, mtime=2, size=5), "changed"),
        (File(None, size=5), File("apple", mtime=2), "changed"),
        (File(None, size=5), File(None, mtime=2, size=5), "changed"),
        (File("apple", mtime=None), File("apple", mtime=None), "retouched"),
        (File("apple", mtime=None), File("bread", mtime=None), "changed"),
        (File("apple"), File("apple", mtime=None), "retouched"),
        (File("apple", size=None), File("apple", size=None), "changed"),
        (File("apple"), File("apple", mtime=0), "retouched"),
    ],
)
def test_what_is_missing_or_cannot_be_read(before: File, now: File, expected: str):
    assert classify({"a.jpg": before}, {"a.jpg": now}) == {expected: ["a.jpg"]}


def test_what_cannot_be_read_has_not_moved():
    unreadable = File(None, size=5)
    expected = {"new": ["b.jpg"], "deleted": ["a.jpg"]}
    assert classify({"a.jpg": File("apple")}, {"b.jpg": unreadable}) == expected
    assert classify({"a.jpg": unreadable}, {"b.jpg": unreadable}) == expected
    assert classify({"a.jpg": unreadable}, {"b.jpg": File("apple")}) == expected
    assert classify({"a.jpg": GHOST}, {"b.jpg": GHOST}) == expected


def test_empty_listings():
    files = {"a.jpg": File("apple"), "b.jpg": File("berry")}
    assert classify({}, {}) == {}
    assert classify({}, files) == {"new": ["a.jpg", "b.jpg"]}
    assert classify(files, {}) == {"deleted": ["a.jpg", "b.jpg"]}
    assert find({}, files) == []


def test_unusual_paths():
    before = {"x\ny/ü 1.jpg": File("apple"), "x/2.jpg": File("apple")}
    now = {"z/2.jpg": File("apple"), "p\nq/ü 1.jpg": File("apple")}
    assert classify(before, now) == {
        "moved": ["x/2.jpg > z/2.jpg", "x\ny/ü 1.jpg > p\nq/ü 1.jpg"],
    }


def test_tables_of_many_chunks():
    before = {f"{i}.jpg": File(str(i)) for i in range(10)}
    now = {f"sub/{i}.jpg": File(str(i)) for i in range(10)}
    halves = [list_files(now).slice(0, 5), list_files(now).slice(5)]
    former = [list_files(before).slice(0, 3), list_files(before).slice(3)]
    hashes = pa.concat_tables([hash_files(before).slice(4), hash_files(before).slice(0, 4)])
    changes = compare_listings(pa.concat_tables(former), pa.concat_tables(halves), hashes)
    found = resolve_changes(changes, hash_files(now))
    assert names_in(found.moved, "previous_path") == list(before)
    assert names_in(found.moved) == list(now)


def test_a_renamed_folder_of_many_copies():
    """Pairs of one content must not be looked for one by one."""
    num = 30_000
    names = [f"{i}.jpg" for i in range(num)]

    def listing(folder: str) -> pa.Table:
        ids = pa.array([folder + name for name in names])
        return pa.table(
            {
                "image_id": ids,
                "path": ids,
                "size_bytes": np.full(num, 9),
                "mtime_ns": np.arange(num),
            }
        )

    def hashes(folder: str) -> pa.Table:
        return pa.table({"image_id": listing(folder)["image_id"], "content_hash": ["same"] * num})

    changes = compare_listings(listing("a/"), listing("b/"), hashes("a/"))
    moved = resolve_changes(changes, hashes("b/")).moved
    assert moved.column("previous_path").to_pylist() == ["a/" + name for name in names]
    assert moved.column("path").to_pylist() == ["b/" + name for name in names]


FILES = st.dictionaries(
    st.sampled_from([f"{folder}/{name}.jpg" for folder in "xyz" for name in "abc"]),
    st.builds(
        File,
        content=st.sampled_from(["p", "q", "long", None]),
        mtime=st.sampled_from([1, 2, None]),
        size=st.sampled_from([-1, -1, -1, None]),
    ),
    max_size=9,
)


@settings(max_examples=60)
@given(before=FILES, now=FILES)
def test_every_image_is_in_one_class(before: Files, now: Files):
    found = resolve(before, now)
    kept = [*names_in(found.unchanged), *names_in(found.retouched), *names_in(found.changed)]
    origins, moved = names_in(found.moved, "previous_path"), names_in(found.moved)
    new, deleted = names_in(found.new), names_in(found.deleted)
    assert sorted([*kept, *new, *moved]) == sorted(now)
    assert sorted([*kept, *origins, *deleted]) == sorted(before)
    assert set(kept) == set(before) & set(now)
    for origin, name in zip(origins, moved, strict=True):
        assert before[origin].content == now[name].content is not None
    for name in names_in(found.retouched):
        assert before[name].content == now[name].content is not None
    # nothing that could have been recognised is left over
    left = {before[name].content for name in deleted if before[name].size_bytes is not None}
    assert not (left & {now[name].content for name in new if now[name].size_bytes}) - {None}
