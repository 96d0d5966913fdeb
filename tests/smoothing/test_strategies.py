"""Rows of Table 2, and what they are held against."""

from __future__ import annotations

import pytest

from iqa_ray.config import make_job
from iqa_ray.errors import UsageError
from iqa_ray.smoothing.settings import SmoothJob
from iqa_ray.smoothing.strategies import (
    TEST_SETS,
    VERSIONS,
    list_strategies,
    pair_strategies,
    share_versions,
)
from iqa_ray.training.rows import Mix


def test_the_nine_strategies_are_those_of_table_2():
    found = list_strategies(tuple("123456789"), ("ssim",))
    assert [(each.method, each.training_set) for each in found] == [
        ("Original", "Pristine"),
        ("Original", "MIX_blur"), ("IQA-LS ssim", "MIX_blur"),
        ("Original", "MIX_noise"), ("IQA-LS ssim", "MIX_noise"),
        ("Original", "MIX_JPEG"), ("IQA-LS ssim", "MIX_JPEG"),
        ("Original", "MIX_all3"), ("IQA-LS ssim", "MIX_all3"),
    ]  # fmt: skip


def test_the_versions_are_those_of_the_paper_in_the_columns_of_table_2():
    assert VERSIONS == {
        "pristine": None,
        "blur-1": ("gaussian_blur", 0.7), "blur-2": ("gaussian_blur", 1.0),
        "blur-3": ("gaussian_blur", 1.2),
        "noise-1": ("noise", 0.005), "noise-2": ("noise", 0.01), "noise-3": ("noise", 0.02),
        "jpeg-1": ("jpeg", 12), "jpeg-2": ("jpeg", 8), "jpeg-3": ("jpeg", 4),
    }  # fmt: skip
    assert list(TEST_SETS) == list(VERSIONS)


def test_the_mixes_have_the_printed_shares():
    counts = {name: Mix(share_versions(name), 1).count(5000) for name in ("pristine", "jpeg")}
    assert counts["pristine"] == [5000] + [0] * 9
    assert counts["jpeg"] == [3000, 0, 0, 0, 0, 0, 0, 750, 750, 500]
    counts = Mix(share_versions("all3"), 1).count(6000)
    assert counts == [3600, 300, 300, 200, 300, 300, 200, 300, 300, 200]


def test_strategies_that_follow_quality_are_there_once_a_score():
    names = ("8", "9", "9-uniform", "9-shuffled")
    found = list_strategies(names, ("ssim", "brisque"))
    assert [(each.name, each.labels, each.score) for each in found] == [
        ("8", "original", ""),
        ("9", "iqa", "ssim"), ("9", "iqa", "brisque"),
        ("9-uniform", "uniform", "ssim"), ("9-uniform", "uniform", "brisque"),
        ("9-shuffled", "shuffled", "ssim"), ("9-shuffled", "shuffled", "brisque"),
    ]  # fmt: skip
    assert {each.mix for each in found} == {"all3"}
    pairs = [(better.score, worse.method) for better, worse in pair_strategies(found)]
    assert pairs == [
        ("ssim", "Original"), ("ssim", "uniform LS ssim"), ("ssim", "shuffled LS ssim"),
        ("brisque", "Original"), ("brisque", "uniform LS brisque"),
        ("brisque", "shuffled LS brisque"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategies": ("10",)}, "--strategies: no strategy '10'"),
        ({"strategies": ("2-uniform",)}, "--strategies: no strategy '2-uniform'"),
        ({"strategies": ()}, "--strategies: name at least one"),
        ({"optimiser": "adam", "momentum": 0.9}, "--momentum is for --optimiser sgd"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        make_job(SmoothJob, {"images": "x", "workspace": "w", **given})


def test_strategies_are_trained_in_the_order_of_the_table():
    job = make_job(SmoothJob, {"images": "x", "workspace": "w", "strategies": ("9", "2", "9", "1")})
    assert job.strategies == ("1", "2", "9")
