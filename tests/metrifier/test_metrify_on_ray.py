"""The whole on Ray itself: build, train, evaluate, score."""

from __future__ import annotations

import json

import pytest
from toys import make_toy_images, save_toy

from iqa_ray import cli
from iqa_ray.scoring.tables import scores_frame
from iqa_ray.storage.workspace import Workspace

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.slow
def test_a_metrifier_is_built_trained_evaluated_and_scores_on_ray(tmp_path, capsys):
    photos, ws = str(make_toy_images(tmp_path / "photos", 30)), str(tmp_path / "ws")
    save_toy(tmp_path / "toy.pt")

    def call(*words):
        assert cli.main([*words, "--workspace", ws, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    built = call(
        "metrify", "build", photos, "--task-networks", str(tmp_path / "toy.pt"), "--normalise",
        "none", "--distortions", "gaussian_blur", "--image-size", "32",
    )  # fmt: skip
    assert (built["num_built"], built["num_rows"], built["num_failed"]) == (30, 180, 0)
    trained = call("metrify", "train", "--epochs", "2", "--seeds", "0,1", "--cpus-per-run", "0.5")
    assert [len(run["history"]) for run in trained["runs"]] == [2, 2]
    # frozen features are of the distorted copies as well
    call("metrify", "train", "--epochs", "2", "--freeze-backbone")
    evaluated = call("metrify", "evaluate", "--metrics", "lapm")
    assert evaluated["mixed"]["num_rows"] == 36
    name = f"metrifier:{ws}/metrifier/model.safetensors"
    scored = call("score", photos, "--metrics", name)
    assert (scored["num_scored"], scored["num_failed"]) == (30, 0)
    assert scores_frame(Workspace(ws), [name])[name].between(0, 1).all()
    assert call("metrify", "build", photos, "--task-networks", str(tmp_path / "toy.pt"),
                "--normalise", "none", "--distortions", "gaussian_blur", "--image-size", "32",
                )["num_built"] == 0  # fmt: skip
