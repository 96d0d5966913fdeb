"""From scores to certainties: T, and what each strategy makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from iqa_ray.errors import UsageError
from iqa_ray.smoothing.labels import (
    fit_transform,
    is_calibrated,
    plan_rows,
    transform_scores,
)
from iqa_ray.smoothing.strategies import Strategy, share_versions

RNG = np.random.default_rng(0)
SSIM = np.concatenate([np.ones((40, 1)), RNG.uniform(0.3, 0.95, (40, 9))], axis=1)


def test_the_identity_leaves_scores_as_they_are():
    assert transform_scores(SSIM, "ssim", None, 10).tolist() == SSIM.tolist()


@pytest.mark.parametrize("value", [0.0, -0.2, 1.5])
def test_scores_outside_0_to_1_after_t_are_refused(value):
    scores = SSIM.copy()
    scores[3, 4] = value
    with pytest.raises(UsageError, match=r"--score lapm: 1 of 400 .* use --transform calibrated"):
        transform_scores(scores, "lapm", None, 10)


def test_images_that_were_not_read_count_for_nothing():
    scores = SSIM.copy()
    scores[3] = np.nan
    assert (transform_scores(scores, "ssim", None, 10)[3] == 1).all()
    curve = fit_transform(SSIM, SSIM > 0.5, "ssim", share_versions("all3"))
    assert (transform_scores(scores, "ssim", curve, 10)[3] == 1).all()


def test_metrics_are_calibrated_and_ssim_is_not_unless_one_says_so():
    assert not is_calibrated("ssim", "auto")
    assert is_calibrated("ssim", "calibrated")
    assert is_calibrated("brisque", "auto")
    assert not is_calibrated("brisque", "identity")


@pytest.mark.parametrize(("score", "sign"), [("lapm", 1), ("brisque", -1)])
def test_a_fitted_t_is_monotone_in_quality_and_finds_the_accuracy(score, sign):
    rng = np.random.default_rng(1)
    quality = rng.uniform(0, 1, (4000, 10))
    correct = rng.uniform(0, 1, quality.shape) < 0.2 + 0.7 * quality
    curve = fit_transform(sign * 50 * quality, correct, score, share_versions("all3"))
    grid = np.linspace(0.05, 0.95, 40)
    found = transform_scores(sign * 50 * grid, score, curve, 10)
    assert (np.diff(found) >= 0).all()
    assert found == pytest.approx(0.2 + 0.7 * grid, abs=0.06)


def test_a_fitted_t_gives_chance_at_least():
    curve = fit_transform(SSIM, np.zeros(SSIM.shape, bool), "ssim", share_versions("blur"))
    assert (transform_scores(SSIM, "ssim", curve, 4) == 0.25).all()


def test_versions_weigh_in_a_fit_as_in_the_mix():
    """At one score the pristine are right and the blurred wrong: 60% in MIX_blur."""
    scores, correct = np.full((30, 10), 7.0), np.zeros((30, 10), bool)
    correct[:, 0] = True
    curve = fit_transform(scores, correct, "lapm", share_versions("blur"))
    assert curve(np.array([7.0])) == pytest.approx([0.6])


# --- what strategies make of certainties ---------------------------------------------------------


def plan(labels, certainties=SSIM, mix="blur", rows=range(10, 40)):
    strategy = Strategy("x", mix, labels, "" if labels == "original" else "ssim")
    return plan_rows(strategy, 40, certainties, np.array(rows))


def test_the_certainty_of_a_row_is_that_of_its_image_in_its_version():
    found = plan("iqa")
    for image, version in ((0, 0), (7, 3), (39, 9)):
        assert found.certainties[image + 40 * version] == np.float32(SSIM[image, version])
    assert not found.is_shuffled
    assert plan("original", None).certainties is None


def test_uniform_labels_are_as_sure_as_those_of_quality_in_the_mean():
    uniform, own = plan("uniform"), plan("iqa")
    assert np.unique(uniform.certainties).size == 1
    means = [own.draw(np.arange(10, 40), seed=0, epoch=epoch)[1].mean() for epoch in range(1, 400)]
    assert uniform.certainties[0] == pytest.approx(np.mean(means), abs=2e-3)


def test_shuffled_labels_are_shuffled():
    assert plan("shuffled").is_shuffled
    assert plan("shuffled").certainties.tolist() == plan("iqa").certainties.tolist()
