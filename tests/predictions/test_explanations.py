"""Occlusion maps, the pairs that are explained, and `select --figures` without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from inline import run_inline
from pictures import make_texture
from PIL import Image
from torch import nn

from iqa_ray.config import make_job
from iqa_ray.predictions.explanations import GRID, ExplainedPair, choose_pairs, map_occlusion
from iqa_ray.predictions.jobs import run_predict
from iqa_ray.predictions.settings import PredictJob
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.selection import evidence
from iqa_ray.selection.jobs import describe_selection, run_cutoffs, run_select
from iqa_ray.selection.settings import CutoffsJob, SelectJob
from iqa_ray.training import loop, single

# --- occlusion --------------------------------------------------------------------------------


class SpotReader(nn.Module):
    """Two classes; the log-odds of the second are the mean red of one part, from 0 to 10."""

    def __init__(self, rows: slice, columns: slice) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        self.head.weight.data = torch.tensor([[0.0], [10.0 / 255]])
        self.head.bias.data = torch.zeros(2)
        self._rows, self._columns = rows, columns

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        part = images[:, 0, self._rows, self._columns].float()
        return self.head(part.mean(dim=(1, 2))[:, None])


def test_occlusion_finds_the_part_that_the_answer_rests_on():
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[12:18, 30:36, 0] = 250  # the cell in row 2 and column 5 of 10
    model = SpotReader(slice(12, 18), slice(30, 36))
    first, second = map_occlusion(model, ["off", "on"], pixels, ["off", "on"])
    assert (first.name, second.name) == ("off", "on")
    assert second.log_odds == pytest.approx(2500 / 255, rel=1e-6)
    assert second.probability == pytest.approx(1 / (1 + np.exp(-2500 / 255)), rel=1e-6)
    assert first.probability == pytest.approx(1 / (1 + np.exp(2500 / 255)), rel=1e-5)
    # squares cover the spot whole, by half or by a quarter, with the mean: 250 · 36 / 3600 = 2.5,
    # of which the file has 2
    expected = np.zeros((GRID, GRID))
    share = np.array([0.5, 1.0, 0.5])
    expected[1:4, 4:7] = np.outer(share, share) * 10 * (250 - 2) / 255
    assert second.falls == pytest.approx(expected, abs=1e-5)
    assert first.falls == pytest.approx(-expected, abs=1e-5)


def test_the_whole_image_is_covered_also_where_cells_are_no_whole_pixels():
    pixels = np.full((33, 33, 3), 90, np.uint8)
    pixels[:2] = pixels[-2:] = 255
    for place in [(0, 0), (0, 32), (32, 0), (32, 32)]:
        model = SpotReader(*(slice(start, start + 1) for start in place))
        (found,) = map_occlusion(model, ["off", "on"], pixels, ["on"])
        assert found.falls.max() > 0
        row, column = np.unravel_index(found.falls.argmax(), found.falls.shape)
        assert (row > GRID / 2, column > GRID / 2) == (place[0] > 16, place[1] > 16)
    every = SpotReader(slice(0, 33), slice(0, 33))
    assert (pixels == 90).any(), "the image given is left as it was"
    (found,) = map_occlusion(every, ["off", "on"], pixels, ["on"])
    assert np.isfinite(found.falls).all()


# --- pairs ------------------------------------------------------------------------------------


def tabulate(*rows: tuple[str, str, float, bool, bool]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=["image_id", "label", "quality", "keep", "correct"])


def name_images(images: pd.DataFrame, unread: str = "") -> list[tuple[str, str, str]]:
    return choose_pairs(
        images, lambda row: None if row["image_id"] in unread.split() else row["image_id"]
    )


PAIRS = tabulate(
    ("h1", "a", 8.0, True, True),
    ("h2", "a", 9.0, True, True),
    ("h3", "a", 9.9, True, False),
    ("h4", "a", 9.9, False, True),
    ("l1", "a", 2.0, False, False),
    ("l2", "a", 1.0, False, False),
    ("l3", "a", 0.5, False, True),
    ("l4", "a", 0.5, True, False),
    ("l5", "a", np.nan, False, False),
)


def test_the_best_kept_right_image_and_the_worst_rejected_wrong_one_are_a_pair():
    assert name_images(PAIRS) == [("a", "h2", "l2")]
    assert name_images(PAIRS.iloc[::-1]) == [("a", "h2", "l2")]


def test_images_of_equal_quality_are_chosen_by_id():
    images = PAIRS.assign(quality=PAIRS["quality"].where(PAIRS["quality"].isna(), 5.0))
    assert name_images(images.iloc[::-1]) == [("a", "h1", "l1")]


def test_an_image_that_cannot_be_used_makes_room_for_the_next():
    assert name_images(PAIRS, "h2") == [("a", "h1", "l2")]
    assert name_images(PAIRS, "l2") == [("a", "h2", "l1")]
    assert name_images(PAIRS, "l1 l2") == []
    assert name_images(PAIRS, "h1 h2") == []


def test_no_more_than_five_images_are_tried_for_a_place():
    images = tabulate(
        ("h", "a", 9.0, True, True), *((f"l{n}", "a", float(n), False, False) for n in range(9))
    )
    asked = []

    def read(row):
        asked.append(row["image_id"])
        return "h" if row["image_id"] == "h" else None

    assert choose_pairs(images, read) == []
    assert asked == ["h", "l0", "l1", "l2", "l3", "l4"]


def test_the_classes_with_most_rejected_mistakes_are_shown_and_three_at_most():
    rows = []
    for label, num_wrong in [("d", 2), ("b", 1), ("e", 4), ("a", 1), ("c", 5)]:
        if label != "c":  # the most mistakes, and nothing to lay beside them
            rows.append((f"{label}-high", label, 9.0, True, True))
        worst = 5.0 if label == "a" else 0.0  # b's comes before a's, which is as many
        rows += [(f"{label}-low{n}", label, worst + n, False, False) for n in range(num_wrong)]
    assert [label for label, *_ in name_images(tabulate(*rows))] == ["e", "d", "a"]


def test_no_images_make_no_pairs():
    assert name_images(PAIRS.iloc[:0]) == []


# --- select --figures -------------------------------------------------------------------------

RED, BLUE = (90, -40, -90), (-90, -40, 90)


def save(file: Path, seed: int, tint: tuple[int, int, int], blur: float = 0.0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = 128 + (make_texture(seed, 40, 40, blur) - 128.0) / 4 + tint
    Image.fromarray(pixels.round().astype(np.uint8)).save(file)


@pytest.fixture
def ws(tmp_path, monkeypatch):
    """A classifier that knows red (a) from blue (b), and soft images with the other one's colour.

    So it is right about all sharp images and wrong about all soft ones.
    """

    def train(recipe, images, storage, key, on_event):
        return loop.dump_checkpoint(loop.train_from_files(recipe, images, 1, on_event))

    monkeypatch.setattr(single, "train_on_ray", train)
    for number in range(4):
        save(tmp_path / f"train/a/{number}.png", number, RED)
        save(tmp_path / f"train/b/{number}.png", number, BLUE)
    for number in range(3):
        for label, tint, other in (("a", RED, BLUE), ("b", BLUE, RED)):
            save(tmp_path / f"photos/{label}/sharp{number}.png", 9, tint, 0.4 * number)
            save(tmp_path / f"photos/{label}/soft{number}.png", 9, other, 2.0 + number)
    ws = str(tmp_path / "ws")
    with run_inline():
        score(ws)
        predict(ws, train_images=str(tmp_path / "train"))
        make_cutoffs(ws)
        yield ws


def score(ws: str) -> None:
    images = str(Path(ws).parent / "photos")
    run_score(make_job(ScoreJob, {"images": images, "workspace": ws, "metrics": ("lapm",)}))


def predict(ws: str, **given: str) -> None:
    job = {
        "workspace": ws, "backbone": "resnet18", "weights": "none", "image_size": 32,
        "freeze_backbone": True, "epochs": 40, "lr": 1e-2,
    }  # fmt: skip
    run_predict(make_job(PredictJob, job | given))


def make_cutoffs(ws: str) -> None:
    run_cutoffs(make_job(CutoffsJob, {"workspace": ws, "cutoff": {"lapm": 1.5}}))


def select(ws: str, **given: bool) -> dict:
    return run_select(make_job(SelectJob, {"workspace": ws, "figures": True, **given}))


@pytest.fixture
def drawn(monkeypatch) -> list[ExplainedPair]:
    pairs: list[ExplainedPair] = []
    draw = evidence.draw_explanations
    monkeypatch.setattr(
        evidence, "draw_explanations", lambda given: pairs.extend(given) or draw(given)
    )
    return pairs


def name_of(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def test_select_explains_a_good_and_a_bad_answer_of_each_class(ws, drawn):
    summary = select(ws)
    assert (summary["num_kept"], summary["in_sample"]["accuracy_kept"]) == (6, 1.0)
    assert summary["in_sample"]["accuracy_rejected"] == 0.0
    assert summary["num_explained"] == 2
    assert f"answers explained for 2 classes: {ws}/explanations.png" in describe_selection(summary)
    assert Path(ws, "explanations.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_parquet(f"{ws}/predictions.parquet").set_index("path")
    scores = pd.read_parquet(f"{ws}/selection.parquet").set_index("path")["lapm"]
    for pair, label, other in zip(drawn, "ab", "ba", strict=True):
        assert pair.label == label
        assert name_of(pair.high.path) == f"{label}/sharp0.png"
        assert name_of(pair.low.path) == f"{label}/soft2.png"
        assert [found.name for found in pair.high.maps] == [label]
        assert [found.name for found in pair.low.maps] == [other, label]
        for found in (pair.high, pair.low):
            assert found.pixels.shape == (32, 32, 3)
            assert found.scores == {"lapm": scores[found.path]}
            confidence = table.loc[found.path, "confidence"]
            assert found.maps[0].probability == pytest.approx(confidence, rel=1e-4)
        true = table.loc[pair.low.path, "probability_true"]
        assert pair.low.maps[1].probability == pytest.approx(true, rel=1e-4)


def test_a_vote_without_figures_removes_the_picture_of_another_and_the_same_comes_out_again(ws):
    picture = Path(ws, "explanations.png")
    select(ws)
    first = picture.read_bytes()
    summary = select(ws, figures=False)
    assert summary["num_explained"] == 0
    assert "explained" not in describe_selection(summary)
    assert not picture.exists()
    select(ws)
    assert picture.read_bytes() == first


def test_images_that_changed_or_are_away_are_passed_over_with_a_note(ws, drawn, capfd):
    photos = Path(ws).parent / "photos"
    save(photos / "a/sharp0.png", 77, RED)
    (photos / "b/soft2.png").unlink()
    select(ws)
    assert [name_of(pair.high.path) for pair in drawn] == ["a/sharp1.png", "b/sharp0.png"]
    assert [name_of(pair.low.path) for pair in drawn] == ["a/soft2.png", "b/soft1.png"]
    said = capfd.readouterr().err
    assert "explanations: 2 images changed since they were predicted or cannot be read" in said
    assert "a/sharp0.png'" in said


def test_where_no_class_has_both_there_is_a_note_instead(ws, drawn, capfd):
    run_cutoffs(make_job(CutoffsJob, {"workspace": ws, "cutoff": {"lapm": 0.0}}))
    assert select(ws)["num_explained"] == 0  # all are kept
    assert "no explanations.png: no class has both a kept image" in capfd.readouterr().err
    assert not drawn


def import_predictions(ws: str) -> None:
    table = pd.read_parquet(f"{ws}/predictions.parquet")
    file = Path(ws).parent / "mine.csv"
    table[["path", "predicted", "confidence"]].to_csv(file, index=False)
    run_predict(make_job(PredictJob, {"workspace": ws, "predictions": str(file)}))


def lose_model(ws: str) -> None:
    (model,) = Path(ws, "models").glob("*.pt")
    model.unlink()


@pytest.mark.parametrize("happens", [import_predictions, lose_model])
def test_without_the_classifier_the_other_figures_are_drawn(ws, capfd, happens):
    happens(ws)
    assert select(ws)["num_explained"] == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "explanations" in line]
    assert said == [
        "no explanations.png: it needs predictions of a classifier that this workspace keeps: run "
        f"`iqa-ray predict --workspace {ws} --backbone NAME`"
    ]
    assert not Path(ws, "explanations.png").exists()
    assert Path(ws, "risk_coverage.png").exists()


def test_without_predictions_there_is_nothing_to_explain(ws, capfd):
    Path(ws, "predictions.parquet").unlink()
    assert select(ws)["num_explained"] == 0
    assert "no explanations.png: it needs predictions" in capfd.readouterr().err
