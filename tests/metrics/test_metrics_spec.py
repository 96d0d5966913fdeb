from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline import run_inline

from iqa_ray import metrics
from iqa_ray.config import make_job
from iqa_ray.images.listing import list_images
from iqa_ray.metrics import CPU_METRICS, SPECS, MetricError, get_spec
from iqa_ray.metrics.planes import Planes
from iqa_ray.metrics.spec import DEFAULT_METRICS
from iqa_ray.predictions.jobs import run_predict
from iqa_ray.predictions.settings import PredictJob
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.selection.fitting import FittedCutoffs, fit_cutoffs, write_cutoffs
from iqa_ray.selection.jobs import run_select
from iqa_ray.selection.settings import CutoffsJob, SelectJob
from iqa_ray.storage.workspace import Workspace


def test_table_of_metrics() -> None:
    assert list(SPECS) == [*CPU_METRICS, "musiq", "maniqa", "hyperiqa"]
    assert CPU_METRICS == DEFAULT_METRICS == ("lapv", "lapm", "wavs", "brisque", "niqe")
    assert [name for name, spec in SPECS.items() if spec.supports_max_side] == ["musiq"]
    assert [name for name, spec in SPECS.items() if not spec.higher_is_better] == [
        "brisque",
        "niqe",
    ]
    assert all(spec.name == name and spec.min_side > 0 for name, spec in SPECS.items())


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'brisque'") as caught:
        get_spec("BRISQE")
    assert "\n" not in str(caught.value)
    assert all(name in str(caught.value) for name in SPECS)
    with pytest.raises(ValueError, match="unknown metric 'zzz'; known: lapv, lapm"):
        get_spec("zzz")


@pytest.mark.parametrize("name", CPU_METRICS)
def test_metric_carries_its_description(name: str) -> None:
    metric = metrics.create(name)
    spec = SPECS[name]
    assert metric.spec is spec
    assert (metric.name, metric.higher_is_better, metric.version) == (
        name,
        spec.higher_is_better,
        spec.version,
    )


def test_too_small_says_how_small() -> None:
    with pytest.raises(MetricError) as caught:
        metrics.create("niqe")(np.zeros((120, 160, 3), np.uint8))
    assert caught.value.status == "too_small"
    assert str(caught.value) == "niqe needs at least 192 px on both sides, the image is 160x120"


@pytest.mark.parametrize("name", CPU_METRICS)
def test_smallest_image_scores_and_a_smaller_does_not(name: str) -> None:
    side = SPECS[name].min_side
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    assert isfinite(metrics.create(name)(image))
    for smaller in (image[1:], image[:, 1:], image[:1, :1]):
        with pytest.raises(MetricError) as caught:
            metrics.create(name)(smaller)
        assert caught.value.status == "too_small"


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 20), np.float32),
        np.zeros((20, 20, 4), np.uint8),
        np.zeros((20, 20, 1), np.uint8),
        np.zeros(20, np.uint8),
        np.zeros((0, 20, 3), np.uint8),
        [[1, 2], [3, 4]],
    ],
)
def test_only_8_bit_grey_and_rgb_arrays_are_images(image: Any) -> None:
    with pytest.raises(ValueError, match="an image must"):
        metrics.create("lapm")(image)


def test_planes_are_bt601_luma() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    planes = Planes(image)
    expected = image @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(planes.grey, expected, rtol=0, atol=1e-12)
    assert planes.grey.dtype == np.float64
    assert (planes.height, planes.width) == planes.luma.shape == (9, 7)
    assert np.abs(planes.luma - expected).max() <= 0.5 + 1e-9
    assert (planes.luma == np.rint(planes.luma)).all()
    assert planes.grey is planes.grey


def test_planes_of_equal_channels_are_the_channel() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for planes in (Planes(grey), Planes(np.dstack([grey] * 3))):
        assert (planes.grey == grey).all()
        assert (planes.luma == grey).all()


def test_luma_rounds_as_pyiqa_does() -> None:
    pytest.importorskip("pyiqa")
    import torch
    from pyiqa.utils.color_util import to_y_channel

    colours = np.indices((256, 256, 16)).reshape(3, 1024, -1).transpose(1, 2, 0)
    image = (colours * (1, 1, 17)).astype(np.uint8)
    tensor = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    assert (Planes(image).luma == to_y_channel(tensor, 255.0)[0, 0].numpy()).all()


def test_metrics_share_planes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 210, 3), dtype=np.uint8)
    planes = Planes(image)
    for name in CPU_METRICS:
        metric = metrics.create(name)
        assert metric.measure(planes) == metric(image)


def test_import_needs_no_heavy_library() -> None:
    code = (
        "import sys, iqa_ray.metrics; "
        "assert not {'torch', 'ray', 'pyiqa', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


MADE_UP = "\n\ndef brightness(planes: Planes) -> float:\n    return float(planes.grey.mean())\n"
MADE_UP_ENTRY = """
    MetricSpec(
        name="brightness",
        higher_is_better=True,
        range=(0.0, 255.0),
        version="1",
        min_side=1,
        summary="mean grey",
        source="made up",
        function=_find("sharpness", "brightness"),
    ),
"""


def test_an_entry_and_a_function_are_a_metric_that_is_used_where_it_is_named(tmp_path) -> None:
    """In a copy of the package, whose tables are made from the entries when it is imported."""
    package = tmp_path / "iqa_ray"
    shutil.copytree(Path(metrics.__file__).parents[1], package)
    for file, before, after in (
        ("sharpness.py", "\n\ndef lapm(", MADE_UP + "\n\ndef lapm("),
        ("spec.py", "\n_ALL = (\n", "\n_ALL = (" + MADE_UP_ENTRY),
    ):
        text = (package / "metrics" / file).read_text()
        assert text.count(before) == 1
        (package / "metrics" / file).write_text(text.replace(before, after))
    code = (
        "import inspect, numpy, iqa_ray\n"
        "from iqa_ray.scoring import settings\n"
        "assert iqa_ray.__file__.startswith(" + repr(str(tmp_path)) + ")\n"
        "print(iqa_ray.metrics.create('brightness')(numpy.full((9, 9), 7, numpy.uint8)))\n"
        "print(settings.ScoreJob(images='x', workspace='x', metrics=('brightness',)).metrics)\n"
        "print('brightness' in iqa_ray.metrics.CPU_METRICS)\n"
        "print('brightness' in settings.ScoreJob(images='x', workspace='x').metrics)\n"
        "print('brightness' in inspect.signature(iqa_ray.score).parameters['metrics'].default)\n"
    )
    command, env = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    assert done.stdout.split() == ["7.0", "('brightness',)", "True", "False", "False"]


def test_a_metric_votes_by_default_once_it_was_scored_by_name(
    image_folder, tmp_path, monkeypatch
) -> None:
    made_up = replace(
        get_spec("lapm"), name="brightness", function=lambda planes: float(planes.grey.mean())
    )
    monkeypatch.setitem(SPECS, "brightness", made_up)
    images, ws = image_folder(24), str(tmp_path / "ws")
    classes = list_images(str(images)).table.select(["path", "label"]).to_pylist()
    said = [f"{row['path']},{'a' if row['label'] == 'b' else 'b'}" for row in classes[::2]]
    said += [f"{row['path']},{row['label']}" for row in classes[1::2]]
    (tmp_path / "said.csv").write_text("\n".join(["path,predicted", *said]))

    def find_voters(*names: str) -> set[str]:
        """Those of `select` after the chain where `score` was told `names`, and nothing else."""
        given = {"metrics": names} if names else {}
        with run_inline():
            run_score(make_job(ScoreJob, {"images": str(images), "workspace": ws, **given}))
        job = {"predictions": str(tmp_path / "said.csv"), "workspace": ws}
        run_predict(make_job(PredictJob, job))
        fitted = fit_cutoffs(Workspace(ws), make_job(CutoffsJob, {"workspace": ws})).cutoffs
        by_hand = {name: replace(cutoff, value=0.0) for name, cutoff in fitted.items()}
        write_cutoffs(Workspace(ws), FittedCutoffs(by_hand))
        return set(run_select(make_job(SelectJob, {"workspace": ws}))["metrics"])

    assert find_voters() == {"lapv", "lapm", "wavs", "brisque", "niqe"}
    assert find_voters("brightness") == {"lapv", "lapm", "wavs", "brisque", "niqe", "brightness"}
