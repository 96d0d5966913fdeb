"""`--address` of every command: where nothing answers, those that use Ray say so at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from toys import save_toy

import iqa_ray
from iqa_ray import cli
from iqa_ray.cluster import connection
from iqa_ray.distortion_types.dataset import CLASSES
from iqa_ray.distortion_types.model import ModelCard, dump_model
from iqa_ray.metrics.learnt import MetrifierCard, dump_metrifier
from iqa_ray.synthetic.dotcodes import make_dataset
from iqa_ray.training import backbones
from iqa_ray.training.loop import dump_checkpoint

NOWHERE = "127.0.0.1:1"
CONNECT = connection.connect  # as it is before any test replaces it
USE_RAY = {
    "score": "{data} --workspace {empty}",
    "predict": "--workspace {ws} --backbone simplenet --weights none --split 0.4",
    "study": "{data} --workspace {empty}",
    "compare": "--workspace {ws} --backbones simplenet --weights none",
    "vary": "--workspace {ws} --backbone simplenet --weights none",
    "distortions train": "--synthesise-from {data} --workspace {empty} --num-images 70 "
    "--crop-size 64 --mix balanced",
    "distortions apply": "--workspace {ws} --model {model}",
    "smooth": "{split} --workspace {empty}",
    "layers": "--workspace {ws} --network {classifier}",
    "metrify build": "{data} --workspace {ws} --task-networks {toy} --image-size 32",
    "metrify train": "--workspace {ws}",
    "metrify evaluate": "--workspace {ws} --model {metrifier}",
    "rescore": "{data} --workspace {ws}",
    "demo": "--workspace {empty}",
}
USE_NO_RAY = {
    "make-data": "{empty} --num-images 2",
    "predict": "--workspace {ws} --predictions {predictions}",
    "cutoffs": "--workspace {ws} --cutoff lapm=1",
    "select": "--workspace {ws}",
    "distortions evaluate": "--synthesise-from {data} --workspace {empty} --num-images 14 "
    "--model {model}",
    "compact": "--workspace {ws}",
    "weights": "check --from {empty}",
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory, ray_session) -> Path:
    """A workspace up to a selection, with one image that came since."""
    root = tmp_path_factory.mktemp("address")
    make_dataset(root / "data", num_images=61, image_size=64, seed=5)
    image = min((root / "data" / "north").glob("*.jpg"))
    image.rename(root / "late.jpg")
    state = backbones.create("simplenet_norm", len(CLASSES) + 1).state_dict()
    card = ModelCard("simplenet_norm", CLASSES, 64, 1, "softmax")
    (root / "model.safetensors").write_bytes(dump_model(card, state))
    state = backbones.create("resnet18", 2).state_dict()
    learnt = MetrifierCard("resnet18", 32, (("", 0),))
    (root / "metrifier.safetensors").write_bytes(dump_metrifier(learnt, state))
    build = f"metrify build {root}/data --workspace {root}/ws --task-networks {root}/toy.pt"
    save_toy(root / "toy.pt")
    assert cli.main([*build.split(), *"--distortions jpeg --levels 1 --image-size 32".split()]) == 0
    ws = str(root / "ws")
    simplenet = backbones.create("simplenet", 2).state_dict()
    checkpoint = {"state": simplenet, "classes": ["north", "south"], "backbone": "simplenet"}
    (root / "classifier.pt").write_bytes(dump_checkpoint({**checkpoint, "image_size": 64}))
    scores = iqa_ray.score(root / "data", workspace=ws, metrics=["lapm"])
    limit = f"lapm={scores['lapm'].quantile(1 / 3)}"
    assert cli.main(["cutoffs", "--workspace", ws, "--cutoff", limit]) == 0
    assert cli.main(["select", "--workspace", ws]) == 0
    rows = {"path": scores["path"], "predicted": scores["label"]}
    pd.DataFrame(rows).to_csv(root / "predictions.csv", index=False)
    (root / "late.jpg").rename(image)
    parts = ["test" if number % 5 == 0 else "train" for number in range(len(scores))]
    scores[["path", "label"]].assign(split=parts).to_csv(root / "split.csv", index=False)
    return root


def call(capsys, monkeypatch, scored, tmp_path, name: str, arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command in this process, as if it had no Ray yet."""
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection, "connect", CONNECT)
    shutil.copytree(scored / "ws", tmp_path / "ws")
    places = {"data": scored / "data", "predictions": scored / "predictions.csv"}
    places |= {"ws": tmp_path / "ws", "empty": tmp_path / "empty"}
    places |= {"model": scored / "model.safetensors", "classifier": scored / "classifier.pt"}
    places["split"] = scored / "split.csv"
    places |= {"metrifier": scored / "metrifier.safetensors", "toy": scored / "toy.pt"}
    words = [word.format(**places) for word in arguments.split()]
    code = cli.main([*name.split(), *words, "--address", NOWHERE])
    return code, capsys.readouterr().err


def test_every_command_is_of_one_kind_or_both():
    assert {*USE_RAY, *USE_NO_RAY} == set(cli.COMMANDS)


@pytest.mark.parametrize("name", USE_RAY)
def test_an_address_where_nothing_answers(capsys, monkeypatch, scored, tmp_path, name):
    code, err = call(capsys, monkeypatch, scored, tmp_path, name, USE_RAY[name])
    assert code == 2
    *_, last = err.splitlines()
    assert last.startswith(f"iqa-ray: error: --address {NOWHERE}: no Ray cluster answers: ")
    assert "Connection refused" in last
    assert "Traceback" not in err


@pytest.mark.parametrize("name", USE_NO_RAY)
def test_commands_without_ray_need_no_cluster(capsys, monkeypatch, scored, tmp_path, name):
    code, err = call(capsys, monkeypatch, scored, tmp_path, name, USE_NO_RAY[name])
    assert NOWHERE not in err
    # there are no weights to check, which has nothing to do with Ray
    assert code == (2 if name == "weights" else 0), err
