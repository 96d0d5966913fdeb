"""Which image and which content a prediction is of; workers run in this process, without Ray."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from pictures import make_texture
from PIL import Image
from pyarrow import parquet as pq

from iqa_ray.cluster import connection, missing
from iqa_ray.config import dump_settings, make_job
from iqa_ray.errors import UsageError
from iqa_ray.images.decoding import hash_content
from iqa_ray.images.listing import IMAGES_SCHEMA
from iqa_ray.predictions.jobs import run_predict
from iqa_ray.predictions.settings import PredictJob
from iqa_ray.predictions.table import (
    PREDICTIONS_SCHEMA,
    Origins,
    judge_predictions,
    read_predictions,
    write_predictions,
)
from iqa_ray.scoring import spreading
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training import loop, pixels, single

TINY = {"backbone": "resnet18", "weights": "none", "epochs": 1, "image_size": 32}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch) -> list[int]:
    """What is done around workers is the same; says how many images were read for each training."""
    trainings: list[int] = []

    def run_inline(pools: Any, on_done: Any) -> list[Any]:
        for pool_index, pool in enumerate(pools):
            worker = pool.make_worker()
            for index, shard in enumerate(pool.shards):
                on_done(pool_index, index, worker(shard))
        return []

    def train(recipe, images, storage, key, on_event):
        def count(event):
            if "loaded" in event:
                trainings.append(event["loaded"] - event["unreadable"])
            on_event(event)

        return loop.dump_checkpoint(loop.train_from_files(recipe, images, 1, count))

    monkeypatch.setattr(connection, "connect", lambda address: nullcontext())
    monkeypatch.setattr(connection, "count_actors", lambda *_: 1)
    monkeypatch.setattr(connection, "prefer_gpu", lambda resources: resources)
    for module in (spreading, missing):
        monkeypatch.setattr(module, "run_shards", run_inline)
    monkeypatch.setattr(single, "train_on_ray", train)
    return trainings


@pytest.fixture
def ws(tmp_path) -> str:
    return str(tmp_path / "ws")


def score(images: Path, ws: str) -> None:
    run_score(make_job(ScoreJob, {"images": str(images), "workspace": ws, "metrics": ("lapm",)}))


def predict(ws: str, **settings: Any) -> dict[str, Any]:
    return run_predict(make_job(PredictJob, {"workspace": ws, **settings}))


def read(ws: str) -> pd.DataFrame:
    frame, origins = read_predictions(Workspace(ws))
    assert origins is not None
    frame["content_hash"] = pd.Series(origins.content_hashes, dtype=object)
    return frame.set_index(frame["path"].map(lambda path: Path(path).name))


def hide(file: Path) -> Callable[[], object]:
    """Take a file away; what this returns brings it back as it was."""
    away = file.with_name("." + file.name)
    file.rename(away)
    return lambda: away.rename(file)


def overwrite(file: Path, seed: int) -> None:
    Image.fromarray(make_texture(seed)).save(file)


def list_with_split(root: Path) -> Path:
    """A manifest of twelve images in three classes, six of them to train on."""
    rows = []
    for number in range(12):
        label = "abc"[number % 3]
        (root / label).mkdir(parents=True, exist_ok=True)
        overwrite(root / label / f"{number:02}.png", number)
        rows.append((f"{label}/{number:02}.png", "train" if number < 6 else "test"))
    pd.DataFrame(rows, columns=["path", "split"]).to_csv(root / "list.csv", index=False)
    return root / "list.csv"


def overwrite_label(images: Path, name: str, label: str) -> None:
    """Give an image of the manifest another label than its folder's name."""
    table = pd.read_csv(images)
    if "label" not in table:
        table["label"] = table["path"].str[0]
    table.loc[table["path"].str.endswith(name), "label"] = label
    table.to_csv(images, index=False)


# --- files that are away ----------------------------------------------------------------------


def test_an_image_that_was_away_is_predicted_when_it_is_back(image_folder, ws, monkeypatch):
    root = image_folder(8)
    (root / "a" / "text.jpg").write_text("not an image")
    (root / "a" / "gone.jpg").symlink_to(root / "a" / "nothing")  # away when it is listed
    score(root, ws)
    asked: list[str] = []

    def load_pixels(source, paths, *settings):
        asked.extend(Path(path).name for path in paths)
        return pixels_load(source, paths, *settings)

    pixels_load = pixels.load_pixels
    monkeypatch.setattr(pixels, "load_pixels", load_pixels)
    others = image_folder(4, name="others", height=40)
    bring_back = hide(root / "a" / "002.jpg")
    predict(ws, train_images=str(others), **TINY)
    assert len(asked) == 10
    assert pd.isna(read(ws).loc["002.jpg", "predicted"])
    before = read(ws).drop("002.jpg")
    bring_back()
    asked.clear()
    predict(ws, train_images=str(others), **TINY)
    assert asked == ["002.jpg"]
    assert read(ws).loc["002.jpg", "predicted"] in {"a", "b"}
    assert len(read(ws)) == 10
    pd.testing.assert_frame_equal(read(ws).drop("002.jpg"), before)
    asked.clear()
    predict(ws, train_images=str(others), **TINY)
    assert asked == []


def test_a_training_image_that_was_away_makes_another_model_when_it_is_back(
    tmp_path, ws, in_this_process, capfd
):
    images = list_with_split(tmp_path / "photos")
    score(images, ws)
    bring_back = hide(tmp_path / "photos" / "a" / "03.png")
    without = predict(ws, split="train", **TINY)
    assert (in_this_process, without["num_trained_on"]) == ([5], 5)
    assert "1 training images could not be read, such as" in capfd.readouterr().err
    assert "03.png" not in read(ws).index  # it may be trained on the next time
    bring_back()
    complete = predict(ws, split="train", **TINY)
    assert (in_this_process, complete["num_trained_on"]) == ([5, 6], 6)
    assert complete["model"] != without["model"]
    assert predict(ws, split="train", **TINY)["model"] == complete["model"]
    # listed while it is away, it is known to be: the first model is of all others
    hide(tmp_path / "photos" / "a" / "03.png")
    score(images, ws)
    assert predict(ws, split="train", **TINY)["model"] == without["model"]
    assert in_this_process == [5, 6]


def test_a_model_that_has_predicted_is_not_replaced_by_one_of_the_same_images(tmp_path, ws):
    score(list_with_split(tmp_path / "photos"), ws)
    hide(tmp_path / "photos" / "a" / "03.png")
    file = Path(predict(ws, split="train", **TINY)["model"])
    file.write_bytes(kept := file.read_bytes() + b"trailer")
    assert predict(ws, split="train", **TINY)["model"] == str(file)
    assert file.read_bytes() == kept


def test_training_files_that_are_no_images_are_not_trained_on_again_and_again(
    tmp_path, ws, in_this_process
):
    images = list_with_split(tmp_path / "photos")
    (tmp_path / "photos" / "a" / "03.png").write_bytes(b"")
    (tmp_path / "photos" / "b" / "04.png").write_text("text")
    score(images, ws)
    models = {predict(ws, split="train", **TINY)["model"] for _ in range(2)}
    assert (len(models), in_this_process) == (1, [4])


@pytest.mark.parametrize("are_away", [True, False])
def test_a_class_without_a_readable_training_image_is_not_judged(tmp_path, ws, are_away, capfd):
    images = list_with_split(tmp_path / "photos")
    files = [tmp_path / "photos" / "c" / name for name in ("02.png", "05.png")]
    if not are_away:
        for file in files:
            file.write_text("text")
    score(images, ws)
    if are_away:
        for file in files:
            hide(file)
    for _ in range(2):  # trained, and found again
        summary = predict(ws, split="train", **TINY)
        table = read(ws)
        assert set(table["predicted"]) <= {"a", "b"}
        assert table.loc[table["label"] == "c", "correct"].isna().tolist() == [True] * 2
        assert summary["num_judged"] == table["correct"].notna().sum() == 4
        shown = capfd.readouterr().err
        assert "labels without a training image that can be read are not judged: c" in shown


# --- the probability of the true class ----------------------------------------------------------


def test_a_trained_classifier_gives_the_probability_of_each_image_s_label(
    tmp_path, ws, monkeypatch
):
    images = list_with_split(tmp_path / "photos")
    (tmp_path / "photos" / "c" / "08.png").write_text("not an image")
    overwrite_label(images, "11.png", "unseen")
    score(images, ws)
    said: list[dict[str, float]] = []

    def keep(model, loaded):
        chances = ask(model, loaded)
        said.extend(dict(zip("abc", row, strict=True)) for row in chances.tolist())
        return chances

    ask = loop.predict_probabilities
    monkeypatch.setattr(loop, "predict_probabilities", keep)
    predict(ws, split="train", **TINY)
    assert pq.read_schema(f"{ws}/predictions.parquet").names == [
        "image_id", "path", "label", "predicted", "confidence", "probability_true", "correct",
    ]  # fmt: skip
    table = read(ws)
    assert sorted(table.index) == [f"{number:02}.png" for number in range(6, 12)]
    for chances, (name, row) in zip(said, table.iterrows(), strict=True):
        if name in ("08.png", "11.png"):  # unreadable, and of a class that was not trained
            assert pd.isna(row["probability_true"])
            continue
        assert row["probability_true"] == pytest.approx(chances[row["label"]])
        assert (row["probability_true"] == row["confidence"]) == row["correct"]


def test_an_image_with_another_label_gets_the_probability_of_that_one(tmp_path, ws, monkeypatch):
    images = list_with_split(tmp_path / "photos")
    score(images, ws)
    predict(ws, split="train", **TINY)
    before = read(ws)
    overwrite_label(images, "07.png", "c")
    score(images, ws)
    asked: list[str] = []

    def load_pixels(source, paths, *settings):
        asked.extend(Path(path).name for path in paths)
        return load(source, paths, *settings)

    load = pixels.load_pixels
    monkeypatch.setattr(pixels, "load_pixels", load_pixels)
    predict(ws, split="train", **TINY)
    assert asked == ["07.png"]
    table = read(ws)
    assert table.loc["07.png", "label"] == "c"
    assert table.loc["07.png", "probability_true"] != before.loc["07.png", "probability_true"]
    pd.testing.assert_frame_equal(table.drop("07.png"), before.drop("07.png"))


# --- settings that contradict each other --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("split", "0.4"), ("train_images", "more"), ("epochs", 3), ("freeze_backbone", True),
     ("weights", "none"), ("seed", 1), ("num_actors", 2), ("labels", "top")],
)  # fmt: skip
def test_imports_refuse_what_only_training_means(name, value):
    flag = "--" + name.replace("_", "-")
    with pytest.raises(UsageError, match=f"^{flag} is for --backbone: leave it out"):
        make_job(PredictJob, {"workspace": "ws", "predictions": "mine.csv", name: value})


def test_imports_can_be_repeated_from_their_record():
    given = {"workspace": "ws", "address": "auto", "predictions": "mine.csv"}
    job = make_job(PredictJob, given)
    assert make_job(PredictJob, yaml.safe_load(dump_settings(job))) == job


# --- imports: which image a path means --------------------------------------------------------


def test_a_path_below_the_root_and_below_this_folder_means_the_root(
    image_folder, ws, tmp_path, monkeypatch
):
    root = image_folder(4)
    # another listed image stands at a/000.jpg from here
    inner = root / "inner"
    (inner / "a").mkdir(parents=True)
    overwrite(inner / "a" / "000.jpg", 9)
    score(root, ws)
    monkeypatch.chdir(inner)
    (tmp_path / "mine.csv").write_text("path,predicted\na/000.jpg,a\n./b/../b/001.jpg,b\n")
    predict(ws, predictions=str(tmp_path / "mine.csv"))
    found = read_predictions(Workspace(ws))[0]["path"].tolist()
    assert found == [str(root / "a" / "000.jpg"), str(root / "b" / "001.jpg")]


def test_other_paths_mean_this_folder(image_folder, ws, tmp_path, monkeypatch):
    root = image_folder(4)
    score(root, ws)
    monkeypatch.chdir(root / "b")
    paths = ["001.jpg", "../a/000.jpg", f"{root}/b/../b/003.jpg", f"file://{root}/a/002.jpg"]
    (tmp_path / "mine.csv").write_text("path,predicted\n" + "".join(f"{p},a\n" for p in paths))
    predict(ws, predictions=str(tmp_path / "mine.csv"))
    assert sorted(read(ws).index) == ["000.jpg", "001.jpg", "002.jpg", "003.jpg"]


def test_paths_in_an_object_store(ws, tmp_path):
    names = ["a/0.jpg", "b/1.jpg"]
    columns: dict[str, Any] = dict.fromkeys(IMAGES_SCHEMA.names)
    columns |= {"image_id": ["0", "1"], "path": [f"s3://bucket/photos/{name}" for name in names]}
    rows = {name: cells or [None] * 2 for name, cells in columns.items()}
    options = "endpoint_override=localhost%3A9000"
    record = {"root": f"s3://bucket/photos?{options}"}
    Workspace(ws).write_table("images.parquet", pa.table(rows, schema=IMAGES_SCHEMA), record)
    (tmp_path / "mine.csv").write_text(
        f"path,predicted\na/0.jpg,a\ns3://bucket/photos/b/1.jpg?{options},a\n"
    )
    assert predict(ws, predictions=str(tmp_path / "mine.csv"))["num_predicted"] == 2


def test_images_without_a_column_are_refused_before_anything_is_predicted(ws, tmp_path):
    images = pa.table({"image_id": ["0"], "label": ["a"]})
    Workspace(ws).write_table("images.parquet", images)
    (tmp_path / "mine.csv").write_text("path,predicted\na/0.jpg,a\n")
    with pytest.raises(UsageError, match=r"images\.parquet has no column 'path': remove it and"):
        predict(ws, predictions=str(tmp_path / "mine.csv"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("cell", [None, ""])
def test_an_empty_path_is_refused_with_its_row(image_folder, ws, tmp_path, kind, cell):
    score(image_folder(4), ws)
    file = tmp_path / f"mine.{kind}"
    frame = pd.DataFrame({"path": ["a/000.jpg", cell], "predicted": ["a", "b"]})
    frame.to_csv(file, index=False) if kind == "csv" else frame.to_parquet(file)
    with pytest.raises(UsageError, match=rf"mine\.{kind}: row 2 has an empty path"):
        predict(ws, predictions=str(file))


# --- which content a prediction is of -----------------------------------------------------------


def test_a_trained_classifier_predicts_the_content_that_it_read(image_folder, ws):
    root = image_folder(8)
    score(root, ws)
    changed = root / "b" / "003.jpg"
    overwrite(changed, 77)  # after it was scored
    bring_back = hide(root / "a" / "004.jpg")
    others = image_folder(4, name="others", height=40)
    predict(ws, train_images=str(others), **TINY)
    bring_back()
    table = read(ws)
    for row in table.itertuples():
        data = Path(row.path).read_bytes()
        expected = None if row.Index == "004.jpg" else hash_content(data)
        assert row.content_hash == expected
    assert len(table) == 8


def test_an_imported_prediction_is_of_the_content_that_was_scored(tmp_path, ws):
    images = list_with_split(tmp_path / "photos")
    (tmp_path / "photos" / "c" / "11.png").unlink()
    score(images, ws)
    frame = pd.read_csv(images).assign(predicted="a")
    frame.iloc[:0:-1].to_csv(tmp_path / "mine.csv", index=False)
    predict(ws, predictions=str(tmp_path / "mine.csv"))
    table = read(ws)
    assert table.loc["11.png", "content_hash"] is None
    for row in table.drop("11.png").itertuples():
        assert row.content_hash == hash_content(Path(row.path).read_bytes())
    assert len(table) == 11
    assert pq.read_schema(f"{ws}/predictions.parquet").names == PREDICTIONS_SCHEMA.names


def test_predictions_can_be_imported_before_any_metric_has_a_score(tmp_path, ws):
    images = list_with_split(tmp_path / "photos")
    score(images, ws)
    shutil.rmtree(f"{ws}/scores")
    pd.read_csv(images).assign(predicted="a").to_csv(tmp_path / "mine.csv", index=False)
    predict(ws, predictions=str(tmp_path / "mine.csv"))
    assert read(ws)["content_hash"].tolist() == [None] * 12


def test_predictions_without_a_row_are_refused(tmp_path, ws):
    score(list_with_split(tmp_path / "photos"), ws)
    (tmp_path / "mine.csv").write_text("path,predicted\n")
    with pytest.raises(UsageError, match="mine.csv has no rows"):
        predict(ws, predictions=str(tmp_path / "mine.csv"))


def test_predictions_are_read_with_their_hashes_row_for_row(ws):
    columns = [["2", "1"], ["y", "x"], ["a", None], ["a", "b"], [0.5, None], [True, None]]
    arrays = [pa.array(c, t) for c, t in zip(columns, PREDICTIONS_SCHEMA.types, strict=True)]
    table = pa.table(arrays, schema=PREDICTIONS_SCHEMA)
    workspace = Workspace(ws)
    with pytest.raises(UsageError, match="run `iqa-ray predict"):
        read_predictions(workspace)
    origins = Origins(["f0", None], has_own_labels=True)
    write_predictions(workspace, table, origins)
    frame, found = read_predictions(workspace)
    assert list(frame) == PREDICTIONS_SCHEMA.names
    assert frame["image_id"].tolist() == ["2", "1"]
    assert found == origins
    kept = pq.read_table(f"{ws}/predictions.parquet").slice(1)  # as other programs might
    pq.write_table(kept, f"{ws}/predictions.parquet")
    assert read_predictions(workspace)[1] is None
    workspace.write_table("predictions.parquet", table)  # as older versions did
    assert read_predictions(workspace)[1] is None
    workspace.write_table("predictions.parquet", table.drop_columns("correct"))
    with pytest.raises(UsageError, match="has no column 'correct': remove it and run "):
        read_predictions(workspace)


# --- imports: what is taken from the user's file ----------------------------------------------


@pytest.fixture
def listed(desk):
    """Four scored images, the last of which has no valid score."""
    for name in ("a/0", "a/1", "b/2"):
        desk.put(f"{name}.bmp", 10)
    (desk.photos / "b" / "3.bmp").write_text("no image")
    desk.score("lapm", "wavs")
    return desk


def import_text(desk, text: str) -> dict[str, Any]:
    file = Path(desk.ws).parent / "mine.csv"
    file.write_text(text)
    return predict(desk.ws, predictions=str(file))


def test_an_import_has_the_listing_s_rows_and_the_user_s_words(listed, capsys):
    summary = import_text(
        listed,
        "path,label,predicted,confidence\nb/2.bmp,,b,0.5\na/1.bmp,z,z,\nother.bmp,a,a,1\n"
        "b/3.bmp,b,,0.25\na/0.bmp,a,b,1\n",
    )
    table = Workspace(listed.ws).read_table("predictions.parquet", "predict")
    assert table.schema.equals(PREDICTIONS_SCHEMA)
    rows = read_predictions(Workspace(listed.ws))[0]
    assert [Path(path).name for path in rows["path"]] == ["0.bmp", "1.bmp", "2.bmp", "3.bmp"]
    assert list(rows["label"]) == ["a", "z", "b", "b"]  # the listing's where the file has none
    assert list(rows["predicted"][:3]) == ["b", "z", "b"]
    assert pd.isna(rows["predicted"][3])
    assert list(rows["confidence"].fillna(-1)) == [1, -1, 0.5, 0.25]
    assert list(rows["correct"][:3]) == [False, True, True]
    assert pd.isna(rows["correct"][3])
    origins = read_predictions(Workspace(listed.ws))[1]
    known = [hash_content(Path(path).read_bytes()) for path in rows["path"]]
    assert origins.has_own_labels
    assert origins.content_hashes == known  # also of the one that is no image, but was read
    file = Path(listed.ws).parent / "mine.csv"
    assert f"{file}: 1 rows are of images not in {listed.ws}: left out" in capsys.readouterr().err
    assert (summary["num_predicted"], summary["predictions"]) == (3, str(file))


def test_an_import_keeps_the_probability_of_the_true_class(listed):
    import_text(
        listed, "path,predicted,confidence,probability_true\nb/2.bmp,a,1,0\na/0.bmp,a,0.75,\n"
    )
    schema = pq.read_schema(f"{listed.ws}/predictions.parquet")
    assert [name for name in schema.names if name not in PREDICTIONS_SCHEMA.names] == [
        "probability_true"
    ]
    assert schema.names[-2:] == ["probability_true", "correct"]
    rows = read_predictions(Workspace(listed.ws))[0]
    assert rows["probability_true"].fillna(-1).tolist() == [-1, 0]
    assert rows["confidence"].tolist() == [0.75, 1]


def test_an_import_without_labels_is_judged_by_the_listing_s(listed, capsys):
    import_text(listed, "path,predicted\na/0.bmp,a\nb/2.bmp,a\n")
    rows, origins = read_predictions(Workspace(listed.ws))
    assert list(rows["correct"]) == [True, False]
    assert rows["confidence"].isna().all()
    assert not origins.has_own_labels
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,label\na/0.bmp,a\n", "FILE has no column `predicted`"),
        ("path,predicted\n", "FILE has no rows: give a prediction an image"),
        (
            "path,predicted\nx.bmp,a\ny.bmp,a\n",
            "FILE: none of its 2 paths is an image of WS (the first: 'x.bmp'; there: "
            "'PHOTOS/a/0.bmp')",
        ),
        (
            "path,predicted\nb/2.bmp,a\na/0.bmp,a\na/../a/0.bmp,b\n",
            "FILE has more than one row for 'a/../a/0.bmp'",
        ),
        (
            "path,predicted,confidence\na/0.bmp,a,0.5\na/1.bmp,a,much\n",
            "FILE: column `confidence` must hold numbers",
        ),
        (
            "path,predicted,confidence\na/0.bmp,a,1\na/1.bmp,a,87.5\n",
            "FILE: column `confidence` must hold numbers from 0 to 1, and has 87.5",
        ),
        (
            "path,predicted,confidence\na/0.bmp,a,-0.01\n",
            "FILE: column `confidence` must hold numbers from 0 to 1, and has -0.01",
        ),
        (
            "path,predicted,probability_true\na/0.bmp,a,0.5\na/1.bmp,a,inf\n",
            "FILE: column `probability_true` must hold numbers from 0 to 1, and has inf",
        ),
        (
            "path,predicted,probability_true\na/0.bmp,a,some\n",
            "FILE: column `probability_true` must hold numbers",
        ),
        ("path,predicted\na/0.bmp,a\n,a\n", "FILE: row 2 has an empty path"),
    ],
)
def test_unusable_predictions_are_refused_in_one_line(listed, text, problem):
    for name, value in (
        ("FILE", Path(listed.ws).parent / "mine.csv"), ("WS", listed.ws), ("PHOTOS", listed.photos)
    ):  # fmt: skip
        problem = problem.replace(name, str(value))
    with pytest.raises(UsageError) as error:
        import_text(listed, text)
    assert str(error.value) == problem
    assert not Path(listed.ws, "predictions.parquet").exists()


def test_a_label_without_a_class_is_not_judged():
    frame = pd.DataFrame(
        {
            "image_id": list("12345"), "path": list("vwxyz"), "confidence": 0.5,
            "label": ["a", "c", None, "b", "a"], "predicted": ["a", "a", "a", "a", None],
        }
    )  # fmt: skip
    of_two = judge_predictions(frame.copy(), {"a", "b"}).column("correct").to_pylist()
    assert of_two == [True, None, None, False, None]
    of_any = judge_predictions(frame).column("correct").to_pylist()
    assert of_any == [True, False, None, False, None]
