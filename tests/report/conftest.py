from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from iqa_ray.report import (
    explanation_figures,
    layer_figures,
    selection_figures,
    type_figures,
)


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were drawn; each is also made a PNG file, as ever."""
    figures: list[Figure] = []

    def keep(figure: Figure) -> bytes:
        figures.append(figure)
        return to_png(figure)

    to_png = selection_figures.to_png
    for module in (explanation_figures, layer_figures, selection_figures, type_figures):
        monkeypatch.setattr(module, "to_png", keep)
    return figures
