"""A metrifier as a metric: its file, `score`, `cutoffs`, `select` and nights, without Ray."""

from __future__ import annotations

import contextlib
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from inline import list_paths, run_inline
from PIL import Image
from toys import make_toy_images

from iqa_ray import metrics
from iqa_ray.config import make_job
from iqa_ray.errors import UsageError
from iqa_ray.images.decoding import decode_image
from iqa_ray.metrics.learnt import MetrifierCard, dump_metrifier
from iqa_ray.predictions.jobs import run_predict
from iqa_ray.predictions.settings import PredictJob
from iqa_ray.rescoring.jobs import run_rescore
from iqa_ray.rescoring.settings import RescoreJob
from iqa_ray.scoring import spreading
from iqa_ray.scoring.deep_scorer import DeepShardScorer
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import scored_metrics, scores_frame
from iqa_ray.selection.jobs import run_cutoffs, run_select
from iqa_ray.selection.settings import CutoffsJob, SelectJob
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training import backbones
from iqa_ray.training.pixels import cut_square

DISTORTIONS = (("", 0), ("noise", 3))


def write_model(file, seed=0, **card):
    """A metrifier that was not trained."""
    torch.manual_seed(seed)
    state = backbones.create("resnet18", len(DISTORTIONS) + 1).state_dict()
    made = MetrifierCard(
        **{"backbone": "resnet18", "image_size": 32, **card}, distortions=DISTORTIONS
    )
    file.write_bytes(dump_metrifier(made, state))
    return f"metrifier:{file}"


@pytest.fixture
def desk(tmp_path):
    make_toy_images(tmp_path / "photos", 40, size=40)
    return tmp_path


@contextlib.contextmanager
def inline(seen):
    """Workers in this process, with networks of their own."""

    def see(shard):
        seen.extend(Path(path).name for path in list_paths(shard))

    own = mock.patch.object(spreading, "DeepShardScorer", DeepShardScorer)
    with run_inline(see), own:
        yield


def score(desk, *names, **given):
    seen = []
    settings = {"images": str(desk / "photos"), "workspace": str(desk / "ws"), "metrics": names}
    with inline(seen):
        summary = run_score(make_job(ScoreJob, {**settings, **given}))
    return summary, seen


def compute(file, image):
    """The score by PyTorch alone, from the file's tensors."""
    import safetensors.torch

    model = backbones.create("resnet18", 3)
    state = safetensors.torch.load_file(file)
    model.load_state_dict({name: value.float() for name, value in state.items()})
    square = torch.from_numpy(cut_square(image, 32).copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return float(model.eval()(square)[0, -1].sigmoid())


def test_a_score_is_the_sigmoid_of_the_last_output(desk):
    name = write_model(desk / "m.safetensors")
    metric = metrics.create(name)
    image = decode_image((desk / "photos/a/000.png").read_bytes())
    assert metric(image) == pytest.approx(compute(desk / "m.safetensors", image), abs=1e-5)
    assert (metric.name, metric.higher_is_better) == (name, True)
    assert metric.spec.range == (0.0, 1.0)


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (50, 50, 3), (31, 9, 3)])
def test_images_of_any_shape_have_a_score(desk, shape):
    metric = metrics.create(write_model(desk / "m.safetensors"))
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert 0 < metric(image) < 1


def test_the_version_is_of_the_content_and_the_precision(desk):
    name = write_model(desk / "m.safetensors")
    version = metrics.create(name).version
    assert version == metrics.create(name).version
    assert metrics.create(name, precision="bf16").version == f"{version}+bf16"
    write_model(desk / "m.safetensors", seed=1)
    assert metrics.create(name).version != version


def test_a_relative_path_becomes_a_whole_one(desk, monkeypatch):
    name = write_model(desk / "m.safetensors")
    monkeypatch.chdir(desk)
    assert metrics.get_spec("metrifier:m.safetensors").name == name
    job = make_job(
        ScoreJob,
        {"images": "x", "workspace": "w", "metrics": ("metrifier:m.safetensors", name, "lapm")},
    )
    assert job.metrics == (name, "lapm")
    given = {"workspace": "w", "metrics": ("metrifier:m.safetensors", "lapm")}
    assert make_job(SelectJob, given).metrics == (name, "lapm")
    by_hand = {"cutoff": {"metrifier:m.safetensors": 0.5, "lapm": 2.0}}
    assert make_job(CutoffsJob, {**given, **by_hand}).cutoff == {name: 0.5, "lapm": 2.0}
    assert metrics.get_spec("metrifier:s3://bucket/m").name == "metrifier:s3://bucket/m"


def test_scores_are_written_resumed_and_made_anew_with_another_file(desk):
    name = write_model(desk / "m.safetensors")
    summary, seen = score(desk, "lapm", name)
    assert summary["num_scored"] == 40
    assert (summary["num_failed"], len(seen)) == (0, 80)
    workspace = Workspace(str(desk / "ws"))
    assert scored_metrics(workspace) == ["lapm", name]
    frame = scores_frame(workspace, [name])
    row = frame.iloc[11]
    image = decode_image(Path(row["path"]).read_bytes())
    assert row[name] == pytest.approx(compute(desk / "m.safetensors", image), abs=1e-5)
    assert score(desk, "lapm", name)[1] == []
    write_model(desk / "m.safetensors", seed=1)
    assert len(score(desk, "lapm", name)[1]) == 40
    assert (scores_frame(workspace, [name])[name] != frame[name]).all()


def predict_by(desk, name):
    """Predictions that are wrong on the images of the lowest scores."""
    frame = scores_frame(Workspace(str(desk / "ws")), [name])
    is_low = frame[name].rank() <= 16
    predicted = frame["label"].where(~is_low, "wrong")
    rows = pd.DataFrame({"path": frame["path"], "predicted": predicted})
    rows.to_csv(desk / "mine.csv", index=False)
    settings = {"workspace": str(desk / "ws"), "predictions": str(desk / "mine.csv")}
    run_predict(make_job(PredictJob, settings))
    return set(frame.loc[is_low, "image_id"])


def test_a_metrifier_is_certified_gets_a_cutoff_votes_and_is_rescored_nightly(desk):
    name = write_model(desk / "m.safetensors")
    score(desk, name)
    low = predict_by(desk, name)
    ws = str(desk / "ws")
    certain = {"workspace": ws, "target_accuracy": 0.7, "confidence": 0.6}
    summary = run_cutoffs(make_job(CutoffsJob, certain))
    assert summary[name]["value"] is not None
    summary = run_cutoffs(make_job(CutoffsJob, {"workspace": ws, "metrics": (name,)}))
    assert summary[name]["value"] is not None
    run_select(make_job(SelectJob, {"workspace": ws, "metrics": (name,)}))
    table = pd.read_parquet(desk / "ws/selection.parquet")
    rejected = set(table.loc[~table["keep"], "image_id"])
    assert len(rejected ^ low) <= 2
    assert f"low in 1 of 1: {name} " in table.loc[~table["keep"], "reason"].iloc[0]
    make_toy_images(desk / "new", 1, seed=5)
    (desk / "new/a/000.png").rename(desk / "photos/a/new.png")
    seen = []
    with inline(seen):
        night = run_rescore(make_job(RescoreJob, {"workspace": ws, "images": str(desk / "photos")}))
    assert (seen, night["num_new"], night["num_failed"]) == (["new.png"], 1, 0)
    assert len(pd.read_parquet(desk / "ws/selection.parquet")) == 41


def test_files_that_are_no_metrifiers_are_refused_before_anything_runs(desk):
    name = write_model(desk / "m.safetensors")
    data = (desk / "m.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"metrifier:.*away: there is no such file"):
        score(desk, f"metrifier:{desk / 'away'}")
    for content in (b"", b"nothing at all", data[:-5], data[:300]):
        (desk / "m.safetensors").write_bytes(content)
        with pytest.raises(UsageError, match=r"damaged, of another version, or not a file") as info:
            score(desk, name)
        assert "\n" not in str(info.value)
    write_model(desk / "m.safetensors", version=99)
    with pytest.raises(UsageError, match="version 99 of the format, not 1"):
        score(desk, name)
    Image.new("RGB", (9, 9)).save(desk / "image.png")
    with pytest.raises(UsageError, match="damaged, of another version, or not a file"):
        score(desk, f"metrifier:{desk / 'image.png'}")
    assert not (desk / "ws").exists()


def test_a_model_of_distortion_types_is_no_metrifier(desk):
    from iqa_ray.distortion_types.model import ModelCard, dump_model

    state = backbones.create("simplenet_norm", 4).state_dict()
    card = ModelCard("simplenet_norm", ("gblur", "jpeg", "wn"), 64, 1, "softmax")
    (desk / "types.safetensors").write_bytes(dump_model(card, state))
    with pytest.raises(UsageError, match="damaged, of another version, or not a file"):
        score(desk, f"metrifier:{desk / 'types.safetensors'}")


def test_a_name_without_a_file_is_refused():
    with pytest.raises(UsageError, match="--metrics: metrifier: needs a file"):
        make_job(ScoreJob, {"images": "x", "workspace": "w", "metrics": ("metrifier:",)})
