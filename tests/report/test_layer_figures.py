"""The heat map of layers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from iqa_ray.report.layer_figures import draw_layers


def make_table(num_layers=3, levels=(1, 3), scale=1.0):
    rows = []
    for dropout in (False, True):
        for name, level in [
            *((name, level) for name in ("noise", "jpeg") for level in levels),
            ("all", 0),
        ]:
            for depth in range(num_layers):
                distance = scale * (depth + level + 10 * dropout)
                rows.append((f"layer{depth}", depth + 1, dropout, name, level, distance))
    names = ["layer", "depth", "dropout", "distortion", "level", "distance"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(cka=1 - (table["depth"] - 1) / 9)


def panels_of(figure):
    return [axes for axes in figure.axes if axes.images]


def test_a_panel_a_distortion_and_a_row_a_measure_with_dropout_inactive(drawn):
    assert draw_layers(make_table()).startswith(b"\x89PNG")
    panels = panels_of(drawn[0])
    assert [panel.get_title() for panel in panels] == ["noise", "jpeg", "", ""]
    distances = [[1, 3], [2, 4], [3, 5]]
    dissimilarities = np.repeat([[0], [1], [2]], 2, 1) / 9
    for panel, cells in zip(panels, [distances] * 2 + [dissimilarities] * 2, strict=True):
        np.testing.assert_allclose(panel.images[0].get_array(), cells)
    assert panels[0].images[0].get_clim() == panels[1].images[0].get_clim() == (0, 5)
    assert panels[2].images[0].get_clim() == pytest.approx((0, 2 / 9))
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == [
        "layer0", "layer1", "layer2",
    ]  # fmt: skip
    assert [tick.get_text() for tick in panels[2].get_xticklabels()] == ["1", "3"]


def test_distances_that_are_all_0_and_unknown_cka_are_drawn(drawn):
    draw_layers(make_table(scale=0.0).assign(cka=np.nan))
    assert panels_of(drawn[0])[0].images[0].get_clim() == (0, 0.001)


def test_of_many_layers_some_have_names(drawn):
    draw_layers(make_table(200))
    assert len(panels_of(drawn[0])[0].get_yticks()) == 67
