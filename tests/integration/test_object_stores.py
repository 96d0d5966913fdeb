"""Images, workspace and weights on S3, spoken by moto's server on loopback: as on a local disk, and
with requests that fail, are refused or are never answered."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import s3
import torch
from pictures import make_texture
from PIL import Image
from pyarrow import compute as pc
from pyarrow import parquet as pq
from trainings import RECIPE, make_run, train, without_times

from iqa_ray import cli, metrics
from iqa_ray.config import make_job
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.images.listing import list_images, make_image_id
from iqa_ray.images.source import ImageSource
from iqa_ray.predictions.jobs import run_predict
from iqa_ray.predictions.settings import PredictJob
from iqa_ray.rescoring.jobs import run_rescore
from iqa_ray.rescoring.settings import RescoreJob
from iqa_ray.scoring.cpu_scorer import score_shard
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import read_scores, scores_frame
from iqa_ray.storage import lock, object_stores
from iqa_ray.storage.files import (
    delete_file,
    delete_folder,
    list_files,
    locate,
    read_bytes,
    read_whole,
    write_bytes,
)
from iqa_ray.storage.lock import hold_lock
from iqa_ray.storage.object_stores import UnansweredError, find_kind
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training.runs import RunFiles

METRICS = ("lapm", "wavs")
NOWHERE = "s3://bucket/photos?endpoint_override=127.0.0.1:9&scheme=http"  # nothing listens there
KINDS = ("SlowDown", "InternalError", "drop", "cut")
GUARD_S = 60  # what must not hang ends long before


@pytest.fixture(scope="module")
def shared_server():
    with s3.serve("bucket") as server:
        yield server


@pytest.fixture
def server(shared_server):
    yield shared_server
    shared_server.mend()


@pytest.fixture
def impatient(monkeypatch):
    """Few tries and short waits, for stores that are opened from now on in this process."""
    monkeypatch.setattr(object_stores, "_NUM_RETRIES", 1)
    monkeypatch.setattr(object_stores, "_SILENCE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(object_stores, "_PATIENCE_S", 0.0)


def fail_one_in_ten(request):
    return KINDS[request.number // 10 % len(KINDS)] if request.number % 10 == 3 else None


def score(images, workspace, **settings):
    given = {"images": str(images), "workspace": str(workspace), "metrics": METRICS}
    given |= {"cpus_per_actor": 0.5, "shard_size": 3}
    return run_score(make_job(ScoreJob, {**given, **settings}))


def rows(workspace) -> pd.DataFrame:
    """The scores, an image a row, without the paths, which say where the images lie."""
    frame = scores_frame(Workspace(str(workspace)), METRICS).drop(columns="path")
    return frame.sort_values("image_id", ignore_index=True)


def count_rows(workspace, metric="lapm") -> int:
    """Rows of all parts, repeated ones too."""
    parts = list_files(Workspace(str(workspace)).location / f"scores/metric={metric}", ".parquet")
    return sum(pq.read_table(io.BytesIO(read_bytes(part))).num_rows for part in parts)


def call(capsys, *argv: str) -> tuple[int, str]:
    """Exit code and last line of a command, which must end in time and without a traceback."""
    start_s = time.monotonic()
    code = cli.main(argv)
    assert time.monotonic() - start_s < GUARD_S
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return code, err.splitlines()[-1]


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(make_texture(seed)).save(buffer, "jpeg", quality=92)
    return buffer.getvalue()


# --- single requests --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_requests_that_fail_a_few_times_are_repeated(server, kind):
    """Each request of each operation fails twice before it is let through."""
    folder = locate(server.uri(f"single/{kind}"))
    file = folder / "file"
    server.rule = lambda request: kind if request.number % 3 < 2 else None
    for data in (b"old", b"newer" * 1000):
        write_bytes(file, data)
        assert read_whole(file) == data
    assert list_files(folder) == [file]
    delete_file(file)
    assert list_files(folder) == []
    write_bytes(folder / "a/b/file", b"data")
    write_bytes(folder / "ab", b"kept")
    delete_folder(folder / "a")
    delete_folder(folder / "a")
    assert list_files(folder) == [folder / "ab"]
    assert len(server.faults) >= 2 * 10
    with pytest.raises(FileNotFoundError):
        read_bytes(file)


def test_repeating_does_not_wear_out(server):
    """pyarrow's "standard" strategy stops repeating after a hundred failures in all."""
    server.put("single/often", b"data" * 1000)
    file = locate(server.uri("single/often"))
    server.rule = lambda request: "SlowDown" if request.number % 2 == 0 else None
    for _ in range(75):
        assert read_bytes(file) == b"data" * 1000
    assert len(server.faults) == 150


def test_tries_come_to_an_end(server, impatient):
    server.put("single/never", b"data")
    file = locate(server.uri("single/never") + "&region=us-west-2")  # one that is not open yet
    server.rule = lambda request: "SlowDown"
    with pytest.raises(UnansweredError, match=r"s3://bucket/single/never: .*HTTP status 503"):
        read_bytes(file)
    assert len(server.faults) == 1 + 1


def test_an_error_that_the_client_does_not_know_is_repeated_too(server):
    server.put("single/odd", b"data" * 1000)
    server.rule = lambda request: "TooManyRequests" if request.number < 4 else None
    file = locate(server.uri("single/odd"))
    assert read_bytes(file) == b"data" * 1000
    server.mend()
    server.rule = lambda request: "TooManyRequests" if request.number % 3 else None
    write_bytes(file, b"new")
    assert list_files(file) == []
    assert server.faults


def test_a_server_that_never_answers_is_given_up(server, impatient):
    file = locate(server.uri("single/silent") + "&region=eu-west-1")
    server.rule = lambda request: "hang"
    start_s = time.monotonic()
    with pytest.raises(UnansweredError, match="too slow"):
        read_bytes(file)
    assert time.monotonic() - start_s < GUARD_S
    assert len(server.faults) == 1 + 1


def test_a_silent_server_is_given_up_after_as_long_as_is_said(server, impatient):
    """A second each of two requests here; by itself the client would wait three."""
    file = locate(server.uri("single/mute") + "&region=eu-west-2")  # one that is not open yet
    server.rule = lambda request: "hang"
    start_s = time.monotonic()
    with pytest.raises(UnansweredError):
        read_bytes(file)
    assert 2 - 0.1 < time.monotonic() - start_s < 5


def test_a_server_that_takes_no_connection_is_given_up_as_soon(impatient, monkeypatch):
    monkeypatch.setattr(object_stores, "_CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(object_stores, "_SILENCE_TIMEOUT_S", 50.0)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(3):  # the queue is full: who comes next is not answered
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        options = f"endpoint_override={address[0]}:{address[1]}&scheme=http"
        start_s = time.monotonic()
        with pytest.raises(UnansweredError):
            read_bytes(locate(f"s3://bucket/x?{options}"))
        assert 2 * 0.3 - 0.1 < time.monotonic() - start_s < 2 * 1.0


def test_the_documented_times_are_those_of_the_settings():
    """README: ten requests in all, a silence of 10 s, with waits of 13 s together: two minutes."""
    num_requests = object_stores._NUM_RETRIES + 1
    assert (num_requests, object_stores._SILENCE_TIMEOUT_S, object_stores._GS_RETRIES_S) == (
        10, 10.0, 60,
    )  # fmt: skip
    assert num_requests * object_stores._SILENCE_TIMEOUT_S + 13 < 120


def test_a_refusal_is_not_repeated(server):
    server.put("single/secret", b"data")
    server.rule = lambda request: "AccessDenied"
    file = locate(server.uri("single/secret"))
    for operation in (read_bytes, list_files, delete_file, lambda place: write_bytes(place, b"")):
        with pytest.raises(PermissionError, match=r"s3://bucket/single/secret: .*ACCESS_DENIED"):
            operation(file)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("AWS Error ACCESS_DENIED during GetObject operation", PermissionError),
        ("AWS Error INVALID_ACCESS_KEY_ID during GetObject operation", PermissionError),
        ("AWS Error UNKNOWN (HTTP status 403) during HeadObject operation", PermissionError),
        ("google::cloud::Status(PERMISSION_DENIED: no)", PermissionError),
        ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 7", UnansweredError),
        ("AWS Error UNKNOWN (HTTP status 502) during PutObject operation", UnansweredError),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)", UnansweredError),
        ("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation", OSError),
        ("AWS Error [code 136] during GetObject operation", OSError),  # in an archive, say
    ],
)
def test_what_errors_mean(text, kind):
    assert find_kind(OSError(text)) is kind


def test_naming_stores(server, monkeypatch):
    server.put("named/x", b"data")
    with pytest.raises(UsageError, match=r"s3://bucket: unknown option 'regoin'; known: endpoint_"):
        read_bytes(locate("s3://bucket/named/x?regoin=eu"))
    with pytest.raises(UsageError, match="credentials in a URI") as refusal:
        read_bytes(locate("s3://key:secret@bucket/named/x"))
    assert "secret" not in str(refusal.value)
    with pytest.raises(UsageError, match="Protocol not known: nosuch"):
        read_bytes(locate("nosuch://bucket/x"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server.address}")
    assert read_bytes(locate("s3://bucket/named/x")) == b"data"


def test_other_stores_through_fsspec(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def fail_twice(*arguments, **settings):
        calls.append(arguments)
        if len(calls) <= 2:
            raise ConnectionResetError(104, "Connection reset by peer")
        return opened(*arguments, **settings)

    calls: list[tuple] = []
    opened = MemoryFileSystem._open
    file = locate("memory://other/file")
    write_bytes(file, b"data")
    monkeypatch.setattr(MemoryFileSystem, "_open", fail_twice)
    assert read_whole(file) == b"data"
    assert len(calls) == 3
    delete_file(file)
    with pytest.raises(FileNotFoundError):
        read_bytes(file)


# --- whole or not at all ----------------------------------------------------------------------


def test_a_small_file_is_one_put(server):
    write_bytes(locate(server.uri("whole/small")), b"x" * 100_000)
    assert [request.method for request in server.requests] == ["PUT"]


def test_a_refused_piece_of_a_large_file_leaves_nothing(server):
    file = locate(server.uri("whole/large"))
    server.rule = lambda request: "AccessDenied" if "partNumber=2" in request.query else None
    with pytest.raises(PermissionError):
        write_bytes(file, b"x" * (22 << 20))
    assert server.keys("whole/large") == []
    server.mend()
    write_bytes(file, b"x" * (22 << 20))
    assert len(read_whole(file)) == 22 << 20


@pytest.mark.parametrize(("size", "stuck"), [(1000, "PUT"), (22 << 20, "POST")])
def test_a_writer_that_dies_leaves_the_old_file(server, size, stuck):
    """Killed in its only put, or before it completes an upload of several pieces."""
    key = f"whole/killed-{stuck}"
    server.put(key, b"old")
    code = (
        "import sys; from iqa_ray.storage.files import locate, write_bytes\n"
        f"write_bytes(locate(sys.argv[1]), b'n' * {size})"
    )
    server.rule = lambda request: (
        "hang" if request.method == stuck and request.query != "uploads" else None
    )
    writer = subprocess.Popen([sys.executable, "-c", code, server.uri(key)])
    try:
        deadline_s = time.monotonic() + GUARD_S
        while not server.faults:
            assert time.monotonic() < deadline_s
            assert writer.poll() is None
            time.sleep(0.05)
    finally:
        writer.kill()
        writer.wait()
    server.mend()
    assert read_whole(locate(server.uri(key))) == b"old"
    assert server.keys(key) == [key]


@pytest.mark.parametrize("after", [b"new" * 1000, b"n"])
def test_a_reader_sees_the_old_file_or_the_new_one(server, after):
    """The file is replaced after its size was asked for; pyarrow then gives as many bytes."""
    before = b"old" * 100

    def replace_once(request):
        if request.method == "GET" and after not in replaced:
            server.put("whole/replaced", after)
            replaced.append(after)

    replaced = []
    server.put("whole/replaced", before)
    file = locate(server.uri("whole/replaced"))
    server.rule = replace_once
    assert read_whole(file) == after

    sizes = iter(range(1, 1000))
    server.rule = lambda request: server.put("whole/replaced", b"x" * next(sizes))
    with pytest.raises(UnansweredError, match="replaced during each of 5 tries"):
        read_whole(file)


# --- listing ----------------------------------------------------------------------------------


def test_ten_thousand_images_are_listed(server):
    names = [f"{number % 7}/{number:05}.jpg" for number in range(10_000)]
    for name in names:
        server.put(f"many/{name}", b"x")
    server.put("many/notes.txt", b"x")
    server.put("many/.hidden/0.jpg", b"x")
    server.rule = fail_one_in_ten
    table = list_images(server.uri("many")).table
    assert server.faults
    assert table.num_rows == 10_000
    assert set(table["image_id"].to_pylist()) == {make_image_id(name) for name in names}
    assert set(table["label"].to_pylist()) == set("0123456")
    assert sum("list-type=2" in request.query for request in server.requests) > 10  # pages


def test_a_manifest_with_an_image_that_may_not_be_seen(server):
    for name in "abc":
        server.put(f"listed/{name}.jpg", b"x" * 10)
    server.put("listed/list.csv", b"path,label\na.jpg,x\nb.jpg,y\nc.jpg,z\ngone.jpg,z\n")
    server.rule = lambda request: "AccessDenied" if request.path.endswith("b.jpg") else None
    table = list_images(server.uri("listed/list.csv")).table
    assert table["size_bytes"].to_pylist() == [10, None, 10, None]
    assert table["label"].to_pylist() == ["x", "y", "z", "z"]


# --- scoring ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Twelve images, one of them damaged."""
    root = tmp_path_factory.mktemp("s3") / "photos"
    for number in range(12):
        file = root / "ab"[number % 2] / f"{number:02}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(number))
    (root / "a" / "02.jpg").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def undisturbed(photos, ray_session) -> pd.DataFrame:
    """The scores of the same images where nothing fails: on a local disk."""
    workspace = photos.parent / "undisturbed"
    score(photos, workspace)
    return rows(workspace)


def test_one_request_in_ten_fails(server, photos, undisturbed, capsys):
    """Images and workspace in the store; the second run finds everything done."""
    images, workspace = server.put_folder(photos, "shaky/photos"), server.uri("shaky/ws")
    command = ["score", images, "--workspace", workspace, "--metrics", ",".join(METRICS)]
    command += ["--cpus-per-actor", "0.5", "--shard-size", "3", "--json"]
    server.rule = fail_one_in_ten
    assert cli.main(command) == 0
    assert len(server.faults) >= 8
    summary = json.loads(capsys.readouterr().out)
    assert (summary["num_scored"], summary["num_failed"]) == (12, 1)
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["num_reused"] == 12
    pd.testing.assert_frame_equal(rows(workspace), undisturbed, check_exact=True)
    assert [count_rows(workspace, name) for name in METRICS] == [12, 12]
    assert not server.keys("shaky/ws/.write-test")


def test_a_refused_image_is_a_row(server, photos, undisturbed):
    images, workspace = server.put_folder(photos, "refused/photos"), server.uri("refused/ws")
    server.rule = lambda request: (
        "AccessDenied" if request.path.endswith("05.jpg") and request.method == "GET" else None
    )
    assert score(images, workspace)["num_failed"] == 2
    assert len(server.faults) == 1
    found, refused = rows(workspace), undisturbed["image_id"] == make_image_id("b/05.jpg")
    pd.testing.assert_frame_equal(found[~refused], undisturbed[~refused], check_exact=True)
    (row,) = found[refused].to_dict("records")
    assert row["status"] == "unreadable"
    assert "s3://bucket/refused/photos/b/05.jpg: AWS Error ACCESS_DENIED" in row["error"]


def test_a_shard_that_cannot_be_written_is_named(server, photos, ray_session, capsys):
    images, workspace = server.put_folder(photos, "closed/photos"), server.uri("closed/ws")
    command = ["score", images, "--workspace", workspace, "--metrics", ",".join(METRICS)]
    command += ["--cpus-per-actor", "0.5", "--shard-size", "6"]
    server.rule = lambda request: (
        "AccessDenied" if request.method == "PUT" and "/scores/" in request.path else None
    )
    code, line = call(capsys, *command)
    assert code == 1
    assert line.startswith("iqa-ray: incomplete: 12 images could not be scored: shard ")
    assert "shard 0 of lapm, wavs ('s3://bucket/closed/photos/a/00.jpg' and 5 more)" in line
    assert "ACCESS_DENIED" in line


@pytest.mark.slow
def test_an_image_that_is_never_answered_ends_its_shard(server, photos, undisturbed):
    """Ten requests, 13 s; that says nothing of the image, so the next run tries it again."""
    images, workspace = server.put_folder(photos, "silent/photos"), server.uri("silent/ws")
    server.rule = lambda request: (
        "SlowDown" if request.path.endswith("05.jpg") and request.method == "GET" else None
    )
    with pytest.raises(IncompleteError, match=r"3 images could not .*05\.jpg: AWS Error SLOW_DOWN"):
        score(images, workspace)
    assert len(server.faults) == 10
    server.mend()
    assert score(images, workspace)["num_scored"] == 3
    pd.testing.assert_frame_equal(rows(workspace), undisturbed, check_exact=True)
    assert count_rows(workspace) == 12


@pytest.mark.slow
def test_a_run_that_is_killed_half_way_goes_on(server, photos, undisturbed):
    images, workspace = server.put_folder(photos, "killed/photos"), server.uri("killed/ws")
    command = [sys.executable, "-m", "iqa_ray.cli", "score", images, "--workspace", workspace]
    command += ["--metrics", ",".join(METRICS), "--shard-size", "2", "--num-actors", "1"]

    def hang_later_parts(request):
        parts.update([request.path] if request.method == "PUT" and "/part-" in request.path else [])
        return "hang" if len(parts) > 5 else None

    parts: set[str] = set()
    server.rule = hang_later_parts
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline_s = time.monotonic() + 2 * GUARD_S
        while not server.faults:
            assert time.monotonic() < deadline_s
            assert run.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    server.mend()
    assert 0 < len(server.keys("killed/ws/scores")) < 12
    summary = score(images, workspace)
    assert 0 < summary["num_reused"] < 12
    pd.testing.assert_frame_equal(rows(workspace), undisturbed, check_exact=True)
    assert score(images, workspace)["num_scored"] == 0


@pytest.mark.slow
def test_weights_in_the_store(server, photos, tmp_path, ray_session):
    pytest.importorskip("pyiqa")
    from benchmarks.random_weights import make_random_weights

    make_random_weights(["cnniqa"], tmp_path / "weights")
    images = server.put_folder(photos, "deep/photos")
    weights = server.put_folder(tmp_path / "weights", "deep/weights")
    settings = {"metrics": ("cnniqa",), "labels": "none"}
    server.rule = fail_one_in_ten
    score(images, server.uri("deep/ws"), weights=weights, **settings)
    assert any("deep/weights/" in request.path for request in server.requests)
    score(photos, tmp_path / "ws", weights=str(tmp_path / "weights"), **settings)
    frames = [
        scores_frame(Workspace(str(ws)), ["cnniqa"]).drop(columns="path")
        for ws in (server.uri("deep/ws"), tmp_path / "ws")
    ]
    pd.testing.assert_frame_equal(*frames)


# --- training ---------------------------------------------------------------------------------


def test_a_run_s_checkpoints_and_result_are_asked_for_again(server, tmp_path):
    """Interrupted after its second epoch; each request fails twice before it is let through."""

    def interrupt(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    run = make_run(replace(RECIPE, freeze_backbone=True))
    features = torch.randn(40, 512, generator=torch.Generator().manual_seed(0))
    expected = train(run, RunFiles(locate(tmp_path)), inputs=features)
    files = RunFiles(locate(server.uri("runs")))
    kinds = (*KINDS, "TooManyRequests")  # which the client does not repeat
    server.rule = lambda request: (
        kinds[request.number // 3 % len(kinds)] if request.number % 3 < 2 else None
    )
    assert files.read_result(run) is None
    with pytest.raises(KeyboardInterrupt):
        train(run, files, interrupt, features)
    assert len(files.read_checkpoint(run)["history"]) == 2
    seen = []
    result = train(run, files, seen.append, features)
    assert [row["epoch"] for row in seen] == [3, 4]
    assert files.read_result(run) == result
    assert without_times(result) == without_times(expected)
    assert server.keys("runs") == ["runs/runs/k.json"]
    files.forget(run)
    assert server.keys("runs") == []
    assert len(server.faults) > 2 * 10


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_one_of_the_two(server):
    """By another process that trains the same run."""

    def replace_once(request):
        if request.method == "GET" and request.path.endswith(".pt") and not replaced:
            replaced.append(True)
            server.put("replaced/checkpoints/k.pt", later)

    run, replaced = make_run(), []
    files = RunFiles(locate(server.uri("replaced")))
    files.write_checkpoint(run, {"history": [1] * 500})
    later = read_bytes(locate(server.uri("replaced/checkpoints/k.pt")))
    files.write_checkpoint(run, {"history": []})
    server.rule = replace_once
    assert files.read_checkpoint(run) == {"history": [1] * 500}


@pytest.mark.slow
def test_predict_in_the_store(server, photos, ray_session):
    """A classifier is trained, with one request in ten failing, and nothing is left behind."""
    images, workspace = server.put_folder(photos, "trained/photos"), server.uri("trained/ws")
    score(images, workspace)
    settings = {"backbone": "resnet18", "weights": "none", "epochs": 1, "image_size": 32}
    job = make_job(PredictJob, {"workspace": workspace, "split": "0.5", **settings})
    server.rule = fail_one_in_ten
    summary = run_predict(job)
    assert (summary["num_held_out"], summary["num_predicted"]) == (6, 5)  # one is damaged
    assert server.faults
    server.mend()
    assert len(server.keys("trained/ws/models/")) == 1
    assert server.keys("trained/ws/train") == []


# --- refused, or not there --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda request: True, "cannot reach s3://bucket/no/photos"),
        (lambda request: "list-type=2" in request.query, "cannot reach s3://bucket/no/photos"),
        (lambda request: request.method == "PUT", "--workspace s3://bucket/no/ws"),
        (lambda request: "prefix=no%2Fws" in request.query, "s3://bucket/no/ws/"),
    ],
    ids=["everything", "listing", "writing", "listing the workspace"],
)
def test_access_denied_is_exit_2(server, capsys, rule, message):
    server.put("no/photos/a.jpg", jpeg(0))
    server.rule = lambda request: "AccessDenied" if rule(request) else None
    command = ["score", server.uri("no/photos"), "--workspace", server.uri("no/ws")]
    code, line = call(capsys, *command)
    assert code == 2
    assert line.startswith("iqa-ray: error: ")
    assert message in line
    assert "ACCESS_DENIED" in line
    assert len(server.faults) == 1


def test_a_bucket_that_is_not_there(server, capsys):
    missing = server.uri("photos").replace("bucket", "nosuchbucket")
    code, line = call(capsys, "score", missing, "--workspace", server.uri("no/ws"))
    assert code == 2
    assert "nosuchbucket/photos" in line
    server.put("no/photos/a.jpg", jpeg(0))
    code, line = call(capsys, "score", server.uri("no/photos"), "--workspace", missing)
    assert code == 2
    assert "cannot write there" in line
    assert "NO_SUCH_BUCKET" in line


@pytest.mark.slow
def test_a_store_that_is_down(tmp_path, capsys):
    """13 s, with the true number of tries; for the images, then for the workspace."""
    code, line = call(capsys, "score", NOWHERE, "--workspace", str(tmp_path))
    assert code == 2
    assert "cannot reach s3://bucket/photos" in line
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    code, line = call(capsys, "score", str(tmp_path), "--workspace", NOWHERE)
    assert code == 2
    assert "cannot write there" in line


def test_a_store_that_goes_down_later_is_exit_1(server, capsys, impatient):
    """Between the writing of the workspace's first tables and the reading of its scores."""
    server.put("down/photos/a.jpg", jpeg(0))
    place = server.uri("down") + "&region=eu-north-1"
    server.rule = lambda request: "SlowDown" if "prefix=down%2Fws" in request.query else None
    command = ["score", place.replace("/down", "/down/photos")]
    code, line = call(capsys, *command, "--workspace", place.replace("/down", "/down/ws"))
    assert code == 1
    assert line.startswith("iqa-ray: incomplete: s3://bucket/down/ws/")
    assert "SLOW_DOWN" in line
    assert line.endswith("run the same command again to go on")


# --- nights -----------------------------------------------------------------------------------


def test_a_night_in_the_store(server, photos, undisturbed, capsys):
    """New, changed and deleted images, with one request in ten failing; nobody else meanwhile."""
    images, workspace = server.put_folder(photos, "night/photos"), server.uri("night/ws")
    score(images, workspace)
    server.put("night/photos/a/new.jpg", jpeg(77))
    server.put("night/photos/a/04.jpg", jpeg(99))
    server.delete("night/photos/b/01.jpg")
    command = ["rescore", images, "--workspace", workspace]
    with hold_lock(Workspace(workspace).location):
        code, line = call(capsys, *command)
        assert code == 1
        assert f"is being written by process {os.getpid()} on" in line
        assert server.keys("night/ws/rescore.lock/")
    assert not server.keys("night/ws/rescore.lock/")
    server.rule = fail_one_in_ten
    summary = run_rescore(make_job(RescoreJob, {"images": images, "workspace": workspace}))
    assert len(server.faults) >= 10
    server.mend()
    names = ("new", "changed", "moved", "deleted", "unchanged", "scored", "reused")
    assert [summary[f"num_{name}"] for name in names] == [1, 1, 0, 1, 10, 3, 9]
    assert not server.keys("night/ws/rescore.lock/")
    table = list_images(images).table
    computed = [metrics.create(name) for name in METRICS]
    fresh = score_shard(table, computed, ImageSource(locate(images), 10**8)).tables
    for name in METRICS:
        found = read_scores(Workspace(workspace), name).sort_by("path")
        listed = found.filter(pc.is_in(found["image_id"], table["image_id"].combine_chunks()))
        assert listed.equals(fresh[name].sort_by("path"))


def test_one_of_many_gets_the_lock(server):
    workspace = Workspace(server.uri("lock/many"))
    barrier, end = threading.Barrier(6), threading.Event()
    held, refused = [], []

    def run():
        barrier.wait()
        try:
            with hold_lock(workspace.location):
                held.append(1)
                end.wait(GUARD_S)
        except IncompleteError:
            refused.append(1)

    server.rule = lambda request: "SlowDown" if request.number % 3 == 1 else None
    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    deadline_s = time.monotonic() + GUARD_S
    while len(held) + len(refused) < 6 and time.monotonic() < deadline_s:
        time.sleep(0.05)
    end.set()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)
    assert not server.keys("lock/many/rescore.lock/")


def test_a_slow_request_does_not_win_a_lock_that_is_held(server, monkeypatch):
    """Another run takes the lock between this one's look at it and its own writing."""
    workspace = Workspace(server.uri("lock/slow"))

    def write_late(file, data):
        monkeypatch.setattr(lock, "write_bytes", write_bytes)
        holder.__enter__()
        write_bytes(file, data)

    holder = hold_lock(workspace.location)
    monkeypatch.setattr(lock, "_STANDOFF_S", 0.5)
    monkeypatch.setattr(lock, "write_bytes", write_late)
    with pytest.raises(IncompleteError, match="is being written by"), hold_lock(workspace.location):
        pytest.fail("two hold it")
    assert len(server.keys("lock/slow/rescore.lock/")) == 1
    holder.__exit__(None, None, None)
    with hold_lock(workspace.location):
        pass


def test_a_stale_lock_in_the_store_is_taken_over(server, capsys):
    workspace = Workspace(server.uri("lock/stale"))
    gone = {"token": "t", "host": "elsewhere", "pid": 1, "started": "2026-01-01T00:00:00+00:00"}
    server.put("lock/stale/rescore.lock/t.json", json.dumps(gone).encode())
    with hold_lock(workspace.location):
        assert len(server.keys("lock/stale/rescore.lock/")) == 1
    assert "took over the lock of process 1 on elsewhere" in capsys.readouterr().err


def test_a_lock_in_the_store_is_renewed(server, monkeypatch):
    monkeypatch.setattr(lock, "_RENEW_EVERY_S", 0.3)
    folder = Workspace(server.uri("lock/renewed")).location
    with hold_lock(folder):
        (file,) = list_files(folder / lock.LOCK_FILE)
        deadline_s = time.monotonic() + GUARD_S
        while not json.loads(read_whole(file))["renewed"] and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert json.loads(read_whole(file))["renewed"]
        (again,) = list_files(folder / lock.LOCK_FILE)
        assert again == file
    assert not server.keys("lock/renewed/rescore.lock/")
