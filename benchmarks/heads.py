"""Linear heads on features of a frozen backbone that are computed already."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from iqa_ray.training.backbones import Classifier
from iqa_ray.training.loop import Trainer
from iqa_ray.training.recipe import Recipe


def find_correct(
    features: torch.Tensor,
    labels: NDArray[np.int64],
    train: NDArray[np.int64],
    lr: float,
    seed: int,
) -> NDArray[np.bool_]:
    """(n,) whether a head that was trained on the rows `train` is right about each image.

    It is trained as `iqa-ray compare --freeze-backbone` does: Adam, 40 epochs, batches of 32.

    Args:
        features: (n, F).
        labels: (n,) class indices.
        train: rows.
        lr: the learning rate.
        seed: of the head's initial weights and the order of images.
    """
    recipe = Recipe("efficientnet_lite0", freeze_backbone=True, lr=lr, seed=seed)
    torch.manual_seed(seed)
    num_classes = int(labels.max()) + 1
    model = Classifier(torch.nn.Identity(), features.shape[1], num_classes, (0.0,) * 3, (1.0,) * 3)
    trainer = Trainer(recipe, model)
    targets, rows = torch.from_numpy(labels), torch.from_numpy(train)
    for epoch in range(1, recipe.epochs + 1):
        trainer.train_epoch(epoch, features, targets, rows)
    logits = trainer.predict(features, torch.arange(len(labels)))
    return np.asarray(logits.argmax(axis=1) == labels)
