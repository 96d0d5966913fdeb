"""Images of known damage that a classifier was right or wrong about: one table a data set.

Every photograph occurs once, as it is or damaged, and its prediction comes from a classifier that
was not trained on it: a linear head on frozen EfficientNet-Lite0 features (ImageNet weights), the
images cut into five folds, each predicted by a head that was trained on the other four.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from iqa_ray import metrics
from iqa_ray.distortions import distort
from iqa_ray.images.decoding import decode_image
from iqa_ray.images.listing import list_images
from iqa_ray.metrics import MetricError
from iqa_ray.metrics.planes import Planes
from iqa_ray.synthetic.dotcodes import make_dataset
from iqa_ray.training.backbones import create

VOTERS = ("lapv", "lapm", "wavs", "brisque")
BLURS = (1.0, 2.0, 3.0, 5.0)  # sigma, px
NOISES = (0.003, 0.008, 0.02)  # variance, white = 1
NUM_FOLDS = 5
_SIDE = 224
_BATCH = 32


def judge_codes(folder: Path, num_images: int, seed: int) -> pd.DataFrame:
    """Synthetic codes, the manufacturer to be told; half of them are out of focus.

    Returns:
        One row an image: image_id, group (the image itself: no two show the same code), label,
        damage, a column of scores for each of VOTERS (NaN without one), correct.
    """
    labels = make_dataset(folder, num_images, seed=seed)
    images = [decode_image((folder / path).read_bytes()) for path in labels["path"]]
    rows = labels[["path", "label"]].rename(columns={"path": "image_id"})
    rows["group"] = rows["image_id"]
    rows["damage"] = ["blur" if sigma > 1 else "none" for sigma in labels["blur_sigma"]]
    return _judge(rows, images, images, seed)


def judge_products(folder: Path, seed: int) -> pd.DataFrame:
    """Photographs of products, the product to be told; 35% are blurred, 15% noisy.

    The heads are trained on the undamaged photographs.

    Returns:
        As `judge_codes`; `group` is the product.
    """
    rng = np.random.default_rng(seed)
    paths = list_images(str(folder)).table.column("path").to_pylist()
    clean = [decode_image(Path(path).read_bytes()) for path in paths]
    damages = rng.choice(["none", "blur", "noise"], len(paths), p=[0.5, 0.35, 0.15])
    shown = []
    for image, damage in zip(clean, damages, strict=True):
        if damage == "blur":
            shown.append(distort(image, "gaussian_blur", parameter=float(rng.choice(BLURS))))
        elif damage == "noise":
            shown.append(distort(image, "noise", parameter=float(rng.choice(NOISES)), rng=rng))
        else:
            shown.append(image)
    rows = pd.DataFrame({"image_id": [str(Path(path).relative_to(folder)) for path in paths]})
    rows["label"] = rows["group"] = [Path(path).parent.name for path in paths]
    rows["damage"] = damages
    return _judge(rows, clean, shown, seed)


def _judge(
    rows: pd.DataFrame, clean: list[NDArray[np.uint8]], shown: list[NDArray[np.uint8]], seed: int
) -> pd.DataFrame:
    for name, values in _score(shown).items():
        rows[name] = values
    classes, targets = np.unique(rows["label"], return_inverse=True)
    features = _extract(shown)
    material = features if clean is shown else _extract(clean)
    predicted = _cross_predict(material, features, targets, len(classes), seed)
    rows["correct"] = predicted == targets
    return rows


def _score(images: list[NDArray[np.uint8]]) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = {name: [] for name in VOTERS}
    for image in images:
        planes = Planes(image)
        for name in VOTERS:
            metric = metrics.create(name)
            assert isinstance(metric, metrics.Metric)
            try:
                scores[name].append(metric.measure(planes))
            except MetricError:
                scores[name].append(float("nan"))
    return scores


@torch.inference_mode()
def _extract(images: list[NDArray[np.uint8]]) -> torch.Tensor:
    """(n, features) of images that are scaled to 224×224 px."""
    model = create("efficientnet_lite0", 1, "imagenet").eval()
    parts = []
    for start in range(0, len(images), _BATCH):
        batch = [
            torch.nn.functional.interpolate(
                torch.tensor(image).permute(2, 0, 1)[None].float() / 255,
                (_SIDE, _SIDE),
                mode="bilinear",
                antialias=True,
            )
            for image in images[start : start + _BATCH]
        ]
        parts.append(model.extract_features(torch.cat(batch)))
    return torch.cat(parts)


def _cross_predict(
    material: torch.Tensor, features: torch.Tensor, targets: NDArray[np.int64], num: int, seed: int
) -> NDArray[np.int64]:
    """(n,) classes, each from a head that was trained on the four folds without the image."""
    folds = np.random.default_rng(seed).permutation(len(targets)) % NUM_FOLDS
    wanted = torch.from_numpy(targets)
    predicted = np.empty(len(targets), np.int64)
    for fold in range(NUM_FOLDS):
        train, test = folds != fold, folds == fold
        mean, std = material[train].mean(0), material[train].std(0) + 1e-6
        head = _train_head((material[train] - mean) / std, wanted[train], num)
        with torch.inference_mode():
            predicted[test] = head((features[test] - mean) / std).argmax(1).numpy()
    return predicted


def _train_head(features: torch.Tensor, targets: torch.Tensor, num: int) -> torch.nn.Linear:
    """Multinomial logistic regression with a small ridge, to its optimum."""
    head = torch.nn.Linear(features.shape[1], num)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(head(features), targets)
        loss = loss + 1e-3 * head.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return head
