"""Many runs side by side on Ray Train, and what becomes of them when workers die."""

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
import pytest
import ray
import torch
from trainings import make_material, make_runs, without_times

from iqa_ray.cluster.capacity import Resources
from iqa_ray.errors import IncompleteError
from iqa_ray.storage.files import locate
from iqa_ray.training import parallel, sharing
from iqa_ray.training.inputs import ChunkedImages
from iqa_ray.training.parallel import plan_parallel_runs, train_runs
from iqa_ray.training.pixels import load_pixels
from iqa_ray.training.recipe import Recipe
from iqa_ray.training.runs import Run, RunFiles, train_run
from iqa_ray.training.sharing import Shared

pytestmark = pytest.mark.usefixtures("ray_session")
HALF = Resources(0.5)


def find_workers() -> list[int]:
    """Processes of Ray Train's workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::") and b"RayTrainWorker" in title:
                found.append(int(entry.name))
    return found


@pytest.fixture
def material(image_folder):
    return make_material(image_folder(30))


def read_results(runs, folder):
    files = RunFiles(locate(folder))
    return {run.key: without_times(files.read_result(run) or {"history": []}) for run in runs}


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(material, tmp_path, capsys):
    runs = make_runs()
    events = []
    assert train_runs(runs, material, locate(tmp_path / "a"), (HALF, 2), events.append) == []
    expected = read_results(runs, tmp_path / "a")
    assert all(result["status"] == "ok" for result in expected.values())
    assert events[0] == {"decoded": 30, "of": 30}
    assert {event["finished"] for event in events if "finished" in event} == set(expected)
    assert sum("epoch" in event for event in events) == 12

    killed, epochs = [], []

    def kill_one(event):
        if "epoch" in event:
            epochs.append((event["key"], event["epoch"]["epoch"]))
            if event["epoch"]["epoch"] == 2 and not killed:
                killed.extend(find_workers()[:1])
                os.kill(killed[0], signal.SIGKILL)

    assert train_runs(runs, material, locate(tmp_path / "b"), (HALF, 2), kill_one) == []
    assert killed
    assert read_results(runs, tmp_path / "b") == expected
    assert "a worker was lost, another group is started" in capsys.readouterr().err
    # Of each run in flight at most one epoch is done again: whose checkpoint was not written yet.
    # A run that has its result is not, though its worker was lost before it said so.
    assert len(epochs) <= 12 + 2
    # what the dead wrote half stays for a day: it might be another process's, which is at it now
    assert not list((tmp_path / "b" / "checkpoints").glob("*.pt"))


@pytest.mark.slow
def test_a_run_that_kills_its_worker_is_given_up(material, tmp_path):
    runs = make_runs()
    deadly = runs[1].key

    def kill(event):
        if event.get("started") == deadly:
            for worker in find_workers():
                os.kill(worker, signal.SIGKILL)

    (failure,) = train_runs(runs, material, locate(tmp_path), (HALF, 1), kill)
    assert failure.run.key == deadly
    assert "died on each of 3 tries" in failure.reason
    results = read_results(runs, tmp_path)
    assert {key for key, result in results.items() if "status" in result} == {
        run.key for run in runs if run.key != deadly
    }


@pytest.mark.slow
def test_a_run_that_raises_costs_only_itself(material, tmp_path):
    runs = make_runs(2, freeze_backbone=True)
    bad = Run(
        "bad",
        "high",
        Recipe("resnet18", "none", lr=-1.0, freeze_backbone=True),
        *([np.arange(10)] * 3),
    )
    (failure,) = train_runs([bad, *runs], material, locate(tmp_path), (HALF, 1), lambda event: None)
    assert failure.run is bad
    assert "Invalid learning rate" in failure.reason
    assert all(result["status"] == "ok" for result in read_results(runs, tmp_path).values())


@pytest.mark.slow
def test_an_error_of_the_driver_s_callback_ends_the_group_at_once(material, tmp_path):
    def fail(event):
        if "epoch" in event:
            raise OSError(28, "No space left on device")

    start_s = time.monotonic()
    with pytest.raises(OSError, match="No space left"):
        train_runs(make_runs(epochs=100_000), material, locate(tmp_path), (HALF, 2), fail)
    assert time.monotonic() - start_s < 120
    assert not find_workers()
    assert not list((tmp_path / "groups").iterdir())


@pytest.mark.slow
def test_a_lost_node_changes_nothing(image_folder, tmp_path):
    images, runs, out = image_folder(30), make_runs(), tmp_path / "out"
    material = make_material(images)
    pixels, _ = load_pixels(material.source, material.paths, 32, 1)
    targets = torch.tensor(material.targets)
    files = RunFiles(locate(tmp_path / "alone"))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for run in runs:
        train_run(run, ChunkedImages([pixels]), targets, 2, None, files, lambda row: None)
    torch.set_num_threads(num_threads)

    script = Path(__file__).parents[1] / "helpers" / "lose_node.py"
    done = subprocess.run(
        [sys.executable, script, images, out],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads((out / "said.json").read_text())
    assert len(said["lost"]) == 1
    assert said["failures"] == []
    assert "a worker was lost, another group is started" in done.stderr
    assert read_results(runs, out) == read_results(runs, tmp_path / "alone")
    # two runs were in flight: at most an epoch of each is done again, as above
    assert sum("key" in event for event in said["events"]) <= 12 + 2
    assert not list((out / "checkpoints").glob("*.pt"))


@pytest.mark.parametrize("freeze_backbone", [False, True])
def test_images_that_are_gone_or_have_changed_end_the_training(
    material, tmp_path, monkeypatch, freeze_backbone
):
    """In whichever chunk they are; nothing is kept under the keys of what was scored."""
    monkeypatch.setattr(sharing, "CHUNK_SIZE", 8)
    runs, out = make_runs(2, freeze_backbone=freeze_backbone), tmp_path / "out"
    shutil.copy(material.paths[2], material.paths[20])
    commands = "run `iqa-ray score`, `iqa-ray select` and this command again"
    changed = f"1 images are no longer .* '{material.paths[20]}', which has changed.*{commands}"
    with pytest.raises(IncompleteError, match=changed):
        train_runs(runs, material, locate(out), (HALF, 1), lambda event: None)
    os.remove(material.paths[3])
    gone = f"2 images are no longer .* '{material.paths[3]}', which cannot be read any more"
    with pytest.raises(IncompleteError, match=gone):
        train_runs(runs, material, locate(out), (HALF, 1), lambda event: None)
    assert not out.exists()


def test_images_that_ray_has_read_again_are_checked_by_those_that_use_them(material):
    """As when the node that held them was lost after the driver had looked."""
    pixels, hashes = load_pixels(material.source, material.paths, 32, 1)
    chunks = {"a node": [[ray.put(pixels), ray.put(hashes)]]}
    images = Shared(material, {}, chunks, {}).open_images()
    assert torch.equal(images[torch.tensor([7])][0], torch.tensor(pixels[7]).permute(2, 0, 1))
    hashes[7] = hashes[8]
    chunks = {"a node": [[ray.put(pixels), ray.put(hashes)]]}
    with pytest.raises(IncompleteError, match="1 images are no longer what was scored"):
        Shared(material, {}, chunks, {}).open_images()


# --- room -------------------------------------------------------------------------------------


def test_room_is_what_the_nodes_have():
    assert plan_parallel_runs(None, 1.0) == (Resources(1.0, 0.0), 2)
    assert plan_parallel_runs(None, 0.4)[1] == 5
    with pytest.raises(IncompleteError, match="needs 64 CPUs and 0 GPUs, and no node has them"):
        plan_parallel_runs(None, 64.0)
    with pytest.raises(IncompleteError, match="needs 1 CPUs and 0.2 GPUs, and no node"):
        plan_parallel_runs(0.2, 1.0)


@pytest.mark.parametrize(
    ("free", "room"), [([2.0], 4), ([2.0, 2.0], 8), ([0.6, 0.6], 2), ([0.3, 0.3], 0)]
)
def test_fractions_of_gpus_stay_on_a_card(monkeypatch, free, room):
    """Five runs with 0.4 each would never start on two cards, though their sum is two."""
    nodes = [{"CPU": 8.0, "GPU": 2.0} for _ in free]
    monkeypatch.setattr(parallel, "list_nodes", lambda: nodes)
    monkeypatch.setattr(
        parallel, "list_free_nodes", lambda: [{"CPU": 8.0, "GPU": gpus} for gpus in free]
    )
    monkeypatch.setattr(parallel, "_SETTLE_S", 0.0)
    if not room:
        with pytest.raises(IncompleteError, match="others use all of the cluster now"):
            plan_parallel_runs(0.4, 1.0)
        return
    resources, number = plan_parallel_runs(0.4, 1.0)
    assert number == room
    assert 0.4 < resources.num_gpus <= 0.5  # see `raise_share`


def test_room_that_others_use():
    @ray.remote(num_cpus=2)
    class Busy:
        def wait(self):
            return True

    busy = Busy.remote()
    ray.get(busy.wait.remote())
    try:
        with pytest.raises(IncompleteError, match="others use all of the cluster now"):
            plan_parallel_runs(None, 1.0)
    finally:
        ray.kill(busy)
