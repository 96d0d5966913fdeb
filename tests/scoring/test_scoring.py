from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pictures import make_texture, png_header
from PIL import Image
from pyarrow import parquet as pq

import iqa_ray
from iqa_ray import metrics
from iqa_ray.config import make_job
from iqa_ray.errors import UsageError
from iqa_ray.images.listing import list_images
from iqa_ray.images.source import ImageSource
from iqa_ray.scoring import jobs as scoring_jobs
from iqa_ray.scoring.cpu_scorer import ShardReport, score_image, score_shard
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import SCORES_SCHEMA, read_scores, scored_metrics, scores_frame
from iqa_ray.storage.files import locate
from iqa_ray.storage.workspace import Workspace

pytestmark = pytest.mark.usefixtures("ray_session")
SHARP = ("lapv", "lapm", "wavs")


@pytest.fixture
def ws(tmp_path) -> str:
    return str(tmp_path / "ws")


def run(images: Path, ws: str, names=SHARP, **settings):
    settings = {"cpus_per_actor": 0.5, **settings}
    job = make_job(ScoreJob, {"images": str(images), "workspace": ws, "metrics": names, **settings})
    return run_score(job)


def all_parts(ws: str) -> dict[str, float]:
    return {str(p): p.stat().st_mtime_ns for p in Path(ws).glob("scores/**/*.parquet")}


def test_tables_keep_the_contract(image_folder, ws):
    root = image_folder(6)
    summary = run(root, ws)
    assert summary["num_images"] == summary["num_scored"] == 6
    assert summary["num_reused"] == summary["num_failed"] == 0
    assert summary["seconds"] > 0
    assert summary["images_per_s"] > 0
    images = pq.read_table(f"{ws}/images.parquet")
    assert images.column_names == [
        "image_id", "path", "label", "split", "size_bytes", "mtime_ns",
    ]  # fmt: skip
    for name in SHARP:
        (part,) = Path(ws).glob(f"scores/metric={name}/version=*/part-*.parquet")
        assert part.parent.name == f"version={metrics.create(name).version}"
        table = pq.ParquetFile(part).read()
        assert table.schema.remove_metadata() == SCORES_SCHEMA
        assert set(table["status"].to_pylist()) == {"ok"}
        assert sorted(table["path"].to_pylist()) == sorted(images["path"].to_pylist())
    assert list(Path(ws).glob("configs/score-*.yaml"))


def test_inline_and_ray_agree_to_the_last_bit(image_folder, ws):
    root = image_folder(8, height=200, width=210)
    names = ("lapv", "lapm", "wavs", "brisque", "niqe")
    run(root, ws, names, shard_size=3)
    listing = list_images(str(root))
    computed = [metrics.create(name) for name in names]
    inline = score_shard(listing.table, computed, ImageSource(listing.root, 10**6)).tables
    for name in names:
        there = read_scores(Workspace(ws), name).to_pandas().set_index("image_id")
        here = inline[name].to_pandas().set_index("image_id").loc[there.index]
        assert here["score"].notna().all()
        pd.testing.assert_frame_equal(here, there, check_exact=True)


def test_scores_are_those_of_the_metric_object(image_folder, ws):
    root = image_folder(2)
    frame = iqa_ray.score(root, workspace=ws, metrics=["lapm", "wavs"], cpus_per_actor=0.5)
    assert len(frame) == 2
    for row in frame.itertuples():
        image = np.asarray(Image.open(row.path).convert("RGB"))
        assert row.lapm == metrics.create("lapm")(image)
        assert row.wavs == metrics.create("wavs")(image)
        assert row.status == "ok"
        assert row.label == Path(row.path).parent.name


def test_second_run_scores_nothing(image_folder, ws):
    root = image_folder(6)
    run(root, ws)
    before = all_parts(ws)
    summary = run(root, ws)
    assert summary["num_scored"] == 0
    assert summary["num_reused"] == 6
    assert all_parts(ws) == before


def test_second_run_starts_no_ray(image_folder, ws, monkeypatch):
    root = image_folder(2)
    run(root, ws)
    monkeypatch.setattr(scoring_jobs.connection, "connect", lambda _: pytest.fail("connected"))
    run(root, ws)


def test_an_added_metric_scores_only_that_one(image_folder, ws):
    root = image_folder(4)
    run(root, ws, ("lapv",))
    before = all_parts(ws)
    summary = run(root, ws, ("lapv", "wavs"))
    assert summary["num_scored"] == 4
    after = all_parts(ws)
    assert {path for path in after if path not in before} == {
        path for path in after if "metric=wavs" in path
    }
    assert all(after[path] == stamp for path, stamp in before.items())
    assert scored_metrics(Workspace(ws)) == ["lapv", "wavs"]


def test_only_new_and_changed_images_are_scored(image_folder, ws):
    root = image_folder(6)
    run(root, ws)
    old = read_scores(Workspace(ws), "lapm").to_pandas().set_index("path")["score"]
    Image.fromarray(make_texture(99)).save(root / "a" / "new.jpg")
    changed = root / "b" / "001.jpg"
    Image.fromarray(make_texture(77, blur=3)).save(changed)
    summary = run(root, ws)
    assert summary["num_scored"] == 2
    assert summary["num_reused"] == 5
    new = read_scores(Workspace(ws), "lapm").to_pandas().set_index("path")["score"]
    assert len(new) == 7
    assert new.index.is_unique
    same = [path for path in old.index if path != str(changed)]
    assert (new[same] == old[same]).all()
    assert new[str(changed)] != old[str(changed)]


def test_touching_a_file_scores_it_again(image_folder, ws):
    root = image_folder(3)
    run(root, ws, ("lapm",))
    os.utime(root / "a" / "000.jpg", ns=(1, 1))
    assert run(root, ws, ("lapm",))["num_scored"] == 1


def test_shards_of_any_size_give_the_same_rows(image_folder, tmp_path):
    root = image_folder(7)
    frames = []
    for size in (1, 3, 100):
        ws = str(tmp_path / f"ws{size}")
        run(root, ws, shard_size=size)
        frames.append(scores_frame(Workspace(ws), SHARP))
    pd.testing.assert_frame_equal(frames[0], frames[1], check_exact=True)
    pd.testing.assert_frame_equal(frames[0], frames[2], check_exact=True)


def test_bad_images_have_a_row_each(image_folder, ws):
    root = image_folder(2)
    good = (root / "a" / "000.jpg").read_bytes()
    bad = {
        "zero.jpg": b"",
        "truncated.jpg": good[: len(good) // 2],
        "text.jpg": b"just text",
        "bomb.png": png_header(20_000, 20_000),
        "space and 'quote\".jpg": b"x",
        "new\nline.jpg": b"x",
        "日本.jpg": b"x",
    }
    for name, data in bad.items():
        (root / name).write_bytes(data)
    (root / "broken.jpg").symlink_to(root / "missing")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    Image.new("RGB", (1, 1)).save(root / "one.png")
    Image.new("RGB", (40, 40), (90, 90, 90)).save(root / "flat.png")
    frame = iqa_ray.score(root, workspace=ws, metrics=["lapm", "brisque"], cpus_per_actor=0.5)
    status = dict(zip(frame["path"].map(os.path.basename), frame["status"], strict=True))
    assert status.pop("bomb.png") == "too_large"
    assert status.pop("one.png") == "too_small"
    assert status.pop("flat.png") == "undefined"
    assert status.pop("000.jpg") == status.pop("001.jpg") == "ok"
    assert set(status.values()) == {"unreadable"}
    assert len(status) == len(bad) - 1 + 2
    failed = frame[frame["status"] != "ok"]
    assert failed["error"].str.len().gt(0).all()
    assert not frame["error"].str.contains("\n").any()
    flat = frame[frame["path"].str.endswith("flat.png")].iloc[0]
    assert flat["lapm"] == 0.0
    assert np.isnan(flat["brisque"])
    again = run(root, ws, ("lapm", "brisque"))
    assert again["num_scored"] == 0
    assert again["num_failed"] == len(status) + 3
    assert again["failures"]["lapm"]["too_small"]["num_images"] == 1


def test_every_score_is_finite_or_null(image_folder, ws):
    root = image_folder(2)
    Image.new("RGB", (64, 64), (1, 2, 3)).save(root / "flat.png")
    run(root, ws, ("lapv", "lapm", "wavs", "brisque", "niqe"))
    for name in ("lapv", "lapm", "wavs", "brisque", "niqe"):
        frame = read_scores(Workspace(ws), name).to_pandas()
        assert (frame["score"].notna() == (frame["status"] == "ok")).all()
        assert (frame["error"].eq("") == (frame["status"] == "ok")).all()


def test_unreadable_permissions(image_folder, ws):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    root = image_folder(2)
    (root / "a" / "000.jpg").chmod(0)
    frame = iqa_ray.score(root, workspace=ws, metrics=["lapm"], cpus_per_actor=0.5)
    assert frame.set_index("path").loc[str(root / "a/000.jpg"), "status"] == "unreadable"


def test_a_refused_file_is_a_row(image_folder, monkeypatch):
    """The same for root, who is never refused: the refusal is made here."""
    from iqa_ray.images import source

    def refuse(location):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(source, "read_bytes", refuse)
    source = ImageSource(locate(image_folder(2)))
    table = source.list().table
    scored = score_shard(table, [metrics.create("lapm")], source).tables["lapm"]
    assert scored["status"].to_pylist() == ["unreadable"] * 2
    assert scored["error"].to_pylist() == ["Permission denied"] * 2
    assert scored["content_hash"].null_count == 2


def test_max_pixels(image_folder, ws):
    summary = run(image_folder(3), ws, max_pixels=1000)
    assert summary["failures"]["lapm"]["too_large"]["num_images"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_pixels": 10_000}, "was made with max_pixels 50000000, now 10000 is asked"),
        ({"labels": "none"}, "was made with labels parent"),
    ],
)
def test_contradicting_settings_are_refused(image_folder, ws, change, message):
    root = image_folder(2)
    run(root, ws, ("lapm",))
    with pytest.raises(UsageError, match=message):
        run(root, ws, ("lapm",), **change)
    with pytest.raises(UsageError, match="was made with images"):
        run(image_folder(2, name="other"), ws, ("lapm",))
    (root / "list.csv").write_text("path\na/000.jpg\n")
    with pytest.raises(UsageError, match="was made with images"):
        run(root / "list.csv", ws, ("lapm",))
    assert run(root, ws, ("lapm",))["num_reused"] == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("nosuch",), "nosuch"),
        (("lapn",), "lapm"),
        (("ssim",), "needs a reference image"),
        ((), "at least one"),
    ],
)
def test_unknown_metrics(image_folder, ws, names, message):
    with pytest.raises(UsageError, match=message):
        run(image_folder(1), ws, names)
    assert not Path(ws).exists()


def test_interrupted_part_writes_are_done_again(image_folder, ws):
    """A shard writes one part a metric; a death in between must cost no row."""
    root = image_folder(4)
    run(root, ws)
    (part,) = Path(ws).glob("scores/metric=wavs/version=*/part-*.parquet")
    part.unlink()
    summary = run(root, ws)
    assert summary["num_scored"] == 4
    frame = scores_frame(Workspace(ws), SHARP)
    assert (frame["status"] == "ok").all()


def test_manifest_and_strange_paths(image_folder, ws):
    root = image_folder(3)
    (root / "we ird,'\"\n.jpg").write_bytes((root / "a/000.jpg").read_bytes())
    frame = pd.DataFrame(
        {"path": ["a/000.jpg", "we ird,'\"\n.jpg", "gone.jpg"], "label": ["x", "y", "z"]}
    )
    frame.to_csv(root / "list.csv", index=False)
    scored = iqa_ray.score(root / "list.csv", workspace=ws, metrics=["lapm"], cpus_per_actor=0.5)
    status = dict(zip(scored["label"], scored["status"], strict=True))
    assert status == {"x": "ok", "y": "ok", "z": "unreadable"}
    hashes = dict(zip(scored["label"], scored["content_hash"], strict=True))
    assert hashes["x"] == hashes["y"]


def test_score_image_needs_no_files():
    data = png_header(10, 10)
    assert (
        score_image(data, [metrics.create("lapm")], ImageSource(locate(".")))[0][1] == "unreadable"
    )


def test_a_metric_that_breaks_costs_one_row(monkeypatch, image_folder):
    listing = list_images(str(image_folder(3)))
    computed = [metrics.create("lapm"), metrics.create("wavs")]
    measure, calls = computed[0].measure, []

    def break_once(planes):
        calls.append(planes)
        if len(calls) == 2:
            raise RuntimeError("no\nidea")
        return measure(planes)

    monkeypatch.setattr(computed[0], "measure", break_once)
    tables = score_shard(listing.table, computed, ImageSource(listing.root, 10**6)).tables
    assert tables["lapm"]["status"].to_pylist() == ["ok", "undefined", "ok"]
    assert tables["lapm"]["error"][1].as_py() == "RuntimeError: no idea"
    assert tables["wavs"]["status"].to_pylist() == ["ok"] * 3


def test_a_workspace_in_an_object_store_like_file_system(image_folder):
    """A local folder behind file://, with a space: URIs and paths name the same workspace."""
    root = image_folder(2)
    ws = root.parent / "my ws"
    run(root, f"file://{str(ws).replace(' ', '%20')}", ("lapm",))
    assert (ws / "images.parquet").exists()
    assert run(root, str(ws), ("lapm",))["num_reused"] == 2


def test_python_interface_errors_are_value_errors(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        iqa_ray.score(tmp_path / "nowhere", workspace=tmp_path / "ws")
    with pytest.raises(ValueError, match="unknown setting|nonsense"):
        iqa_ray.score(tmp_path, workspace=tmp_path / "ws", nonsense=3)


@pytest.mark.slow
def test_progress_lines_come_while_it_runs(image_folder, ws, capfd):
    def slow(*_):
        def work(shard):
            time.sleep(3)
            return ShardReport(shard.images.num_rows, 0)

        return work

    root = image_folder(8)
    settings = {"metrics": ("lapm",), "cpus_per_actor": 0.5, "shard_size": 1, "num_actors": 2}
    run_score(make_job(ScoreJob, {"images": str(root), "workspace": ws, **settings}), slow)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("score:")]
    assert len(lines) >= 2
    assert "images, " in lines[0]
    assert lines[0].endswith("left")
