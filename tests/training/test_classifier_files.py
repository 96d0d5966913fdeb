"""Classifiers in files: what is read, and what is refused."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import nn

from iqa_ray.errors import UsageError
from iqa_ray.training import backbones
from iqa_ray.training.loop import dump_checkpoint
from iqa_ray.training.task_networks import parse_task_network

IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)


def save(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_a_classifier_that_was_trained_here_comes_with_its_classes():
    model = backbones.create("simplenet", 2).eval()
    checkpoint = {"state": model.state_dict(), "classes": ["a", "b"], "backbone": "simplenet"}
    network = parse_task_network(dump_checkpoint({**checkpoint, "image_size": 64}), "m.pt")
    assert (network.num_outputs, network.classes, network.image_size) == (2, ("a", "b"), 64)
    assert not network.module.training
    assert torch.equal(network.module(IMAGES), model(IMAGES))


@pytest.mark.parametrize("nested", [False, True])
def test_a_state_dict_of_torchvision_gets_its_own_normalisation(nested):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(num_classes=5).eval()
    state = {"state_dict": model.state_dict()} if nested else model.state_dict()
    network = parse_task_network(save(state), "m.pth", "resnet18")
    assert (network.num_outputs, network.classes, network.image_size) == (5, None, 224)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        expected = model((IMAGES.float() / 255 - mean) / std)
        torch.testing.assert_close(network.module(IMAGES), expected)


def script():
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), buffer)
    return buffer.getvalue()


def export():
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.ReLU(), (torch.zeros(1),)), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "architecture", "message"),
    [
        (script, None, "a compiled program .TorchScript or torch.export.*give the checkpoint"),
        (export, None, "a compiled program"),
        (
            lambda: save({"state": {}, "classes": ["a"], "backbone": "resnet18", "image_size": 64}),
            None,
            "its tensors are not those of resnet18",
        ),
        (lambda: b"nothing", None, "not a checkpoint"),
        (lambda: save({"a": 1}), None, "neither a classifier .* nor a state dict"),
        (lambda: save([1]), None, "neither a classifier"),
        (lambda: save(nn.Linear(2, 2)), None, "not a checkpoint"),
        (lambda: save(nn.Linear(2, 2).state_dict()), None, "give --architecture NAME"),
        (lambda: save(nn.Linear(2, 2).state_dict()), "resnet0", "no classifier so called"),
        (lambda: save(nn.Linear(2, 2).state_dict()), "alexnet", "not a state dict of alexnet"),
    ],
)
def test_other_files_are_refused_in_one_line(make, architecture, message):
    with pytest.raises(UsageError, match=message) as refused:
        parse_task_network(make(), "m.pth", architecture)
    assert "\n" not in str(refused.value)
