"""Scoring runs with deep metrics: groups side by side, batches, statuses, versions, later jobs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pictures import make_texture
from PIL import Image

import iqa_ray
from iqa_ray import metrics
from iqa_ray.cluster import connection
from iqa_ray.config import make_job
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.images.listing import list_images
from iqa_ray.images.source import ImageSource
from iqa_ray.metrics import deep
from iqa_ray.predictions.table import PREDICTIONS_SCHEMA
from iqa_ray.scoring import planning
from iqa_ray.scoring.cpu_scorer import ScoringRun, Shard
from iqa_ray.scoring.deep_scorer import DeepPlan, DeepShardScorer
from iqa_ray.scoring.jobs import describe_scores, run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import find_spec, scored_metrics, scores_frame
from iqa_ray.selection.jobs import run_cutoffs
from iqa_ray.selection.settings import CutoffsJob
from iqa_ray.storage.files import locate
from iqa_ray.storage.parts import make_fingerprints
from iqa_ray.storage.workspace import Workspace
from iqa_ray.weights.pulling import prepare_weights

pytest.importorskip("pyiqa")
pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Images of three sizes, one damaged and one too small."""
    root = tmp_path / "mixed"
    root.mkdir()
    sizes = [(64, 80), (80, 64), (64, 80), (48, 48), (64, 80), (80, 64), (64, 80), (20, 200)]
    for number, size in enumerate(sizes):
        Image.fromarray(make_texture(number, *size, blur=number / 3)).save(root / f"{number}.png")
    (root / "8.png").write_bytes(b"no image")
    return root


def score(root, ws, weights, names, **settings):
    given = {"images": str(root), "workspace": str(ws), "metrics": names, "weights": str(weights)}
    return run_score(make_job(ScoreJob, {**given, "labels": "none", **settings}))


@pytest.mark.slow
def test_cpu_and_deep_metrics_in_one_run(mixed, tmp_path, weights_folder, monkeypatch):
    ws = tmp_path / "ws"
    summary = score(mixed, ws, weights_folder, ("lapm", "musiq", "cnniqa"))
    assert summary["num_scored"] == 9
    assert summary["num_failed"] == 2
    assert set(summary["models"]) == {"musiq", "cnniqa"}
    assert 0 <= summary["models"]["musiq"]["waiting_share"] <= 1
    frame = scores_frame(Workspace(str(ws)), ("lapm", "musiq", "cnniqa")).set_index("path")
    by_name = {Path(path).name: row for path, row in frame.iterrows()}
    for number in range(7):
        image = np.asarray(Image.open(mixed / f"{number}.png"))
        for name in ("lapm", "musiq", "cnniqa"):
            metric = metrics.create(name, str(weights_folder), "cpu")
            assert by_name[f"{number}.png"][name] == pytest.approx(metric(image), abs=1e-4)
    small, damaged = by_name["7.png"], by_name["8.png"]
    assert "musiq needs at least 32 px" in small["error"]
    assert small["lapm"] > 0
    assert damaged["status"] == "unreadable"

    monkeypatch.setattr(connection, "connect", lambda _: pytest.fail("a second run needs no Ray"))
    again = score(mixed, ws, weights_folder, ("lapm", "musiq", "cnniqa"))
    assert (again["num_scored"], again["num_reused"]) == (0, 9)
    assert again["models"] == {}


def test_a_score_does_not_depend_on_how_shards_are_cut(mixed, tmp_path, weights_folder):
    one, other = (
        scores_frame(Workspace(str(tmp_path / f"ws{shard_size}")), ("cnniqa",))
        for shard_size in (2, 100)
        if score(mixed, tmp_path / f"ws{shard_size}", weights_folder, ("cnniqa",),
                 shard_size=shard_size)
    )  # fmt: skip
    low, high = metrics.get_spec("cnniqa").range
    assert (one["cnniqa"] - other["cnniqa"]).abs().max() <= 1e-4 * (high - low)
    pd.testing.assert_series_equal(one["status"], other["status"])


def make_shard(root) -> Shard:
    listing = list_images(str(root), "none")
    columns = listing.table.select(["image_id", "path"])
    return Shard(columns, ("cnniqa",), make_fingerprints(listing.table, ""))


def test_batches_hold_images_of_one_size(mixed, tmp_path, weights_folder, monkeypatch):
    monkeypatch.setitem(deep._LARGEST_BATCH, "cpu", 3)
    batches = []
    forward = deep.DeepMetric._forward

    def note_forward(metric, images, precision):
        batches.append([image.shape[:2] for image in images])
        return forward(metric, images, precision)

    monkeypatch.setattr(deep.DeepMetric, "_forward", note_forward)
    weights = prepare_weights(["cnniqa"], str(weights_folder))["cnniqa"]
    scorer = DeepShardScorer(
        ScoringRun(str(tmp_path / "ws"), ImageSource(locate(mixed))),
        DeepPlan(weights, "cpu", num_threads=2),
    )
    done = scorer(make_shard(mixed))
    assert done.num_images == 9
    assert done.statuses == {"cnniqa": {"ok": 8, "unreadable": 1}}
    assert len(done.image_s) == 9
    assert sum(done.image_s) == pytest.approx(done.wait_s + done.compute_s)
    assert all(len(set(sizes)) == 1 for sizes in batches)
    assert sorted(len(sizes) for sizes in batches if sizes[0] == (64, 80)) == [1, 3]


def test_waiting_images_are_bounded(mixed, tmp_path, weights_folder, monkeypatch):
    from iqa_ray.scoring import deep_scorer

    monkeypatch.setitem(deep._LARGEST_BATCH, "cpu", 100)
    monkeypatch.setattr(deep_scorer, "_MAX_WAITING_PIXELS", 64 * 80 * 2)
    run = deep_scorer._ShardRun(
        make_shard(mixed).images, metrics.create("cnniqa", str(weights_folder), "cpu"), 0
    )
    most = 0
    add = run._add

    def note_add(row, image):
        nonlocal most
        add(row, image)
        most = max(most, run._num_pixels)

    monkeypatch.setattr(run, "_add", note_add)
    source = ImageSource(locate(mixed))
    paths = make_shard(mixed).images.column("path").to_pylist()
    run.score(deep_scorer._decode(run._metric, source, path) for path in paths)
    assert 0 < most <= 64 * 80 * 2
    assert sum(status == "ok" for _, status, _ in run.scores) == 8


def test_reduced_precision_says_how_far_scores_moved(mixed, tmp_path, weights_folder):
    ws = tmp_path / "ws"
    summary = score(mixed, ws, weights_folder, ("cnniqa",), precision="bf16")
    shift = summary["models"]["cnniqa"]["shift"]
    assert shift["num_images"] == 8
    assert 0 < shift["mean"] <= shift["max"]
    assert "beside fp32, the scores of 8 images moved by" in describe_scores(summary)
    assert find_spec(Workspace(str(ws)), "cnniqa").version.endswith("+bf16")


def test_max_side_is_for_musiq(mixed, tmp_path, weights_folder):
    with pytest.raises(UsageError, match="--max-side is for musiq"):
        score(mixed, tmp_path / "ws", weights_folder, ("lapm",), max_side=512)
    job = {"images": str(mixed), "workspace": "ws", "weights": str(weights_folder)}
    job |= {"metrics": ("musiq", "cnniqa"), "max_side": 512}
    musiq, cnniqa = planning.make_groups(make_job(ScoreJob, job), {})
    assert musiq.specs[0].version.endswith("+max-side-512")
    assert "max-side" not in cnniqa.specs[0].version


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ("psnr",)}, "psnr needs a reference image"),
        ({"gpus_per_actor": 2}, "one GPU at most"),
        ({"precision": "int8"}, "--precision"),
        ({"max_side": 100}, "--max-side"),
    ],
)
def test_settings_that_cannot_be(mixed, tmp_path, weights_folder, settings, message):
    given = {"names": ("musiq",), **settings}
    names = given.pop("metrics", given.pop("names"))
    with pytest.raises(UsageError, match=message):
        score(mixed, tmp_path / "ws", weights_folder, names, **given)
    assert not (tmp_path / "ws").exists()


def test_later_jobs_know_pyiqa_s_metrics_by_the_workspace(
    image_folder, tmp_path, weights_folder, monkeypatch
):
    root, ws = image_folder(40), str(tmp_path / "ws")
    frame = iqa_ray.score(
        str(root), ws, ["cnniqa", "lapm"], weights=str(weights_folder), shard_size=20
    )
    assert frame["cnniqa"].notna().all()
    workspace = Workspace(ws)
    assert scored_metrics(workspace) == ["lapm", "cnniqa"]
    entry = json.loads(Path(ws, "metrics.json").read_text())["cnniqa"]
    assert entry["version"] == find_spec(workspace, "cnniqa").version
    table = frame[["image_id", "path", "label"]].assign(
        predicted=frame["label"], confidence=1.0, correct=frame["cnniqa"].rank() > 20
    )
    table.to_parquet(Path(ws, "predictions.parquet"))
    # without pyiqa
    monkeypatch.setattr("iqa_ray.metrics.spec._read_pyiqa_configs", dict)
    cutoffs = run_cutoffs(make_job(CutoffsJob, {"workspace": ws, "metrics": ["cnniqa"]}))
    assert cutoffs["cnniqa"]["direction"] == "higher_is_better"
    assert cutoffs["cnniqa"]["value"] is not None


@pytest.mark.parametrize("setting", [{"metrics": ("nosuch",)}, {"cutoff": {"nosuch": 1.0}}])
def test_cutoffs_of_no_metric(image_folder, tmp_path, setting):
    """Which metrics there are is known by the workspace, and only then by the tables."""
    ws = str(tmp_path / "ws")
    iqa_ray.score(str(image_folder(2)), ws, ["lapm"])
    Workspace(ws).write_table("predictions.parquet", PREDICTIONS_SCHEMA.empty_table())
    with pytest.raises(UsageError, match="unknown metric 'nosuch'"):
        run_cutoffs(make_job(CutoffsJob, {"workspace": ws, **setting}))


def test_a_wrong_checkpoint_ends_the_run_before_any_score(mixed, tmp_path, weights_folder):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "CNNIQA_koniq10k-e6f14c91.pth").write_bytes(b"no checkpoint")
    with pytest.raises(UsageError, match="CNNIQA_koniq10k-e6f14c91.pth is no checkpoint"):
        score(mixed, tmp_path / "ws", folder, ("lapm", "cnniqa"))
    assert not (tmp_path / "ws").exists()


def test_weights_that_go_bad_after_the_check_end_the_run(
    mixed, tmp_path, weights_folder, monkeypatch
):
    """What an actor raises while it loads its model is told as it is."""
    from iqa_ray.weights.files import WeightFile
    from iqa_ray.weights.metric_files import Weights

    def prepare(names, folder):
        prepared = prepare_weights(names, folder)
        (entry,) = prepared["cnniqa"].files
        lost = WeightFile(entry.name, entry.url, entry.bytes, "0" * 64)
        return {"cnniqa": Weights("cnniqa", (lost,), prepared["cnniqa"].folder)}

    monkeypatch.setattr(planning, "prepare_weights", prepare)
    with pytest.raises(UsageError, match="is damaged or another file"):
        score(mixed, tmp_path / "ws", weights_folder, ("cnniqa",))


def test_gpus_that_are_not_there(mixed, tmp_path, weights_folder):
    with pytest.raises(IncompleteError, match="needs .* 0.5 GPUs, but this machine has .* 0 GPUs"):
        score(mixed, tmp_path / "ws", weights_folder, ("cnniqa",), gpus_per_actor=0.5)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"scorer": 1}, "0 GPUs and 1 scorer, but this machine has .* 0 scorer; where"),
        (
            {"zone": "a"},
            "on a node with zone=a, but this machine has .*, and not this label",
        ),
        ({"scorer": 1, "zone": "!a"}, "1 scorer on a node with zone=!a, but .* 0 scorer; where"),
    ],
)
def test_places_that_are_not_there(mixed, tmp_path, weights_folder, resources, message):
    with pytest.raises(IncompleteError, match=message):
        score(mixed, tmp_path / "ws", weights_folder, ("lapm", "cnniqa"), resources=resources)
