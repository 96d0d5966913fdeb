"""A model's file, and what it says of an image."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from pictures import make_texture

from iqa_ray.distortion_types import model as model_module
from iqa_ray.distortion_types.dataset import CLASSES
from iqa_ray.distortion_types.model import ModelCard, dump_model, load_model, parse_model
from iqa_ray.distortion_types.table import describe_look
from iqa_ray.errors import UsageError
from iqa_ray.training import backbones
from iqa_ray.training.pixels import cut_crops

CARD = ModelCard("simplenet_norm", ("gblur", "refimgs", "wn"), 64, 2, "softmax", 2.0, 0.4, 7)


def make_state(seed=0):
    torch.manual_seed(seed)
    return backbones.create("simplenet_norm", 4).state_dict()


def test_a_model_s_file_holds_all_that_its_use_needs(tmp_path):
    state = make_state()
    (tmp_path / "m.safetensors").write_bytes(dump_model(CARD, state))
    loaded, key = load_model(str(tmp_path / "m.safetensors"))
    assert loaded.card == CARD
    assert len(key) == 20
    assert (tmp_path / "m.safetensors").stat().st_size < 3_000_000
    image = make_texture(0, 100, 120)
    model = backbones.create("simplenet_norm", 4)
    halves = {n: v.half().float() if v.is_floating_point() else v for n, v in state.items()}
    model.load_state_dict(halves)
    crops = torch.from_numpy(cut_crops(image, 64, 2)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model.eval()(crops).mean(0).numpy()
    logits, severities = loaded.compute_outputs([image])
    np.testing.assert_allclose(logits[0], expected[:3], atol=1e-5)
    np.testing.assert_allclose(severities[0], np.clip(5 * expected[3], 0, 5), atol=1e-5)


def test_images_of_many_sizes_are_judged_as_each_alone():
    model = parse_model(dump_model(CARD, make_state()), "m")
    images = [make_texture(0, 20, 30), make_texture(1, 64, 64), make_texture(2, 300, 90)]
    together, _ = model.compute_outputs(images)
    alone = np.concatenate([model.compute_outputs([image])[0] for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def find(outputs, monkeypatch, **changes):
    model = parse_model(dump_model(replace(CARD, **changes), make_state()), "m")
    found = np.array([outputs[:3]], np.float32), np.array([outputs[3]], np.float32)
    monkeypatch.setattr(model, "compute_outputs", lambda images: found)
    return model.find([make_texture(0)])[0]


def test_findings_name_type_probability_and_severity(monkeypatch):
    found = find((0, 0, 4, 3.6), monkeypatch)
    assert (found.distortion, found.severity) == ("wn", 4)
    assert found.probability == pytest.approx(np.exp(2) / (2 + np.exp(2)))
    assert find((0, 0, 4, 0.1), monkeypatch).severity == 1  # a distortion has a severity
    assert find((0, 4, 0, 3.6), monkeypatch) == model_module.Finding(
        "refimgs", pytest.approx(np.exp(2) / (2 + np.exp(2))), None
    )


def test_what_is_like_none_is_said_to_be_none(monkeypatch):
    assert find((0.1, 0, 0, 3), monkeypatch).distortion == "none"
    assert find((0.1, 0, 0, 3), monkeypatch).severity is None
    assert find((0.1, 0, 0, 3), monkeypatch, none_below=0.3).distortion == "gblur"


def change(**changes):
    """The file with another card."""
    state = safetensors.torch.load(dump_model(CARD, make_state()))
    record = {**vars(CARD), **changes}
    return safetensors.torch.save(state, {"iqa_ray": json.dumps(record)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "damaged, or not a file"),
        (lambda: dump_model(CARD, make_state())[:-100], "damaged, or not a file"),
        (lambda: safetensors.torch.save(make_state()), "damaged, or not a file"),
        (lambda: change(version=2), "version 2 of the format, not 1"),
        (lambda: change(num_crops=0), "crops or temperature are out of range"),
        (lambda: change(classes=["gblur", "haze", "wn"]), "classes that are not known: haze"),
        (lambda: change(classes=["gblur", "wn"]), "not those of simplenet_norm with 2 classes"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, make, message):
    file = tmp_path / "m.safetensors"
    file.write_bytes(make())
    with pytest.raises(UsageError, match=message) as refused:
        load_model(str(file))
    assert str(refused.value).startswith(f"--model {file}: ")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="--model .*none: there is no such file"):
        load_model(str(tmp_path / "none"))


def test_a_package_without_a_model_says_what_to_give(tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "PACKAGED_MODEL", tmp_path / "none")
    with pytest.raises(UsageError, match="the package holds no model: give --model FILE"):
        load_model(None)


def test_looks_are_words():
    assert describe_look("gblur", 0.934, 5) == "looks like gaussian blur, severe (0.93)"
    assert describe_look("refimgs", 0.9, None) == ""
    assert describe_look("none", 0.2, None) == ""
    assert describe_look(None, None, None) == ""
    for name in set(CLASSES) - {"refimgs"}:
        assert describe_look(name, 0.5, 1).endswith(", just visible (0.50)")


def test_crops_are_parts_of_the_image_at_full_resolution():
    """They start at multiples of 8, where blocks of JPEG do."""
    image = np.random.default_rng(0).integers(256, size=(37, 45, 3), dtype=np.uint8)
    crops = cut_crops(image, 4, 5)
    expected = [
        image[16:20, 16:20], image[:4, :4], image[32:36, 40:44], image[:4, 40:44], image[32:36, :4],
    ]  # fmt: skip
    np.testing.assert_array_equal(crops, np.stack(expected))


def test_smaller_images_are_mirrored_at_their_edges():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    crop = cut_crops(image, 4, 1)[0]
    assert crop[:, 0, 0].tolist() == [0, 9, 9, 0]
    assert crop[0, :, 0].tolist() == [0, 3, 6, 6]
    assert cut_crops(image[:1, :1], 64, 1).shape == (1, 64, 64, 3)
