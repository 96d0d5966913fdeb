"""What the figure of explanations shows."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from iqa_ray.predictions.explanations import ExplainedPair, Explanation, OcclusionMap
from iqa_ray.report.explanation_figures import blend, draw_explanations

GREY = np.full((20, 20, 3), 128, np.uint8)


def make_pair(label: str = "milk", other: str = "juice") -> ExplainedPair:
    falls = np.zeros((10, 10))
    falls[2, 3] = 4.0
    high = Explanation("/x/good.jpg", {"lapm": 1234.5, "wavs": 2.5}, GREY,
                       [OcclusionMap(label, 3.0, falls)])  # fmt: skip
    low = Explanation("s3://x/bad.jpg", {"lapm": 0.123456, "wavs": 0.1}, GREY,
                      [OcclusionMap(other, 0.0, falls), OcclusionMap(label, -6.0, -falls)],
                      )  # fmt: skip
    return ExplainedPair(label, high, low)


def titles_of(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_each_class_has_a_row_of_five_pictures_that_say_what_they_are(drawn):
    png = draw_explanations([make_pair(), make_pair("tea", "milk")])
    assert Image.open(io.BytesIO(png)).format == "PNG"
    (figure,) = drawn
    assert titles_of(figure)[:5] == [
        "good.jpg\nlapm 1234, wavs 2.5\nanswer milk, 95%",
        "for milk (right)\n95%, log-odds 3.0 → −1.0",
        "bad.jpg\nlapm 0.1235, wavs 0.1\nanswer juice, 50%",
        "for juice (wrong)\n50%, log-odds 0.0 → −4.0",
        "for milk (right)\n<1%, log-odds −6.0 → −6.0",
    ]
    assert [axes.get_ylabel() for axes in figure.axes] == ["milk", *[""] * 4, "tea", *[""] * 4]
    heads = {text.get_text(): text.get_position()[0] for text in figure.texts}
    left, right = heads
    assert (left, right) == (
        "High quality: kept, classified rightly",
        "Low quality: rejected, classified wrongly",
    )
    lefts = [axes.get_position().x0 for axes in figure.axes]
    assert [heads[left], heads[right]] == pytest.approx([lefts[0], lefts[2]])


def test_pictures_are_square_and_beside_each_other(drawn):
    draw_explanations([make_pair()] * 3)
    (figure,) = drawn
    width, height = figure.get_size_inches()
    boxes = [axes.get_position() for axes in figure.axes]
    for box in boxes:
        assert box.width * width == pytest.approx(box.height * height)
        assert 0 < box.x0 < box.x1 < 1
        assert 0 < box.y0 < box.y1 < 1
    for row in range(3):
        for left, right in zip(boxes[5 * row : 5 * row + 4], boxes[5 * row + 1 :], strict=False):
            assert left.x1 < right.x0
            assert left.y0 == right.y0
    assert boxes[0].y0 > boxes[5].y1
    assert boxes[5].y0 > boxes[10].y1


def test_names_are_drawn_as_they_are_and_long_ones_cut(drawn):
    draw_explanations([make_pair("$\\frac{$", "a" * 60)])
    (figure,) = drawn
    assert "answer $\\frac{$, 95%" in titles_of(figure)[0]
    assert f"answer {'a' * 21}…, 50%" in titles_of(figure)[2]
    pair = make_pair()
    draw_explanations([replace(pair, high=replace(pair.high, path=f"/x/{'n' * 80}.jpg"))])
    assert titles_of(drawn[1])[0].split("\n")[0] == "n" * 35 + "…"


def test_certainty_is_written_only_where_it_is_there(drawn):
    pair = make_pair()
    for log_odds, expected in [(9.0, ">99%"), (-9.0, "<1%"), (800.0, "100%"), (-800.0, "0%")]:
        drawn.clear()
        sure = replace(pair.high, maps=[replace(pair.high.maps[0], log_odds=log_odds)])
        draw_explanations([replace(pair, high=sure)])
        assert titles_of(drawn[0])[0].endswith(f"answer milk, {expected}")


def test_parts_that_speak_for_a_class_are_orange_and_those_against_it_blue():
    falls = np.zeros((4, 4))
    falls[0, 0], falls[3, 3], falls[0, 3] = 2.0, -2.0, 1.0
    seen = blend(GREY, falls)
    assert seen.shape == (20, 20, 3)
    assert seen.min() >= 0
    assert seen.max() <= 1
    red, _, blue = seen[0, 0]
    assert red > 0.75
    assert blue < 0.15
    red, _, blue = seen[19, 19]
    assert red < 0.15
    assert blue > 0.6
    assert seen[10, 0] == pytest.approx([128 / 255] * 3)  # nothing there
    half = seen[0, 19]
    assert abs(half - 128 / 255) == pytest.approx(abs(seen[0, 0] - 128 / 255) / 2)


def test_a_map_that_is_weak_everywhere_stays_pale():
    falls = np.zeros((4, 4))
    falls[0, 0] = 0.025
    seen = blend(GREY, falls)
    assert np.abs(seen - 128 / 255).max() < 0.05
    assert blend(GREY, np.zeros((4, 4))) == pytest.approx(np.full((20, 20, 3), 128 / 255))


def test_the_picture_below_a_map_is_its_image_without_colours():
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:, 10:] = (255, 0, 0)
    seen = blend(pixels, np.zeros((4, 4)))
    assert seen[:, 0] == pytest.approx(0)
    assert seen[:, 19] == pytest.approx(76 / 255)  # luma of red: 0.299 · 255
