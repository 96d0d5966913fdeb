"""What runs share on Ray: images decoded once a node, weights, features of frozen backbones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from iqa_ray.cluster.capacity import Resources
from iqa_ray.cluster.connection import list_nodes_with_room
from iqa_ray.errors import IncompleteError
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.files import one_line
from iqa_ray.training import loop
from iqa_ray.training.inputs import CentreOf, ChunkedImages, Copies, DistortedImages, Inputs
from iqa_ray.training.pixels import CHUNK_SIZE, Fit, Pixels, load_pixels
from iqa_ray.training.recipe import Recipe
from iqa_ray.training.runs import Run

# Images whose features one task computes. These are whole batches, so that an image's batch is the
# same on every cluster.
_PIECE_SIZE = 256

Network = tuple[str, int | None]  # a backbone, and its seed where that decides its weights


@dataclass(frozen=True)
class Material:
    """What all runs of a comparison share.

    Attributes:
        paths: of the images; runs refer to them by place, or to their copies.
        content_hashes: of each image, what its file must hold.
        targets: (N,) their class indices, or what else the recipes' loss takes.
        num_classes: of the comparison.
        weights: of each backbone, the content of the file with its initial weights, if any.
        image_size: pixels a side of the squares that are held of images.
        source: of the images.
        fit: how an image becomes a square, see `load_pixels`.
        copies: distorted ones, which are then what runs are trained on.
    """

    paths: list[str]
    content_hashes: list[str]
    targets: NDArray[np.int64] | NDArray[np.float32]
    num_classes: int
    weights: dict[str, bytes | None]
    image_size: int
    source: ImageSource
    fit: Fit = "scale"
    copies: Copies | None = None

    @property
    def num_inputs(self) -> int:
        """How many images, or copies of them, runs refer to."""
        return len(self.paths if self.copies is None else self.copies.images)

    def load_chunk(self, start: int, stop: int) -> tuple[Pixels, list[str | None]]:
        """The pixels and hashes of the images from `start` to `stop`, as `load_pixels` gives them.

        It is called for CHUNK_SIZE images at a time.
        """
        paths = self.paths[start:stop]
        return load_pixels(self.source, paths, self.image_size, 1, None, self.fit)

    def open_chunks(self, chunks: Sequence[Pixels]) -> Inputs:
        """What networks are fed from, of the pixels of all chunks."""
        images = ChunkedImages(chunks)
        if self.copies is None:
            return images
        return DistortedImages(images, self.copies, torch.get_num_threads())


@dataclass
class Shared:
    """What workers find in Ray's object store, by references to it.

    Attributes:
        material: less the weights.
        weights: of each backbone.
        chunks: of each node, its images: pixels and content hashes, as `load_pixels` returns them,
            one pair a chunk.
        features: of each frozen network (see `name_network`), in pieces.
    """

    material: Material
    weights: dict[str, Any]
    chunks: dict[str, list[list[Any]]]
    features: dict[Network, list[Any]]

    def open_images(self) -> Inputs:
        """The images, which this node reads where it has them, or their distorted copies.

        Raises:
            IncompleteError: they are not those that they should be. The driver has looked, but Ray
                reads them again where the node that held them was lost.
        """
        here = ray.get_runtime_context().get_node_id()
        chunks = self.chunks.get(here) or next(iter(self.chunks.values()))
        hashes = [value for _, found in chunks for value in ray.get(found)]
        check_contents(self.material, hashes)
        return self.material.open_chunks(ray.get([pixels for pixels, _ in chunks]))

    def open_features(self, network: Network) -> Tensor:
        """(N, F) features of all images."""
        return torch.from_numpy(np.concatenate(ray.get(self.features[network])))


def name_network(recipe: Recipe) -> Network:
    """Which frozen network a run uses: without initial weights, that of its own seed."""
    return recipe.backbone, recipe.seed if recipe.weights == "none" else None


def check_contents(material: Material, hashes: Sequence[str | None]) -> None:
    """Hold content hashes of loaded images against those that they should have.

    Args:
        material: the images.
        hashes: of each, as `load_pixels` returns them.

    Raises:
        IncompleteError: some differ, or were not read.
    """
    rows = zip(material.paths, material.content_hashes, hashes, strict=True)
    wrong = [(path, found) for path, expected, found in rows if found != expected]
    if wrong:
        path, found = wrong[0]
        reason = "has changed" if found else "cannot be read any more"
        raise IncompleteError(
            f"{len(wrong):,} images are no longer what was scored (such as {path!r}, which "
            f"{reason}): run `iqa-ray score`, `iqa-ray select` and this command again"
        )


def load_on_nodes(
    material: Material, resources: Resources, on_event: Callable[[dict[str, Any]], None]
) -> dict[str, list[list[Any]]]:
    """Decode all images on every node that has room for a run.

    Returns:
        What `Shared.chunks` holds.

    Raises:
        IncompleteError: some have changed or can no longer be read.
    """
    nodes = list_nodes_with_room(resources)
    load: Any = ray.remote(_load_chunk)
    lean = ray.put(replace(material, weights={}))
    chunks: dict[str, list[list[Any]]] = {}
    for node in nodes:
        # elsewhere if the node is lost: its images are then made anew
        strategy = NodeAffinitySchedulingStrategy(node, soft=True)
        place = load.options(scheduling_strategy=strategy, num_returns=2)
        starts = range(0, len(material.paths), CHUNK_SIZE)
        chunks[node] = [place.remote(lean, start, start + CHUNK_SIZE) for start in starts]
    num_done = 0
    for pairs in chunks.values():
        hashes: list[str | None] = []
        for _, reference in pairs:
            found = ray.get(reference)
            hashes += found
            num_done += len(found)
            on_event({"decoded": num_done, "of": len(material.paths) * len(nodes)})
        check_contents(material, hashes)
    return chunks


def _load_chunk(material: Material, start: int, stop: int) -> tuple[Pixels, list[str | None]]:
    return material.load_chunk(start, stop)


def compute_shared_features(
    runs: Sequence[Run], shared: Shared, resources: Resources
) -> dict[Network, list[Any]]:
    """The features that the frozen networks of `runs` give, as references.

    Raises:
        IncompleteError: they cannot be computed.
    """
    recipes = {name_network(run.recipe): run.recipe for run in runs}
    compute: Any = ray.remote(_extract)
    place = compute.options(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus)
    rows = np.arange(shared.material.num_inputs)
    pieces = [rows[start : start + _PIECE_SIZE] for start in range(0, len(rows), _PIECE_SIZE)]
    features = {
        network: [place.remote(recipe, shared, piece, resources.num_threads) for piece in pieces]
        for network, recipe in recipes.items()
    }
    try:
        ray.get([reference for references in features.values() for reference in references])
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise IncompleteError(f"features could not be computed: {one_line(cause)}") from None
    return features


def _extract(
    recipe: Recipe, shared: Shared, rows: NDArray[np.int64], num_threads: int
) -> NDArray[np.float32]:
    torch.set_num_threads(num_threads)
    weights = ray.get(shared.weights[recipe.backbone])
    model = loop.start_training(recipe, 1, weights).model
    images: Inputs = shared.open_images()
    if recipe.random_crops:
        images = CentreOf(images, recipe.image_size)
    features: NDArray[np.float32] = loop.compute_features(model, images, torch.tensor(rows)).numpy()
    return features
