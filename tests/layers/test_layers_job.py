"""The job `layers` from a scored workspace to its tables, with workers in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from inline import WriterKilled, run_inline
from pictures import make_texture
from PIL import Image

from iqa_ray.config import make_job
from iqa_ray.errors import UsageError
from iqa_ray.layers import measurer
from iqa_ray.layers.jobs import describe_layers, run_layers
from iqa_ray.layers.settings import LayersJob
from iqa_ray.layers.tables import LAYERS_SCHEMA
from iqa_ray.predictions.predictor import model_file
from iqa_ray.predictions.table import PREDICTIONS_SCHEMA, Origins, write_predictions
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.storage.files import write_bytes
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training import backbones
from iqa_ray.training.loop import dump_checkpoint
from iqa_ray.training.network_files import NetworkSource
from iqa_ray.training.pixels import cut_square
from iqa_ray.training.task_networks import load_network

COPIES = {"distortions": ("gaussian_blur", "noise"), "levels": (1, 5)}


def make_classifier(classes=("a", "b"), seed=0):
    torch.manual_seed(seed)
    state = backbones.create("simplenet", len(classes)).state_dict()
    checkpoint = {"state": state, "classes": list(classes), "backbone": "simplenet"}
    return dump_checkpoint({**checkpoint, "image_size": 64})


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for number in range(24):
        file = folder / "ab"[number % 2] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_texture(number, 70, 90)).save(file)
    return folder


@pytest.fixture
def ws(photos, tmp_path):
    ws = str(tmp_path / "ws")
    score(photos, ws)
    (tmp_path / "network.pt").write_bytes(make_classifier())
    return ws


def score(photos, ws):
    with run_inline():
        given = {"images": str(photos), "workspace": ws, "metrics": ("lapm",)}
        run_score(make_job(ScoreJob, given))


def layers(ws, before_shard=lambda shard: None, **given):
    """The summary, and how many batches were measured."""
    seen = []

    def see(shard):
        before_shard(shard)
        seen.append(shard)

    settings = {"workspace": ws, "network": str(Path(ws).parent / "network.pt")}
    with run_inline(see):
        summary = run_layers(make_job(LayersJob, settings | COPIES | {"batch_size": 4} | given))
    return summary, len(seen)


def read(ws):
    return pd.read_parquet(f"{ws}/layers/layers.parquet")


def test_the_table_has_every_layer_copy_and_mode(ws):
    summary, num_measured = layers(ws)
    assert num_measured == summary["num_batches"] == summary["num_batches_new"] == 6
    assert (summary["num_images"], summary["num_measured"], summary["num_failed"]) == (24, 24, 0)
    table = read(ws)
    assert list(table) == LAYERS_SCHEMA.names
    assert summary["num_layers"] == table["layer"].nunique() == 31
    assert len(table) == 31 * 2 * (4 + 1)
    assert (table["num_images"] == 24).all()
    inactive = table[~table["dropout"]].set_index(["distortion", "level"])
    for name in COPIES["distortions"]:
        weak, strong = (inactive.loc[(name, level), "distance"].to_numpy() for level in (1, 5))
        assert (weak[:-4] < strong[:-4]).all()
    assert Path(ws, "layers/layers.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(Path(ws, "layers/findings.json").read_text()) == summary
    text = describe_layers(summary)
    assert summary["paragraph"] in text
    assert "6 batches, 6 measured now, 0 images failed" in text


def test_measures_are_those_of_the_images_distorted_at_full_size(ws, photos):
    from iqa_ray.distortions import distort
    from iqa_ray.layers.features import measure_batch

    layers(ws, levels=(5,), batch_size=24)
    network = load_network(NetworkSource(f"{ws}/../network.pt", None, ()))
    images = [np.asarray(Image.open(file)) for file in sorted(photos.rglob("*.png"))]
    targets = [0] * 12 + [1] * 12
    versions = [
        images,
        *([distort(i, n, level=5, rng=0) for i in images] for n in ("gaussian_blur", "noise")),
    ]
    clean, *copies = (np.stack([cut_square(i, 64) for i in version]) for version in versions)
    found = measure_batch(network.module, clean, copies, targets, 0)
    table = read(ws)
    rows = table[~table["dropout"] & (table["distortion"] == "noise")]
    np.testing.assert_allclose(rows["distance"], found.distances[0, 1].mean(-1), rtol=1e-4)
    both, first, second = found.hsic[0, 1].T
    np.testing.assert_allclose(rows["cka"], both / np.sqrt(first * second), rtol=1e-3)


def test_the_same_again_measures_nothing_and_says_the_same(ws):
    first, _ = layers(ws)
    before = read(ws)
    second, num_measured = layers(ws)
    assert num_measured == second["num_batches_new"] == 0
    pd.testing.assert_frame_equal(read(ws), before)
    assert second["paragraph"] == first["paragraph"]
    _, num_measured = layers(ws, seed=1)
    assert num_measured == 6


def test_a_run_that_is_killed_goes_on_to_the_same_table(ws):
    layers(ws)
    expected = read(ws)
    for file in Path(ws, "layers").rglob("*.parquet"):
        file.unlink()
    shards = []

    def kill(shard):
        shards.append(shard)
        if len(shards) == 4:
            raise WriterKilled

    with pytest.raises(WriterKilled):
        layers(ws, kill)
    assert not Path(ws, "layers/layers.parquet").exists()
    _, num_measured = layers(ws)
    assert num_measured == 6 - 3
    pd.testing.assert_frame_equal(read(ws), expected)


def test_another_network_in_the_same_file_is_measured_anew(ws):
    layers(ws)
    before = read(ws)
    Path(ws).with_name("network.pt").write_bytes(make_classifier(seed=1))
    _, num_measured = layers(ws)
    assert num_measured == 6
    assert (read(ws)["distance"] != before["distance"]).any()


def test_images_are_drawn_by_the_seed(ws):
    summary, num_measured = layers(ws, num_images=8)
    assert (summary["num_images"], num_measured) == (8, 2)
    first = read(ws)
    layers(ws, num_images=8, seed=1)
    assert (read(ws)["distance"] != first["distance"]).any()


def lose_clean(ws, photos, without):
    """The mean loss of the photographs, some left out."""
    files = [file for file in sorted(photos.rglob("*.png")) if file.stem not in without]
    pixels = np.stack([cut_square(np.asarray(Image.open(file)), 64) for file in files])
    network = load_network(NetworkSource(f"{ws}/../network.pt", None, ()))
    targets = torch.tensor([int(file.parent.name == "b") for file in files])
    with torch.no_grad():
        logits = network.module(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    return float(torch.nn.functional.cross_entropy(logits, targets))


def test_images_that_cannot_be_read_are_noted_and_tried_again_when_they_are_back(ws, photos, capfd):
    content = (photos / "a/00.png").read_bytes()
    (photos / "a/00.png").unlink()
    (photos / "a/02.png").write_bytes(b"nothing")
    summary, _ = layers(ws, batch_size=24)
    assert (summary["num_measured"], summary["num_failed"]) == (22, 2)
    assert "2 images could not be measured, such as" in capfd.readouterr().err
    assert (read(ws)["num_images"] == 22).all()
    assert summary["losses"][0]["loss"] == pytest.approx(lose_clean(ws, photos, {"00", "02"}))
    (photos / "a/00.png").write_bytes(content)
    summary, num_measured = layers(ws, batch_size=24)
    assert (summary["num_measured"], num_measured) == (23, 1)


def test_an_image_that_a_distortion_cannot_be_made_of_is_left_out(ws, monkeypatch, capfd):
    distort = measurer.distort

    def fail(image, name, **given):
        if (image == make_texture(3, 70, 90)).all() and name == "noise":
            raise ValueError("too odd")
        return distort(image, name, **given)

    monkeypatch.setattr(measurer, "distort", fail)
    assert layers(ws)[0]["num_failed"] == 1
    assert "noise 1: too odd" in capfd.readouterr().err


def test_without_a_file_the_classifier_of_the_predictions_is_measured_on_what_it_predicted(ws):
    workspace = Workspace(ws)
    write_bytes(workspace.location / model_file("k"), make_classifier())
    images = pd.read_parquet(f"{ws}/images.parquet").iloc[:10]
    frame = images[["image_id", "path", "label"]].assign(
        predicted="a", confidence=0.5, correct=True
    )
    import pyarrow as pa

    table = pa.Table.from_pandas(frame, PREDICTIONS_SCHEMA, preserve_index=False)
    write_predictions(workspace, table, Origins([None] * 10, model="k"))
    summary, _ = layers(ws, network=None)
    assert summary["num_images"] == 10
    write_predictions(workspace, table, Origins([None] * 10))
    with pytest.raises(UsageError, match="no predictions of a classifier that was trained here"):
        layers(ws, network=None)


def test_images_that_were_trained_on_are_not_measured(photos, tmp_path, ws):
    files = sorted(map(str, photos.rglob("*.png")))
    rows = {"path": files, "label": [Path(file).parent.name for file in files]}
    rows["split"] = ["train"] * 6 + ["test"] * 18
    pd.DataFrame(rows).to_csv(tmp_path / "list.csv", index=False)
    score(tmp_path / "list.csv", f"{ws}2")
    assert layers(f"{ws}2")[0]["num_images"] == 18


def test_a_torchvision_network_has_the_classes_of_the_file_or_of_the_labels(ws, tmp_path):
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    torch.save(squeezenet1_1(num_classes=2).state_dict(), tmp_path / "s.pth")
    given = {"network": str(tmp_path / "s.pth"), "architecture": "squeezenet1_1", "num_images": 8}
    given |= {"distortions": ("noise",), "levels": (5,)}
    first, _ = layers(ws, **given)
    (tmp_path / "classes.txt").write_text("b\na\n")
    second, _ = layers(ws, **given, classes=str(tmp_path / "classes.txt"))
    assert second["num_batches_new"] == 2
    assert first["losses"] != second["losses"]
    assert first["depth"] == second["depth"]
    (tmp_path / "classes.txt").write_text("a\n")
    with pytest.raises(UsageError, match="2 outputs, and there are 1 classes: .* --classes"):
        layers(ws, **given, classes=str(tmp_path / "classes.txt"))
    with pytest.raises(UsageError, match="--classes .*: No such file"):
        layers(ws, **given, classes=str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"network": "none.pt"}, "--network .*/none.pt: there is no such file"),
        ({"distortions": ("rain",)}, "--distortions rain: choose from gaussian_blur"),
        ({"network": None}, "no predictions of a classifier"),
    ],
)
def test_unusable_settings_are_refused_in_one_line(ws, given, message):
    with pytest.raises(UsageError, match=message) as refused:
        layers(ws, **given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"), [("levels", (0,)), ("levels", ()), ("distortions", ()), ("batch_size", 3)]
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}"):
        make_job(LayersJob, {"workspace": "ws", name: value})


def test_a_network_of_other_classes_is_refused(ws):
    Path(ws).with_name("network.pt").write_bytes(make_classifier(("x", "y")))
    with pytest.raises(UsageError, match=r"0 images .* labels of its classes.*x, y.*labels: a, b"):
        layers(ws)


def test_a_workspace_without_any_image_that_can_be_measured_is_refused(ws, photos):
    for file in photos.rglob("*.png"):
        file.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="no image could be measured: .*not an image"):
        layers(ws)


def test_memory_does_not_grow_with_batches():
    """The most that a process had after 3 and after 15 batches, with 37 MiB of features each."""
    command = [sys.executable, "-m", "benchmarks.bench_layers", "--backbone", "simplenet"]
    command += ["--image-size", "64", "--batch-size", "8", "--copies", "1", "--batches", "3", "15"]
    root = Path(__file__).parents[2]
    shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    result = json.loads(shown)
    first, last = (run["peak_mb"] for run in result["runs"])
    assert result["features_mb"] > 20
    assert last - first < result["features_mb"]
