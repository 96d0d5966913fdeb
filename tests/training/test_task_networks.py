"""Task networks of every format, and files that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import models
from toys import Toy, save_toy

from iqa_ray.errors import UsageError
from iqa_ray.training import backbones
from iqa_ray.training.loop import dump_checkpoint
from iqa_ray.training.network_files import NetworkSource, split_name
from iqa_ray.training.task_networks import load_network, load_networks, read_classes

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3)).astype(np.uint8)


def make_source(name, normalise="none", classes=("a", "b"), given_size=None):
    file, architecture = split_name(str(name))
    return NetworkSource(
        file, architecture, tuple(classes), normalise, given_size, "--task-networks"
    )


def load(*given, **named):
    return load_network(make_source(*given, **named))


def compute(network, normalised=False, images=IMAGES):
    """What a network says of images, straight through PyTorch."""
    floats = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    if normalised:
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        floats = (floats - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.inference_mode():
        return network(floats).double().log_softmax(1).numpy()


def test_torchscript_takes_shares_or_normalised_pixels(tmp_path):
    save_toy(tmp_path / "toy.pt")
    found = load(tmp_path / "toy.pt").compute_log_probabilities(IMAGES)
    assert found == pytest.approx(compute(Toy()), abs=1e-5)
    found = load(tmp_path / "toy.pt", "imagenet").compute_log_probabilities(IMAGES)
    assert found == pytest.approx(compute(Toy(), normalised=True), abs=1e-5)


@pytest.mark.parametrize("is_fixed", [True, False])
def test_exported_programs_take_any_number_of_images(tmp_path, is_fixed):
    shapes = None if is_fixed else ({0: torch.export.Dim("n")},)
    program = torch.export.export(Toy(), (torch.zeros(3, 3, 40, 40),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "toy.pt2")
    network = load(tmp_path / "toy.pt2")
    assert network.image_size == 40
    found = network.compute_log_probabilities(IMAGES)
    assert found == pytest.approx(compute(Toy()), abs=1e-5)


def test_a_program_of_another_size_gets_scaled_images(tmp_path):
    program = torch.export.export(Toy(), (torch.zeros(2, 3, 20, 20),))
    torch.export.save(program, tmp_path / "toy.pt2")
    grey = np.full((2, 40, 40, 3), 77, np.uint8)
    grey[..., 0] = 200
    found = load(tmp_path / "toy.pt2").compute_log_probabilities(grey)
    assert found == pytest.approx(compute(Toy(), images=grey[:, :20, :20]), abs=1e-5)


def test_a_model_of_predict_says_its_classes_and_size(tmp_path):
    torch.manual_seed(0)
    model = backbones.create("resnet18", 3).eval()
    content = {
        "state": model.state_dict(), "classes": ["x", "y", "z"], "backbone": "resnet18",
        "image_size": 40, "unread": [],
    }  # fmt: skip
    (tmp_path / "m.pt").write_bytes(dump_checkpoint(content))
    network = load(tmp_path / "m.pt", "imagenet", ["other"])
    assert (network.classes, network.image_size) == (("x", "y", "z"), 40)
    found = network.compute_log_probabilities(IMAGES)
    assert found == pytest.approx(compute(model), abs=1e-4)


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state}])
def test_a_checkpoint_of_torchvision_needs_its_architecture(tmp_path, wrap):
    torch.manual_seed(0)
    model = models.get_model("mobilenet_v3_small", weights=None, num_classes=2).eval()
    torch.save(wrap(model.state_dict()), tmp_path / "m.pth")
    network = load(f"mobilenet_v3_small:{tmp_path / 'm.pth'}", "none")
    assert network.classes == ("a", "b")
    found = network.compute_log_probabilities(IMAGES)
    assert found == pytest.approx(compute(model, normalised=True), abs=1e-4)
    with pytest.raises(UsageError, match="give NAME:FILE"):
        load(tmp_path / "m.pth")
    with pytest.raises(UsageError, match="cannot be read as resnet18"):
        load(f"resnet18:{tmp_path / 'm.pth'}")


def test_the_state_of_a_classifier_made_here_is_read(tmp_path):
    model = backbones.create("resnet18", 2).eval()
    torch.save(model.state_dict(), tmp_path / "run.pt")
    found = load(f"resnet18:{tmp_path / 'run.pt'}").compute_log_probabilities(IMAGES)
    assert found.shape == (5, 2)


def test_files_that_are_no_networks_are_refused_in_one_line(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"m\.pt: it cannot be read as a classifier"):
        load(tmp_path / "m.pt")
    with pytest.raises(UsageError, match=r"away\.pt: there is no such file"):
        load(tmp_path / "away.pt")
    data = save_toy(tmp_path / "toy.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=r"half\.pt: it cannot be read as a classifier"):
        load(tmp_path / "half.pt")


def test_outputs_must_be_as_many_as_classes(tmp_path):
    save_toy(tmp_path / "toy.pt")
    with pytest.raises(UsageError, match="it has 2 outputs, and there are 3 classes"):
        load(tmp_path / "toy.pt", classes="abc")

    class Map(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    torch.jit.script(Map()).save(str(tmp_path / "map.pt"))
    with pytest.raises(UsageError, match="is not a number a class"):
        load(tmp_path / "map.pt")


def test_a_program_of_one_size_is_tried_with_the_size_that_it_will_get(tmp_path):
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 40 * 40, 2))
    torch.jit.script(flat).save(str(tmp_path / "flat.pt"))
    given = make_source(tmp_path / "flat.pt", given_size=40)
    assert load_network(given).compute_log_probabilities(IMAGES).shape == (5, 2)
    with pytest.raises(UsageError, match="does not take images of 224x224 px"):
        load(tmp_path / "flat.pt")


def test_networks_of_different_classes_are_not_averaged(tmp_path):
    save_toy(tmp_path / "toy.pt")
    sources = [make_source(tmp_path / "toy.pt", "none", names) for names in ("ab", "ac")]
    with pytest.raises(UsageError, match="only if they tell the same classes apart"):
        load_networks(sources)


def test_the_key_is_of_the_content(tmp_path):
    one = load(save_toy(tmp_path / "one.pt"))
    (tmp_path / "copy.pt").write_bytes((tmp_path / "one.pt").read_bytes())
    assert load(tmp_path / "copy.pt").key == one.key
    assert load(save_toy(tmp_path / "other.pt", slope=2.0)).key != one.key
    assert load(tmp_path / "one.pt", "imagenet").key != one.key


def test_classes_are_read_a_line_each(tmp_path):
    assert read_classes(None, ["b", "a", "b"]) == ("a", "b")
    (tmp_path / "c.txt").write_text("dog\ncat\n\n")
    assert read_classes(str(tmp_path / "c.txt"), []) == ("dog", "cat")
    (tmp_path / "c.txt").write_text("dog\ndog\n")
    with pytest.raises(UsageError, match="write each class once"):
        read_classes(str(tmp_path / "c.txt"), [])
    with pytest.raises(UsageError, match=r"--classes .*away\.txt: No such file"):
        read_classes(str(tmp_path / "away.txt"), [])
