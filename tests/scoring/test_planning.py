"""What lacks which score, and the shards that are cut of it."""

from __future__ import annotations

import numpy as np
import pytest
from inline import run_inline

from iqa_ray.cluster.capacity import PoolPlan, Resources
from iqa_ray.config import make_job
from iqa_ray.scoring.cpu_scorer import Shard, ShardReport, ShardScorer
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.planning import (
    LARGEST_SHARD,
    SMALLEST_SHARD,
    cut_shards,
    find_missing_scores,
    make_groups,
)
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import ListedScores
from iqa_ray.storage.workspace import Workspace

PLAN = PoolPlan(2, Resources())


@pytest.fixture
def job(image_folder, tmp_path) -> ScoreJob:
    """Of eight images and two metrics, of which the first five images have one."""
    images, ws = image_folder(8), tmp_path / "ws"
    given = {"images": str(images), "workspace": str(ws)}
    last = [images / "ab"[number % 2] / f"{number:03}.jpg" for number in (5, 6, 7)]
    with run_inline():
        for file in last:
            file.rename(tmp_path / file.name)
        run_score(make_job(ScoreJob, {**given, "metrics": ("wavs",)}))
        for file in last:
            (tmp_path / file.name).rename(file)
        run_score(make_job(ScoreJob, {**given, "metrics": ("brisque",)}))
    return make_job(ScoreJob, {**given, "metrics": ("lapm", "wavs", "brisque", "musiq")})


def test_missing_scores_are_found_and_cut_by_what_images_lack(job):
    workspace = Workspace(job.workspace)
    listed = ListedScores(workspace)
    with run_inline():
        groups = make_groups(job, {})
    missing = find_missing_scores(workspace, groups, listed)
    cpu, musiq = groups
    assert [group.name for group in missing] == ["cpu", "musiq"]
    assert missing[musiq].all()
    names = [path[-7:-4] for path in listed.images["path"].to_pylist()]
    lacks_wavs = [name in {"005", "006", "007"} for name in names]
    assert np.array_equal(missing[cpu], np.column_stack([[True] * 8, lacks_wavs, [False] * 8]))

    cut = list(cut_shards(cpu, listed, missing[cpu], PLAN, shard_size=3))
    assert [(len(rows), shard.metrics) for rows, shard in cut] == [
        (3, ("lapm",)), (2, ("lapm",)), (3, ("lapm", "wavs")),
    ]  # fmt: skip
    assert sorted(np.concatenate([rows for rows, _ in cut])) == list(range(8))
    for rows, shard in cut:
        assert shard.images.equals(listed.images.select(["image_id", "path"]).take(rows))
        assert np.array_equal(shard.fingerprints, listed.fingerprints[rows])

    with run_inline():
        run_score(make_job(ScoreJob, {**job.model_dump(), "metrics": ("lapm", "wavs")}))
    assert list(find_missing_scores(workspace, [cpu], listed)) == []


def test_shards_are_neither_tiny_nor_huge(job):
    listed = ListedScores(Workspace(job.workspace))
    with run_inline():
        cpu, musiq = make_groups(job, {})
    listed.images = listed.images.take([0] * 40_000)
    listed.fingerprints = listed.fingerprints[[0] * 40_000]
    for group, num_images, plan, size in (
        (cpu, 40, PLAN, SMALLEST_SHARD),
        (cpu, 4_000, PLAN, 125),  # sixteen an actor
        (cpu, 40_000, PLAN, LARGEST_SHARD),
        (musiq, 40, PLAN, 8),  # a network without a GPU is slow
        (musiq, 40_000, PLAN, 64),
        (musiq, 40_000, PoolPlan(2, Resources(num_gpus=0.5)), LARGEST_SHARD),
    ):
        missing = np.zeros((40_000, len(group.specs)), bool)
        missing[:num_images] = True
        shards = [shard for _, shard in cut_shards(group, listed, missing, plan, None)]
        assert max(shard.images.num_rows for shard in shards) == size
        assert sum(shard.images.num_rows for shard in shards) == num_images


def test_a_scorer_reports_what_became_of_its_images(image_folder, tmp_path):
    root = image_folder(3)
    (root / "a" / "text.jpg").write_text("not an image")
    with run_inline():
        reports: list[ShardReport] = []

        def make_scorer(run):
            scorer = ShardScorer(run)

            def work(shard: Shard) -> ShardReport:
                reports.append(scorer(shard))
                return reports[-1]

            return work

        given = {"images": str(root), "workspace": str(tmp_path / "ws")}
        run_score(make_job(ScoreJob, {**given, "metrics": ("lapm", "niqe")}), make_scorer)
    (report,) = reports
    assert (report.num_images, report.num_failed) == (4, 4)
    assert report.statuses == {
        "lapm": {"ok": 3, "unreadable": 1},
        "niqe": {"too_small": 3, "unreadable": 1},
    }
    assert len(report.image_s) == 4
    assert (report.compute_s, report.wait_s, report.shifts) == (0.0, 0.0, [])
