"""Files that were not there are known by what reading them raised, not by its text; without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline import DeepStandIn

from iqa_ray.images import source as image_source
from iqa_ray.images.decoding import ImageError
from iqa_ray.images.source import ImageSource
from iqa_ray.metrics.deep import make_version
from iqa_ray.scoring import deep_scorer
from iqa_ray.scoring.cpu_scorer import ScoringRun, Shard, ShardScorer
from iqa_ray.scoring.deep_scorer import DeepPlan, DeepShardScorer
from iqa_ray.scoring.tables import SCORES_SCHEMA, make_row_settings, scores_folder
from iqa_ray.storage.files import locate
from iqa_ray.storage.parts import find_missing, make_fingerprints
from iqa_ray.storage.workspace import Workspace
from iqa_ray.weights.files import WeightFile
from iqa_ray.weights.metric_files import Weights

WEIGHTS = Weights("musiq", (WeightFile("musiq.pth", "", 1, "ab" * 32),), None)
PLAN = DeepPlan(WEIGHTS, "cpu", num_threads=1)
TEXT = "No such file or directory"


class EvenMetric:
    """A deep metric that gives every image the same score."""

    name, version = "musiq", make_version(WEIGHTS, "fp32", None)

    def __init__(self, *_: Any) -> None: ...

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def batch_size(self, *_: int) -> int:
        return 8

    def score_batch(self, images: Any) -> list[float]:
        return [1.0] * len(images)

    def note(self, *_: int) -> str:
        return ""


def score_with_lapm(run: ScoringRun, shard: Shard) -> str:
    ShardScorer(run)(shard)
    return scores_folder("lapm", "1")


def score_with_a_network(run: ScoringRun, shard: Shard) -> str:
    DeepShardScorer(run, PLAN)(shard)
    return scores_folder(EvenMetric.name, EvenMetric.version)


def score_with_the_stand_in(run: ScoringRun, shard: Shard) -> str:
    """As nights are tested."""
    scorer = DeepStandIn(run, PLAN)
    scorer(shard)
    return scores_folder(scorer.name, scorer.version)


@pytest.mark.parametrize("score", [score_with_lapm, score_with_a_network, score_with_the_stand_in])
def test_an_absent_file_is_not_done_and_one_that_fails_with_the_same_words_is(
    score: Callable[[ScoringRun, Shard], str],
    image_folder: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of four images is away, one is empty, and the decoder of one says that it is away."""

    def decode(data: bytes, _: int) -> np.ndarray:
        if data == b"odd":
            raise ImageError("unreadable", TEXT)
        return np.zeros((32, 32, 3), np.uint8)

    monkeypatch.setattr(image_source, "decode_image", decode)
    monkeypatch.setattr(deep_scorer, "make_network_metric", EvenMetric)
    root = image_folder(4)
    (root / "a/002.jpg").write_bytes(b"odd")
    source = ImageSource(locate(root))
    (root / "b/001.jpg").write_bytes(b"")
    images = source.list().table  # a/000.jpg, a/002.jpg, b/001.jpg, b/003.jpg
    (root / "b/003.jpg").unlink()
    fingerprints = make_fingerprints(images, make_row_settings(source.max_pixels))
    ws = str(tmp_path / "ws")
    folder = score(ScoringRun(ws, source), Shard(images, ("lapm",), fingerprints))
    parts = Workspace(ws).parts(folder)
    assert find_missing(parts.done(), fingerprints).tolist() == [False, False, False, True]
    rows = parts.read(SCORES_SCHEMA.names)
    assert rows is not None
    errors = rows.sort_by("path").column("error").to_pylist()
    assert errors[2:] == ["the file is empty", TEXT]
    if score is not score_with_the_stand_in:  # which decodes nothing
        assert errors[1] == TEXT
