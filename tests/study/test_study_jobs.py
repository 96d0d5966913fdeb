"""The job `study`, end to end through Ray, and what `select` makes of it."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pictures import make_texture
from PIL import Image
from pyarrow import parquet as pq

from iqa_ray.cli import main
from iqa_ray.config import make_job
from iqa_ray.errors import UsageError
from iqa_ray.selection.jobs import run_select
from iqa_ray.selection.settings import SelectJob
from iqa_ray.storage.workspace import Workspace
from iqa_ray.study import jobs as study_jobs
from iqa_ray.study.jobs import describe_study, run_study
from iqa_ray.study.settings import StudyJob
from iqa_ray.study.tables import (
    MANIFEST_SCHEMA,
    SERIES_SCHEMA,
    TABLE_SCHEMA,
    agreement_schema,
    scores_schema,
)
from iqa_ray.synthetic.dotcodes import make_dataset

pytestmark = pytest.mark.usefixtures("ray_session")
BSDS = Path(__file__).parents[3] / "shared" / "data" / "bsds-train.tar"
COLUMNS = {
    "metric", "configuration", "pcc", "pcc_std", "srcc", "srcc_std", "monotone_share",
    "num_samples", "verdict", "reason",
}  # fmt: skip


@pytest.fixture
def ws(tmp_path) -> str:
    return str(tmp_path / "ws")


def run(ws, images=None, **settings):
    given = {"workspace": ws, "images": str(images) if images else None, "cpus_per_actor": 0.5}
    return run_study(make_job(StudyJob, {**given, **settings}))


@pytest.fixture(scope="module")
def codes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    make_dataset(folder, num_images=12, image_size=256, seed=1)
    return folder


@pytest.fixture
def defocus(tmp_path) -> Path:
    """A user's own series: three samples, each at ten steps of blur, and one rotated."""
    rows = []
    for sample in range(3):
        for index in range(10):
            name = f"{sample}-{index}.png"
            Image.fromarray(make_texture(sample, blur=index / 3)).save(tmp_path / name)
            rows.append((name, f"sample {sample}", index, "blurring"))
    # the sharp one begins another series as well
    for sample in range(3):
        for index in range(4):
            turned = np.rot90(make_texture(sample), index)
            Image.fromarray(turned).save(tmp_path / f"turned-{sample}-{index}.png")
            name = f"{sample}-0.png" if index == 0 else f"turned-{sample}-{index}.png"
            rows.append((name, f"sample {sample}", index * 90, "rotating"))
    frame = pd.DataFrame(rows, columns=["path", "sample", "index", "configuration"])
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "series.csv", index=False)
    return tmp_path / "series.csv"


def check_tables(ws, summary, metrics, configurations):
    table = pd.read_parquet(f"{ws}/study/table.parquet")
    assert set(table.columns) >= COLUMNS
    for name, schema in (
        ("table", TABLE_SCHEMA),
        ("series_scores", scores_schema(pa.int64())),
        ("agreement", agreement_schema(metrics)),
        ("manifest", MANIFEST_SCHEMA),
    ):
        assert pq.read_schema(f"{ws}/study/{name}.parquet").remove_metadata().equals(schema)
    assert len(table) == len(metrics) * len(configurations)
    assert table["srcc"].dropna().between(0, 1).all()
    inside = table.dropna(subset=["srcc"])
    assert (inside["srcc_low"] <= inside["srcc"]).all()
    assert (inside["srcc"] <= inside["srcc_high"]).all()
    assert table.groupby("metric")["verdict"].nunique().eq(1).all()
    assert table["reason"].str.len().gt(0).all()
    figure = Image.open(f"{ws}/study/series.png")
    assert min(figure.size) > 100
    text = describe_study(summary)
    for word in (*metrics, *configurations, "PCC", "SRCC", "voters"):
        assert word in text
    assert "nan" not in text.lower()
    return table.set_index(["metric", "configuration"])


def test_the_study_of_synthetic_codes(codes, ws):
    metrics = ("lapm", "brisque")
    summary = run(ws, codes, metrics=metrics, num_samples=4)
    assert summary["num_samples"] == 4
    # 9 crops, 6 rotations, 9 blurs, 4 configurations of 5 levels, and the sample itself
    assert summary["num_images"] == 4 * (9 + 6 + 9 + 20 + 1)
    configurations = [
        "cropping", "rotating", "blurring", "noise", "jpeg", "underexposure", "overexposure",
    ]  # fmt: skip
    table = check_tables(ws, summary, metrics, configurations)
    assert table.loc[("lapm", "blurring"), "srcc"] > 0.95
    assert table.loc[("lapm", "blurring"), "srcc_quality"] < -0.95
    assert table.loc[("lapm", "noise"), "srcc_quality"] > 0.95
    assert "it rises with them: noise (SRCC +1.00)" in table.loc[("lapm", "noise"), "reason"]
    json.dumps(summary, allow_nan=False)
    series = pd.read_parquet(f"{ws}/study/series_scores.parquet")
    assert len(series) == 4 * 2 * (10 + 6 + 10 + 4 * 6)
    assert set(series[series["metric"] == "lapm"]["status"]) == {"ok"}
    sizes = {Image.open(path).size for path in series[series.configuration == "rotating"].path}
    assert len(sizes) == 1

    assert pq.read_schema(f"{ws}/study/series.parquet").remove_metadata().equals(SERIES_SCHEMA)
    before = {p: p.stat().st_mtime_ns for p in Path(ws).glob("study/series/**/*.png")}
    again = run(ws, codes, metrics=metrics, num_samples=4)
    assert {p: p.stat().st_mtime_ns for p in Path(ws).glob("study/series/**/*.png")} == before
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Real ones: of BSDS where they are at hand, else those that scikit-image brings."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    if BSDS.is_file():
        with tarfile.open(BSDS) as archive:
            members = [m for m in archive.getmembers() if m.name.endswith(".jpg")]
            for member in sorted(members, key=lambda m: m.name)[:4]:
                content = archive.extractfile(member)
                assert content is not None
                (folder / Path(member.name).name).write_bytes(content.read())
    else:
        data = pytest.importorskip("skimage.data")
        for name in ("astronaut", "chelsea", "coffee", "rocket"):
            Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
    return folder


def test_the_study_of_photographs(photographs, ws):
    metrics = ("lapm", "niqe")
    summary = run(ws, photographs, metrics=metrics, num_samples=4, image_size=400)
    series = pd.read_parquet(f"{ws}/study/series_scores.parquet")
    sizes = {max(Image.open(path).size) for path in series[series["index"] == 0]["path"]}
    assert max(sizes) == 400
    table = check_tables(ws, summary, metrics, list(series["configuration"].unique()))
    assert table.loc[("lapm", "blurring"), "srcc_quality"] < -0.95
    # what qualifies; how far beyond depends on the photographs
    assert table.loc[("niqe", "blurring"), "srcc_quality"] <= -0.8
    # crops become too small for NIQE
    assert "cropping: " in table.loc[("niqe", "cropping"), "reason"]
    assert set(series["status"]) == {"ok", "too_small"}


def test_a_users_own_series(defocus, ws):
    summary = run(ws, series=str(defocus), metrics=("lapv", "lapm", "wavs"), keep=2)
    table = check_tables(ws, summary, ("lapv", "lapm", "wavs"), ("blurring", "rotating"))
    assert (table["num_samples"] == 3)[("lapm", "blurring")]
    assert table.loc[("lapv", "blurring"), "srcc"] == 1
    assert table.loc[("lapv", "blurring"), "monotone_share"] == 1
    # turned by right angles, lapm and lapv are the same to the last digits
    assert summary["metrics"]["lapv"]["verdict"] == "qualified"
    assert "rotating: constant scores of 3 samples" in summary["metrics"]["lapv"]["reason"]
    assert table.loc[("lapv", "rotating"), "effect"] == 0


def test_an_index_may_have_fractions(defocus, ws):
    frame = pd.read_csv(defocus)
    frame.assign(index=frame["index"] / 4).to_csv(defocus, index=False)
    run(ws, series=str(defocus), metrics=("lapm",))
    scores = pd.read_parquet(f"{ws}/study/series_scores.parquet")
    assert sorted(scores["index"]) == sorted(frame["index"] / 4)


def test_a_metric_that_fails_on_part_of_a_series(defocus, ws):
    frame = pd.read_csv(defocus)
    frame = frame[frame["configuration"] == "blurring"]
    for name in frame[frame["index"] == 9]["path"]:
        (defocus.parent / name).write_bytes(b"not an image")
    frame.to_csv(defocus, index=False)
    summary = run(ws, series=str(defocus), metrics=("lapm",))
    assert summary["metrics"]["lapm"]["verdict"] == "qualified"
    assert "blurring: 3 of 30 images have no score" in summary["metrics"]["lapm"]["reason"]
    assert summary["num_failed"] == 3
    assert "niqe" not in summary["voters"]
    summary = run(ws, series=str(defocus), metrics=("niqe",))
    assert summary["metrics"]["niqe"]["verdict"] == "undefined"
    assert summary["voters"] == []
    assert "none: no metric qualified" in describe_study(summary)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[f["sample"] == "sample 1"], "at least 2 samples, here are 1"),
        (lambda f: f.drop(columns="index"), "has no column index"),
        (lambda f: f.assign(index="first"), "the index is no number"),
        (lambda f: f.assign(index=1), "has an index twice"),
        (lambda f: f[f["index"] < 2], "has 2 images, at least 3"),
        (lambda f: f.assign(sample=None), "row 1 has an empty cell"),
    ],
)
def test_unusable_series(defocus, ws, change, message):
    change(pd.read_csv(defocus).query("configuration == 'blurring'")).to_csv(defocus, index=False)
    with pytest.raises(UsageError, match=message):
        run(ws, series=str(defocus), metrics=("lapm",))


def read_scores_of_series(ws):
    frame = pd.read_parquet(f"{ws}/study/series_scores.parquet")
    assert frame["path"].str.startswith(f"{ws}/study/series/").all()
    assert set(frame["status"]) == {"ok"}
    return frame.assign(path=frame["path"].str.removeprefix(ws))


def test_series_that_are_gone_are_made_again(codes, ws, capsys):
    settings = {"metrics": ("lapm",), "num_samples": 2, "image_size": 64}
    summary = run(ws, codes, **settings)
    before = read_scores_of_series(ws)
    assert "gone" not in capsys.readouterr().err
    lost = next(iter(Path(ws).glob("study/series/*/*/blurring-7.png")))
    for lose, num_lost in ((lambda: shutil.rmtree(f"{ws}/study/series"), 90), (lost.unlink, 1)):
        lose()
        again = run(ws, codes, **settings)
        assert f"{num_lost} images of the series are gone from {ws}" in capsys.readouterr().err
        assert {**again, "seconds": 0} == {**summary, "seconds": 0}
        pd.testing.assert_frame_equal(read_scores_of_series(ws), before)


def test_a_workspace_that_was_moved_is_studied_without_making_or_scoring_anything(
    codes, ws, tmp_path, monkeypatch, capsys
):
    settings = {"metrics": ("lapm",), "num_samples": 2, "image_size": 64}
    summary = run(ws, codes, **settings)
    before = read_scores_of_series(ws)
    new = str(tmp_path / "elsewhere")
    shutil.move(ws, new)
    capsys.readouterr()
    monkeypatch.setattr(study_jobs, "_make_series", lambda *_: pytest.fail("made again"))
    again = run(new, codes, **settings)
    assert "scoring" not in capsys.readouterr().err
    assert {**again, "seconds": 0, "workspace": ws} == {**summary, "seconds": 0}
    pd.testing.assert_frame_equal(read_scores_of_series(new), before)


def test_missing_files_of_a_users_series_are_named(defocus, ws, capsys):
    frame = pd.read_csv(defocus).query("configuration == 'blurring'")
    frame.to_csv(defocus, index=False)
    for name in frame[frame["index"] > 1]["path"]:
        (defocus.parent / name).unlink()
    summary = run(ws, series=str(defocus), metrics=("lapm",))
    reason = summary["metrics"]["lapm"]["reason"]
    assert "blurring is undefined for 3 samples (3 of them for fewer than 3 images" in reason
    assert "24 of 30 images have no score" in reason
    assert "constant" not in reason
    said = capsys.readouterr().err
    assert "lapm unreadable: 24, such as " in said
    assert "0-2.png" in said


def test_unusable_images(tmp_path, ws, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(make_texture(0)).save(folder / "one.png")
    Image.fromarray(make_texture(1, 16, 64)).save(folder / "low.png")
    (folder / "broken.png").write_bytes(b"no")
    assert main(["study", str(folder), "--workspace", ws, "--metrics", "lapm"]) == 2
    said = capsys.readouterr().err
    assert "2 images are no samples" in said
    assert "at least 2 usable images, and there are 1" in said
    assert main(["study", "--workspace", ws]) == 2
    assert "give either IMAGES or --series" in capsys.readouterr().err


# --- what select makes of it ------------------------------------------------------------------


@pytest.fixture
def scored(image_folder, ws):
    import iqa_ray

    names = ["lapm", "lapv", "wavs"]
    iqa_ray.score(image_folder(6), workspace=ws, metrics=names, cpus_per_actor=0.5)
    arguments = ["cutoffs", "--workspace", ws]
    for name in names:
        arguments += ["--cutoff", f"{name}=1"]
    assert main(arguments) == 0
    return Workspace(ws)


def write_voters(workspace, *names):
    workspace.write_json("study/verdicts.json", {"voters": names, "metrics": {}})


def test_select_takes_the_studys_voters(scored, ws, capsys):
    assert set(run_select(SelectJob(workspace=ws))["metrics"]) == {"lapm", "lapv", "wavs"}
    write_voters(scored, "wavs", "lapm")
    assert run_select(SelectJob(workspace=ws))["metrics"] == ["wavs", "lapm"]
    assert run_select(SelectJob(workspace=ws, metrics=("lapv",)))["metrics"] == ["lapv"]


def test_select_says_which_voter_has_no_cutoff(scored, ws, capsys):
    write_voters(scored, "wavs", "niqe")
    assert run_select(SelectJob(workspace=ws))["metrics"] == ["wavs"]
    assert "not a voter: cutoffs.json has no niqe" in capsys.readouterr().err


def test_select_needs_a_voter(scored, ws):
    write_voters(scored)
    with pytest.raises(UsageError, match="no metric qualified .* name voters with --metrics"):
        run_select(SelectJob(workspace=ws))
    write_voters(scored, "niqe")
    with pytest.raises(UsageError, match="has a cut-off"):
        run_select(SelectJob(workspace=ws))
    shutil.rmtree(f"{ws}/study")
    assert len(run_select(SelectJob(workspace=ws))["metrics"]) == 3
