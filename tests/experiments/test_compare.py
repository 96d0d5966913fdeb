"""The jobs `compare` and `vary`, end to end, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet as pq
from trainings import ok, pretend, replace_training, without_times

import iqa_ray
from iqa_ray.cli import main
from iqa_ray.config import make_job
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.experiments.arms import RUNS_SCHEMA
from iqa_ray.experiments.compare import describe_compare, run_compare
from iqa_ray.experiments.settings import CompareJob, VaryJob
from iqa_ray.experiments.splits import find_leaks
from iqa_ray.experiments.vary import describe_vary, run_vary
from iqa_ray.images.decoding import hash_content
from iqa_ray.scoring.tables import read_scores
from iqa_ray.storage.workspace import Workspace
from iqa_ray.synthetic.dotcodes import make_dataset
from iqa_ray.training.parallel import RunFailure
from iqa_ray.training.runs import RunFiles

pytestmark = pytest.mark.usefixtures("ray_session")
SMALL = {
    "weights": "none", "epochs": 2, "image_size": 32, "batch_size": 16, "lr": 1e-3,
    "cpus_per_run": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def scored(tmp_path_factory, ray_session) -> Path:
    """A workspace of 120 codes, of which the sharper two thirds are kept, and a torn file."""
    root = tmp_path_factory.mktemp("compare")
    make_dataset(root / "codes", num_images=120, image_size=64, seed=5)
    tear(root / "codes" / "north")
    ws = str(root / "ws")
    scores = iqa_ray.score(
        root / "codes", workspace=ws, metrics=["lapm", "wavs"], cpus_per_actor=0.5
    )
    limits = [f"--cutoff={name}={scores[name].quantile(1 / 3)}" for name in ("lapm", "wavs")]
    assert main(["cutoffs", "--workspace", ws, *limits]) == 0
    assert main(["select", "--workspace", ws, "--rule", "any"]) == 0
    return root


def tear(folder: Path) -> Path:
    """Add a file with the first half of an image, which cannot be decoded."""
    whole = min(folder.glob("*.jpg")).read_bytes()
    torn = folder / "torn.jpg"
    torn.write_bytes(whole[: len(whole) // 2])
    return torn


@pytest.fixture
def ws(scored, tmp_path) -> str:
    """A copy of that workspace."""
    shutil.copytree(scored / "ws", tmp_path / "ws")
    return str(tmp_path / "ws")


def compare(ws, **settings):
    return run_compare(
        make_job(CompareJob, {"workspace": ws, "backbones": ("resnet18",), **SMALL, **settings})
    )


def read_runs(ws, experiment="quality"):
    runs = pd.read_parquet(f"{ws}/comparisons/{experiment}/runs.parquet")
    return [
        without_times({**row, "history": list(row["history"])}) for row in runs.to_dict("records")
    ]


@pytest.mark.slow
def test_compare(ws, monkeypatch, tmp_path):
    summary = compare(ws, log_dir=str(tmp_path / "log"))
    runs = pd.read_parquet(f"{ws}/comparisons/quality/runs.parquet")
    assert (
        pq.read_schema(f"{ws}/comparisons/quality/runs.parquet")
        .remove_metadata()
        .equals(RUNS_SCHEMA)
    )
    assert list(zip(runs["arm"], runs["seed"], strict=True)) == [
        (arm, seed) for arm in ("high", "all") for seed in range(5)
    ]
    assert set(runs["status"]) == {"ok"}
    assert runs["num_train"].nunique() == 1
    assert runs["accuracy"].between(0, 1).all()
    assert runs["history"].map(len).eq(2).all()
    assert summary["num_runs"] == 10
    assert summary["num_train"] == runs["num_train"][0]
    json.dumps(summary, allow_nan=False)
    text = describe_compare(summary)
    for word in ("High-quality", "All-quality", "resnet18", "within noise", "Wilcoxon", ws):
        assert word in text
    table = pd.read_parquet(f"{ws}/comparisons/quality/summary.parquet")
    for arm, rows in runs.groupby("arm"):
        (row,) = table[table["arm"] == arm].to_dict("records")
        assert row["accuracy_mean"] == pytest.approx(rows["accuracy"].mean())
        assert row["accuracy_std"] == pytest.approx(rows["accuracy"].std())
    paired = runs.pivot(index="seed", columns="arm", values="accuracy")
    assert table["accuracy_difference"][0] == pytest.approx((paired["high"] - paired["all"]).mean())
    assert len(list((tmp_path / "log").iterdir())) == 10
    assert not list(Path(ws, "comparisons/quality/groups").glob("*"))

    check_splits(ws)

    replace_training(monkeypatch, lambda *_: pytest.fail("trained again"))
    before = read_runs(ws)
    assert compare(ws)["num_runs"] == 10
    assert read_runs(ws) == before


def read_splits(ws, experiment="quality"):
    return pd.read_parquet(f"{ws}/comparisons/{experiment}/splits.parquet")


def check_splits(ws):
    splits = read_splits(ws)
    hashes = read_scores(Workspace(ws), "lapm").to_pandas().set_index("image_id")["content_hash"]
    assert find_leaks(splits, hashes) == []
    selection = pd.read_parquet(f"{ws}/selection.parquet").set_index("image_id")["keep"]
    high = splits[splits["arm"] == "high"]
    assert selection[high["image_id"]].all()
    trained = splits[(splits["arm"] == "all") & (splits["part"] == "train")]
    assert not selection[trained["image_id"]].all()
    tests = {
        arm: set(rows["image_id"]) for arm, rows in splits[splits["part"] == "test"].groupby("arm")
    }
    assert tests["high"] == tests["all"]


@pytest.mark.slow
def test_compare_on_a_split_per_seed(ws):
    compare(ws, split_per_seed=True, seeds=(0, 1), epochs=1)
    runs = pd.read_parquet(f"{ws}/comparisons/quality/runs.parquet")
    assert set(runs["status"]) == {"ok"}
    splits = read_splits(ws)
    hashes = read_scores(Workspace(ws), "lapm").to_pandas().set_index("image_id")["content_hash"]
    assert find_leaks(splits, hashes) == []
    sizes = splits[splits["part"] == "train"].groupby(["arm", "seed"]).size()
    for run in runs.itertuples():
        assert run.num_train == sizes[run.arm, run.seed]
    tests = splits[splits["part"] == "test"].groupby("seed")["image_id"].apply(frozenset)
    assert tests[0] != tests[1]


@pytest.mark.slow
def test_vary(ws):
    job = {"workspace": ws, "backbone": "resnet18", **SMALL, "epochs": 1, "removed": (0, 25, 50)}
    summary = run_vary(make_job(VaryJob, job))
    runs = pd.read_parquet(f"{ws}/comparisons/varying/runs.parquet")
    assert list(runs["arm"].unique()) == ["removed-0", "removed-25", "removed-50", "high"]
    assert len(runs) == 20
    assert set(runs["status"]) == {"ok"}
    assert runs["num_train"].nunique() == 1
    splits = pd.read_parquet(f"{ws}/comparisons/varying/splits.parquet")
    scores = read_scores(Workspace(ws), "lapm").to_pandas().set_index("image_id")["score"]
    training = splits[splits["part"] == "train"]
    sharpness = training.groupby("arm")["image_id"].apply(lambda ids: scores[ids].mean())
    assert sharpness["removed-0"] < sharpness["removed-25"] < sharpness["removed-50"]
    assert min(Image.open(f"{ws}/comparisons/varying/curve.png").size) > 200
    text = describe_vary(summary)
    for word in ("Percent removed", "50", "accuracy"):
        assert word in text
    table = pd.read_parquet(f"{ws}/comparisons/varying/summary.parquet")
    assert list(table["removed_percent"].dropna()) == [0, 25, 50]


@pytest.mark.slow
def test_a_killed_driver_s_experiment_goes_on(ws, tmp_path):
    """Killed in the midst of a run; what comes out is what an undisturbed one gives."""
    settings = ["--backbones", "resnet18", "--seeds", "0,1", "--epochs", "3"]
    for name in ("weights", "image_size", "batch_size", "lr", "cpus_per_run"):
        settings += [f"--{name.replace('_', '-')}", str(SMALL[name])]
    command = [sys.executable, "-m", "iqa_ray.cli", "compare", "--workspace", ws, *settings]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    checkpoints = Path(ws, "comparisons/quality/checkpoints")
    deadline_s = time.monotonic() + 120
    while not list(checkpoints.glob("*.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not Path(ws, "comparisons/quality/runs.parquet").exists()
    assert main(["compare", "--workspace", ws, *settings]) == 0
    gone_on = read_runs(ws)
    assert main(["compare", "--workspace", ws, *settings, "--restart"]) == 0
    assert read_runs(ws) == gone_on
    assert all(run["status"] == "ok" for run in gone_on)


# --- what gives no result ---------------------------------------------------------------------


def test_runs_without_result_are_named_and_the_others_kept(ws, monkeypatch, capsys):
    bad = {**ok(None), "status": "diverged", "error": "the loss is nan in epoch 2"}
    pretend(monkeypatch, [ok(0.9), ok(0.8), bad, ok(0.7), "OutOfMemoryError: no", ok(0.6)])
    with pytest.raises(IncompleteError, match="2 of 6 runs gave no result .*nan in epoch 2.*no"):
        compare(ws, seeds=(0, 1, 2))
    assert "2 of 3 seeds finished" in capsys.readouterr().err
    runs = pd.read_parquet(f"{ws}/comparisons/quality/runs.parquet")
    assert list(runs["status"]) == ["ok", "ok", "diverged", "ok", "failed", "ok"]
    # what diverged would again, and what failed is tried again
    pretend(monkeypatch, [ok(0.5)])
    with pytest.raises(IncompleteError, match="1 of 6 runs gave no result"):
        compare(ws, seeds=(0, 1, 2))


def test_other_settings_are_other_runs(ws, monkeypatch):
    pretend(monkeypatch, [ok(0.9), ok(0.8)])
    compare(ws, seeds=(0,))
    pretend(monkeypatch, [ok(0.7), ok(0.6)])
    compare(ws, seeds=(0,), lr=2e-3)
    pretend(monkeypatch, [ok(0.7), ok(0.6)])
    compare(ws, seeds=(1,))
    pretend(monkeypatch, [])
    compare(ws, seeds=(0, 1))


def test_simplenet_sees_images_of_its_own_size(ws, monkeypatch):
    sizes = []

    def train(todo, material, place, plan, on_event):
        sizes.append({material.image_size, *(run.recipe.image_size for run in todo)})
        return [RunFailure(run, "not trained") for run in todo]

    replace_training(monkeypatch, train)
    for settings in ({"image_size": None}, {"image_size": 64}):
        with pytest.raises(IncompleteError, match="not trained"):
            compare(ws, backbones=("simplenet",), seeds=(0,), **settings)
    assert sizes == [{256}, {64}]
    with pytest.raises(UsageError, match="published for images of different sizes"):
        compare(ws, backbones=("simplenet", "resnet18"), image_size=None)


def test_no_room_is_said_before_anything_starts(ws, capsys):
    arguments = ["compare", "--workspace", ws, "--weights", "none", "--gpus-per-run", "0.5"]
    assert main(arguments) == 1
    assert "needs 1 CPUs and 0.5 GPUs, and no node has them" in capsys.readouterr().err


def test_weights_that_cannot_be_had(ws, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IQA_RAY_WEIGHTS", str(tmp_path))
    start_s = time.monotonic()
    assert main(["compare", "--workspace", ws, "--backbones", "vgg19"]) == 2
    assert time.monotonic() - start_s < 20
    assert (
        f"run `iqa-ray weights pull --backbones vgg19 --to {tmp_path}`" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (["--log-dir", "{junk}"], "--log-dir {junk}: cannot write there: "),
        (["--weights", "{junk}"], "--weights {junk}: not a file of weights"),
        (["--weights", "{empty}"], "--weights {empty}: not a file of weights"),
        (["--image-size", "48"], "--image-size 48: too small for alexnet"),
    ],
    ids=["log dir", "junk", "empty", "small images"],
)
def test_what_no_run_could_use_is_exit_2_before_any_begins(
    ws, tmp_path, monkeypatch, capsys, setting, message
):
    files = {name: str(tmp_path / name) for name in ("junk", "empty")}
    Path(files["junk"]).write_bytes(b"junk")
    Path(files["empty"]).touch()
    replace_training(monkeypatch, lambda *_: pytest.fail("began"))
    monkeypatch.setattr(RunFiles, "forget", lambda *_: pytest.fail("forgot"))
    given = ["--weights", "none", "--backbones", "resnet18,alexnet", "--restart", *setting]
    command = ["compare", "--workspace", ws, *(word.format(**files) for word in given)]
    assert main(command) == 2
    assert message.format(**files) in capsys.readouterr().err.splitlines()[-1]


def edit_table(ws, name, change):
    workspace = Workspace(ws)
    frame = workspace.read_table(name, "").to_pandas()
    table = pa.Table.from_pandas(change(frame), preserve_index=False)
    workspace.write_table(name, table, workspace.read_record(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.iloc[1:], "made from other images than images.parquet lists"),
        (lambda f: f.assign(keep=f["label"] == "north"), "1 classes have 10"),
    ],
)
def test_selections_that_cannot_be_compared(ws, change, message):
    edit_table(ws, "selection.parquet", change)
    with pytest.raises(UsageError, match=message):
        compare(ws)


def refuse_both(ws):
    """What `compare` and `vary` say when they refuse the workspace."""
    with pytest.raises(UsageError) as of_compare:
        compare(ws)
    with pytest.raises(UsageError) as of_vary:
        run_vary(make_job(VaryJob, {"workspace": ws, **SMALL}))
    assert str(of_compare.value) == str(of_vary.value)
    return str(of_compare.value)


@pytest.mark.parametrize(("before", "now"), [("north", "south"), ("south", None), (None, "north")])
def test_a_selection_from_before_a_label_was_corrected_is_refused(ws, before, now):
    edit_table(ws, "images.parquet", lambda f: f.assign(label=f["label"].where(f.index != 7, now)))
    edit_table(
        ws,
        "selection.parquet",
        lambda f: f.assign(label=f["label"].where(f.index != 7, before)).iloc[::-1],
    )
    path = Workspace(ws).read_table("images.parquet", "")["path"][7].as_py()
    assert refuse_both(ws) == (
        f"{ws}/selection.parquet was made from other labels of 1 images, such as {path!r}: "
        f"run `iqa-ray select --workspace {ws}` again"
    )


@pytest.mark.parametrize("is_torn", [False, True])
def test_a_selection_from_before_a_newer_score_is_refused(ws, is_torn):
    """Where there is no score now, `score` comes first."""
    selection = pd.read_parquet(f"{ws}/selection.parquet")
    row = int(np.flatnonzero(selection["wavs"].isna() == is_torn)[0])
    selection.loc[row, "wavs"] = 0.125
    edit_table(ws, "selection.parquet", lambda _: selection)
    score = f"`iqa-ray score IMAGES --workspace {ws} --metrics lapm,wavs`, then "
    assert refuse_both(ws) == (
        f"{ws}/selection.parquet was made from other wavs scores of 1 images, such as "
        f"{selection['path'][row]!r}: run {score if is_torn else ''}"
        f"`iqa-ray select --workspace {ws}` again"
    )


def test_images_that_cannot_be_decoded_are_left_out(ws, scored, monkeypatch, capsys):
    said = "1 images left out: without a score of every voter (1 unreadable)"
    pretend(monkeypatch, [ok(0.9), ok(0.8)])
    summary = compare(ws, seeds=(0,))
    assert summary["num_unusable"] == 1
    assert said in summary["notes"]
    assert said in capsys.readouterr().err
    assert f"{scored}/codes/north/torn.jpg" not in set(read_splits(ws)["path"])
    pretend(monkeypatch, [ok(0.9), ok(0.8), ok(0.7)])
    varied = {"workspace": ws, **SMALL, "seeds": (0,), "removed": (0, 50)}
    assert run_vary(make_job(VaryJob, varied))["num_unusable"] == 1
    assert said in capsys.readouterr().err
    assert f"{scored}/codes/north/torn.jpg" not in set(read_splits(ws, "varying")["path"])


def test_training_is_told_what_each_file_must_hold(ws, scored, tmp_path, monkeypatch):
    """The hashes that the keys of the runs are made of, also those of another test set."""
    materials = []
    replace_training(monkeypatch, lambda *given: materials.append(given[1]) or [])
    others = tmp_path / "others"
    make_dataset(others, num_images=20, image_size=64, seed=6)
    with pytest.raises(IncompleteError, match="2 of 2 runs gave no result"):
        compare(ws, seeds=(0,), test_on=str(others))
    (material,) = materials
    held = [hash_content(Path(path).read_bytes()) for path in material.paths]
    assert material.content_hashes == held
    assert sum(path.startswith(str(others)) for path in material.paths) == 20


def test_arguments(ws, capsys):
    assert main(["compare", "--workspace", ws, "--num-train", "5000"]) == 2
    assert "5000 training images asked for" in capsys.readouterr().err
    assert main(["compare", "--workspace", ws, "--freeze-backbone", "--augment", "flip"]) == 2
    assert main(["vary", "--workspace", ws, "--removed", "0,100"]) == 2
    assert main(["compare", "--workspace", f"{ws}/none"]) == 2
    assert "run `iqa-ray score IMAGES" in capsys.readouterr().err


def test_a_small_class_is_left_out_and_said(ws, monkeypatch, capsys):
    def relabel(frame):
        rare = frame.index.isin(frame.index[:5])
        return frame.assign(label=np.where(rare, "rare", frame["label"]))

    edit_table(ws, "images.parquet", relabel)
    edit_table(ws, "selection.parquet", relabel)
    pretend(monkeypatch, [ok(0.9), ok(0.8)])
    summary = compare(ws, seeds=(0,))
    assert summary["num_classes"] == 2
    assert "1 classes left out: fewer than 10" in capsys.readouterr().err


def test_another_test_set(ws, scored, tmp_path, monkeypatch, capsys):
    """Copies of the workspace's images in it are not trained on, unknown labels not tested."""
    folder = tmp_path / "others"
    make_dataset(folder, num_images=20, image_size=64, seed=6)
    copied = next(iter(sorted((scored / "codes" / "north").iterdir())))
    shutil.copy(copied, folder / "north" / "copy.jpg")
    (folder / "west").mkdir()
    shutil.copy(copied, folder / "west" / "unknown.jpg")
    torn = tear(folder / "south")
    pretend(monkeypatch, [ok(0.9), ok(0.8)])
    summary = compare(ws, seeds=(0,), test_on=str(folder))
    said = capsys.readouterr().err
    assert "1 images left out: they are also in --test-on" in said
    assert "1 test images left out: of labels that are not trained (west)" in said
    assert "1 test images left out: they cannot be decoded" in said
    assert summary["num_unusable"] == 2  # one of the workspace's own
    assert summary["num_test"] == 21
    splits = read_splits(ws)
    assert str(copied) not in set(splits["path"])
    assert str(torn) not in set(splits["path"])
    tests = splits[splits["part"] == "test"]
    assert tests["path"].str.startswith(str(folder)).all()
    shutil.rmtree(folder / "north")
    shutil.rmtree(folder / "south")
    with pytest.raises(UsageError, match="no label of its images is one of the classes"):
        compare(ws, seeds=(0,), test_on=str(folder))
    tear(folder / "west")
    (folder / "west" / "unknown.jpg").unlink()
    with pytest.raises(UsageError, match="none of its images can be decoded"):
        compare(ws, seeds=(0,), test_on=str(folder))


def test_a_file_of_another_test_set_that_changes_is_tested_anew(ws, tmp_path, monkeypatch):
    """A run's key depends on what the files hold, not on their sizes and times."""
    folder = tmp_path / "others"
    make_dataset(folder, num_images=20, image_size=64, seed=6)
    pretend(monkeypatch, [ok(0.9), ok(0.8)])
    compare(ws, seeds=(0,), test_on=str(folder))
    file = min((folder / "north").iterdir())
    os.utime(file, (1, 1))
    pretend(monkeypatch, [])
    compare(ws, seeds=(0,), test_on=str(folder))
    data, before = bytearray(file.read_bytes()), file.stat()
    data[-3] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    pretend(monkeypatch, [ok(0.7), ok(0.6)])
    compare(ws, seeds=(0,), test_on=str(folder))
