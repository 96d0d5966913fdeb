"""`ray job submit` as the README has it, on a cluster of two nodes that asks for a token."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from clusters import find_free_port, read_samples
from pictures import make_texture
from PIL import Image

from iqa_ray import cli
from iqa_ray.images.listing import list_images
from iqa_ray.images.source import ImageSource
from iqa_ray.metrics import Metric, get_spec
from iqa_ray.scoring import cpu_scorer
from iqa_ray.scoring.tables import scores_frame
from iqa_ray.storage.workspace import Workspace

ROOT = Path(__file__).parents[2]
METRICS = ("lapm", "wavs")
PATIENCE_S = 120.0
# names where the package comes from, and runs every job as far as its help
LOOK = """
import pathlib, runpy, sys
import iqa_ray
print("package", iqa_ray.__file__)
for job in sorted(pathlib.Path("jobs").glob("*.py")):
    sys.argv = [str(job), "--help"]
    try:
        runpy.run_path(str(job), run_name="__main__")
    except SystemExit as stop:
        print("job", job.name, stop.code)
"""


# --- what is uploaded -----------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone in which somebody works: with an environment, a workspace and images."""
    folder = tmp_path / "clone"
    for name in ("iqa_ray", "jobs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in (".rayignore", ".gitignore", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    for name in (".venv/lib/torch.so", ".git/objects/pack", "demo-workspace/data/north/1.jpg",
                 "ws/images.parquet", "codes/north/1.jpg", "weights/musiq.pth"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"large")
    (folder / "settings.yaml").write_text("metrics: [lapm, wavs]\n")
    return folder


def test_the_upload_is_the_package_and_the_jobs(clone, tmp_path):
    """Neither the environment nor images and workspaces that lie in the folder."""
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    packaging.create_package(
        str(clone), tmp_path / "package.zip", include_gitignore=True,
        excludes=ray_constants.get_runtime_env_default_excludes(),
    )  # fmt: skip
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        names = {entry.filename for entry in package.infolist() if not entry.is_dir()}
        size = sum(entry.file_size for entry in package.infolist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {
        "iqa_ray", "jobs", ".rayignore", ".gitignore", "pyproject.toml", "README.md",
        "settings.yaml",
    }  # fmt: skip
    here = {str(path.relative_to(clone)) for path in clone.glob("iqa_ray/**/*") if path.is_file()}
    assert {name for name in names if name.startswith("iqa_ray/")} == here
    assert size < 10e6


def test_every_job_file_runs_its_command(monkeypatch):
    """With the arguments as they are, and the command's exit code."""
    called = []
    monkeypatch.setattr(cli, "main", lambda argv: called.append(argv) or len(called) % 4)
    commands = set()
    for job in sorted((ROOT / "jobs").glob("*.py")):
        monkeypatch.setattr(sys, "argv", [str(job), "a b", "--json"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(job), run_name="__main__")
        assert stop.value.code == len(called) % 4
        command, *rest = called[-1]
        assert rest == ["a b", "--json"]
        assert job.stem.startswith(command.replace("-", "_"))
        commands.add(command)
    assert commands == {name.split()[0] for name in cli.COMMANDS}


# --- a running cluster ----------------------------------------------------------------------------


@dataclass(frozen=True)
class RunningCluster:
    """Where a cluster answers, and what a process needs to talk to it."""

    gcs: str
    client: str
    dashboard: str
    metrics_ports: list[int]
    env: dict[str, str]

    def submit(self, folder: Path, *entry: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- …` in `folder`."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
        command += ["--address", self.dashboard, "--working-dir", ".", "--", *entry]
        return subprocess.run(
            command, cwd=folder, env={**self.env, **env},
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip

    def ask(self, path: str) -> Any:
        """What the dashboard says at `path`."""
        headers = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(self.dashboard + path, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def count_nodes(self) -> int:
        """How many are up; none as long as the dashboard does not answer."""
        with contextlib.suppress(OSError, KeyError):
            nodes = self.ask("/api/v0/nodes")["data"]["result"]["result"]
            return sum(node["state"] == "ALIVE" for node in nodes)
        return 0


def wait_for(is_so: Callable[[], bool], log: Path | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, log and log.read_text()
        time.sleep(0.5)


def start_node(*arguments: str, env: dict[str, str], log: Path) -> tuple[subprocess.Popen, int]:
    """A node of one CPU in a session of its own; returns it, and the port of its metrics."""
    metrics_port = find_free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments]
    command += ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=100000000"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    command += [f"--metrics-export-port={metrics_port}"]
    command += [f"--dashboard-agent-listen-port={find_free_port()}"]
    command += [f"--dashboard-agent-grpc-port={find_free_port()}"]
    with log.open("w") as output:
        node = subprocess.Popen(
            command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    return node, metrics_port


def end_node(node: subprocess.Popen) -> None:
    """End it and its own processes, and nobody else's."""
    node.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        node.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)
    node.wait(30)


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[RunningCluster]:
    """A head and a worker on this machine, with the dashboard and a token."""
    token = secrets.token_hex(32)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    env["PYTHONPATH"] = str(ROOT)  # as if installed on every node
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    gcs, client, dashboard = (find_free_port() for _ in range(3))
    folder = tempfile.mkdtemp(prefix="ray-")  # a socket's path must be short
    logs = tmp_path_factory.mktemp("logs")
    nodes: list[tuple[subprocess.Popen, int]] = []
    try:
        arguments = ["--head", f"--port={gcs}", f"--ray-client-server-port={client}"]
        arguments += ["--include-dashboard=true", f"--dashboard-port={dashboard}"]
        arguments += [f"--temp-dir={folder}"]
        nodes.append(start_node(*arguments, env=env, log=logs / "head.log"))
        cluster = RunningCluster(
            f"127.0.0.1:{gcs}", f"ray://127.0.0.1:{client}", f"http://127.0.0.1:{dashboard}",
            [], env,
        )  # fmt: skip
        wait_for(lambda: cluster.count_nodes() == 1, logs / "head.log")
        worker = start_node(f"--address={cluster.gcs}", env=env, log=logs / "worker.log")
        nodes.append(worker)
        wait_for(lambda: cluster.count_nodes() == 2, logs / "worker.log")
        cluster.metrics_ports.extend(port for _, port in nodes)
        yield cluster
    finally:
        for node, _ in reversed(nodes):
            end_node(node)
        shutil.rmtree(folder, ignore_errors=True)


def read_summary(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    return dict(json.loads(lines[-1]))


def check_scores(photos: Path, ws: Path) -> None:
    """Every listed image has the scores that it gets in this process."""
    listing = list_images(str(photos))
    computed = [Metric(get_spec(name)) for name in METRICS]
    source = ImageSource(listing.root, 10**8)
    tables = cpu_scorer.score_shard(listing.table, computed, source).tables
    found = scores_frame(Workspace(str(ws)), METRICS).set_index("image_id").sort_index()
    for name in METRICS:
        expected = tables[name].to_pandas().set_index("image_id").sort_index()["score"]
        pd.testing.assert_series_equal(found[name], expected, check_names=False, check_exact=True)


def list_nodes_of_actors(running: RunningCluster) -> set[str]:
    actors = running.ask("/api/v0/actors?limit=1000&detail=1")["data"]["result"]["result"]
    return {actor["node_id"] for actor in actors if actor["class_name"] == "_Worker"}


def count_scored(running: RunningCluster) -> float:
    """By actors with the uploaded package, on all nodes: each serves what its own counted."""
    samples = [read_samples(port) for port in running.metrics_ports]
    return sum(entry.get("uploaded_total{lapm}", 0) for entry in samples)


@pytest.mark.slow
def test_scoring_and_rescoring_are_submitted(running, clone, image_folder, tmp_path):
    photos, ws = image_folder(12), tmp_path / "tables"
    place = [str(photos), "--workspace", str(ws), "--json"]
    for env, reason in (
        ({"RAY_AUTH_TOKEN": "0" * 64}, "Forbidden: Invalid authentication token"),
        ({"RAY_AUTH_MODE": "disabled"}, "Unauthorized: Missing authentication token"),
    ):
        refused = running.submit(clone, "python", "jobs/score.py", *place, **env)
        assert refused.returncode != 0
        assert reason in refused.stderr
        assert not ws.exists()
    # for the actors to show whose code they run
    telemetry = clone / "iqa_ray" / "scoring" / "telemetry.py"
    telemetry.write_text(telemetry.read_text().replace("iqa_ray_images_scored", "iqa_ray_uploaded"))

    (clone / "look.py").write_text(LOOK)
    looked = running.submit(clone, "python", "look.py")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "working_dir_files" in looked.stdout.split("package ", 1)[1].splitlines()[0]
    for job in (ROOT / "jobs").glob("*.py"):
        assert f"job {job.name} 0" in looked.stdout

    settings = ["--config", "settings.yaml", "--num-actors", "2", "--shard-size", "2"]
    scored = read_summary(running.submit(clone, "python", "jobs/score.py", *place, *settings))
    assert (scored["num_scored"], scored["num_failed"]) == (12, 0)
    check_scores(photos, ws)
    assert len(list_nodes_of_actors(running)) == 2

    (photos / "a" / "000.jpg").unlink()
    (photos / "b" / "001.jpg").rename(photos / "b" / "moved.jpg")
    Image.fromarray(make_texture(99)).save(photos / "a" / "new.jpg")
    night = read_summary(running.submit(clone, "python", "jobs/rescore.py", *place))
    names = ("new", "moved", "deleted", "unchanged", "scored")
    assert [night[f"num_{name}"] for name in names] == [1, 1, 1, 10, 1]
    check_scores(photos, ws)
    assert pd.read_parquet(ws / "history" / "runs.parquet")["status"].tolist() == ["ok"]

    wait_for(lambda: count_scored(running) == 13)

    wrong = running.submit(clone, "python", "jobs/score.py", "nowhere", "--workspace", str(ws))
    assert wrong.returncode == 1
    assert "failed with exit code 2" in wrong.stdout + wrong.stderr
    assert "nowhere does not exist" in wrong.stdout + wrong.stderr


@pytest.mark.slow
def test_commands_join_a_running_cluster(running, image_folder, tmp_path):
    """On a node of it by its address, and from elsewhere by Ray Client's."""
    photos = image_folder(4)
    for number, address in enumerate((running.gcs, running.client)):
        ws = tmp_path / f"tables-{number}"
        command = [sys.executable, "-m", "iqa_ray.cli", "score", str(photos), "--json"]
        command += ["--workspace", str(ws), "--metrics", "lapm,wavs", "--address", address]
        result = subprocess.run(
            command, env=running.env, capture_output=True, text=True, timeout=PATIENCE_S,
            check=False,
        )  # fmt: skip
        assert read_summary(result)["num_scored"] == 4
        check_scores(photos, ws)
