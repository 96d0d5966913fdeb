"""Networks in files: how files are named, what is read, and what is refused."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from torch import nn

from iqa_ray.errors import UsageError
from iqa_ray.training import backbones
from iqa_ray.training.loop import dump_checkpoint
from iqa_ray.training.network_files import NetworkSource, parse_network, split_name

IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)


def parse(data, architecture=None, **given):
    return parse_network(data, NetworkSource("m.pth", architecture, (), **given))


def save(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_a_classifier_that_was_trained_here_comes_with_its_classes():
    model = backbones.create("simplenet", 2).eval()
    checkpoint = {"state": model.state_dict(), "classes": ["a", "b"], "backbone": "simplenet"}
    network = parse(dump_checkpoint({**checkpoint, "image_size": 64}))
    assert (network.classes, network.image_size) == (("a", "b"), 64)
    assert not network.module.training
    assert torch.equal(network.module(IMAGES), model(IMAGES))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state"])
def test_a_state_dict_of_torchvision_gets_its_own_normalisation(wrapper):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(num_classes=5).eval()
    state = model.state_dict()
    network = parse(save({wrapper: state, "epoch": 3} if wrapper else state), "resnet18")
    assert (network.classes, network.image_size, network.usual_size) == (None, None, 224)
    assert not network.module.training
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        expected = model((IMAGES.float() / 255 - mean) / std)
        torch.testing.assert_close(network.module(IMAGES), expected)


def test_an_architecture_has_its_own_size_and_pixels(monkeypatch):
    from torchvision import models

    of_large = models.get_model_weights("efficientnet_v2_l")  # with the weights' own transforms
    monkeypatch.setattr(models, "get_model_weights", lambda _: of_large)
    state = models.squeezenet1_1(num_classes=2).state_dict()
    network = parse(save(state), "squeezenet1_1")
    assert (network.image_size, network.usual_size) == (None, 480)
    assert torch.equal(network.module.mean.flatten(), torch.tensor([0.5, 0.5, 0.5]))


def test_the_state_of_a_classifier_made_here_is_read_also_of_many_devices():
    torch.manual_seed(0)
    model = backbones.create("simplenet", 3).eval()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    network = parse(save(state), "simplenet")
    assert network.image_size == 256
    assert torch.equal(network.module(IMAGES), model(IMAGES))


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
        (script, None, r"a compiled program \(TorchScript\).*give the checkpoint"),
        (export, None, r"a compiled program \(torch\.export\)"),
        (
            lambda: save({"state": {}, "classes": ["a"], "backbone": "resnet18", "image_size": 64}),
            None,
            "cannot be read as a classifier: Error.* in loading state_dict",
        ),
        (lambda: b"nothing", None, "cannot be read as a classifier"),
        (lambda: save({"a": 1}), None, "neither a classifier .* nor a state dict"),
        (lambda: save({"state": [1]}), "resnet18", "neither a classifier"),
        (lambda: save([1]), None, "neither a classifier"),
        (lambda: save({}), "resnet18", "neither a classifier"),
        (lambda: save(nn.Linear(2, 2)), None, "cannot be read as a classifier"),
        (lambda: save(nn.Linear(2, 2).state_dict()), None, "give --architecture NAME"),
        (lambda: save(nn.Linear(2, 2).state_dict()), "resnet0", "no classifier called resnet0"),
        (lambda: save(nn.Linear(2, 2).state_dict()), "alexnet", "cannot be read as alexnet: Err"),
        (lambda: save(nn.BatchNorm2d(2).state_dict()), "alexnet", "cannot be read as alexnet"),
    ],
)
def test_other_files_are_refused_in_one_line(make, architecture, message):
    with pytest.raises(UsageError, match=f"^--network m.pth: .*{message}") as refused:
        parse(make(), architecture)
    assert "\n" not in str(refused.value)


def test_metrify_has_an_architecture_named_with_the_file():
    with pytest.raises(UsageError, match=r"^--task-networks m\.pth: .*give NAME:FILE, with "):
        parse(save(nn.Linear(2, 2).state_dict()), option="--task-networks")


def test_files_are_named_as_every_node_understands_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_name("m.pt") == (f"{tmp_path}/m.pt", None)
    assert split_name("resnet18:runs/m.pth") == (f"{tmp_path}/runs/m.pth", "resnet18")
    assert split_name("s3://bucket/m.pt") == ("s3://bucket/m.pt", None)
    assert split_name("vgg11:s3://bucket/m.pt") == ("s3://bucket/m.pt", "vgg11")
