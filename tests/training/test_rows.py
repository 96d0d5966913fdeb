"""Which versions, labels and weights an epoch has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iqa_ray.training.labels import smooth_labels
from iqa_ray.training.loop import compute_loss
from iqa_ray.training.rows import Mix, RowPlan, find_outside

ROWS = np.arange(100, 300)


# --- mixes ----------------------------------------------------------------------------------------


def count_versions(rows, num_images, num_versions):
    return np.bincount(rows // num_images, minlength=num_versions).tolist()


def test_an_epoch_has_exactly_the_shares_and_each_image_once():
    mix = Mix((0.6, 0.15, 0.15, 0.1), 1000)
    for epoch in (1, 2):
        drawn = mix.draw(ROWS, 3, epoch)
        assert count_versions(drawn, 1000, 4) == [120, 30, 30, 20]
        assert (drawn % 1000).tolist() == ROWS.tolist()


def test_epochs_and_seeds_draw_anew_and_the_same_ones_again():
    mix = Mix((0.5, 0.5), 1000)
    draws = [mix.draw(ROWS, seed, epoch) for seed, epoch in ((3, 1), (3, 2), (4, 1), (3, 1))]
    assert draws[0].tolist() == draws[3].tolist()
    for other in draws[1:3]:
        assert 60 < (draws[0] != other).sum() < 140


def test_what_rounding_leaves_goes_to_the_largest_remainders():
    # 4.2, 1.05, 1.05, 0.7 of 7
    assert Mix((0.6, 0.15, 0.15, 0.1), 9).count(7) == [4, 1, 1, 1]
    # 1.8, 0.45, 0.45, 0.3 of 3
    assert Mix((0.6, 0.15, 0.15, 0.1), 9).count(3) == [2, 1, 0, 0]


@given(st.integers(0, 5000), st.lists(st.integers(1, 40), min_size=1, max_size=10))
def test_every_image_is_in_some_version(num_rows, parts):
    shares = tuple(part / sum(parts) for part in parts)
    counts = Mix(shares, 1).count(num_rows)
    assert sum(counts) == num_rows
    assert all(abs(n - share * num_rows) < 1 for n, share in zip(counts, shares, strict=True))


# --- certainties and weights ----------------------------------------------------------------------


def test_certainties_and_weights_are_those_of_the_rows_that_are_drawn():
    values = np.arange(2000, dtype=np.float32)
    mix = Mix((0.5, 0.5), 1000)
    rows, certainties, weights = RowPlan(mix, certainties=values, weights=-values).draw(ROWS, 0, 1)
    assert certainties.tolist() == rows.tolist()
    assert weights.tolist() == (-rows).tolist()
    assert RowPlan().draw(ROWS, 0, 1)[1:] == (None, None)
    assert RowPlan().draw(ROWS, 0, 1)[0] is ROWS


def test_shuffled_certainties_are_those_of_other_rows_and_others_in_the_next_epoch():
    values = np.arange(1000, dtype=np.float32)
    plan = RowPlan(certainties=values, is_shuffled=True)
    first, second = plan.draw(ROWS, 0, 1)[1], plan.draw(ROWS, 0, 2)[1]
    assert sorted(first) == sorted(second) == ROWS.tolist()
    assert (first == ROWS).sum() < 10
    assert (first == second).sum() < 10
    assert plan.draw(ROWS, 0, 1)[1].tolist() == first.tolist()


def test_certainties_outside_0_to_1_are_found():
    assert find_outside([0.0, -0.1, 1e-9, 1.0, 1.1, np.nan]).tolist() == [
        True, True, False, False, True, True,
    ]  # fmt: skip


# --- labels ---------------------------------------------------------------------------------------


def test_labels_by_hand():
    """Chen et al., equation 2, with four classes."""
    labels = smooth_labels(torch.tensor([2, 0]), torch.tensor([0.7, 0.25]), 4)
    assert labels.tolist() == [
        pytest.approx([0.1, 0.1, 0.7, 0.1]),
        pytest.approx([0.25, 0.25, 0.25, 0.25]),
    ]


@given(st.lists(st.floats(2**-10, 1, width=32), min_size=1, max_size=20), st.integers(2, 100))
def test_labels_sum_to_one(certainties, num_classes):
    classes = torch.arange(len(certainties)) % num_classes
    labels = smooth_labels(classes, torch.tensor(certainties), num_classes)
    assert torch.allclose(labels.sum(1), torch.ones(len(certainties)), atol=1e-5)
    own = labels[torch.arange(len(certainties)), classes]
    assert own.tolist() == pytest.approx(certainties)
    assert (labels >= 0).all()


@pytest.mark.parametrize("loss", ["brier", "cross_entropy"])
def test_a_certainty_of_one_is_the_hard_label_and_so_the_original_loss(loss):
    outputs, classes = (
        torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 2, 1, 1, 0]),
    )
    labels = smooth_labels(classes, torch.ones(5), 3)
    assert labels.tolist() == torch.nn.functional.one_hot(classes, 3).tolist()
    original = compute_loss(loss, outputs, classes)
    assert compute_loss(loss, outputs, labels).item() == pytest.approx(original.item(), rel=1e-6)


# --- losses ---------------------------------------------------------------------------------------


def test_the_brier_loss_by_hand():
    """Chen et al., equation 1: probabilities of 1/4 and 3/4 against q' of 0.9 and 0.1."""
    outputs = torch.log(torch.tensor([[1.0, 3.0], [3.0, 1.0]]))
    labels = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
    expected = ((0.65**2 + 0.65**2) + (0.15**2 + 0.15**2)) / 2
    assert compute_loss("brier", outputs, labels).item() == pytest.approx(expected)
    hard = compute_loss("brier", outputs, torch.tensor([0, 1]))
    assert hard.item() == pytest.approx(2 * 0.75**2)


@pytest.mark.parametrize("loss", ["brier", "cross_entropy"])
def test_weights_multiply_the_losses_of_rows(loss):
    outputs, labels = torch.tensor([[1.0, 0.0], [0.5, 2.0]]), torch.tensor([0, 0])
    own = [compute_loss(loss, outputs[n : n + 1], labels[n : n + 1]).item() for n in range(2)]
    weighted = compute_loss(loss, outputs, labels, weights=torch.tensor([0.5, 3.0]))
    assert weighted.item() == pytest.approx((0.5 * own[0] + 3 * own[1]) / 2)
    plain = compute_loss(loss, outputs, labels, weights=torch.ones(2))
    assert plain.item() == pytest.approx(compute_loss(loss, outputs, labels).item())
