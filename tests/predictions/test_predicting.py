from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pyarrow import parquet as pq

from iqa_ray.config import make_job
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.predictions.holdout import draw_share
from iqa_ray.predictions.jobs import run_predict
from iqa_ray.predictions.settings import PredictJob
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.selection.jobs import describe_cutoffs, describe_selection, run_cutoffs, run_select
from iqa_ray.selection.settings import CutoffsJob, SelectJob
from iqa_ray.training import backbones, loop, single

pytestmark = pytest.mark.usefixtures("ray_session")
TINY = {"backbone": "resnet18", "weights": "none", "epochs": 2, "image_size": 32, "lr": 1e-3}


@pytest.fixture
def scored(image_folder, tmp_path) -> tuple[Path, str]:
    root, ws = image_folder(12), str(tmp_path / "ws")
    score(root, ws)
    return root, ws


@pytest.fixture
def trained_here(monkeypatch) -> None:
    """Training in this process: what happens around it is the same, without Ray Train's start."""

    def train(recipe, images, storage, key, on_event):
        return loop.dump_checkpoint(loop.train_from_files(recipe, images, 1, on_event))

    monkeypatch.setattr(single, "train_on_ray", train)


def score(root: Path, ws: str) -> None:
    job = {"images": str(root), "workspace": ws, "metrics": ("lapm",), "cpus_per_actor": 0.5}
    run_score(make_job(ScoreJob, job))


def predict(ws: str, **settings):
    return run_predict(make_job(PredictJob, {"workspace": ws, **settings}))


def table_of(ws: str) -> pd.DataFrame:
    return pd.read_parquet(f"{ws}/predictions.parquet")


@pytest.mark.parametrize("style", ["absolute", "relative to the root", "dotted"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_import_matches_paths(scored, tmp_path, style, kind):
    root, ws = scored
    names = ["a/000.jpg", "b/001.jpg"]
    prefix = {"absolute": f"{root}/", "relative to the root": "", "dotted": "./"}[style]
    frame = pd.DataFrame(
        {
            "path": [prefix + name for name in names],
            "label": ["a", "b"],
            "predicted": ["a", "a"],
            "confidence": [0.9, 0.6],
        }
    )
    file = tmp_path / f"p.{kind}"
    frame.to_csv(file, index=False) if kind == "csv" else frame.to_parquet(file)
    summary = predict(ws, predictions=str(file))
    assert (summary["num_predicted"], summary["num_correct"], summary["accuracy"]) == (2, 1, 0.5)
    schema = pq.read_schema(f"{ws}/predictions.parquet")
    assert schema.names == ["image_id", "path", "label", "predicted", "confidence", "correct"]
    table = table_of(ws).set_index("path")
    assert table.loc[str(root / "a/000.jpg"), "correct"]
    assert not table.loc[str(root / "b/001.jpg"), "correct"]
    assert table.loc[str(root / "b/001.jpg"), "confidence"] == 0.6


def test_import_relative_to_the_present_folder(scored, tmp_path, monkeypatch):
    root, ws = scored
    monkeypatch.chdir(root.parent)
    (tmp_path / "p.csv").write_text("path,predicted\nphotos/a/000.jpg,a\n")
    assert predict(ws, predictions=str(tmp_path / "p.csv"))["num_correct"] == 1


def test_import_takes_labels_from_the_listing_and_leaves_strangers_out(scored, tmp_path, capfd):
    _, ws = scored
    (tmp_path / "p.csv").write_text("path,predicted\na/000.jpg,a\nb/001.jpg,\nelse/9.jpg,a\n")
    summary = predict(ws, predictions=str(tmp_path / "p.csv"))
    assert (summary["num_predicted"], summary["num_judged"], summary["num_correct"]) == (1, 1, 1)
    assert "1 rows are of images not in" in capfd.readouterr().err
    assert table_of(ws)["correct"].isna().sum() == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na/000.jpg,a\n", "no column `predicted`"),
        ("file,predicted\na/000.jpg,a\n", "no column `path`"),
        ("path,predicted\nx.jpg,a\n", "none of its 1 paths"),
        ("path,predicted\na/000.jpg,a\n./a/000.jpg,b\n", "more than one row"),
        ("path,predicted,confidence\na/000.jpg,a,high\n", "must hold numbers"),
    ],
)
def test_bad_imports(scored, tmp_path, content, message):
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(UsageError, match=message):
        predict(scored[1], predictions=str(tmp_path / "p.csv"))


def test_nothing_scored_yet(tmp_path):
    with pytest.raises(UsageError, match="run `iqa-ray score"):
        predict(str(tmp_path / "ws"), predictions="p.csv")


@pytest.mark.slow
def test_training_on_a_share_holds_it_out_and_repeats_for_nothing(scored, capfd):
    _, ws = scored
    summary = predict(ws, split="0.5", **TINY)
    assert summary["num_trained_on"] == summary["num_held_out"] == 6
    assert summary["num_predicted"] == summary["num_judged"] == 6
    table = table_of(ws)
    assert len(table) == 6
    assert table["confidence"].between(0.5, 1).all()
    assert set(table["predicted"]) <= {"a", "b"}
    assert ((table["predicted"] == table["label"]) == table["correct"]).all()
    shown = capfd.readouterr().err
    assert "held out for training (split 0.5): 6 images" in shown
    assert "epoch 2 of 2" in shown
    assert not list(Path(ws, "train").glob("*"))
    predict(ws, split="0.5", **TINY)
    assert "trained on these 6 images before" in capfd.readouterr().err
    pd.testing.assert_frame_equal(table_of(ws), table)


@pytest.mark.usefixtures("trained_here")
@pytest.mark.slow
def test_other_settings_train_anew_and_other_weights_too(scored, tmp_path):
    import torch

    _, ws = scored
    file = tmp_path / "w.pt"
    models = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(backbones.create("resnet18", 2).state_dict(), file)
        settings = {**TINY, "weights": str(file), "epochs": 1}
        models.add(predict(ws, split="0.5", **settings)["model"])
    models.add(predict(ws, split="0.5", **{**settings, "seed": 5})["model"])
    assert len(models) == 3
    assert len(list(Path(ws, "models").iterdir())) == 3


def test_weights_and_sizes_that_cannot_be_used_are_found_before_training(scored, tmp_path):
    """Before Ray is started: there is nothing at that address."""
    (tmp_path / "w.pt").write_bytes(b"junk")
    nowhere = {**TINY, "split": "0.5", "address": "127.0.0.1:1"}
    with pytest.raises(UsageError, match=r"--weights .*w\.pt: not a file of weights"):
        predict(scored[1], **{**nowhere, "weights": str(tmp_path / "w.pt")})
    with pytest.raises(UsageError, match="--image-size 32: too small for alexnet"):
        predict(scored[1], **{**nowhere, "backbone": "alexnet"})


@pytest.mark.usefixtures("trained_here")
def test_training_on_a_named_split(image_folder, tmp_path):
    root, ws = image_folder(8), str(tmp_path / "ws")
    names = [f"{'ab'[n % 2]}/{n:03}.jpg" for n in range(8)]
    # the same picture stands on both sides: it must not be judged
    (root / names[7]).write_bytes((root / names[1]).read_bytes())
    frame = pd.DataFrame({"path": names, "split": ["train"] * 4 + ["test"] * 4})
    frame.to_csv(root / "list.csv", index=False)
    score(root / "list.csv", ws)
    summary = predict(ws, split="train", freeze_backbone=True, **TINY)
    assert summary["num_trained_on"] == 4
    assert summary["num_held_out"] == 5
    assert sorted(Path(p).name for p in table_of(ws)["path"]) == ["004.jpg", "005.jpg", "006.jpg"]
    with pytest.raises(UsageError, match=r"value of the split column \(test, train\)"):
        predict(ws, split="val", **TINY)


@pytest.mark.usefixtures("trained_here")
def test_training_images_among_the_scored_ones_are_refused(scored, tmp_path):
    root, ws = scored
    with pytest.raises(UsageError, match="12 of them are among the scored images"):
        predict(ws, train_images=str(root), **TINY)
    copies = tmp_path / "copies"
    for label in "ab":
        (copies / label).mkdir(parents=True)
        Image.fromarray(np.full((32, 32, 3), 9, np.uint8)).save(copies / label / "x.jpg")
    (copies / "a" / "renamed.jpg").write_bytes((root / "b" / "001.jpg").read_bytes())
    with pytest.raises(UsageError, match="1 of them are among .*001.jpg"):
        predict(ws, train_images=str(copies), **TINY)
    (copies / "a" / "renamed.jpg").unlink()
    assert predict(ws, train_images=str(copies), **TINY)["num_predicted"] == 12


@pytest.mark.usefixtures("trained_here")
def test_unreadable_images_have_no_prediction_and_no_verdict(image_folder, tmp_path):
    root, ws = image_folder(8), str(tmp_path / "ws")
    for label in "ab":
        for number in range(2):
            (root / label / f"bad{number}.jpg").write_text(f"{label}{number}")
    score(root, ws)
    summary = predict(ws, split="0.5", seed=1, **TINY)
    table = table_of(ws)
    bad = table["path"].str.contains("bad")
    assert bad.any()
    assert table.loc[bad, ["predicted", "confidence", "correct"]].isna().all().all()
    assert table.loc[~bad, "predicted"].notna().all()
    assert summary["num_predicted"] == (~bad).sum()


def test_labels_that_no_class_has(scored, image_folder):
    _, ws = scored
    other = image_folder(4, name="other", height=40)
    (other / "a").rename(other / "x")
    (other / "b").rename(other / "y")
    with pytest.raises(UsageError, match="no label of the scored images is a class"):
        predict(ws, train_images=str(other), **TINY)


def test_training_needs_two_classes(scored, image_folder):
    one = image_folder(1, name="one")
    with pytest.raises(UsageError, match="at least two classes"):
        predict(scored[1], train_images=str(one), **TINY)


@pytest.mark.slow
def test_unreadable_training_images_end_the_run(scored, tmp_path):
    for label in "ab":
        (tmp_path / "bad" / label).mkdir(parents=True)
        (tmp_path / "bad" / label / "x.jpg").write_bytes(b"text")
    with pytest.raises(IncompleteError, match="training failed: .*0 readable training images"):
        predict(scored[1], train_images=str(tmp_path / "bad"), **TINY)


def test_drawing_a_share_is_stratified_and_seeded():
    labels = ["a"] * 10 + ["b"] * 30 + ["c"] + [None] * 5
    drawn = draw_share(labels, 0.4, 0)
    assert drawn[:10].sum() == 4
    assert drawn[10:40].sum() == 12
    assert drawn[40]
    assert not drawn[41:].any()
    assert (draw_share(labels, 0.4, 0) == drawn).all()
    assert (draw_share(labels, 0.4, 1) != drawn).any()


# --- cut-offs and selection as jobs -----------------------------------------------------------


@pytest.fixture
def judged(image_folder, tmp_path) -> tuple[Path, str]:
    """Forty images, ever more blurred; the later, the more often wrongly classified."""
    root, ws = image_folder(40, blur_step=0.05), str(tmp_path / "ws")
    score(root, ws)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        label = "ab"[number % 2]
        wrong = rng.random() < (0.1 if number < 20 else 0.8)
        rows.append((f"{label}/{number:03}.jpg", label, "c" if wrong else label, 0.5))
    columns = ["path", "label", "predicted", "confidence"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "p.csv", index=False)
    predict(ws, predictions=str(tmp_path / "p.csv"))
    return root, ws


def test_cutoffs_then_select(judged, tmp_path):
    import json

    _, ws = judged
    entries = run_cutoffs(CutoffsJob(workspace=ws))
    written = json.loads(Path(ws, "cutoffs.json").read_text())
    assert "correlation" not in written["lapm"]
    named = {"correlation": entries["lapm"]["correlation"], **written["lapm"]}
    assert {"lapm": named} == json.loads(json.dumps(entries))
    assert entries["lapm"]["value"] > 0
    assert entries["lapm"]["counts"]["correct"] + entries["lapm"]["counts"]["incorrect"] == 40
    assert "lapm" in describe_cutoffs(entries)
    summary = run_select(SelectJob(workspace=ws, link=str(tmp_path / "kept")))
    selection = pd.read_parquet(f"{ws}/selection.parquet")
    assert list(selection) == [
        "image_id", "path", "label", "lapm", "low_lapm", "num_low", "keep", "reason",
    ]  # fmt: skip
    low = selection["lapm"] < entries["lapm"]["value"]
    assert (selection["keep"] == ~low).all()
    kept = pd.read_csv(f"{ws}/kept.csv")
    assert sorted(kept["path"]) == sorted(selection.loc[selection["keep"], "path"])
    assert summary["num_kept"] == len(kept) == summary["num_linked"]
    assert summary["num_kept"] + summary["num_rejected"] == summary["num_images"] == 40
    assert summary["num_unscored"] == 0
    assert summary["metrics"] == ["lapm"]
    assert summary["rule"] == "majority"
    assert len(list((tmp_path / "kept").glob("*/*.jpg"))) == len(kept)
    assert "kept" in describe_selection(summary)
    assert list(Path(ws, "configs").glob("select-*.yaml"))


def test_images_that_came_without_scores_are_rejected(judged):
    root, ws = judged
    run_cutoffs(CutoffsJob(workspace=ws))
    (root / "a" / "broken.jpg").write_bytes(b"text")
    score(root, ws)
    summary = run_select(SelectJob(workspace=ws))
    assert summary["num_unscored"] == 1
    row = pd.read_parquet(f"{ws}/selection.parquet").query("path.str.contains('broken')").iloc[0]
    assert not row["keep"]
    assert row["reason"].startswith("unscored (lapm: ")


def test_cutoffs_by_hand_need_no_predictions(scored):
    _, ws = scored
    entries = run_cutoffs(CutoffsJob(workspace=ws, cutoff={"lapm": 5.0}))
    assert entries["lapm"]["source"] == "manual"
    summary = run_select(SelectJob(workspace=ws))
    assert summary["cutoffs"] == {"lapm": 5.0}


def test_no_cutoff_at_all_is_incomplete_with_reasons(judged):
    _, ws = judged
    with pytest.raises(IncompleteError, match="no metric has a cut-off .lapm: only .* incorrectly"):
        run_cutoffs(CutoffsJob(workspace=ws, min_wrong=39))
    with pytest.raises(UsageError, match="has a cut-off"):
        run_select(SelectJob(workspace=ws))
    with pytest.raises(UsageError, match="lapm has no cut-off: only"):
        run_select(SelectJob(workspace=ws, metrics=("lapm",)))


def test_missing_tables(scored, tmp_path):
    _, ws = scored
    with pytest.raises(UsageError, match="run `iqa-ray predict"):
        run_cutoffs(CutoffsJob(workspace=ws))
    (tmp_path / "p.csv").write_text("path,predicted\na/000.jpg,a\n")
    predict(ws, predictions=str(tmp_path / "p.csv"))
    with pytest.raises(UsageError, match="run `iqa-ray score IMAGES .* --metrics wavs"):
        run_cutoffs(CutoffsJob(workspace=ws, metrics=("wavs",)))
    with pytest.raises(UsageError, match="run `iqa-ray cutoffs"):
        run_select(SelectJob(workspace=ws))
    with pytest.raises(UsageError, match="has no scores"):
        run_cutoffs(CutoffsJob(workspace=str(tmp_path / "empty")))


def test_impossible_votes(judged):
    _, ws = judged
    run_cutoffs(CutoffsJob(workspace=ws))
    with pytest.raises(UsageError, match="--rule 2: 1 metrics vote"):
        run_select(SelectJob(workspace=ws, rule=2))
    with pytest.raises(UsageError, match="has no wavs"):
        run_select(SelectJob(workspace=ws, metrics=("wavs",)))
