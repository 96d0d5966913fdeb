"""The job `study` without Ray: how its settings judge series whose scores are known."""

from __future__ import annotations

import json
from math import log

import numpy as np
import pandas as pd
import pytest
from inline import put

from iqa_ray.cli import main

CROPPED = (100, 110, 121)  # steps of a factor of 1.1
BLURRED = (128, 64, 32, 16, 8)  # steps of a factor of 0.5


@pytest.fixture
def manifest(desk, tmp_path):
    """Three samples; LAPM (red) follows the crops a little, WAVS (green) not at all."""
    rows = []
    for sample in range(3):
        for configuration, scores in (("cropping", CROPPED), ("blurring", BLURRED)):
            for index, red in enumerate(scores):
                name = f"{configuration}-{sample}-{index}.bmp"
                green = red if configuration == "blurring" else 77
                put(tmp_path / name, red, green)
                rows.append((name, f"sample {sample}", index, configuration))
    frame = pd.DataFrame(rows, columns=["path", "sample", "index", "configuration"])
    frame.to_csv(tmp_path / "series.csv", index=False)
    return str(tmp_path / "series.csv")


def study(capsys, desk, manifest, *settings):
    command = ["study", "--series", manifest, "--workspace", desk.ws, "--metrics", "lapm,wavs"]
    assert main([*command, "--json", *settings]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert main([*command, *settings]) == 0
    return summary, capsys.readouterr().out


def test_a_metric_that_moves_steadily_and_little_is_robust(desk, manifest, capsys):
    summary, text = study(capsys, desk, manifest)
    # of logarithms: the variance of 0..2 is 1 and of 0..4 is 2.5
    effect = log(1.1) / (log(2) * 2.5**0.5)
    lapm = summary["metrics"]["lapm"]
    assert lapm["verdict"] == "qualified"
    said = f"cropping SRCC 1.000 (above 0.5), effect {effect:.3f} (≤ 0.2)"
    assert said in lapm["reason"]
    assert said in text
    assert "PCC" not in lapm["reason"]
    assert summary["judge"] == "effect"
    table = pd.read_parquet(f"{desk.ws}/study/table.parquet").set_index(["metric", "configuration"])
    row = table.loc[("lapm", "cropping")]
    assert row[["effect", "effect_low", "effect_high"]].tolist() == pytest.approx([effect] * 3)
    assert row["num_effects"] == 3
    assert table.loc[("lapm", "blurring"), "effect"] == 1
    (shown,) = [line for line in text.splitlines() if line.lstrip().startswith("effect↓")]
    assert shown.split() == ["effect↓", f"{effect:.3f}", "0.000*"]
    assert "effect↑" not in text  # blurring's is 1 by definition
    thresholds = json.loads((desk.photos.parent / "ws/study/verdicts.json").read_text())
    assert thresholds["thresholds"] == {
        "min_sensitive": 0.8, "max_robust": 0.5, "max_agreement": 0.95, "max_effect": 0.2,
        "judge": "effect",
    }  # fmt: skip


def test_judged_by_srcc_it_is_not(desk, manifest, capsys):
    summary, text = study(capsys, desk, manifest, "--judge", "srcc")
    lapm = summary["metrics"]["lapm"]
    assert lapm["verdict"] == "rejected"
    pcc = np.corrcoef(range(3), CROPPED)[0, 1]
    assert lapm["reason"].startswith(f"cropping SRCC 1.000 (above 0.5), PCC {pcc:.3f}")
    assert "effect" not in lapm["reason"]
    pcc = -np.corrcoef(range(5), BLURRED)[0, 1]
    said = f"blurring SRCC 1.000 (≥ 0.8), PCC {pcc:.3f}"
    assert said in summary["metrics"]["wavs"]["reason"]
    assert said in text
    assert summary["judge"] == "srcc"


def test_the_largest_effect_can_be_set(desk, manifest, capsys):
    summary, _ = study(capsys, desk, manifest, "--max-effect", "0.05")
    assert summary["metrics"]["lapm"]["verdict"] == "rejected"
    assert summary["voters"] == ["wavs"]


def test_a_metric_that_does_not_move_at_all_is_robust(desk, manifest, capsys):
    for judge in ("effect", "srcc"):
        summary, text = study(capsys, desk, manifest, "--judge", judge)
        wavs = summary["metrics"]["wavs"]
        assert (wavs["verdict"], wavs["rank"]) == ("qualified", 1)
        assert "cropping SRCC 0.000 (≤ 0.5)" in wavs["reason"]
        assert "cropping: constant scores of 3 samples, counted as 0" in wavs["reason"]
        assert "undefined" not in text


def test_an_infinite_effect_is_null_in_json(desk, manifest, capsys, tmp_path):
    """Where blurring moves nothing."""
    for sample in range(3):
        for index in range(5):
            put(tmp_path / f"blurring-{sample}-{index}.bmp", 50, 99 - index)
    summary, _ = study(capsys, desk, manifest)
    (row,) = [
        row for row in summary["table"]
        if (row["metric"], row["configuration"]) == ("lapm", "cropping")
    ]  # fmt: skip
    assert (row["effect"], row["num_effects"]) == (None, 3)
    assert "effect ∞ (above 0.2)" in summary["metrics"]["lapm"]["reason"]
    table = pd.read_parquet(f"{desk.ws}/study/table.parquet").set_index(["metric", "configuration"])
    assert table.loc[("lapm", "cropping"), "effect"] == np.inf
