from __future__ import annotations

import os
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from iqa_ray.errors import UsageError
from iqa_ray.files import locate
from iqa_ray.images import IMAGES_SCHEMA, list_images, locate_image, make_image_id


def names_of(listing):
    return [os.path.basename(path) for path in listing.table["path"].to_pylist()]


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


def test_ids_do_not_depend_on_where_the_data_lies(image_folder, tmp_path):
    root = image_folder(4)
    ids = list_images(str(root)).table["image_id"].to_pylist()
    root.rename(tmp_path / "moved")
    assert list_images(str(tmp_path / "moved")).table["image_id"].to_pylist() == ids
    manifest = tmp_path / "moved" / "list.csv"
    pd.DataFrame({"path": ["./a/000.jpg", "b/001.jpg"]}).to_csv(manifest, index=False)
    assert set(list_images(str(manifest)).table["image_id"].to_pylist()) < set(ids)
    assert ids[0] == make_image_id("a/000.jpg")


def test_extensions_in_any_case(tmp_path):
    for name in ("a.JPG", "b.Png", "c.webp", "d.jp2", "e.TIFF", "f.bmp", "g.gif", "h.txt", "jpg"):
        (tmp_path / name).touch()
    assert names_of(list_images(str(tmp_path))) == [
        "a.JPG", "b.Png", "c.webp", "d.jp2", "e.TIFF", "f.bmp",
    ]  # fmt: skip


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


def test_a_workspace_inside_the_folder_is_left_out(image_folder):
    root = image_folder(2)
    (root / "ws").mkdir()
    (root / "ws" / "figure.png").touch()
    listing = list_images(str(root), exclude=[locate(root / "ws")])
    assert names_of(listing) == ["000.jpg", "001.jpg"]


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
        ("path,label\n,x\na.jpg,y\n", "row 1 has an empty path"),
        ("path\n../outside.jpg\n", "climbs out of"),
        ("path\nnowhere.jpg\nneither.jpg\n", "none of the 2 paths"),
        ("path\na/000.jpg\n./a/000.jpg\n", "more than once"),
        ("", "cannot read"),
    ],
)
def test_bad_manifests(image_folder, content, message):
    root = image_folder(2)
    (root / "list.csv").write_text(content)
    with pytest.raises(UsageError, match=message):
        list_images(str(root / "list.csv"))


def test_manifest_that_is_no_table(tmp_path):
    (tmp_path / "list.parquet").write_bytes(b"not parquet")
    with pytest.raises(UsageError, match="cannot read"):
        list_images(str(tmp_path / "list.parquet"))


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


@pytest.mark.slow
def test_listing_100_000_files_costs_seconds(tmp_path: Path):
    for folder in range(100):
        (tmp_path / str(folder)).mkdir()
        for number in range(1000):
            (tmp_path / str(folder) / f"{number}.jpg").touch()
    start = time.monotonic()
    assert list_images(str(tmp_path)).table.num_rows == 100_000
    assert time.monotonic() - start < 30
