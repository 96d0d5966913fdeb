"""Measuring with actors of Ray itself, by the command line."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from iqa_ray import cli
from iqa_ray.training import backbones
from iqa_ray.training.loop import dump_checkpoint

pytestmark = pytest.mark.usefixtures("ray_session")


def test_layers_are_measured_on_ray_and_then_no_more(image_folder, tmp_path, capfd):
    photos, ws = image_folder(12), str(tmp_path / "ws")
    assert cli.main(["score", str(photos), "--workspace", ws, "--metrics", "lapm"]) == 0
    torch.manual_seed(0)
    state = backbones.create("resnet18", 2).state_dict()
    checkpoint = {"state": state, "classes": ["a", "b"], "backbone": "resnet18", "image_size": 32}
    (tmp_path / "n.pt").write_bytes(dump_checkpoint(checkpoint))
    command = ["layers", "--workspace", ws, "--network", str(tmp_path / "n.pt"), "--json"]
    command += ["--batch-size", "4", "--distortions", "noise", "--levels", "2,4"]
    tables = []
    for num_new in (3, 0):
        capfd.readouterr()
        assert cli.main(command) == 0
        summary = json.loads(capfd.readouterr().out)
        assert (summary["num_measured"], summary["num_batches_new"]) == (12, num_new)
        assert summary["dropout"] == []
        tables.append(pd.read_parquet(f"{ws}/layers/layers.parquet"))
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["layer"].nunique() == 60
