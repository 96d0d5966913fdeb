"""No secret of a URI comes to any stream, table or file, whichever command and setting has it."""

from __future__ import annotations

import typing
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from pydantic import ValidationError

import iqa_ray
from iqa_ray import cli
from iqa_ray.config import make_job, refuse_credentials
from iqa_ray.errors import UsageError
from iqa_ray.images.listing import list_images, read_manifest
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.storage.files import locate
from iqa_ray.storage.workspace import Workspace
from iqa_ray.weights.files import read_lock

KEY, SECRET = "AKIAHIDDEN", "hush0hush"
WITH_CREDENTIALS = [
    f"s3://{KEY}:{SECRET}@bucket/ws",
    f"S3://{KEY}:9/{SECRET}@bucket",
    f"s3://{SECRET}@bucket/ws",
    f"s3://{KEY}:9/{SECRET}@bucket/ws",  # a secret may hold slashes
    f"s3://{KEY}:{SECRET}/x@bucket/ws",
    f"s3://{KEY}%3A{SECRET}%40bucket/ws",
    f"s3://{KEY}%253A{SECRET}%2540bucket/ws",
    f"s3:/{KEY}:{SECRET}@bucket/ws",
    f"gs://{KEY}:{SECRET}@bucket/ws?scheme=http",
    f"abfs://{KEY}:{SECRET}@account/ws",
    f"file://{KEY}:{SECRET}@host/ws",
    f"ray://{KEY}:{SECRET}@host:10001",
    f"s3://bucket/ws?endpoint_override={KEY}:{SECRET}@minio:9000",
    f"s3://bucket/ws?scheme=http&endpoint_override=http://{KEY}:{SECRET}@minio:9000",
    f"s3://bucket/ws?endpoint_override={KEY}%3A{SECRET}%40minio%3A9000",
    f"s3://bucket/ws?endpoint_override={KEY}%253A{SECRET}%2540minio",
    f"s3://bucket/ws?endpoint_override%3D{KEY}%3A{SECRET}%40minio",
    f"s3://bucket/ws?{KEY}:{SECRET}@minio",
    f"s3://bucket/ws?access_key={KEY}&secret_key={SECRET}",
    f"s3://bucket/ws?SessionToken={SECRET}",
    f"s3://bucket/ws?password={SECRET}",
    f"https://host/x.jpg?X-Amz-Credential={KEY}",
    f"https://host/x.jpg?sig={SECRET}",
]
WITHOUT = [
    "", "photos", "/data/me@home/a:b", "C:/data", "data/x?sig=1", "me@example.com", "lapm=0.2",
    "s3://bucket/me@home/a:b", "s3://bucket", "file:///me@home/a:b", "hdfs://name:8020/a",
    "ray://10.0.0.1:10001", "ray://[::1]:10001", "auto", "10.0.0.1:6379",
    "s3://bucket/x?endpoint_override=minio%3A9000&scheme=http",
    "s3://bucket/x?endpoint_override=minio:9000&region=us-east-1",
    "s3://bucket/x?tls_ca_file_path=/home/me@home/ca.pem",
    "gs://bucket/x?retry_limit_seconds=60",
]  # fmt: skip
A_URI = WITH_CREDENTIALS[0]


def find_settings() -> list[tuple[str, str]]:
    """Every setting of every command that may be given a text, alone or among others."""
    found = []
    for name, command in cli.COMMANDS.items():
        for setting, field in command.load_job().model_fields.items():
            if "str" in str(field.annotation) or typing.get_origin(field.annotation) is dict:
                found.append((name, setting))
    return found


SETTINGS = find_settings()


@pytest.fixture
def nothing_shown(capfd, tmp_path, monkeypatch) -> typing.Iterator[None]:
    """In an empty folder; afterwards no stream and no file anywhere in it holds the secret."""
    monkeypatch.chdir(tmp_path)
    yield
    shown = "".join(capfd.readouterr())
    for path in tmp_path.rglob("*"):
        shown += str(path)
        if path.is_file() and path.name not in GIVEN:
            shown += path.read_bytes().decode("latin-1")
    assert KEY not in shown
    assert SECRET not in shown
    assert "credentials in a URI would be written into tables" in shown
    assert "Traceback" not in shown


GIVEN = {"given.yaml", "given.csv", "given.parquet"}
pytestmark = pytest.mark.usefixtures("ray_is_not_started")


@pytest.fixture
def ray_is_not_started(monkeypatch):
    monkeypatch.setattr(
        "iqa_ray.cluster.connection.ray.init", lambda **_: pytest.fail("Ray was started")
    )


def test_the_settings_that_name_places_are_among_those_tested():
    for setting in (
        ("score", "images"), ("score", "workspace"), ("score", "weights"), ("study", "series"),
        ("predict", "predictions"), ("predict", "train_images"), ("compare", "test_on"),
        ("compare", "log_dir"), ("select", "link"), ("weights", "to"), ("weights", "from_"),
        ("make-data", "out"), ("compact", "ws"), ("rescore", "address"), ("demo", "workspace"),
    ):  # fmt: skip
        assert setting in SETTINGS


@pytest.mark.parametrize("uri", WITH_CREDENTIALS)
def test_uris_with_credentials_are_refused(uri):
    for value in (uri, ["x", uri], {"a": {"b": (uri,)}}, {uri: 1}, f"look at {uri} please"):
        with pytest.raises(UsageError, match="^here: credentials in a URI") as caught:
            refuse_credentials(value, "here: ")
        assert KEY not in str(caught.value)
        assert SECRET not in str(caught.value)
    with pytest.raises(UsageError, match="^credentials in a URI"):
        refuse_credentials(uri)


@pytest.mark.parametrize("uri", WITHOUT)
def test_uris_without_credentials_are_taken(uri):
    refuse_credentials([uri, {"a": uri}, None, 1.5])


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
@pytest.mark.usefixtures("nothing_shown")
def test_no_setting_of_a_command_shows_a_secret(name, setting):
    flag = f"--{setting.rstrip('_').replace('_', '-')}"
    for argv in (
        [f"{flag}={A_URI}"], [flag, A_URI], [A_URI], ["x", A_URI], ["--nonsense", A_URI],
        ["--workspace", "ws", f"{flag}={A_URI}"], ["photos", "--workspace", "ws", flag, A_URI],
        ["--config", A_URI],
    ):  # fmt: skip
        assert cli.main([name, *argv]) == 2
    assert cli.main([A_URI]) == 2
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
@pytest.mark.usefixtures("nothing_shown")
def test_no_setting_in_a_file_shows_a_secret(name, setting):
    command = cli.COMMANDS[name]
    escaped = A_URI.replace(":", "\\x3A").replace("@", "\\x40")
    for value in (f'"{escaped}"', f'["{escaped}", 1]', f'{{x: "{escaped}"}}'):
        Path("given.yaml").write_text(f"workspace: ws\n{setting}: {value}\n")
        assert cli.main([name, "--config", "given.yaml"]) == 2
    assert [path.name for path in Path().iterdir()] == ["given.yaml"]
    with pytest.raises(ValidationError) as caught:
        command.load_job()(**{setting: A_URI})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text", [f"{A_URI}: 1", f"a: [{A_URI}", f"images: {A_URI}: x", f"a: &x\n{A_URI}\n{A_URI}: %"]
)
def test_a_file_that_is_not_understood_shows_no_secret(capfd, tmp_path, text):
    file = tmp_path / "given.yaml"
    file.write_text(text)
    assert cli.main(["score", "--config", str(file)]) == 2
    shown = "".join(capfd.readouterr())
    assert shown.startswith("iqa-ray: error: ")
    assert SECRET not in shown


@pytest.mark.usefixtures("nothing_shown")
def test_the_python_interface_shows_no_secret(capfd):
    for settings in (
        {"images": A_URI, "workspace": "ws"},
        {"images": "photos", "workspace": A_URI},
        {"images": "photos", "workspace": "ws", "weights": A_URI},
    ):
        with pytest.raises(UsageError) as caught:
            iqa_ray.score(settings.pop("images"), **settings)
        print(caught.getrepr(style="short", chain=True).reprcrash.message)
    for call in (locate, Workspace, list_images):
        with pytest.raises(UsageError) as caught:
            call(A_URI)
        print(caught.value)


@pytest.mark.usefixtures("nothing_shown")
def test_no_path_of_a_manifest_shows_a_secret(image_folder):
    image_folder(3)
    paths = ["photos/a/000.jpg", "photos/b/001.jpg", A_URI]
    Path("given.csv").write_text("path,predicted\n" + "".join(f"{path},a\n" for path in paths))
    pq.write_table(pa.table({"path": paths}), "given.parquet")
    for manifest in ("given.csv", "given.parquet"):
        assert cli.main(["score", manifest, "--workspace", "ws"]) == 2
        assert cli.main(["study", "--series", manifest, "--workspace", "ws"]) == 2
        with pytest.raises(UsageError, match=f"{manifest}: credentials in a URI") as caught:
            read_manifest(locate(manifest), ["path"])
        print(caught.value)


@pytest.mark.parametrize("name", ["score", "study"])
@pytest.mark.usefixtures("nothing_shown")
def test_no_weights_folder_of_the_environment_shows_a_secret(monkeypatch, image_folder, name):
    monkeypatch.setenv("IQA_RAY_WEIGHTS", A_URI)
    image_folder(3)
    assert cli.main([name, "photos", "--workspace", "ws", "--metrics", "lapm"]) == 2
    assert not Path("ws").exists()


@pytest.mark.usefixtures("nothing_shown")
def test_no_endpoint_of_the_environment_shows_a_secret(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{KEY}:{SECRET}@localhost:1")
    assert cli.main(["select", "--workspace", "s3://environment/ws"]) == 2
    assert cli.main(["score", "s3://environment/ws", "--workspace", "ws"]) == 2


def test_what_is_wrong_with_a_store_is_not_taken_for_a_damaged_file():
    uri = "s3://bucket/options?nonsense=1"
    with pytest.raises(UsageError, match="^s3://bucket: unknown option 'nonsense'"):
        Workspace(uri).read_json("cutoffs.json", "cutoffs")
    with pytest.raises(UsageError, match="^s3://bucket: unknown option 'nonsense'"):
        read_lock(locate(uri))


def test_a_job_without_credentials_is_made():
    job = make_job(ScoreJob, {"images": "s3://bucket/me@home", "workspace": "ws"})
    assert job.images == "s3://bucket/me@home"
