from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from iqa_ray.errors import UsageError
from iqa_ray.images.listing import (
    IMAGES_SCHEMA,
    list_images,
    locate_image,
    make_image_id,
    relative_name,
)
from iqa_ray.selection.subsets import link_kept
from iqa_ray.storage.files import Location, locate


def names_of(listing):
    return names_of_table(listing.table)


def names_of_table(table):
    return [os.path.basename(path) for path in table["path"].to_pylist()]


def test_folder_rows_and_labels(image_folder):
    root = image_folder(4)
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.jpg").write_bytes(b"x")
    listing = list_images(str(root))
    assert listing.table.schema == IMAGES_SCHEMA
    assert names_of(listing) == ["000.jpg", "002.jpg", "001.jpg", "003.jpg"]
    assert listing.table["label"].to_pylist() == ["a", "a", "b", "b"]
    assert listing.table["path"][0].as_py() == str(root / "a" / "000.jpg")
    info = (root / "a" / "000.jpg").stat()
    assert listing.table["size_bytes"][0].as_py() == info.st_size
    assert listing.table["mtime_ns"][0].as_py() == info.st_mtime_ns
    assert listing.table["split"].null_count == 4


@pytest.mark.parametrize(
    ("labels", "expected"),
    [("parent", ["deep", "photos"]), ("top", ["x", None]), ("none", [None, None])],
)
def test_label_modes(tmp_path, labels, expected):
    deep = tmp_path / "photos" / "x" / "deep"
    deep.mkdir(parents=True)
    (deep / "1.jpg").touch()
    (tmp_path / "photos" / "z.jpg").touch()
    table = list_images(str(tmp_path / "photos"), labels).table
    assert table["label"].to_pylist() == expected


@pytest.mark.parametrize(
    ("labels", "expected"), [("parent", ["there", "deep"]), ("top", [None, "x"])]
)
def test_an_image_outside_the_root_has_no_folder_below_it(tmp_path, labels, expected):
    inside, outside = tmp_path / "photos/x/deep/1.jpg", tmp_path / "aside/there/2.jpg"
    for file in (inside, outside):
        file.parent.mkdir(parents=True)
        file.touch()
    (tmp_path / "photos/list.csv").write_text(f"path\n{inside}\n{outside}\n/3.jpg\ns3:/4.jpg\n")
    table = list_images(str(tmp_path / "photos/list.csv"), labels).table
    found = dict(zip(names_of_table(table), table["label"].to_pylist(), strict=True))
    assert [found["2.jpg"], found["1.jpg"]] == expected
    assert found["3.jpg"] is None
    assert found["4.jpg"] == "s3:"


def test_ids_do_not_depend_on_where_the_data_lies(image_folder, tmp_path):
    root = image_folder(4)
    ids = list_images(str(root)).table["image_id"].to_pylist()
    root.rename(tmp_path / "moved")
    assert list_images(str(tmp_path / "moved")).table["image_id"].to_pylist() == ids
    manifest = tmp_path / "moved" / "list.csv"
    pd.DataFrame({"path": ["./a/000.jpg", "b/001.jpg"]}).to_csv(manifest, index=False)
    assert set(list_images(str(manifest)).table["image_id"].to_pylist()) < set(ids)
    assert ids[0] == make_image_id("a/000.jpg") == "ab6340aecdcf4ca54f56"
    name = b"caf\xe9.jpg"
    expected = hashlib.blake2b(name, digest_size=10).hexdigest()
    assert make_image_id(os.fsdecode(name)) == expected


def test_extensions_in_any_case(tmp_path):
    known = ["a.JPG", "b.Png", "c.jpeg", "d.jpe", "e.JFIF", "f.bmp", "g.dib", "h.tif", "i.TIFF"]
    known += ["j.webp", "k.jp2", "l.j2k", "m.j2c", "n.jpx"]
    for name in [*known, "o.gif", "p.txt", "jpg", "q.jpg.txt"]:
        (tmp_path / name).touch()
    assert names_of(list_images(str(tmp_path))) == known


def test_strange_names_broken_and_looping_links(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    strange = ["with space.jpg", "quo'te\".jpg", "new\nline.jpg", "ünï–日本.jpg"]
    for name in strange:
        (root / name).touch()
    (root / "broken.jpg").symlink_to(root / "missing.jpg")
    (root / "self.jpg").symlink_to(root / "self.jpg")
    (root / "loop").symlink_to(root)
    (root / "folder.jpg").mkdir()
    listing = list_images(str(root))
    assert sorted(names_of(listing)) == sorted([*strange, "broken.jpg", "self.jpg"])
    by_name = dict(zip(names_of(listing), listing.table["size_bytes"].to_pylist(), strict=True))
    assert by_name["broken.jpg"] is None
    assert by_name["self.jpg"] is None


def test_folders_that_cannot_be_read_or_were_are_told(image_folder, monkeypatch, capsys):
    root, real = image_folder(3), os.scandir

    def scan(folder):
        if os.path.basename(folder) == "a":
            raise PermissionError(13, "Permission denied", folder)
        return real(folder)

    monkeypatch.setattr(os, "scandir", scan)
    (root / "loop").symlink_to(root)
    assert names_of(list_images(str(root))) == ["001.jpg"]
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"skipped folder '{root}/a': Permission denied",
        f"skipped '{root}/loop': this folder was listed already (a looping link?)",
    ]


def test_names_that_are_not_utf8(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg"), "wb"):
        pass
    assert names_of(list_images(str(tmp_path))) == ["caf\\xe9.jpg"]


def test_links_to_folders_are_followed(image_folder, tmp_path):
    root = image_folder(2)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "there").symlink_to(root / "a")
    assert names_of(list_images(str(linked))) == ["000.jpg"]


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_folder_is_listed_where_it_lies_or_at_the_first_link(tmp_path, monkeypatch, is_reversed):
    """In whatever order the disk gives the entries."""
    real = os.scandir

    def scan(folder):
        return sorted(real(folder), key=lambda entry: entry.name, reverse=is_reversed)

    monkeypatch.setattr(os, "scandir", scan)
    root, aside = tmp_path / "photos", tmp_path / "aside"
    for folder in (root / "deep" / "inside", aside):
        folder.mkdir(parents=True)
        (folder / f"{folder.name}.jpg").touch()
    (root / "a").symlink_to(root / "deep" / "inside")
    for name in ("y", "x", "deep/z"):
        (root / name).symlink_to(aside)
    paths = list_images(str(root)).table["path"].to_pylist()
    assert paths == [f"{root}/deep/inside/inside.jpg", f"{root}/deep/z/aside.jpg"]
    (root / "deep" / "z").unlink()
    paths = list_images(str(root)).table["path"].to_pylist()
    assert paths == [f"{root}/deep/inside/inside.jpg", f"{root}/x/aside.jpg"]


def test_a_workspace_inside_the_folder_is_left_out(image_folder, tmp_path):
    root = image_folder(2)
    (root / "ws").mkdir()
    (root / "ws" / "figure.png").touch()
    (tmp_path / "linked").symlink_to(root)
    (tmp_path / "ws").symlink_to(root / "ws")
    for source in (root, tmp_path / "linked"):
        for ws in (root / "ws", tmp_path / "linked" / "ws", tmp_path / "ws"):
            listing = list_images(str(source), exclude=[locate(ws)])
            assert names_of(listing) == ["000.jpg", "001.jpg"]
    # neither one that is not there yet, nor one that is or holds the root, leaves anything out
    for ws in (root / "new", root, tmp_path):
        listing = list_images(str(root), exclude=[locate(ws)])
        assert names_of(listing) == ["000.jpg", "001.jpg", "figure.png"]


def test_a_workspace_inside_the_images_of_a_store_is_left_out(tmp_path):
    import fsspec

    memory, uri = fsspec.filesystem("memory"), f"memory://{tmp_path.name}"
    for name in ("a/1.jpg", "ws/figure.png", "ws-2/2.png"):
        memory.pipe(f"/{tmp_path.name}/{name}", b"data")
    listing = list_images(uri, "top", exclude=[locate(f"{uri}/ws"), locate("/ws-2")])
    assert names_of(listing) == ["1.jpg", "2.png"]
    assert listing.table["label"].to_pylist() == ["a", "ws-2"]
    assert listing.table["image_id"].to_pylist() == [
        make_image_id("a/1.jpg"),
        make_image_id("ws-2/2.png"),
    ]
    for ws in (uri, "memory://", f"memory://{tmp_path.name[:-1]}"):
        assert list_images(uri, exclude=[locate(ws)]).table.num_rows == 3


def test_folders_of_links_are_left_out_unless_they_are_asked_for(image_folder, capsys):
    root = image_folder(2)
    selection = pd.DataFrame(
        {"image_id": ["i"], "path": [str(root / "a/000.jpg")], "label": ["a"], "keep": [True]}
    )
    link_kept(selection, str(root / "kept"), copy=True)
    assert names_of(list_images(str(root))) == ["000.jpg", "001.jpg"]
    assert "`iqa-ray select --link` made it" in capsys.readouterr().err
    assert list_images(str(root / "kept")).table["label"].to_pylist() == ["a"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_manifest(image_folder, tmp_path, kind):
    root = image_folder(3)
    frame = pd.DataFrame(
        {
            "path": ["a/000.jpg", str(root / "b" / "001.jpg"), "a/gone.jpg"],
            "label": ["7", "x", None],
            "split": ["train", "test", None],
            "extra": [1, 2, 3],
        }
    )
    file = root / f"list.{kind}"
    frame.to_csv(file, index=False) if kind == "csv" else frame.to_parquet(file)
    table = list_images(str(file)).table.to_pandas().set_index("path")
    assert table.loc[str(root / "a/000.jpg"), "label"] == "7"
    assert table.loc[str(root / "a/000.jpg"), "split"] == "train"
    assert table.loc[str(root / "b/001.jpg"), "label"] == "x"
    assert table.loc[str(root / "b/001.jpg"), "image_id"] == make_image_id("b/001.jpg")
    missing = table.loc[str(root / "a/gone.jpg")]
    assert pd.isna(missing["size_bytes"])
    assert pd.isna(missing["label"])


def test_manifest_without_labels_takes_the_parent_folder(image_folder):
    root = image_folder(2)
    (root / "list.csv").write_text("path\na/000.jpg\nb/001.jpg\n")
    assert list_images(str(root / "list.csv")).table["label"].to_pylist() == ["a", "b"]


def test_file_uri(image_folder):
    root = image_folder(2)
    assert list_images(f"file://{root}").table == list_images(str(root)).table


def test_fsspec_uri():
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("c1/1.jpg", "c2/2.png", "c2/.x.png", "c2/t.txt"):
        memory.pipe(f"/listed/{name}", b"data")
    table = list_images("memory://listed").table
    assert table["label"].to_pylist() == ["c1", "c2"]
    location = locate_image(table["path"][0].as_py())
    with location.filesystem.open_input_stream(location.path) as stream:
        assert stream.readall() == b"data"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\na,b\n", "no column `path`"),
        ("path\n\n", "no images"),
        ("path,path\na/000.jpg,b/001.jpg\n", "more than one column `path`"),
        ("path,label,label\na/000.jpg,x,y\n", "more than one column `label`"),
        ("path,gr\xf6\xdfe\na/000.jpg,1\n", "header that is not UTF-8"),
        ("path,label\na/000.jpg,gr\xf6\xdfe\n", "invalid UTF8 data"),
        ("path\na/000.jpg\na/\x001.jpg\n", r"row 2: 'a/\\x001\.jpg' holds a NUL"),
        ("path\n/x/\x001.jpg\n", "row 1: .* holds a NUL"),
        ("path,label\n,x\na.jpg,y\n", "row 1 has an empty path"),
        ("path\n../outside.jpg\n", r"row 1: '\.\./outside.jpg' climbs out of .*/photos;"),
        ("path\na/000.jpg\na/../..\n", "row 2: .* climbs out of"),
        ("path\nnowhere.jpg\nneither.jpg\n", "none of the 2 paths"),
        ("path\na/000.jpg\n./a/000.jpg\n", "more than once"),
        ("", "cannot read"),
    ],
)
def test_bad_manifests(image_folder, content, message):
    root = image_folder(2)
    (root / "list.csv").write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=message):
        list_images(str(root / "list.csv"))


@pytest.mark.parametrize(
    "path",
    [
        "{root}/a/./000.jpg",
        "{root}/b/../a/000.jpg",
        "//{root}//a/000.jpg",
        "file://{root}/a/000.jpg",
        "file:///{root}/b/../a/000.jpg",
        "b/../a/000.jpg",
        "a//000.jpg",
    ],
)
def test_a_file_has_one_path(image_folder, path):
    root = image_folder(2)
    (root / "list.csv").write_text(f"path\n{path.format(root=root)}\n")
    table = list_images(str(root / "list.csv")).table
    assert table["path"].to_pylist() == [f"{root}/a/000.jpg"]
    assert table["image_id"].to_pylist() == [make_image_id("a/000.jpg")]
    (root / "list.csv").write_text(f"path\n{root}/a/000.jpg\n{path.format(root=root)}\n")
    with pytest.raises(UsageError, match="lists 'a/000.jpg' more than once"):
        list_images(str(root / "list.csv"))


def test_manifest_that_is_no_table(tmp_path):
    (tmp_path / "list.parquet").write_bytes(b"not parquet")
    with pytest.raises(UsageError, match="cannot read"):
        list_images(str(tmp_path / "list.parquet"))


def test_a_local_path_may_look_like_a_uri():
    assert locate_image("/data/a://b.jpg", "region=eu") == Location("", "/data/a://b.jpg")
    assert locate_image("s3://b/x.jpg", "region=eu") == locate("s3://b/x.jpg?region=eu")


def test_a_table_without_columns_has_no_path(tmp_path):
    pq.write_table(pa.table({}), tmp_path / "list.parquet")
    with pytest.raises(UsageError, match=r"no column `path` \(it has: none\)"):
        list_images(str(tmp_path / "list.parquet"))


def test_a_manifest_may_have_strange_names_and_cells(image_folder):
    root = image_folder(2)
    for name in ("new\nline.jpg", 'quo"te.jpg', "..dots.jpg"):
        (root / name).touch()
    lines = ["path,label", '"new\nline.jpg",""', '"quo""te.jpg",', "..dots.jpg,NA", "a/000.jpg,nan"]
    (root / "list.csv").write_text("\n".join(lines))
    table = list_images(str(root / "list.csv")).table
    found = dict(zip(names_of_table(table), table["label"].to_pylist(), strict=True))
    expected = {"new\nline.jpg": None, 'quo"te.jpg': None, "..dots.jpg": "NA", "000.jpg": "nan"}
    assert found == expected
    unlabelled = list_images(str(root / "list.csv"), "none").table
    assert unlabelled["label"].null_count == unlabelled.num_rows == 4


def test_a_folder_may_have_the_name_of_a_manifest(image_folder):
    assert names_of(list_images(str(image_folder(2, "photos.csv")))) == ["000.jpg", "001.jpg"]


def test_an_image_of_a_store_in_a_local_manifest(tmp_path):
    import fsspec

    uri = f"memory://{tmp_path.name}/a/1.jpg"
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/a/1.jpg", b"data")
    (tmp_path / "list.csv").write_text(
        f"path\n{uri}/gone.jpg\n{uri}\n{uri.removesuffix('/1.jpg')}\n"
    )
    (folder, image, gone) = list_images(str(tmp_path / "list.csv"), "top").table.to_pylist()
    assert (image["path"], image["label"], image["size_bytes"]) == (uri, None, 4)
    for row in (folder, gone):
        assert (row["size_bytes"], row["mtime_ns"]) == (None, None)
    (tmp_path / "list.csv").write_text(f"path\n{uri}\n")
    assert list_images(str(tmp_path / "list.csv")).table["label"].to_pylist() == ["a"]


def test_a_manifest_may_list_images_of_this_machine_and_of_a_store(image_folder, tmp_path):
    import fsspec

    uri, root = f"memory://{tmp_path.name}/1.jpg", image_folder(1)
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/1.jpg", b"data")
    (root / "list.csv").write_text(f"path\n{uri}\na/000.jpg\n")
    table = list_images(str(root / "list.csv")).table
    here = (root / "a/000.jpg").stat()
    assert table["path"].to_pylist() == [f"{root}/a/000.jpg", uri]
    assert table["size_bytes"].to_pylist() == [here.st_size, 4]
    assert table["mtime_ns"][0].as_py() == here.st_mtime_ns


def test_the_root_of_a_manifest_s_images_is_its_folder_with_the_options_of_its_uri(
    image_folder, tmp_path
):
    import fsspec

    root, uri = image_folder(1), f"memory://{tmp_path.name}"
    (root / "list.csv").write_text("path\na/000.jpg\n")
    assert list_images(str(root / "list.csv")).root == locate(root)
    assert list_images(str(root)).root == locate(root)
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/1.jpg", b"data")
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/list.csv", b"path\n1.jpg\n")
    listing = list_images(f"{uri}/list.csv?region=eu")
    assert listing.root == locate(f"{uri}?region=eu")
    assert listing.table["path"].to_pylist() == [f"{uri}/1.jpg"]


@pytest.mark.parametrize(
    ("path", "root", "name"),
    [
        ("/a/b.jpg", "/", "a/b.jpg"),
        ("/photos/a/b.jpg", "/photos", "a/b.jpg"),
        ("/photos-2/b.jpg", "/photos", "/photos-2/b.jpg"),
        ("s3://bucket/a/b.jpg", "s3://bucket/a", "b.jpg"),
        ("s3://bucket/a/b.jpg", "/bucket/a", "s3://bucket/a/b.jpg"),
    ],
)
def test_an_image_below_the_root_is_named_from_there(path, root, name):
    assert relative_name(path, locate(root)) == name


def test_missing_empty_and_wrong_sources(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        list_images(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="holds no images"):
        list_images(str(tmp_path))
    (tmp_path / "text.txt").touch()
    with pytest.raises(UsageError, match="neither a folder"):
        list_images(str(tmp_path / "text.txt"))
    with pytest.raises(UsageError, match="Protocol not known"):
        list_images("nosuch://bucket/images")


def test_parquet_labels_may_be_numbers(image_folder):
    root = image_folder(2)
    pq.write_table(
        pa.table({"path": ["a/000.jpg", "b/001.jpg"], "label": [3, 4]}), root / "list.parquet"
    )
    assert list_images(str(root / "list.parquet")).table["label"].to_pylist() == ["3", "4"]


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([1.0, float("nan")]),
        pa.array(np.array([1, np.nan], np.float16)),
        pa.array([1.0, float("nan")]).dictionary_encode(),
        pa.array(["1", ""]),
        pa.array(["1", None]),
    ],
)
def test_an_empty_cell_of_a_parquet_table_is_no_label(image_folder, labels):
    root = image_folder(2)
    pq.write_table(
        pa.table({"path": ["a/000.jpg", "b/001.jpg"], "label": labels}), root / "l.parquet"
    )
    assert list_images(str(root / "l.parquet")).table["label"].to_pylist() == ["1", None]


@pytest.mark.slow
def test_listing_100_000_files_costs_seconds(tmp_path: Path):
    for folder in range(100):
        (tmp_path / str(folder)).mkdir()
        for number in range(1000):
            (tmp_path / str(folder) / f"{number}.jpg").touch()
    start = time.monotonic()
    assert list_images(str(tmp_path)).table.num_rows == 100_000
    assert time.monotonic() - start < 30
