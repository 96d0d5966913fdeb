"""CIFAR-10 in small."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
from shapes import CLASSES, make_shape
from torchvision.datasets import CIFAR10


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Batches as CIFAR-10 has them, of four images each, and their MD5 in torchvision's list."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    images = []

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def make_batch(name, start):
        shapes = [make_shape(CLASSES[number % 3], start + number) for number in range(4)]
        images.extend(shapes)
        rows = np.stack(shapes).transpose(0, 3, 1, 2).reshape(4, -1)
        return write(name, {"data": rows, "labels": [number % 3 for number in range(4)]})

    train = [make_batch(f"data_batch_{number}", 10 * number) for number in range(5)]
    test = [make_batch("test_batch", 100)]
    meta = write("batches.meta", {"label_names": list(CLASSES)})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta[1]})
    return tmp_path, np.stack(images)
