"""Failures while scoring: the final tables are compared with those of an undisturbed run, row for
row and as they lie on disk, so that nothing is lost and nothing is there twice.

How single shards are tried again is tested in test_pools.py, half-written files in test_store.py,
object stores that fail in test_object_stores.py.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from clusters import QUICK_HEALTH_CHECKS
from pictures import make_texture
from PIL import Image
from pyarrow import parquet as pq

from iqa_ray import metrics
from iqa_ray.cli import main
from iqa_ray.config import make_job
from iqa_ray.images.decoding import ImageError, hash_content
from iqa_ray.images.source import ImageSource
from iqa_ray.scoring import cpu_scorer
from iqa_ray.scoring import jobs as scoring_jobs
from iqa_ray.scoring.cpu_scorer import MakeScorer, ScoringRun, Shard, ShardScorer, score_image
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import read_scores, scores_frame
from iqa_ray.storage.files import locate
from iqa_ray.storage.workspace import Workspace

pytestmark = pytest.mark.usefixtures("ray_session")
METRICS = ("lapm", "wavs")


@pytest.fixture
def ws(tmp_path) -> str:
    return str(tmp_path / "ws")


def run_inline(pools: Any, on_done: Any) -> list[Any]:
    """Every shard of every pool, one after another, in this process."""
    for pool_index, pool in enumerate(pools):
        worker = pool.make_worker()
        for index, shard in enumerate(pool.shards):
            on_done(pool_index, index, worker(shard))
    return []


def without_actors() -> Any:
    """Scores are the same to the last bit (test_scoring.py), and no actor need be started."""
    return mock.patch("iqa_ray.scoring.spreading.run_shards", run_inline)


no_actors = without_actors()


def run(images: Path, ws: str, make_scorer: MakeScorer = ShardScorer, **settings: Any) -> Any:
    given = {"metrics": METRICS, "cpus_per_actor": 0.5, "shard_size": 3, **settings}
    return run_score(
        make_job(ScoreJob, {"images": str(images), "workspace": ws, **given}), make_scorer
    )


def run_main(images: Path, ws: str, monkeypatch: Any, make_scorer: MakeScorer = ShardScorer) -> int:
    """The exit code of `iqa-ray score`, with actors that make another worker."""
    command = ["score", str(images), "--workspace", ws, "--metrics", ",".join(METRICS)]
    with monkeypatch.context() as context:
        context.setattr(scoring_jobs, "run_score", partial(run_score, make_scorer=make_scorer))
        return main([*command, "--cpus-per-actor", "0.5", "--shard-size", "3"])


def read_disk(ws: str, name: str) -> pd.DataFrame:
    """A metric's rows as they lie on disk, repeated ones too, of the images that are listed."""
    listed = set(pq.read_table(f"{ws}/images.parquet")["image_id"].to_pylist())
    files = sorted(Path(ws).glob(f"scores/metric={name}/version=*/*.parquet"))
    frame = pd.concat([pq.ParquetFile(file).read().to_pandas() for file in files])
    frame = frame[frame["image_id"].isin(listed)]
    return frame.sort_values("image_id", ignore_index=True)


def assert_same_tables(found: str, expected: str, names: tuple[str, ...] = METRICS) -> None:
    """Every column of every row, on disk and as readers see them."""
    pd.testing.assert_frame_equal(
        pd.read_parquet(f"{found}/images.parquet"), pd.read_parquet(f"{expected}/images.parquet")
    )
    for name in names:
        rows = read_disk(found, name)
        assert rows["image_id"].is_unique
        pd.testing.assert_frame_equal(rows, read_disk(expected, name), check_exact=True)
        read = [read_scores(Workspace(ws), name).to_pandas() for ws in (found, expected)]
        read = [frame.sort_values("image_id", ignore_index=True) for frame in read]
        listed = read[0]["image_id"].isin(rows["image_id"])
        pd.testing.assert_frame_equal(read[0][listed].reset_index(drop=True), rows)
    frames = [scores_frame(Workspace(ws), names) for ws in (found, expected)]
    pd.testing.assert_frame_equal(*frames, check_exact=True)


def complete(images: Path, ws: str, monkeypatch: Any) -> None:
    """The same command again, undisturbed."""
    with without_actors():
        assert run_main(images, ws, monkeypatch) == 0


def assert_like_undisturbed(ws: str, images: Path, names: tuple[str, ...] = METRICS) -> None:
    """What failures left is what one run over the same images gives."""
    calm = f"{ws}-calm"
    with without_actors():
        run(images, calm, metrics=names)
    assert_same_tables(ws, calm, names)


def unfinished(ws: str) -> list[str]:
    return [str(path) for path in Path(ws).rglob("*.tmp")]


# --- actors that are killed -------------------------------------------------------------------


def kill_at_write(scoring_run: ScoringRun, folder: Path, number: int) -> Callable[[Shard], Any]:
    """A scorer whose process is killed, once, just before its n-th part gets its name."""
    real, num_writes = os.replace, 0

    def replace(*paths: Any) -> None:
        nonlocal num_writes
        num_writes += 1
        if num_writes == number and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        real(*paths)

    os.replace = replace
    return ShardScorer(scoring_run)


def test_an_actor_killed_while_it_writes_changes_nothing(image_folder, ws, tmp_path):
    """The second of a shard's two parts is complete but for its name: the first is there."""
    images = image_folder(12)
    summary = run(images, ws, partial(kill_at_write, folder=tmp_path, number=4))
    assert (tmp_path / "died").exists()
    assert summary["num_scored"] == 12
    assert_like_undisturbed(ws, images)
    (left,) = unfinished(ws)
    assert main(["compact", ws]) == 0
    assert unfinished(ws) == [left]  # it might be another run's
    day_ago = time.time() - 25 * 3600
    os.utime(left, (day_ago, day_ago))
    assert main(["compact", ws]) == 0
    assert unfinished(ws) == []
    assert_same_tables(ws, f"{ws}-calm")


def kill_at_image(scoring_run: ScoringRun, name: str, folder: Path) -> Callable[[Shard], Any]:
    """A scorer that an image kills every time."""
    real = ImageSource.read

    def read(source: ImageSource, path: str) -> bytes:
        if path.endswith(name):
            (folder / f"death-{time.monotonic_ns()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(source, path)

    ImageSource.read = read  # type: ignore[method-assign]
    return ShardScorer(scoring_run)


def check_incomplete(error: str, *words: str) -> None:
    """One line that names what is missing, and no traceback."""
    lines = [line for line in error.splitlines() if line.startswith("iqa-ray: ")]
    (line,) = lines
    assert line.startswith("iqa-ray: incomplete: ")
    for word in words:
        assert word in line
    assert "Traceback" not in error


def test_an_image_that_always_kills_costs_its_shard(
    image_folder, ws, tmp_path, monkeypatch, capsys
):
    images = image_folder(12)
    make_scorer = partial(kill_at_image, name="005.jpg", folder=tmp_path)
    assert run_main(images, ws, monkeypatch, make_scorer) == 1
    # the listing is by path: a/000 a/002 a/004, a/006 a/008 a/010, b/001 b/003 b/005
    check_incomplete(
        capsys.readouterr().err, "3 images could not be scored", "shard 2 of lapm, wavs",
        "b/001.jpg' and 2 more", "died on each of 3 tries",
    )  # fmt: skip
    assert len(list(tmp_path.glob("death-*"))) == 3
    assert len(read_disk(ws, "lapm")) == len(read_disk(ws, "wavs")) == 9
    complete(images, ws, monkeypatch)
    assert "3 scored, 9 reused" in capsys.readouterr().out
    assert_like_undisturbed(ws, images)


# --- memory -----------------------------------------------------------------------------------


def test_not_enough_memory_for_one_image_is_its_status(monkeypatch, image_folder):
    """Wherever in its way an image runs out of memory, the others have their scores."""
    file = image_folder(1) / "a" / "000.jpg"
    computed = [metrics.create(name) for name in METRICS]
    source = ImageSource(locate(file.parent))
    calm = score_image(file.read_bytes(), computed, source)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as context:
        context.setattr(computed[0], "measure", fail)
        assert score_image(file.read_bytes(), computed, source) == [
            (None, "too_large", "not enough memory for lapm"), calm[1],
        ]  # fmt: skip
    for target, name in ((cpu_scorer, "Planes"), (Image, "open")):
        with monkeypatch.context() as context:
            context.setattr(target, name, fail)
            for score, status, error in score_image(file.read_bytes(), computed, source):
                assert (score, status) == (None, "too_large")
                assert error.startswith("not enough memory")
    monkeypatch.setattr("iqa_ray.images.source.read_bytes", fail)
    (error,) = source.read_each([str(file)])
    assert isinstance(error, ImageError)
    assert (error.status, str(error)) == ("too_large", "not enough memory to read it")


def limit_memory(scoring_run: ScoringRun, room: int) -> Callable[[Shard], Any]:
    """A scorer whose process may have so many bytes more than it has now."""
    worker = ShardScorer(scoring_run)

    def work(shard: Shard) -> Any:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits = resource.getrlimit(resource.RLIMIT_AS)
        most = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
        try:
            return worker(shard)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)

    return work


def test_an_image_too_large_for_the_process_costs_one_row(image_folder, ws):
    if not Path("/proc/self/statm").exists():
        pytest.skip("the limit is set from /proc")
    images = image_folder(6)
    calm = f"{ws}-small"
    with without_actors():
        run(images, calm)
    Image.new("L", (7000, 7000), 128).save(images / "a" / "huge.png")
    summary = run(images, ws, partial(limit_memory, room=350_000_000))
    assert summary["num_failed"] == 1
    for name in METRICS:
        rows = read_disk(ws, name)
        huge = rows["path"].str.endswith("huge.png")
        assert list(rows.loc[huge, "status"]) == ["too_large"]
        assert rows.loc[huge, "error"].str.contains("not enough memory").all()
        others = rows[~huge].reset_index(drop=True)
        pd.testing.assert_frame_equal(others, read_disk(calm, name), check_exact=True)


def run_out_of_memory(scoring_run: ScoringRun, name: str, log: Path) -> Any:
    """A scorer that runs out of memory with a shard as a whole, such as while its table is made."""
    worker = ShardScorer(scoring_run)

    def work(shard: Shard) -> Any:
        paths = shard.images["path"].to_pylist()
        is_hog = any(path.endswith(name) for path in paths)
        with open(log, "a") as stream:
            stream.write(f"begin {is_hog}\n")
        time.sleep(0 if is_hog else 1.2)  # longer than another actor takes to come up
        if is_hog:
            raise MemoryError("no room for a table")
        done = worker(shard)
        with open(log, "a") as stream:
            stream.write("end\n")
        return done

    return work


def test_a_shard_that_runs_out_of_memory_is_tried_again_alone(
    image_folder, ws, tmp_path, monkeypatch, capsys
):
    images = image_folder(12)
    make_scorer = partial(run_out_of_memory, name="a/000.jpg", log=tmp_path / "log")
    assert run_main(images, ws, monkeypatch, make_scorer) == 1
    check_incomplete(
        capsys.readouterr().err, "3 images", "a/000.jpg' and 2 more",
        "3 tries: not enough memory: no room for a table",
    )  # fmt: skip
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[-2:] == ["begin True"] * 2  # when all others had ended
    assert lines.count("end") == 3
    complete(images, ws, monkeypatch)
    assert_like_undisturbed(ws, images)


MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


def join_small_group(scoring_run: ScoringRun, group: Path, name: str) -> Callable[[Shard], Any]:
    """A scorer in a control group of little memory, which an image makes it exceed."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    real = ImageSource.read

    def read(source: ImageSource, path: str) -> bytes:
        if path.endswith(name):
            np.ones(100_000_000)
        return real(source, path)

    ImageSource.read = read  # type: ignore[method-assign]
    return ShardScorer(scoring_run)


@pytest.fixture
def small_group(tmp_path) -> Iterator[Path]:
    """A control group of 600 MB; the kernel kills what exceeds it."""
    group = MEMORY_GROUPS / f"iqa-ray-{os.getpid()}-{time.monotonic_ns()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(600_000_000))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    for _ in range(50):
        try:
            group.rmdir()
            break
        except OSError:  # a process of it is ending
            time.sleep(0.2)


@pytest.mark.slow
def test_a_scorer_that_the_kernel_kills_for_its_memory(
    image_folder, ws, small_group, monkeypatch, capsys
):
    images = image_folder(12)
    make_scorer = partial(join_small_group, group=small_group, name="005.jpg")
    assert run_main(images, ws, monkeypatch, make_scorer) == 1
    check_incomplete(
        capsys.readouterr().err, "3 images", "b/001.jpg' and 2 more", "3 tries", "memory"
    )
    complete(images, ws, monkeypatch)
    assert_like_undisturbed(ws, images)


# --- a full disk ------------------------------------------------------------------------------


def fill_disk(scoring_run: ScoringRun, name: str) -> Callable[[Shard], Any]:
    """A scorer that can write no more than a few bytes a file with one of its shards."""
    worker = ShardScorer(scoring_run)

    def work(shard: Shard) -> Any:
        if not any(path.endswith(name) for path in shard.images["path"].to_pylist()):
            return worker(shard)
        real = cpu_scorer.write_parts

        def write(*given: Any) -> Any:
            with files_of_at_most(1000):
                return real(*given)

        cpu_scorer.write_parts = write
        try:
            return worker(shard)
        finally:
            cpu_scorer.write_parts = real

    return work


class files_of_at_most:  # noqa: N801
    """Files that grow further cannot be written: as on a full disk, with another errno."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes

    def __enter__(self) -> None:
        self._handler = signal.getsignal(signal.SIGXFSZ)
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._num_bytes, self._limits[1]))

    def __exit__(self, *_: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


def test_a_part_that_does_not_fit_on_the_disk(image_folder, ws, monkeypatch, capsys):
    images = image_folder(12)
    assert run_main(images, ws, monkeypatch, partial(fill_disk, name="005.jpg")) == 1
    check_incomplete(
        capsys.readouterr().err, "3 images", "shard 2", "b/001.jpg' and 2 more",
        "File too large", "/part-",
    )  # fmt: skip
    assert unfinished(ws) == []
    assert len(read_disk(ws, "lapm")) == len(read_disk(ws, "wavs")) == 9
    complete(images, ws, monkeypatch)
    assert_like_undisturbed(ws, images)


def test_a_driver_that_finds_the_disk_full(image_folder, ws, monkeypatch, capsys):
    images = image_folder(3)
    with files_of_at_most(1000):
        code = run_main(images, ws, monkeypatch)
    assert code == 1
    check_incomplete(capsys.readouterr().err, "File too large", f"{ws}/images.parquet")
    assert unfinished(ws) == []
    complete(images, ws, monkeypatch)
    assert_like_undisturbed(ws, images)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own that holds little."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {getattr(error, 'stderr', error)}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path, num_bytes: int) -> None:
    """Leave so many bytes on the file's disk."""
    file.unlink(missing_ok=True)
    info = os.statvfs(file.parent)
    file.write_bytes(b"x" * (info.f_bavail * info.f_frsize - num_bytes))


def test_a_full_disk(image_folder, small_disk, tmp_path, monkeypatch, capsys):
    """Before a run, and while its parts are written; afterwards the same command completes it."""
    images = image_folder(30)
    ws, filler = str(small_disk / "ws"), small_disk / "filler"
    (small_disk / "ws").mkdir()
    fill(filler, 0)
    assert run_main(images, ws, monkeypatch) == 1
    check_incomplete(capsys.readouterr().err, "No space left on device", "images.parquet")
    assert list(Path(ws).iterdir()) == []
    fill(filler, 40_000)  # for images.parquet, the settings and some parts
    assert run_main(images, ws, monkeypatch) == 1
    check_incomplete(
        capsys.readouterr().err, "images could not be scored: shard ", ".jpg' and 2 more",
        "No space left on device", "/part-",
    )  # fmt: skip
    assert unfinished(ws) == []
    filler.unlink()
    complete(images, ws, monkeypatch)
    calm = str(tmp_path / "calm")
    with without_actors():
        run(images, calm)
    assert_same_tables(ws, calm)


# --- files that are not as they were listed ---------------------------------------------------


def disturb(
    scoring_run: ScoringRun, action: Callable[[], None], flag: Path
) -> Callable[[Shard], Any]:
    """A scorer before whose first shard something happens, once for all actors."""
    worker = ShardScorer(scoring_run)

    def work(shard: Shard) -> Any:
        try:
            flag.touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            action()
        return worker(shard)

    return work


@no_actors
def test_a_file_deleted_between_listing_and_reading(image_folder, ws, tmp_path):
    images = image_folder(9)
    gone, kept = images / "b" / "007.jpg", tmp_path / "kept.jpg"
    take_away = partial(gone.rename, kept)
    make_scorer = partial(disturb, action=take_away, flag=tmp_path / "flag")
    summary = run(images, ws, make_scorer)
    assert summary["num_images"] == summary["num_scored"] == 9
    assert summary["num_failed"] == 1
    for name in METRICS:
        rows = read_disk(ws, name).set_index("path")
        assert len(rows) == 9
        row = rows.loc[str(gone)]
        assert (row["status"], row["error"]) == ("unreadable", "No such file or directory")
        assert pd.isna(row["content_hash"])
        assert np.isnan(row["score"])
        assert (rows.drop(str(gone))["status"] == "ok").all()
    assert run(images, ws)["num_images"] == 8  # it is not listed any more
    assert_like_undisturbed(ws, images)
    kept.rename(gone)  # of the same size and time as when it was listed first
    assert run(images, ws)["num_scored"] == 1
    assert_like_undisturbed(ws, images)


@no_actors
def test_a_file_that_stays_away_is_not_tried_again(image_folder, ws):
    images = image_folder(3)
    (images / "list.csv").write_text("path\na/000.jpg\nb/001.jpg\ngone.jpg\n")
    assert run(images / "list.csv", ws)["num_failed"] == 1
    again = run(images / "list.csv", ws)
    assert (again["num_scored"], again["num_failed"]) == (0, 1)


@pytest.mark.parametrize("same_size", [False, True])
@no_actors
def test_a_file_changed_between_listing_and_reading(image_folder, ws, tmp_path, same_size):
    images = image_folder(9)
    changed, other = images / "b" / "007.jpg", tmp_path / "other.bmp"
    if same_size:
        changed = changed.with_suffix(".bmp")
        Image.fromarray(make_texture(1)).save(changed)
    Image.fromarray(make_texture(2)).save(other, format="BMP" if same_size else "JPEG")
    assert (changed.stat().st_size == other.stat().st_size) == same_size
    before = changed.stat().st_mtime_ns
    make_scorer = partial(disturb, action=partial(other.rename, changed), flag=tmp_path / "flag")
    run(images, ws, make_scorer)
    assert changed.stat().st_mtime_ns != before
    for name in METRICS:
        row = read_disk(ws, name).set_index("path").loc[str(changed)]
        assert row["content_hash"] == hash_content(changed.read_bytes())
        score = metrics.create(name)(np.asarray(Image.open(changed).convert("RGB")))
        assert row["score"] == score
    assert run(images, ws)["num_scored"] == 1  # its listing was of another file
    assert_like_undisturbed(ws, images)
    assert run(images, ws)["num_scored"] == 0


# --- two runs at once -------------------------------------------------------------------------


def wait_for_other(scoring_run: ScoringRun, own: Path, other: Path) -> Callable[[Shard], Any]:
    """A scorer whose every shard waits until the other run has begun to score."""
    worker = ShardScorer(scoring_run)

    def work(shard: Shard) -> Any:
        own.touch()
        deadline_s = time.monotonic() + 120
        while not other.exists():
            assert time.monotonic() < deadline_s, "the other run does not begin"
            time.sleep(0.02)
        return worker(shard)

    return work


def run_both(images: Path, ws: str, flags: Path, first: Any, second: Any) -> list[Any]:
    """Two runs in one workspace that both list what is missing before either has scored it."""
    results: list[Any] = [None, None]

    def start(place: int, settings: Any) -> None:
        own, other = (flags / f"{name}" for name in ((place, 1 - place)))
        make_scorer = partial(wait_for_other, own=own, other=other)
        try:
            results[place] = run(images, ws, make_scorer, **settings)
        except BaseException as error:
            results[place] = error

    threads = [
        threading.Thread(target=start, args=(place, settings))
        for place, settings in enumerate((first, second))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@no_actors
def test_two_runs_with_different_metrics_share_a_workspace(image_folder, ws, tmp_path):
    images = image_folder(9)
    settings = [{"metrics": (name,)} for name in METRICS]
    assert [result["num_scored"] for result in run_both(images, ws, tmp_path, *settings)] == [9, 9]
    assert_like_undisturbed(ws, images)


@no_actors
def test_two_runs_with_the_same_metrics_leave_one_row_an_image(image_folder, ws, tmp_path):
    """Their shards are cut differently, so that each writes parts of its own."""
    images = image_folder(9)
    results = run_both(images, ws, tmp_path, {"shard_size": 4}, {"shard_size": 3})
    assert [result["num_scored"] for result in results] == [9, 9]
    assert_like_undisturbed(ws, images)
    assert run(images, ws)["num_scored"] == 0
    assert main(["compact", ws]) == 0
    assert_same_tables(ws, f"{ws}-calm")


@no_actors
def test_two_runs_that_both_find_changed_images(image_folder, ws, tmp_path):
    images = image_folder(9)
    run(images, ws)
    for name in ("a/000.jpg", "b/003.jpg", "b/007.jpg"):
        Image.fromarray(make_texture(70, blur=2)).save(images / name)
    results = run_both(images, ws, tmp_path, {"shard_size": 2}, {"shard_size": 3})
    assert [result["num_scored"] for result in results] == [3, 3]
    assert_like_undisturbed(ws, images)


# --- processes and nodes that go away ---------------------------------------------------------


def start(function: str, *arguments: str) -> subprocess.Popen[str]:
    """Call a function of this module in a process of its own."""
    code = f"import sys, test_failures; sys.exit(test_failures.{function}(*sys.argv[1:]))"
    return start_python("-c", code, *arguments)


def start_command(*arguments: str) -> subprocess.Popen[str]:
    """Start `iqa-ray`."""
    return start_python("-m", "iqa_ray.cli", *arguments)


def start_python(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    out, error = process.communicate(timeout=240)
    return process.returncode, out, error


def wait_until(is_so: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    deadline_s = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline_s
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def count_parts(ws: str) -> int:
    return len(list(Path(ws).glob("scores/**/part-*.parquet")))


def take_time(scoring_run: ScoringRun, seconds: float) -> Callable[[Shard], Any]:
    worker = ShardScorer(scoring_run)

    def work(shard: Shard) -> Any:
        time.sleep(seconds)
        return worker(shard)

    return work


def score_slowly(images: str, ws: str) -> None:
    run(Path(images), ws, partial(take_time, seconds=0.3))


@pytest.mark.slow
def test_a_driver_that_is_killed_and_started_again(image_folder, ws, monkeypatch):
    psutil = pytest.importorskip("psutil")
    images = image_folder(90)
    driver = start("score_slowly", str(images), ws)
    wait_until(lambda: count_parts(ws) > 4, driver)
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.communicate()
    try:
        assert count_parts(ws) < 60
        # at once, while actors of the killed one may still be at work
        assert run_main(images, ws, monkeypatch) == 0
        assert_like_undisturbed(ws, images)
    finally:
        for process in children:  # Ray's own take a minute to go
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def lose_node(images: str, ws: str) -> int:
    """Score on a head and another node, which is taken away when it has done a few shards."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": QUICK_HEALTH_CHECKS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    other = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    # a driver does not outlive its own node
    assert ray.get_runtime_context().get_node_id() == cluster.head_node.node_id
    flags = Path(ws).parent

    def lose() -> None:
        wait_until((flags / other.node_id).exists)
        wait_until(lambda: count_parts(ws) > 8)
        cluster.remove_node(other, allow_graceful=False)
        (flags / "lost").touch()

    thread = threading.Thread(target=lose)
    thread.start()
    summary = run(
        Path(images), ws, partial(note_node, folder=flags), cpus_per_actor=1.0, num_actors=2
    )
    thread.join()
    return 0 if summary["num_scored"] == 60 else 1


def note_node(scoring_run: ScoringRun, folder: Path) -> Callable[[Shard], Any]:
    import ray

    (folder / ray.get_runtime_context().get_node_id()).touch()
    return take_time(scoring_run, 0.4)


@pytest.mark.slow
def test_a_node_removed_without_warning(image_folder, ws, tmp_path):
    images = image_folder(60)
    code, _, error = finish(start("lose_node", str(images), ws))
    assert code == 0, error
    assert (tmp_path / "lost").exists()
    assert error.count("an actor was lost: ") == 1
    assert_like_undisturbed(ws, images)


def hog(scoring_run: ScoringRun, name: str, num_bytes: int, folder: Path) -> Callable[[Shard], Any]:
    """A scorer that takes far too much memory for one image."""
    real = ImageSource.read

    def read(source: ImageSource, path: str) -> bytes:
        if path.endswith(name):
            (folder / f"try-{time.monotonic_ns()}").touch()
            taken = np.ones(num_bytes, np.uint8)
            time.sleep(20)  # longer than the memory is looked at
            del taken
        return real(source, path)

    ImageSource.read = read  # type: ignore[method-assign]
    return take_time(scoring_run, 0.1)


def run_with_little_memory(images: str, ws: str, threshold: str, num_bytes: str) -> int:
    """Score on a Ray that ends actors when the node has used so much of its memory."""
    import ray

    settings = {"RAY_memory_usage_threshold": threshold, "RAY_memory_monitor_refresh_ms": "100"}
    os.environ.update(settings)
    with mock.patch.object(ray, "init", partial(ray.init, object_store_memory=100_000_000)):
        make_scorer = partial(hog, name="005.jpg", num_bytes=int(num_bytes), folder=Path(ws).parent)
        with mock.patch(
            "iqa_ray.scoring.jobs.run_score", partial(run_score, make_scorer=make_scorer)
        ):
            command = ["score", images, "--workspace", ws, "--metrics", ",".join(METRICS)]
            return main([*command, "--cpus-per-actor", "0.5", "--shard-size", "3"])


@pytest.mark.slow
def test_a_scorer_that_ray_ends_for_its_memory(image_folder, ws, tmp_path, monkeypatch):
    """Ray ends the actors beside it too: their shards are not given up."""
    psutil = pytest.importorskip("psutil")
    memory = psutil.virtual_memory()
    room, taken = 4_000_000_000, 6_000_000_000  # others on this machine take and give back some
    if memory.available < 2 * taken:
        pytest.skip("not enough memory to take some without harm")
    threshold = (memory.total - memory.available + room) / memory.total
    images = image_folder(30)
    code, _, error = finish(
        start("run_with_little_memory", str(images), ws, f"{threshold:.4f}", str(taken))
    )
    assert code == 1, error
    check_incomplete(error, "3 images", "b/001.jpg' and 2 more", "3 tries", "short of memory")
    assert len(list(tmp_path.glob("try-*"))) == 3
    assert len(read_disk(ws, "lapm")) == len(read_disk(ws, "wavs")) == 27
    complete(images, ws, monkeypatch)
    assert_like_undisturbed(ws, images)


@pytest.mark.slow
def test_two_commands_at_once(image_folder, ws):
    images = image_folder(24)
    command = [
        "score",
        str(images),
        "--workspace",
        ws,
        "--num-actors",
        "1",
        "--metrics",
        "lapm,wavs",
    ]
    drivers = [start_command(*command, "--shard-size", size) for size in ("3", "4")]
    for code, _, error in map(finish, drivers):
        assert code == 0, error
    assert_like_undisturbed(ws, images)


@pytest.mark.slow
def test_a_night_beside_a_score(image_folder, ws):
    images = image_folder(12)
    with without_actors():
        run(images, ws)
    for number in range(3):
        Image.fromarray(make_texture(50 + number)).save(images / "a" / f"new{number}.jpg")
        Image.fromarray(make_texture(60 + number)).save(images / "b" / f"00{2 * number + 1}.jpg")
    common = [str(images), "--workspace", ws, "--num-actors", "1"]
    night = start_command("rescore", *common)
    score = start_command("score", *common, "--metrics", "lapm,wavs", "--shard-size", "2")
    for code, _, error in map(finish, (night, score)):
        assert code == 0, error
    assert_like_undisturbed(ws, images)
    assert list(pd.read_parquet(f"{ws}/history/runs.parquet")["status"]) == ["ok"]
    assert not (Path(ws) / "rescore.lock").exists()
