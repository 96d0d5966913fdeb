"""Figures and words from measures that a test makes up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from iqa_ray.layers.findings import Findings
from iqa_ray.layers.measurer import Measured
from iqa_ray.layers.summary import show, write_paragraph
from iqa_ray.layers.tables import LAYERS_SCHEMA
from iqa_ray.selection.confidence import bound_correlation, correlate_ranks

COPIES = (("noise", 1), ("noise", 2), ("jpeg", 1))
KINDS = ("Conv2d", "ReLU", "Dropout", "Linear")


def make_measured(distances, losses=None, dissimilarity=None, kinds=KINDS, num_batches=10):
    """Measures of (M, V, L, n) distances; 1 - CKA of a batch is what is given, or 0.1."""
    num_modes, num_copies, num_layers, num = distances.shape
    shape = (num_batches, num_modes, num_copies, num_layers)
    both = 1 - np.broadcast_to(0.1 if dissimilarity is None else dissimilarity, shape)
    if losses is None:
        losses = np.random.default_rng(9).random((num_modes, 1 + num_copies, num))
    return Measured(
        pd.DataFrame(), tuple(f"layer{i}" for i in range(num_layers)), tuple(kinds[:num_layers]),
        (), losses, distances, np.stack([both, np.ones(shape), np.ones(shape)], axis=-1),
        np.repeat(np.arange(num_batches), num // num_batches),
    )  # fmt: skip


def make_distances(num_modes=1, num=60, curve=(4.0, 3.0, 2.0, 1.0), seed=0):
    noise = np.random.default_rng(seed).normal(1, 0.1, (num_modes, len(COPIES), 4, num))
    return np.array(curve)[:, None] * noise


def find(table, **given):
    for name, value in given.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_every_layer_has_a_row_for_each_copy_and_one_for_all():
    findings = Findings(make_measured(make_distances(2)), COPIES, 0)
    table = findings.make_table()
    assert list(table) == LAYERS_SCHEMA.names
    assert len(table) == 2 * 4 * (len(COPIES) + 1)
    assert table["level"].isna().sum() == (table["distortion"] == "all").sum() == 8
    assert sorted(set(table["depth"])) == [1, 2, 3, 4]


def test_means_have_the_intervals_that_their_spread_over_images_gives():
    distances = make_distances()
    table = Findings(make_measured(distances), COPIES, 0).make_table()
    row = find(table, layer="layer1", distortion="noise", level=2)
    values = distances[0, 1, 1]
    assert row["distance"] == pytest.approx(values.mean())
    margin = 1.96 * values.std() / np.sqrt(len(values))
    assert row["distance_low"] == pytest.approx(values.mean() - margin, abs=margin / 5)
    assert row["distance_high"] == pytest.approx(values.mean() + margin, abs=margin / 5)
    whole = find(table, layer="layer1", distortion="all")
    assert whole["distance"] == pytest.approx(distances[0, :, 1].mean())


def test_cka_is_of_sums_over_batches_and_its_interval_over_batches():
    dissimilarity = np.linspace(0.1, 0.3, 10)[:, None, None, None]
    table = Findings(make_measured(make_distances(), dissimilarity=dissimilarity), COPIES, 0)
    row = find(table.make_table(), layer="layer0", distortion="jpeg")
    assert row["cka"] == pytest.approx(0.8)
    assert 0.75 < row["cka_low"] < 0.78
    assert 0.82 < row["cka_high"] < 0.85


def test_with_few_batches_there_is_no_interval_of_cka():
    found = Findings(make_measured(make_distances(), num_batches=4), COPIES, 0)
    row = find(found.make_table(), layer="layer0", distortion="jpeg")
    assert row["cka"] == pytest.approx(0.9)
    assert np.isnan([row["cka_low"], row["cka_high"]]).all()
    assert not np.isnan(row["distance_low"])


def test_distance_and_loss_are_correlated_over_images_of_one_distortion_and_level():
    distances = make_distances()
    losses = np.random.default_rng(1).random((1, 4, 60))
    losses[0, 2] = distances[0, 1, 3] ** 3  # of noise 2: the last layer says all of it
    table = Findings(make_measured(distances, losses), COPIES, 0).make_table()
    row = find(table, layer="layer3", distortion="noise", level=2)
    assert row[["srcc_loss", "srcc_loss_low", "srcc_loss_high"]].tolist() == pytest.approx([1] * 3)
    row = find(table, layer="layer0", distortion="jpeg", level=1)
    expected = stats.spearmanr(distances[0, 2, 0], losses[0, 3])[0]
    assert row["srcc_loss"] == pytest.approx(expected)
    assert row["srcc_loss_low"] < expected < row["srcc_loss_high"]
    whole = find(table, layer="layer0", distortion="all")
    each = [
        find(table, layer="layer0", distortion=n, level=level)["srcc_loss"] for n, level in COPIES
    ]
    assert whole["srcc_loss"] == pytest.approx(np.mean(each))
    width = whole["srcc_loss_high"] - whole["srcc_loss_low"]
    assert width < 0.8 * (row["srcc_loss_high"] - row["srcc_loss_low"])  # the mean of three


def test_unknown_distances_are_left_out_and_counted():
    distances = make_distances()
    distances[0, 0, 0, :5] = np.nan
    table = Findings(make_measured(distances), COPIES, 0).make_table()
    row = find(table, layer="layer0", distortion="noise", level=1)
    assert row["num_images"] == 55
    assert row["distance"] == pytest.approx(distances[0, 0, 0, 5:].mean())
    assert find(table, layer="layer0", distortion="all")["num_images"] == 55
    losses = make_measured(distances).losses
    expected = bound_correlation(*correlate_ranks(distances[0, 0, 0, 5:], losses[0, 1, 5:]))
    found = row[["srcc_loss", "srcc_loss_low", "srcc_loss_high"]].tolist()
    assert found == pytest.approx([expected.value, expected.low, expected.high])


def depth_of(distances, distortion="all", **given):
    rows = Findings(make_measured(distances, **given), COPIES, 0).relate_depth()
    (row,) = (row for row in rows if row["distortion"] == distortion and not row["dropout"])
    return row


def test_distances_that_fall_with_depth_have_a_correlation_of_minus_1():
    falling = np.linspace(0.4, 0.1, 4)
    row = depth_of(make_distances(), dissimilarity=falling)
    assert row["distance"] == pytest.approx([-1, -1, -1])
    assert row["cka"] == pytest.approx([-1, -1, -1])
    row = depth_of(make_distances(curve=(1, 2, 3, 4)), dissimilarity=falling[::-1])
    assert row["distance"] == row["cka"] == pytest.approx([1, 1, 1])


def test_a_correlation_with_depth_that_images_do_not_settle_has_a_wide_interval():
    noise = np.random.default_rng(0).normal(1, 0.5, (1, 3, 4, 60))
    _, low, high = depth_of(noise)["distance"]
    assert low < 0 < high


def test_each_distortion_has_its_own_correlation_with_depth():
    distances = make_distances()
    distances[0, 2] = distances[0, 2, ::-1]  # jpeg
    assert depth_of(distances, "noise")["distance"][0] == pytest.approx(-1)
    assert depth_of(distances, "jpeg")["distance"][0] == pytest.approx(1)


def test_what_dropout_changes_counts_from_the_first_such_layer_on():
    distances = make_distances(2)
    distances[1] = distances[0]
    distances[1, :, 2:] *= 0.5
    dissimilarity = np.full((10, 2, 3, 4), 0.2)
    dissimilarity[:, 1, :, 2:] = 0.3
    found = Findings(make_measured(distances, dissimilarity=dissimilarity), COPIES, 0)
    for row in found.compare_dropout():
        assert row["distance"] == pytest.approx([0.5] * 3)
        assert row["cka"] == pytest.approx([0.1] * 3)


def test_layers_where_a_ratio_has_no_number_are_left_out_of_it():
    distances = make_distances(2)
    distances[1] = 2 * distances[0]
    distances[:, :, 3] = 0
    found = Findings(make_measured(distances), COPIES, 0)
    assert found.compare_dropout()[-1]["distance"] == pytest.approx([2.0] * 3)


def test_a_network_without_dropout_has_nothing_to_compare():
    assert Findings(make_measured(make_distances()), COPIES, 0).compare_dropout() == []


def test_intervals_with_dropout_are_over_batches():
    """All images of a batch lose the same units: 60 images count as 10."""
    distances = np.ones((2, 3, 4, 60))
    distances[1] = 1 + 0.1 * (np.arange(60) // 6 % 2)
    table = Findings(make_measured(distances), COPIES, 0).make_table()
    row = find(table, layer="layer3", distortion="noise", level=1, dropout=True)
    width = row["distance_high"] - row["distance_low"]
    assert width == pytest.approx(2 * 1.96 * 0.05 / np.sqrt(10), rel=0.25)


def test_losses_are_means_by_copy():
    losses = np.arange(4.0)[None, :, None] + np.zeros((1, 4, 60))
    found = Findings(make_measured(make_distances(), losses), COPIES, 0).list_losses()
    assert found[0] == {"dropout": False, "distortion": "none", "level": 0, "loss": 0.0}
    assert found[3] == {"dropout": False, "distortion": "jpeg", "level": 1, "loss": 3.0}


FALLING, RISING, OPEN = [-0.6, -0.7, -0.5], [0.6, 0.5, 0.7], [0.1, -0.2, 0.3]


def write(depth, dropout=()):
    distance, cka = depth
    row = {"dropout": False, "distance": distance, "cka": cka}
    summary = {
        "num_measured": 60, "distortions": ["noise"], "levels": [1], "num_layers": 4,
        "depth": [{**row, "distortion": "noise"}, {**row, "distortion": "all"}],
        "dropout": [{"distortion": "all", "distance": d, "cka": c} for d, c in dropout],
        "errors": [
            {"layer": "first", "srcc_loss": [0.1, 0.0, 0.2]},
            {"layer": "last", "srcc_loss": [0.3, 0.2, 0.4]},
        ],
    }  # fmt: skip
    return write_paragraph(summary)


def test_the_paragraph_judges_both_expectations_by_their_intervals():
    assert "early layers react more, as Cheraaqee" in write((FALLING, FALLING))
    assert ": late layers react more, against" in write((RISING, RISING))
    assert "it is not clear which layers" in write((OPEN, OPEN))
    assert "by L2 early layers react more" in write((FALLING, OPEN))
    assert "; by CKA it is not clear" in write((FALLING, OPEN))
    damps = write((OPEN, OPEN), [([0.9, 0.8, 0.95], [-0.02, -0.03, -0.01])])
    assert "0.900 [0.800, 0.950] times" in damps
    assert "dropout damps distortions, as Cheraaqee expects" in damps
    adds = write((OPEN, OPEN), [([1.1, 1.05, 1.2], [0.02, 0.01, 0.03])])
    assert "dropout makes more of distortions" in adds
    assert "not clear that dropout" in write((OPEN, OPEN), [([1.0, 0.9, 1.1], [0, -0.1, 0.1])])
    assert "drops nothing out" in write((OPEN, OPEN))


def test_figures_without_an_interval_judge_nothing():
    text = write(([-0.6, None, None], [None] * 3))
    assert "not clear which layers react more" in text
    assert "−0.60 (no interval: too few batches)" in text
    assert "undefined" in text
    assert show([-0.625, -0.7, 0.1], 3) == "−0.625 [−0.700, 0.100]"
