"""Training and applying on Ray itself."""

from __future__ import annotations

import pandas as pd
import pytest
from pictures import make_texture
from PIL import Image

import iqa_ray
from iqa_ray.config import make_job
from iqa_ray.distortion_types import jobs
from iqa_ray.distortion_types.settings import ApplyTypesJob, TrainTypesJob

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.slow
def test_a_network_is_trained_and_applied_on_ray(tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(20):
        Image.fromarray(make_texture(number, 80, 96)).save(photographs / f"{number}.png")
    ws = str(tmp_path / "ws")
    summary = jobs.run_train(
        make_job(
            TrainTypesJob,
            {
                "workspace": ws, "synthesise_from": (str(photographs),), "num_images": 70,
                "mix": "balanced", "crop_size": 64, "num_crops": 2, "epochs": 2,
                "cpus_per_run": 0.5, "seeds": (0, 1),
            },
        )
    )  # fmt: skip
    assert len(summary["runs"]) == 2
    assert [len(run["history"]) for run in summary["runs"]] == [2, 2]
    iqa_ray.score(str(photographs), workspace=ws, metrics=["lapm"])
    model = f"{ws}/distortion_types/model.safetensors"
    applied = jobs.run_apply(make_job(ApplyTypesJob, {"workspace": ws, "model": model}))
    assert (applied["num_applied"], applied["num_failed"]) == (20, 0)
    table = pd.read_parquet(f"{ws}/distortions.parquet")
    assert table["distortion"].notna().all()
    again = jobs.run_apply(make_job(ApplyTypesJob, {"workspace": ws, "model": model}))
    assert again["num_applied"] == 0
    pd.testing.assert_frame_equal(pd.read_parquet(f"{ws}/distortions.parquet"), table)
