"""Jobs without Ray: workers are made and called in this process, one shard after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from iqa_ray import metrics
from iqa_ray.cluster import connection, missing
from iqa_ray.cluster.pools import Pool
from iqa_ray.images.decoding import AbsentError, ImageError, hash_content
from iqa_ray.metrics.deep import make_version
from iqa_ray.scoring import planning, spreading
from iqa_ray.scoring.cpu_scorer import (
    Score,
    ScoringRun,
    Shard,
    ShardReport,
    make_table,
    write_parts,
)
from iqa_ray.scoring.deep_scorer import DeepPlan
from iqa_ray.smoothing import versions
from iqa_ray.weights.files import WeightFile
from iqa_ray.weights.metric_files import Weights

BeforeShard = Callable[[Any], None]


class WriterKilled(BaseException):
    """The process that writes parts was killed."""


def score_deeply(content_hash: str, precision: str, max_side: int | None) -> float:
    """What the stand-in for a deep metric gives: another number for other settings."""
    settings = {"fp32": 0.0, "bf16": 0.25, "fp16": 0.5}[precision] + (max_side or 0)
    return int(content_hash[:6], 16) / 1e6 + settings


class DeepStandIn:
    """Scores shards as the actor of a deep metric does, without a network."""

    def __init__(self, run: ScoringRun, plan: DeepPlan) -> None:
        self._run, self._plan = run, plan
        self.name = plan.weights.metric
        self.version = make_version(plan.weights, plan.precision, plan.max_side)

    def __call__(self, shard: Shard) -> ShardReport:
        hashes: list[str | None] = []
        scores: list[Score] = []
        is_absent: list[bool] = []
        for data in self._run.images.read_each(shard.images.column("path").to_pylist()):
            is_absent.append(isinstance(data, AbsentError))
            if isinstance(data, ImageError):
                hashes.append(None)
                scores.append((None, data.status, str(data)))
            else:
                hashes.append(hash_content(data))
                value = score_deeply(hashes[-1], self._plan.precision, self._plan.max_side)
                scores.append((value, "ok", ""))
        tables = {self.name: make_table(shard.images, hashes, scores)}
        return write_parts(self._run, shard, [self], tables, is_absent)


def describe_weights(names: list[str], _folder: str | None) -> dict[str, Weights]:
    """Weights of deep metrics, without any file."""
    return {
        name: Weights(name, (WeightFile(f"{name}.pth", "", 1, "ab" * 32),), None) for name in names
    }


@contextmanager
def run_inline(before_shard: BeforeShard = lambda shard: None) -> Iterator[None]:
    """Call workers in this process; `before_shard` sees each shard before it is done."""

    def run_shards(pools: list[Pool[Any, Any]], on_done: Callable[..., None]) -> list[Any]:
        for index, pool in enumerate(pools):
            worker = pool.make_worker()
            for number, shard in enumerate(pool.shards):
                before_shard(shard)
                on_done(index, number, worker(shard))
        return []

    nodes = [{"CPU": 2.0}]
    with ExitStack() as stack:
        for target, name, stand_in in (
            (connection, "connect", lambda _: nullcontext()),
            (connection, "count_actors", lambda *_: 2),
            (connection, "list_nodes", lambda *_: nodes),
            (connection, "check_room", lambda *_: None),
            (connection, "prefer_gpu", lambda resources: resources),
            (spreading, "run_shards", run_shards),
            (spreading, "MeasuredScorer", lambda make, _: make()),
            (spreading, "DeepShardScorer", DeepStandIn),
            (planning, "prepare_weights", describe_weights),
            (missing, "run_shards", run_shards),
            (versions, "run_shards", run_shards),
        ):
            stack.enter_context(mock.patch.object(target, name, stand_in))
        yield


def list_paths(shard: Any) -> list[str]:
    """The images of a shard, of scoring or of predicting."""
    images: pa.Table = shard.images if isinstance(shard, Shard) else shard[0]
    return list(images.column("path").to_pylist())


def bitmap(seed: int, height: int = 16, width: int = 16) -> bytes:
    """An uncompressed image file: files of one shape have one size."""
    import io

    from PIL import Image

    pixels = np.random.default_rng(seed).normal(128, 20 + 12 * seed, (height, width, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "BMP")
    return stream.getvalue()


def put(file: Path, lapm: int, wavs: int = 0) -> None:
    """Write an image of one colour, which `specs_by_colour` gives these scores.

    All such files have one size.
    """
    import os

    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.stat().st_mtime_ns if file.exists() else 10**18
    Image.new("RGB", (16, 16), (lapm, wavs, 0)).save(file)
    os.utime(file, ns=(before + 10**9, before + 10**9))  # whatever the clock says


def specs_by_colour() -> dict[str, metrics.MetricSpec]:
    """Entries by which LAPM is an image's red and WAVS its green: scores are what a test says."""
    return {
        name: replace(
            metrics.SPECS[name],
            function=lambda planes, channel=channel: float(planes._image[0, 0, channel]),
        )
        for channel, name in enumerate(("lapm", "wavs"))
    }
