"""What is measured in layers of networks of all kinds."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from iqa_ray.layers.distances import compute_cka
from iqa_ray.layers.features import find_dropout, measure_batch
from iqa_ray.training import backbones


class Pixels(nn.Module):
    """Pixels of (B, 3, S, S) as float features in a row."""

    def forward(self, images):
        return images.float().flatten(1) / 255


def make_images(num=6, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, 3), np.uint8)


def measure(network, clean=None, copies=None, seed=0):
    clean = make_images() if clean is None else clean
    copies = [make_images(len(clean), clean.shape[1], seed=1)] if copies is None else copies
    return measure_batch(network.eval(), clean, copies, [0] * len(clean), seed)


def pick(found, layer, mode=0):
    return found.distances[mode, :, found.layers.index(layer)]


@pytest.mark.parametrize(("name", "size"), [("resnet18", 32), ("alexnet", 64), ("simplenet", 64)])
def test_identical_images_have_a_distance_of_exactly_0_in_every_layer(name, size):
    """Also where layers work in place, run twice, or drop something out."""
    torch.manual_seed(0)
    images = make_images(5, size)
    other = make_images(5, size, seed=1)
    found = measure(backbones.create(name, 3), images, [images, other])
    assert found.distances.shape[:2] == (1 if name == "resnet18" else 2, 2)
    assert (found.distances[:, 0] == 0).all()
    assert (found.distances[:, 1] > 0).all()
    cka = compute_cka(found.hsic[:, 0])
    assert (cka[~np.isnan(cka)] == 1).all()
    np.testing.assert_array_equal(found.losses[:, 0], found.losses[:, 1])


def test_distances_and_losses_by_hand():
    """Weights of 1 and 0: the first output is the sum of the pixels, the second is 0."""
    linear = nn.Linear(12, 2, bias=False)
    linear.weight.data = torch.stack([torch.ones(12), torch.zeros(12)])
    clean = np.full((4, 2, 2, 3), 51, np.uint8)
    distorted = np.full((4, 2, 2, 3), 102, np.uint8)
    found = measure(nn.Sequential(Pixels(), linear), clean, [distorted])
    assert found.layers == ("0", "1")
    assert found.kinds == ("Pixels", "Linear")
    np.testing.assert_allclose(pick(found, "1"), np.ones((1, 4)), rtol=1e-6)
    expected = np.log1p(np.exp([-2.4, -4.8]))
    np.testing.assert_allclose(found.losses[0], np.repeat(expected[:, None], 4, 1), rtol=1e-5)


def test_what_a_layer_gives_is_seen_before_the_next_one_overwrites_it():
    torch.manual_seed(0)
    layers = [Pixels(), nn.Linear(12, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)]
    in_place = nn.Sequential(*layers)
    apart = copy.deepcopy(in_place)
    apart[2].inplace = False
    images = make_images(4, 2), [make_images(4, 2, 1)]
    found, expected = measure(in_place, *images), measure(apart, *images)
    np.testing.assert_array_equal(found.distances, expected.distances)
    assert (pick(found, "1") != pick(found, "2")).any()


def test_a_layer_that_runs_twice_is_two_layers():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.pixels, self.same = Pixels(), nn.Linear(12, 12)

        def forward(self, images):
            return self.same(self.same(self.pixels(images)))

    found = measure(Twice(), make_images(4, 2))
    assert found.layers == ("pixels", "same", "same:2")
    assert len(set(found.distances.mean(axis=(0, 1, 3)))) == 3


def test_layers_that_give_no_features_are_skipped_with_the_reason():
    class Give(nn.Module):
        def __init__(self, make):
            super().__init__()
            self.make = make

        def forward(self, values):
            return self.make(values)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.pixels = Pixels()
            self.pair = Give(lambda values: (values, None))
            self.order = Give(lambda values: values.argsort())
            self.windows = Give(lambda values: values.reshape(-1, 6))
            self.mean = Give(lambda values: values.mean(1))
            self.flat = nn.Flatten()

        def forward(self, images):
            values = self.pixels(images)
            for layer in (self.order, self.windows, self.mean, self.flat):
                layer(values)
            return self.pair(values)[0]

    found = measure(Network(), make_images(4, 2))
    assert found.layers == ("pixels",)
    assert found.skipped == {
        "order": "its output holds no real numbers",
        "windows": "its output of shape (8, 6) has no row an image",
        "mean": "its output of shape (4,) has no row an image",
        "pair": "its output is no tensor but a tuple",
    }


class Dropping(nn.Sequential):
    def __init__(self, kind=nn.Dropout):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), kind(0.5), nn.Conv2d(8, 4, 1), nn.Flatten()
        )

    def forward(self, images):
        return super().forward(images.float() / 255)


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d])
def test_active_dropout_drops_the_same_of_all_images_and_nothing_before_it(kind):
    network = Dropping(kind)
    outputs = []

    network[3].register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0].clone()))
    found = measure(network)
    assert [len(outputs), *found.distances.shape[:2]] == [4, 2, 1]
    clean, distorted = outputs[2:]
    dropped = clean[:1] == 0
    assert 0.3 < dropped.float().mean() < 0.7
    for images in (clean, distorted):
        assert ((images == 0) == dropped).all()
    np.testing.assert_array_equal(pick(found, "1", 0), pick(found, "1", 1))
    assert (pick(found, "3", 0) != pick(found, "3", 1)).any()


def test_dropout_goes_by_the_seed_alone_and_leaves_the_network_as_it_was():
    network = Dropping()
    state = copy.deepcopy(network.state_dict())
    torch.manual_seed(5)
    first = measure(network, seed=1)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    torch.manual_seed(6)
    np.testing.assert_array_equal(first.distances, measure(network, seed=1).distances)
    other = measure(network, seed=2).distances
    np.testing.assert_array_equal(first.distances[0], other[0])
    assert (first.distances[1] != other[1]).any()
    assert not any(layer.training for layer in network.modules())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(layer._forward_hooks for layer in network.modules())


def test_dropout_of_nothing_is_none():
    assert find_dropout(nn.Sequential(nn.Dropout(0.0), nn.Linear(1, 1))) == []
    assert len(find_dropout(backbones.create("simplenet", 2))) == 7
