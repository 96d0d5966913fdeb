from __future__ import annotations

import argparse

import pytest

from iqa_ray.cluster.capacity import Placement
from iqa_ray.config import build_parser, dump_settings, format_value, load_settings, parse_job
from iqa_ray.errors import UsageError
from iqa_ray.experiments.settings import CompareJob
from iqa_ray.predictions.settings import PredictJob
from iqa_ray.scoring.jobs import ScoreJob
from iqa_ray.selection.settings import CutoffsJob, SelectJob
from iqa_ray.study.settings import StudyJob


def parse(model, *argv: str):
    return parse_job(model, build_parser(argparse.ArgumentParser(), model).parse_args(argv))


def test_flags_become_settings():
    job = parse(
        ScoreJob, "photos", "--workspace", "ws", "--metrics", "lapm, wavs", "--num-actors", "3"
    )
    assert job == ScoreJob(images="photos", workspace="ws", metrics=("lapm", "wavs"), num_actors=3)
    assert parse(ScoreJob, "x", "--workspace", "ws").metrics[0] == "lapv"


def test_what_has_a_position_has_a_name_as_well():
    job = parse(ScoreJob, "--images", "photos", "--workspace", "ws")
    assert job == parse(ScoreJob, "photos", "--workspace", "ws")


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("images: a\nworkspace: ws\nmax-pixels: 9\nmetrics: [lapm]\n")
    job = parse(ScoreJob, "--config", str(file), "--max-pixels", "10")
    assert (job.images, job.max_pixels, job.metrics) == ("a", 10, ("lapm",))


def test_the_saved_record_reads_back(tmp_path):
    for job in (
        ScoreJob(images="ä b", workspace="ws", metrics=("lapm",)),
        CutoffsJob(workspace="ws", bandwidth=0.3, cutoff={"lapm": 2.6}),
        SelectJob(workspace="ws", rule=2),
        PredictJob(workspace="ws", backbone="resnet18", split="0.4"),
        ScoreJob(
            images="x",
            workspace="ws",
            metrics=("musiq",),
            weights="w",
            resources={"scorer": 0.5, "zone": "in(a,b)"},
        ),
    ):
        file = tmp_path / "c.yaml"
        file.write_text(dump_settings(job), encoding="utf-8")
        assert parse(type(job), "--config", str(file)) == job


def test_unions_and_pairs():
    assert parse(CutoffsJob, "--workspace", "w", "--bandwidth", "0.5").bandwidth == 0.5
    assert parse(CutoffsJob, "--workspace", "w", "--bandwidth", "scott").bandwidth == "scott"
    assert parse(SelectJob, "--workspace", "w", "--rule", "2").rule == 2
    assert parse(SelectJob, "--workspace", "w", "--rule", "any").rule == "any"
    job = parse(CutoffsJob, "--workspace", "w", "--cutoff", "lapm=0.2", "--cutoff", "wavs=1e-3")
    assert job.cutoff == {"lapm": 0.2, "wavs": 0.001}


def test_resources_are_amounts_or_labels(tmp_path):
    deep = ["x", "--workspace", "w", "--metrics", "lapm,musiq"]
    pairs = ["scorer=1", "ray.io/accelerator-type=H200", "zone=!in(a, b)", "small=0.001"]
    job = parse(ScoreJob, *deep, *(word for pair in pairs for word in ("--resources", pair)))
    labels = {"ray.io/accelerator-type": "H200", "zone": "!in(a, b)"}
    assert job.placement == Placement({"scorer": 1.0, "small": 0.001}, labels)
    file = tmp_path / "c.yaml"
    file.write_text("resources: {scorer: 2, zone: a}\n")
    job = parse(StudyJob, *deep, "--config", str(file))
    assert job.placement == Placement({"scorer": 2.0}, {"zone": "a"})
    assert parse(ScoreJob, *deep).placement == Placement()


@pytest.mark.parametrize(
    ("metrics", "pair", "message"),
    [
        ("musiq", "scorer", "--resources scorer: write NAME=VALUE"),
        ("musiq", "scorer=0", "--resources: scorer=0: an amount is a number from 0.0001 up"),
        ("musiq", "scorer=-1", "an amount is a number"),
        ("musiq", "scorer=nan", "--resources: .*finite"),
        ("musiq", "=1", "an amount is a number"),
        ("musiq", "GPU=1", "GPU is no custom resource; --gpus-per-actor"),
        ("musiq", "zone=", "zone=: write NAME=AMOUNT for a custom resource, or for a label"),
        ("musiq", "zone=a,b", "zone=a,b: write NAME=AMOUNT"),
        ("musiq", "zone=in(a", "write NAME=AMOUNT"),
        ("musiq", "my zone=a", "write NAME=AMOUNT"),
        ("lapm,wavs", "scorer=1", "--resources places deep metrics, and none is among the metrics"),
    ],
)
def test_bad_resources(metrics, pair, message):
    argv = ["x", "--workspace", "w", "--metrics", metrics, "--resources", pair]
    with pytest.raises(UsageError, match=message):
        parse(ScoreJob, *argv)


@pytest.mark.parametrize(
    ("model", "argv", "message"),
    [
        (ScoreJob, ["--workspace", "ws"], "IMAGES is required"),
        (ScoreJob, ["x"], "--workspace is required"),
        (ScoreJob, ["x", "--workspace", "w", "--metrics", "lapn"], "--metrics: .*lapm"),
        (ScoreJob, ["x", "--workspace", "w", "--num-actors", "0"], "--num-actors: .*1.*got '0'"),
        (ScoreJob, ["x", "--workspace", "w", "--max-pixels", "many"], "--max-pixels: .*integer"),
        (CutoffsJob, ["--workspace", "w", "--bandwidth", "-1"], "--bandwidth: .*above 0"),
        (CutoffsJob, ["--workspace", "w", "--cutoff", "lapm"], "--cutoff lapm: write NAME=VALUE"),
        (CutoffsJob, ["--workspace", "w", "--cutoff", "lapm=x"], "--cutoff: .*number"),
        (CutoffsJob, ["--workspace", "w", "--cutoff", "lapm=nan"], "--cutoff: .*finite"),
        (CutoffsJob, ["--workspace", "w", "--bandwidth", "inf"], "--bandwidth: .*got 'inf'"),
        (SelectJob, ["--workspace", "w", "--rule", "most"], "--rule: "),
        *[
            (
                CompareJob,
                ["--workspace", "w", flag, value],
                f"{flag}: .*finite number .got '{value}'",
            )
            for flag in ("--lr", "--cpus-per-run", "--gpus-per-run")
            for value in ("inf", "nan")
        ],
        (CompareJob, ["--workspace", "w", "--batch-size", "1"], "--batch-size: .*2 .got '1'"),
        (PredictJob, ["--workspace", "w"], "either --predictions FILE or --backbone"),
        (PredictJob, ["--workspace", "w", "--backbone", "resnet18"], "--train-images or --split"),
    ],
)
def test_bad_settings_are_one_clear_line(model, argv, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse(model, *argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("workspace: ws\nimages: x\nnonsense: 1\n", "unknown setting 'nonsense'"),
        ("- a\n- b\n", "must hold"),
        ("a: [1\n", "is not YAML"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_bad_files(tmp_path, content, message):
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=message):
        parse(ScoreJob, "--config", str(file))


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_settings(tmp_path / "none.yaml")


def test_format_value():
    assert format_value(("a", "b")) == "a,b"
    assert format_value({"a": 1}) == "a=1"
    assert format_value(0.5) == "0.5"
