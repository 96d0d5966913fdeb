"""What the figures of cut-offs and of coverage show."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from iqa_ray.report.selection_figures import CutoffPanel, draw_coverage, draw_cutoffs
from iqa_ray.selection.confidence import relate_confidence
from iqa_ray.selection.coverage import trace_coverage


def make_panel(size: int = 300, **changes) -> CutoffPanel:
    rng = np.random.default_rng(0)
    quality = rng.normal(0, 1, size)
    correct = rng.random(size) < 1 / (1 + np.exp(-quality))
    confidence, scores = rng.beta(5, 2, size), np.exp(quality)
    grid = np.geomspace(0.05, 20, 100)
    panel = CutoffPanel(
        metric="lapm", higher_is_better=True, is_log=True, scores=scores, confidence=confidence,
        correct=correct, grid=grid, density_correct=np.exp(-(np.log(grid) ** 2)),
        density_incorrect=np.exp(-((np.log(grid) + 1) ** 2)),
        bins=relate_confidence(scores, confidence, correct, True).bins,
        value=0.6, interval=(0.5, 0.75),
    )  # fmt: skip
    return replace(panel, **changes)


def points_of(axes) -> np.ndarray:
    return np.concatenate([np.asarray(part.get_offsets()) for part in axes.collections])


def has_line_at(axes, value: float) -> bool:
    return any(list(line.get_xdata()) == [value, value] for line in axes.get_lines())


def spans_of(axes) -> list[tuple[float, float]]:
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]


# --- cut-offs -----------------------------------------------------------------------------------


def test_a_panel_shows_images_densities_and_the_cutoff(drawn):
    panel = make_panel()
    png = draw_cutoffs([panel])
    assert Image.open(io.BytesIO(png)).format == "PNG"
    scatter, curves = drawn[0].axes
    points = points_of(scatter)
    assert sorted(points[:, 0]) == sorted(panel.scores)
    right, wrong = (len(part.get_offsets()) for part in scatter.collections)
    assert (right, wrong) == (panel.correct.sum(), (~panel.correct).sum())
    shown = [line.get_ydata() for line in curves.get_lines()]
    assert any(np.array_equal(data, panel.density_correct) for data in shown)
    assert any(np.array_equal(data, panel.density_incorrect) for data in shown)
    for axes in (scatter, curves):
        assert has_line_at(axes, 0.6)
        assert (0.5, 0.75) in [pytest.approx(span) for span in spans_of(axes)]
        assert axes.get_xscale() == "log"
    assert scatter.get_title(loc="left") == "lapm: cut-off 0.6 (0.5 … 0.75)"
    assert curves.get_xlabel() == "lapm (higher is better)"


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_side_that_is_called_low_is_grey(drawn, higher_is_better):
    draw_cutoffs([make_panel(higher_is_better=higher_is_better)])
    axes = drawn[0].axes[0]
    end = axes.get_xlim()[0 if higher_is_better else 1]
    assert sorted([end, 0.6]) in [pytest.approx(sorted(span)) for span in spans_of(axes)]


def test_a_metric_without_a_cutoff_says_why(drawn):
    reason = "the two densities do not cross from incorrect to correct"
    draw_cutoffs([make_panel(value=None, interval=None, reason=reason)])
    axes = drawn[0].axes[0]
    assert axes.get_title(loc="left").replace("\n", " ") == f"lapm: no cut-off: {reason}"
    assert spans_of(axes) == []


def test_many_images_are_drawn_as_some_thousand_points(drawn):
    draw_cutoffs([make_panel(size=20_000)] * 5)
    counts = [len(points_of(axes)) for axes in drawn[0].axes[::2]]
    assert counts == [800] * 5
    # a sample, not the first ones
    first = make_panel(size=20_000).scores[:800]
    assert set(points_of(drawn[0].axes[0])[:, 0]) != set(first)


def test_scores_without_a_logarithm_have_a_linear_axis(drawn):
    draw_cutoffs([make_panel(is_log=False, scores=np.linspace(-5, 90, 300), value=-3.0)])
    assert drawn[0].axes[1].get_xscale() == "linear"
    assert drawn[0].axes[1].get_xlim()[0] < -5


def test_outliers_do_not_squeeze_the_others_and_are_counted(drawn):
    panel = make_panel()
    scores = panel.scores.copy()
    scores[3] = 1e5
    draw_cutoffs([replace(panel, scores=scores)])
    axes = drawn[0].axes[1]
    assert axes.get_xlim()[1] < 1000
    assert axes.get_xlabel() == "lapm (higher is better; 1 images lie outside)"


def test_a_cutoff_beyond_the_scores_is_on_the_picture(drawn):
    draw_cutoffs([make_panel(value=500.0, interval=(400.0, 600.0))])
    assert drawn[0].axes[0].get_xlim()[1] > 600


def test_without_confidence_and_densities_that_is_said(drawn):
    empty = np.empty(0)
    draw_cutoffs(
        [
            make_panel(
                size=3, confidence=np.full(3, np.nan), bins=(), grid=empty, density_correct=empty,
                density_incorrect=empty, interval=None,
            )
        ]
    )  # fmt: skip
    scatter, curves = drawn[0].axes
    assert [text.get_text() for text in scatter.texts] == ["no confidence given"]
    assert [text.get_text() for text in curves.texts] == ["no densities"]
    assert has_line_at(curves, 0.6)


@pytest.mark.parametrize("num_panels", [1, 2, 4, 5, 9])
def test_no_text_lies_on_another(drawn, num_panels):
    reason = "only 3 incorrectly classified images, 10 are needed"
    panels = [make_panel(), make_panel(value=None, interval=None, reason=reason)] * 5
    panels += [make_panel(is_log=False, scores=make_panel().scores * 1000)]
    draw_cutoffs(panels[-num_panels:])
    figure = drawn[0]
    boxes = []
    for axes in figure.axes:
        texts = [axes.xaxis.label, axes.yaxis.label, axes._left_title]
        ticks = axes.get_xticklabels() if axes in figure.axes[1::2] else []
        low, high = axes.get_xlim()
        texts += [text for text in ticks if low <= text.get_position()[0] <= high]
        boxes += [text.get_window_extent() for text in texts if text.get_text()]
    boxes += [figure.legends[0].get_window_extent()]
    for place, box in enumerate(boxes):
        for other in boxes[place + 1 :]:
            assert not box.overlaps(other)
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width


# --- coverage -----------------------------------------------------------------------------------


def trace(num_metrics: int = 2):
    rng = np.random.default_rng(0)
    correct = rng.random(2000) < 0.7
    noise = {f"m{number}": 0.5 + number for number in range(num_metrics)}
    qualities = {
        name: correct + rng.normal(0, spread, 2000)
        for name, spread in {**noise, "vote": 0.4, "confidence": 0.6}.items()
    }
    return trace_coverage(qualities, correct)


def test_every_voter_has_a_line_and_the_legend_begins_with_the_best(drawn):
    rows, areas = trace()
    png = draw_coverage(rows, areas, (0.6, 0.9))
    assert Image.open(io.BytesIO(png)).format == "PNG"
    (axes,) = drawn[0].axes
    shown = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert shown == [
        *(f"{name}  {areas[name]:.4f}" for name in ("vote", "m0", "confidence", "m1", "random")),
        "the selection",
    ]
    assert all(areas[one] <= areas[other] for one, other in pairwise(["vote", "m0", "confidence"]))
    lines = {line.get_label().split()[0]: line for line in axes.get_lines()}
    vote = rows[rows["voter"] == "vote"]
    np.testing.assert_allclose(lines["vote"].get_xdata(), 100 * vote["coverage"])
    np.testing.assert_allclose(lines["vote"].get_ydata(), 100 * vote["accuracy"])
    assert (lines["the"].get_xdata()[0], lines["the"].get_ydata()[0]) == (60, 90)


def test_lines_differ_in_colour_or_in_dashes(drawn):
    draw_coverage(*trace(12))
    styles = {
        (line.get_color(), str(line.get_linestyle()), line.get_linewidth())
        for line in drawn[0].axes[0].get_lines()
    }
    assert len(styles) == 15
    assert "the selection" not in [text.get_text() for text in drawn[0].legends[0].get_texts()]


def test_the_axis_is_not_ruled_by_the_first_few_images(drawn):
    correct = np.arange(1000) >= 20  # the twenty best ones are wrong
    rows, areas = trace_coverage({"m": -np.arange(1000.0)}, correct)
    draw_coverage(rows, areas)
    low, high = drawn[0].axes[0].get_ylim()
    assert 50 < low < 60
    assert 98 < high <= 100.5
