"""The command line as people and schedulers meet it: processes, exit codes, both streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from iqa_ray import cli
from iqa_ray.images.decoding import hash_content
from iqa_ray.images.listing import list_images
from iqa_ray.images.settings import DEFAULT_MAX_PIXELS
from iqa_ray.metrics.spec import get_spec
from iqa_ray.scoring.tables import SCORES_SCHEMA, make_row_settings, scores_folder
from iqa_ray.selection.cutoffs import Cutoff
from iqa_ray.storage.parts import make_fingerprints
from iqa_ray.storage.workspace import Workspace

ROOT = Path(__file__).parent.parent


def run(*argv: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "iqa_ray.cli", *argv]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, **options
    )


# a suite that a shell runs in its background has Ctrl-C ignored, and would pass that on
LISTENING = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from iqa_ray.cli import main; sys.exit(main())"
)


def start(*argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LISTENING, *argv]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def call(capsys, *argv: str) -> tuple[int, str, str]:
    """The same in this process, for errors that come before any Ray."""
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_lists_the_commands_with_examples(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for name in cli.COMMANDS:
        assert name in out
        code, details, _ = call(capsys, name, "--help")
        assert code == 0
        assert "examples:\n  iqa-ray " + name in details
        assert "--json" in details
        assert "--address" in details
        assert "--config" in details
        assert "--workspace" in details or name in {"make-data", "weights"}


def test_a_command_of_two_words_is_found_by_its_first(capsys):
    code, out, _ = call(capsys, "distortions", "--help")
    assert code == 0
    assert "distortions apply" in out
    assert "make-data" not in out
    code, out, _ = call(capsys, "distortions", "apply", "--help")
    assert code == 0
    assert out.startswith("usage: iqa-ray distortions apply ")
    code, _, err = call(capsys, "distortions", "nosuch")
    assert code == 2
    assert "argument COMMAND: invalid choice: 'nosuch'" in err
    code, _, err = call(capsys, "distortions")
    assert code == 2
    assert err.startswith("iqa-ray: error: the following arguments are required: COMMAND")
    code, _, err = call(capsys, "distortions", "train", "--workspace", "ws")
    assert code == 2
    assert err == "iqa-ray: error: give either DATA or --synthesise-from IMAGES\n"


def test_no_command(capsys):
    code, out, err = call(capsys)
    assert code == 2
    assert out == ""
    assert "commands:" in err
    code, _, err = call(capsys, "nosuch")
    assert code == 2
    assert err.startswith("iqa-ray: error: argument COMMAND: invalid choice: 'nosuch'")
    assert err.count("\n") == 1
    assert call(capsys, "--version")[1].startswith("iqa_ray ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["score", "nowhere", "--workspace", "{ws}"], "nowhere does not exist"),
        (["score", "{empty}", "--workspace", "{ws}"], "holds no images"),
        (["score", "{photos}"], "--workspace is required"),
        (["score", "{photos}", "--workspace", "{file}/ws"], "cannot write there"),
        (["score", "{photos}", "--workspace", "{ws}", "--metrics", "nosuch"], "nosuch"),
        (["score", "{photos}", "--workspace", "{ws}", "--metrics", "ssim"], "needs a reference"),
        (["score", "{photos}/list.csv", "--workspace", "{ws}"], "no column `path`"),
        (["score", "{photos}", "--workspace", "{ws}", "--max-pixels", "0"], "--max-pixels"),
        (["score", "{photos}", "--workspace", "{ws}", "--config", "none.yaml"], "none.yaml"),
        (["predict", "--workspace", "{ws}", "--predictions", "x.csv"], "run `iqa-ray score"),
        (["predict", "--workspace", "{ws}"], "either --predictions"),
        (["score", "{photos}", "--workspace", "{ws}", "--nonsense"], "--nonsense"),
        (["score", "{photos}", "--workspace", "{ws}", "--labels", "x"], "invalid choice: 'x'"),
        (["cutoffs", "--workspace", "{ws}"], "has no scores"),
        (["select", "--workspace", "{ws}"], "run `iqa-ray cutoffs"),
        (["make-data", "{photos}"], "{photos}"),
        (["demo", "--workspace", "s3://bucket/x"], "needs a local folder"),
    ],
)
def test_unusable_input_is_exit_2_and_one_line(capsys, image_folder, tmp_path, argv, message):
    photos = image_folder(2)
    (photos / "list.csv").write_text("file\na/000.jpg\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    names = {"photos": photos, "ws": tmp_path / "ws", "empty": tmp_path / "empty"}
    names["file"] = tmp_path / "file"
    code, out, err = call(capsys, *(part.format(**names) for part in argv))
    assert code == 2
    assert out == ""
    assert message.format(**names) in err
    assert err.startswith("iqa-ray: error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "ws").exists()


@pytest.fixture
def scored(image_folder, tmp_path):
    """A workspace of two images that is ready for `select`, made without Ray."""
    photos, workspace = image_folder(2), Workspace(str(tmp_path / "ws"))
    images = list_images(str(photos)).table
    record = {"images": str(photos), "root": str(photos), "labels": "parent"}
    record["max_pixels"] = DEFAULT_MAX_PIXELS
    workspace.write_table("images.parquet", images, record)
    paths = images["path"].to_pylist()
    columns = [images["image_id"], paths, [hash_content(Path(path).read_bytes()) for path in paths]]
    columns += [[1.0, 3.0], ["ok"] * 2, [None] * 2]
    settings = make_row_settings(DEFAULT_MAX_PIXELS)
    part = workspace.parts(scores_folder("lapm", get_spec("lapm").version))
    part.write(
        pa.table(dict(zip(SCORES_SCHEMA.names, columns, strict=True)), SCORES_SCHEMA),
        make_fingerprints(images, settings),
        settings,
    )
    cutoff = Cutoff(2.0, "higher_is_better", source="manual")
    workspace.write_json("cutoffs.json", {"lapm": cutoff.to_json()})
    return tmp_path / "ws"


SCORE = ["score", "{photos}", "--workspace", "{ws}", "--metrics", "lapm"]
SELECT = ["select", "--workspace", "{ws}"]


@pytest.mark.parametrize(
    ("file", "damage", "argv", "message"),
    [
        ("images.parquet", lambda data: data[:-20], SELECT, "cannot read {ws}/images.parquet"),
        ("images.parquet", lambda data: data[:-20], SCORE, "cannot read {ws}/images.parquet"),
        ("images.parquet", lambda data: b"", SCORE, "remove it and run again what made it"),
        ("part-*.parquet", lambda data: b"", SELECT, "/part-"),
        ("part-*.parquet", lambda data: b"", SCORE, "remove it and run again what made it"),
        ("part-*.parquet", lambda data: data[:-20], SCORE, "cannot read {ws}/scores/metric=lapm/"),
        ("cutoffs.json", lambda data: data[:-20], SELECT, "cutoffs.json is not JSON"),
        ("cutoffs.json", lambda data: b"[]", SELECT, "must hold a JSON object"),
        ("cutoffs.json", lambda data: b'{"lapm": 2}', SELECT, "is malformed (it: "),
        ("cutoffs.json", lambda data: data.replace(b"2.0", b'"x"'), SELECT, "malformed (value: "),
    ],
)
def test_damaged_tables_are_exit_2_and_one_line(capsys, scored, file, damage, argv, message):
    names = {"photos": scored.parent / "photos", "ws": scored}
    argv = [part.format(**names) for part in argv]
    assert call(capsys, *argv)[0] == 0
    (path,) = scored.rglob(file)
    path.write_bytes(damage(path.read_bytes()))
    code, out, err = call(capsys, *argv)
    assert (code, out) == (2, "")
    assert message.format(**names) in err
    assert err.startswith("iqa-ray: error: ")
    assert err.count("\n") == 1


def test_links_in_a_store_are_exit_2_and_one_line(capsys, scored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["select", "--workspace", str(scored), "--link", "s3://bucket/kept"]
    code, out, err = call(capsys, *argv)
    assert (code, out) == (2, "")
    assert "--link makes a local folder, not one in s3://" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s3:").exists()


def test_main_job_step_by_step_with_json(image_folder, tmp_path):
    photos, ws = image_folder(40, blur_step=0.05), str(tmp_path / "ws")
    scored = run("score", str(photos), "--workspace", ws, "--metrics", "lapm,wavs", "--json")
    assert scored.returncode == 0, scored.stderr
    summary = json.loads(scored.stdout)
    assert summary["num_images"] == summary["num_scored"] == 40
    assert {"num_reused", "num_failed", "seconds", "images_per_s"} <= set(summary)
    assert "scoring 40 of 40 images" in scored.stderr
    rows = []
    for path in pd.read_parquet(f"{ws}/images.parquet")["path"]:
        number = int(Path(path).stem)
        label = Path(path).parent.name
        rows.append((path, label, label if number < 22 or number % 5 == 0 else "c", 0.7))
    table = pd.DataFrame(rows, columns=["path", "label", "predicted", "confidence"])
    table.to_csv(tmp_path / "mine.csv", index=False)
    for command in (
        ["predict", "--predictions", str(tmp_path / "mine.csv")],
        ["cutoffs"],
        ["select", "--rule", "any", "--link", str(tmp_path / "kept")],
    ):
        result = run(*command, "--workspace", ws, "--json")
        assert result.returncode == 0, result.stderr
        summary = json.loads(result.stdout)
    assert {"num_images", "num_kept", "num_rejected", "num_unscored", "metrics", "rule"} <= set(
        summary
    )
    assert summary["rule"] == "any"
    assert 0 < summary["num_kept"] < 40
    plain = run("select", "--workspace", ws, "--rule", "any")
    assert plain.stdout.startswith(f"kept {summary['num_kept']} of 40 images (")
    assert len(list(Path(ws, "configs").glob("*.yaml"))) == 5


def test_jobs_are_the_same_commands(image_folder, tmp_path):
    script = ROOT / "jobs" / "select_subset.py"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(script), "--workspace", str(tmp_path / "ws")],
        capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip
    assert result.returncode == 2
    assert "run `iqa-ray cutoffs" in result.stderr


def test_incomplete_is_exit_1(image_folder, tmp_path):
    ws = str(tmp_path / "ws")
    result = run("score", str(image_folder(2)), "--workspace", ws, "--cpus-per-actor", "999")
    assert result.returncode == 1
    assert "iqa-ray: incomplete: an actor needs 999 CPUs" in result.stderr
    assert "Traceback" not in result.stderr


def test_standard_output_holds_the_summary_alone(image_folder, tmp_path):
    """A scoring actor is killed, which Ray reports on the driver's standard output."""
    psutil = pytest.importorskip("psutil")
    photos, ws = image_folder(60, height=400, width=500, blur_step=0.02), tmp_path / "ws"
    command = ["score", str(photos), "--workspace", str(ws), "--metrics", "niqe", "--json"]
    command += ["--num-actors", "1", "--shard-size", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "iqa_ray.cli", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(ws.glob("scores/**/part-*.parquet")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    actors = []
    while not actors:  # between two shards it has another title
        assert time.monotonic() < deadline
        children = psutil.Process(process.pid).children(recursive=True)
        actors = [child for child in children if "_Worker.run" in " ".join(child.cmdline())]
    (actor,) = actors
    actor.send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert json.loads(out)["num_scored"] == 60
    assert out.count("\n") == 1
    assert "an actor was lost: " in err


# a job that prints in every way there is, and its summary
PRINTS = """
import os, subprocess, sys
from iqa_ray import cli
from iqa_ray.rescoring import jobs

early = sys.stdout

def run(job):
    print("by print")
    early.write("by a stream from before")
    os.write(1, b"by descriptor")
    subprocess.run(["echo", "by another process"])
    return {"tables": {}, "workspace": job.ws}

jobs.run_compact = run
code = cli.main(["compact", "ws", *sys.argv[1:]])
print("afterwards")
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("options", "summary"),
    [(["--json"], '{"tables": {}, "workspace": "ws"}'), ([], "ws has no parts")],
)
def test_what_a_job_prints_goes_to_standard_error(options, summary):
    command = [sys.executable, "-c", PRINTS, *options]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [summary, "afterwards"]
    for way in ("by print", "by a stream from before", "by descriptor", "by another process"):
        assert way in result.stderr


def test_what_a_job_prints_in_this_process_goes_to_standard_error(capsys, monkeypatch):
    def print_and_finish(job):
        print("by print")
        return {"tables": {}, "workspace": job.ws}

    monkeypatch.setattr("iqa_ray.rescoring.jobs.run_compact", print_and_finish)
    assert call(capsys, "compact", "ws") == (0, "ws has no parts\n", "by print\n")


def test_a_reader_that_has_gone_is_exit_1_without_a_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", PRINTS.replace('print("afterwards")', ""), "--json"]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert result.returncode == 1
    assert "by print" in result.stderr
    assert "Error" not in result.stderr


def test_a_job_without_standard_error_writes_its_summary_all_the_same():
    command = " ".join(["exec", sys.executable, "-c", '"$0"', "--json", "2>&-"])
    result = subprocess.run(
        ["sh", "-c", command, PRINTS], stdout=subprocess.PIPE, text=True, check=True
    )
    assert result.stdout.splitlines() == ['{"tables": {}, "workspace": "ws"}', "afterwards"]


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_the_next_run_goes_on(image_folder, tmp_path):
    photos, ws = image_folder(200, height=400, width=500, blur_step=0.01), tmp_path / "ws"
    names = "lapv,lapm,wavs,brisque,niqe"
    command = ["score", str(photos), "--workspace", str(ws), "--metrics", names]
    process = start(*command, "--shard-size", "10")
    deadline = time.monotonic() + 120
    while not list(ws.glob("scores/metric=niqe/**/part-*.parquet")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted; what is finished is kept" in err
    assert "Traceback" not in err
    assert not list(ws.rglob("*.tmp"))
    again = run("score", str(photos), "--workspace", str(ws), "--metrics", names, "--json")
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert 0 < summary["num_reused"] < 200
    assert summary["num_reused"] + summary["num_scored"] == 200


@pytest.mark.slow
def test_ctrl_c_while_training(image_folder, tmp_path):
    photos, ws = image_folder(40, height=200, width=200), str(tmp_path / "ws")
    assert run("score", str(photos), "--workspace", ws, "--metrics", "lapm").returncode == 0
    command = ["predict", "--workspace", ws]
    command += ["--backbone", "resnet18", "--weights", "none", "--split", "0.5"]
    command += ["--image-size", "64", "--epochs", "1000"]
    process = start(*command)
    assert process.stderr is not None
    assert any(line.startswith("epoch 1 of 1000") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted; what is finished is kept" in err
    assert "Traceback" not in err
    assert not list(Path(ws, "train").glob("*"))
    assert not Path(ws, "predictions.parquet").exists()
