from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from iqa_ray.errors import UsageError
from iqa_ray.images.listing import list_images
from iqa_ray.selection import subsets
from iqa_ray.selection.subsets import link_kept, list_kept
from iqa_ray.storage.object_stores import UnansweredError


def make_selection(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["image_id", "path", "label", "keep"])


def files_below(folder: Path) -> set[str]:
    """Names of all but hidden files; a link to a folder is one."""
    return {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if not file.name.startswith(".") and (file.is_symlink() or file.is_file())
    }


@pytest.fixture
def selection(image_folder):
    root = image_folder(4)
    return make_selection(
        [
            ("i0", str(root / "a/000.jpg"), "a", True),
            ("i1", str(root / "b/001.jpg"), "b", True),
            ("i2", str(root / "a/002.jpg"), "a", False),
        ]
    )


def test_list_survives_strange_names():
    paths = ['/q"uo,te\nline.jpg', "/carriage\r=1+1.jpg", "/semi;=1+1.jpg", "/x.jpg"]
    rows = [(f"i{number}", path, "a", True) for number, path in enumerate(paths)]
    text = list_kept(make_selection([*rows, ("i4", "/y.jpg", None, True)]))
    read = pd.read_csv(io.StringIO(text))
    assert list(read) == ["path", "label", "image_id"]
    assert read["path"].tolist() == [*paths, "/y.jpg"]
    assert read["label"].isna().tolist() == [False] * 4 + [True]
    assert '"/semi;=1+1.jpg"' in text


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("\n=1", "'\n=1"),
        ("-1\n=1", "'-1\n=1"),
        ("-", "'-"),
        ("-1", "-1"),
        ("+1.5", "+1.5"),
        ("-.5e-3", "-.5e-3"),
        ("a=b", "a=b"),
        ("7", "7"),
    ],
)
def test_no_label_is_a_formula_and_numbers_stay(label, expected):
    text = list_kept(
        make_selection([("i0", "/x.jpg", label, True), ("i1", "/y.jpg", label, False)])
    )
    (row,) = csv.reader(io.StringIO(text.split("\n", 1)[1], newline=""))
    assert row == ["/x.jpg", expected, "i0"]


@pytest.mark.parametrize(
    "name", ["=cmd|' /C calc'!A0.jpg", "+1.jpg", "-1.jpg", "@a.jpg", "\t=1.jpg"]
)
def test_no_path_is_a_formula_and_all_lead_to_their_files(tmp_path, name):
    for folder in (tmp_path / "photos", tmp_path / "listed"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    pd.DataFrame({"path": [name]}).to_csv(tmp_path / "listed" / "list.csv", index=False)
    for source in (tmp_path / "photos", tmp_path / "listed" / "list.csv"):
        frame = list_images(str(source)).table.to_pandas().assign(keep=True)
        (path,) = pd.read_csv(io.StringIO(list_kept(frame)))["path"]
        assert path.startswith("/")
        assert os.path.isfile(path)
    (tmp_path / "listed" / "list.csv").write_text("path\n=cmd://x.jpg\n")
    with pytest.raises(UsageError, match="=cmd://x"):
        list_images(str(tmp_path / "listed" / "list.csv"))


@pytest.mark.parametrize("copy", [False, True])
def test_image_folder_reads_the_links(selection, tmp_path, copy):
    from torchvision.datasets import ImageFolder

    assert link_kept(selection, str(tmp_path / "kept"), copy=copy) == 2
    dataset = ImageFolder(str(tmp_path / "kept"))
    assert dataset.classes == ["a", "b"]
    assert len(dataset) == 2
    assert (tmp_path / "kept/a/000.jpg").is_symlink() != copy
    assert dataset[0][0].size == (64, 48)


def test_a_second_run_renews_the_folder(selection, tmp_path):
    link_kept(selection, str(tmp_path / "kept"))
    selection["keep"] = [False, False, True]
    link_kept(selection, str(tmp_path / "kept"))
    files = [p.relative_to(tmp_path / "kept").as_posix() for p in tmp_path.glob("kept/*/*")]
    assert files == ["a/002.jpg"]


@pytest.mark.parametrize("copy", [False, True])
def test_renewing_removes_only_what_was_written(selection, tmp_path, capsys, copy):
    kept = tmp_path / "kept"
    link_kept(selection, str(kept), copy=copy)
    foreign = ["a/mine.jpg", "mine/001.jpg", "notes.txt"]
    for name in foreign:
        (kept / name).parent.mkdir(exist_ok=True)
        (kept / name).write_bytes(b"mine")
    (kept / "elsewhere").symlink_to(tmp_path / "photos" / "b")
    selection["keep"] = [False, False, True]
    capsys.readouterr()
    assert link_kept(selection, str(kept), copy=not copy) == 1
    assert "kept/a also holds what --link did not write" in capsys.readouterr().err
    assert files_below(kept) == {*foreign, "a/002.jpg", "elsewhere"}
    assert not (kept / "b").exists()
    assert all((kept / name).read_bytes() == b"mine" for name in foreign)
    assert (tmp_path / "photos" / "b" / "001.jpg").exists()
    assert (kept / "a" / "002.jpg").is_symlink() == copy


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_in_the_place_of_a_link_is_not_overwritten(selection, tmp_path, kind):
    kept = tmp_path / "kept"
    link_kept(selection, str(kept))
    (kept / "b" / "001.jpg").unlink()
    if kind == "file":
        (kept / "b" / "001.jpg").write_bytes(b"mine")
    else:
        (kept / "b" / "001.jpg").symlink_to(tmp_path / "nowhere")
    before = files_below(kept)
    with pytest.raises(UsageError, match=r"did not write .*/kept/b/001\.jpg: move"):
        link_kept(selection, str(kept))
    assert files_below(kept) == before
    selection["keep"] = [True, False, False]
    link_kept(selection, str(kept))
    assert files_below(kept) == {"a/000.jpg", "b/001.jpg"}


@pytest.mark.parametrize(
    "marker",
    [
        "made by iqa-ray select --link, which empties this folder when it runs again\n",
        "{}",
        "[]",
        '{"links": ["../photos/a/000.jpg"]}',
        '{"links": {"../photos/000.jpg": null}}',
        '{"links": {"./mine.jpg": null}}',
        '{"links": {"a/..": null}}',
        '{"links": {"a/.": null}}',
        '{"links": {"a/": null}}',
        '{"links": {"a/../../photos/a/000.jpg": null}}',
        '{"links": {"a": null}}',
    ],
)
def test_without_a_list_of_what_was_written_nothing_is_removed(selection, tmp_path, marker):
    """Older versions kept no list; and a list does not reach outside its folder."""
    kept = tmp_path / "kept"
    (kept / "a").mkdir(parents=True)
    (kept / "a" / "mine.jpg").touch()
    (kept / ".iqa-ray-links").write_text(marker)
    before = files_below(tmp_path)
    with pytest.raises(
        UsageError, match="no list of what was written into it.*: remove the folder"
    ):
        link_kept(selection, str(kept))
    assert files_below(tmp_path) == before


def test_a_run_that_was_killed_half_way_is_renewed(selection, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "symlink_to", die)
        with pytest.raises(KeyboardInterrupt):
            link_kept(selection, str(tmp_path / "kept"))
    assert link_kept(selection, str(tmp_path / "kept")) == 2
    with monkeypatch.context() as patch:
        patch.setattr(Path, "symlink_to", die)
        with pytest.raises(KeyboardInterrupt):
            link_kept(selection, str(tmp_path / "kept"))
    assert link_kept(selection, str(tmp_path / "kept")) == 2


@pytest.mark.parametrize("folder", ["s3://bucket/kept", "memory://kept"])
def test_links_are_made_in_a_local_folder(selection, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"--link makes a local folder, not one in \w+://: "):
        link_kept(selection, folder)
    assert os.listdir(tmp_path) == ["photos"]
    assert link_kept(selection, f"file://{tmp_path}/kept") == 2
    assert files_below(tmp_path / "kept") == {"a/000.jpg", "b/001.jpg"}


def test_images_of_a_store_are_copied(tmp_path):
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/x.jpg", b"pixels")
    rows = [("i", f"memory://{tmp_path.name}/x.jpg", "a", True)]
    for _ in range(2):
        assert link_kept(make_selection(rows), str(tmp_path / "kept")) == 1
        assert (tmp_path / "kept/a/x.jpg").read_bytes() == b"pixels"
    rows = [("i", f"memory://{tmp_path.name}/gone.jpg", "a", True)]
    with pytest.raises(UsageError, match=r"--link .*gone\.jpg"):
        link_kept(make_selection(rows), str(tmp_path / "kept"))


def test_images_are_copied_with_the_options_of_their_store(selection, tmp_path, monkeypatch):
    asked = []

    def locate_image(path, options=""):
        asked.append(options)
        return subsets_locate(path)

    subsets_locate = subsets.locate_image
    monkeypatch.setattr(subsets, "locate_image", locate_image)
    link_kept(selection, str(tmp_path / "kept"), options="region=x")
    assert asked.count("region=x") == 2  # of the two that are placed
    asked.clear()
    link_kept(selection, str(tmp_path / "kept"))
    assert set(asked) == {""}


def test_a_store_that_never_answers_is_no_wrong_folder(selection, tmp_path, monkeypatch):
    def fail(_):
        raise UnansweredError("memory://x.jpg: no answer")

    monkeypatch.setattr(subsets, "read_bytes", fail)
    selection["path"] = "memory://x.jpg"
    with pytest.raises(UnansweredError):
        link_kept(selection, str(tmp_path / "kept"))


def test_a_folder_with_other_things_is_left_alone(selection, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").touch()
    with pytest.raises(UsageError, match="not empty"):
        link_kept(selection, str(tmp_path / "kept"))
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["mine.txt"]


def test_same_names_and_dangerous_labels(tmp_path):
    rows = []
    for number, label in enumerate(["same", "same", "../up", "x/y", "n\0l", None, ".."]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "1.jpg").write_bytes(b"x")
        rows.append((f"i{number}", str(tmp_path / str(number) / "1.jpg"), label, True))
    assert link_kept(make_selection(rows), str(tmp_path / "kept")) == 7
    files = {p.relative_to(tmp_path / "kept").as_posix() for p in tmp_path.glob("kept/*/*")}
    assert files == {
        "same/1.jpg", "same/1-i1.jpg", "_._up/1.jpg", "x_y/1.jpg", "n_l/1.jpg",
        "unlabelled/1.jpg", "_./1.jpg",
    }  # fmt: skip


def test_unwritable_target(selection, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--link"):
        link_kept(selection, str(tmp_path / "file" / "kept"))
