"""One classifier on Ray Train, with Ray's part of it played inline."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from iqa_ray.cluster.capacity import Resources
from iqa_ray.images.source import ImageSource
from iqa_ray.storage.files import locate, write_bytes
from iqa_ray.training import single
from iqa_ray.training.loop import TrainingSet
from iqa_ray.training.recipe import Recipe

RECIPE, IMAGES = Recipe("resnet18"), TrainingSet(ImageSource(locate(".")), [], [])


@pytest.fixture
def inline(monkeypatch):
    """The worker is called here, and what it makes is its seed."""

    class Trainer:
        def __init__(self, work, *, train_loop_config, **_):
            self.fit = lambda: work(train_loop_config)

    @contextmanager
    def listen(on_event):
        yield SimpleNamespace(post=SimpleNamespace(remote=on_event))

    monkeypatch.setattr(single, "TorchTrainer", Trainer)
    monkeypatch.setattr(single, "listen", listen)
    monkeypatch.setattr(single, "register_worker", lambda queue: None)
    monkeypatch.setattr(single, "train_from_files", lambda recipe, *_: {"seed": recipe.seed})
    monkeypatch.setattr(single, "dump_checkpoint", lambda made: repr(made).encode())
    monkeypatch.setattr(single, "plan_single_worker", lambda: Resources(1.0))


def test_two_that_train_the_same_classifier_leave_each_other_s_files_alone(
    inline, tmp_path, monkeypatch
):
    """The second begins and ends between the first one's writing and its reading of the file."""

    def train():
        return single.train_on_ray(RECIPE, IMAGES, locate(tmp_path), "key", lambda event: None)

    def write_then_train(file, data):
        write_bytes(file, data)
        monkeypatch.setattr(single, "write_bytes", write_bytes)
        made.append(train())

    made: list[bytes] = []
    monkeypatch.setattr(single, "write_bytes", write_then_train)
    assert [train(), *made] == [b"{'seed': 0}"] * 2
    assert not list(tmp_path.iterdir())
