from __future__ import annotations

import io

import pandas as pd
import pytest

from iqa_ray.errors import UsageError
from iqa_ray.selection.subsets import link_kept, list_kept


def make_selection(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["image_id", "path", "label", "keep"])


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
    rows = [("i0", 'q"uo,te\nline.jpg', "a", True), ("i1", "x.jpg", None, True)]
    read = pd.read_csv(io.StringIO(list_kept(make_selection(rows))))
    assert list(read) == ["path", "label", "image_id"]
    assert read["path"].tolist() == ['q"uo,te\nline.jpg', "x.jpg"]


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


def test_a_folder_with_other_things_is_left_alone(selection, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").touch()
    with pytest.raises(UsageError, match="not empty"):
        link_kept(selection, str(tmp_path / "kept"))
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["mine.txt"]


def test_same_names_and_dangerous_labels(tmp_path):
    rows = []
    for number, label in enumerate(["same", "same", "../up", "x/y", None, ".."]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "1.jpg").write_bytes(b"x")
        rows.append((f"i{number}", str(tmp_path / str(number) / "1.jpg"), label, True))
    assert link_kept(make_selection(rows), str(tmp_path / "kept")) == 6
    files = {p.relative_to(tmp_path / "kept").as_posix() for p in tmp_path.glob("kept/*/*")}
    assert files == {
        "same/1.jpg", "same/1-i1.jpg", "_._up/1.jpg", "x_y/1.jpg", "unlabelled/1.jpg", "_./1.jpg",
    }  # fmt: skip


def test_unwritable_target(selection, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--link"):
        link_kept(selection, str(tmp_path / "file" / "kept"))
