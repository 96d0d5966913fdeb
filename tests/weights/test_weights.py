"""Weights folders: pulled from a server on this machine, checked, damaged, copied."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deep import answer, copy_in_a_process, serve
from pictures import make_texture

from iqa_ray import metrics
from iqa_ray.errors import UsageError
from iqa_ray.storage.files import locate
from iqa_ray.weights import fetching, files, metric_files, pulling, pyiqa_builder

pytest.importorskip("pyiqa")
torch = pytest.importorskip("torch")

MUSIQ = "musiq_koniq_ckpt-e95806b9.pth"
CNNIQA = "CNNIQA_koniq10k-e6f14c91.pth"
VIT = "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k/model.safetensors"
NOWHERE = "http://127.0.0.1:9"  # nothing listens there


# the command, which says when it connects to something, sleeps, or starts a process
WATCHED = """
import sys, time

def say(event, arguments):
    if event in ("socket.connect", "subprocess.Popen", "sleep"):
        print("did", event, *arguments[:2], file=sys.stderr)

sys.addaudithook(say)
time.sleep = lambda seconds: say("sleep", [seconds])
from iqa_ray.cli import main
sys.exit(main())
"""


def run(*arguments, hub=NOWHERE, command=("-m", "iqa_ray.cli"), **environment):
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_ENDPOINT": hub, **environment},
    )


def measure_children_cpu_s() -> float:
    """Of child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.fixture
def small(weights_folder, tmp_path) -> Path:
    """A folder with the file of cnniqa alone, without a lock."""
    folder = tmp_path / "small"
    folder.mkdir()
    shutil.copy(weights_folder / CNNIQA, folder)
    return folder


@pytest.fixture
def locked(small) -> Path:
    """The same with a lock."""
    entry = files.describe_file(locate(small), f"https://host/{CNNIQA}")
    lock = files.Lock(metric_files.find_pyiqa_version(), {"cnniqa": [CNNIQA]}, {CNNIQA: entry})
    files.write_lock(locate(small), lock)
    return small


# --- which files ------------------------------------------------------------------------------


def test_names():
    hub = "https://huggingface.co"
    assert (
        files.name_file(f"{hub}/chaofengc/IQA-PyTorch-Weights/resolve/main/a%2Bb.pth") == "a+b.pth"
    )
    vit = "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"
    assert files.name_file(f"{hub}/{vit}/resolve/main/model.safetensors") == (
        f"{vit}/model.safetensors"
    )
    assert files.name_file("https://mirror/x/clip/models/0123/RN50.pt?a=b") == "RN50.pt"


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("musiq", [MUSIQ]),
        (
            "maniqa",
            [
                VIT,
                "ckpt_koniq10k.pt",
            ],
        ),
        (
            "hyperiqa",
            ["timm/resnet50.a1_in1k/model.safetensors", "HyperIQA-resnet50-koniq10k-c96c41b1.pth"],
        ),
        ("dbcnn", ["vgg16-397923af.pth", "DBCNN_scnn-7ea73d75.pth", "DBCNN_KonIQ10k-2de81c0a.pth"]),
        ("piqe", []),
    ],
)
def test_files_are_found_out_without_any(metric, expected):
    urls, is_complete = pyiqa_builder.trace_files(metric)
    assert [files.name_file(url) for url in urls] == expected
    assert is_complete


def test_tracing_leaves_the_libraries_as_they_were():
    from huggingface_hub import constants
    from pyiqa.utils import download_util

    before = (torch.load, torch.hub.get_dir(), download_util.DEFAULT_CACHE_DIR)
    offline = constants.HF_HUB_OFFLINE
    urls, is_complete = pyiqa_builder.trace_files("clipiqa")
    assert [files.name_file(url) for url in urls] == ["RN50.pt"]
    assert not is_complete  # its network takes its shape from the file
    assert (torch.load, torch.hub.get_dir(), download_util.DEFAULT_CACHE_DIR) == before
    assert offline == constants.HF_HUB_OFFLINE


def write_small_clip(path: Path) -> None:
    """A network like CLIP's, in the form in which CLIP is distributed, but tiny."""
    clip_model = pytest.importorskip("pyiqa.archs.clip_model")
    pytest.importorskip("clip")
    network = clip_model.CLIP(
        embed_dim=32, image_resolution=64, vision_layers=(1, 1, 1, 1), vision_width=16,
        vision_patch_size=None, context_length=77, vocab_size=49408, transformer_width=64,
        transformer_heads=1, transformer_layers=1,
    ).eval()  # fmt: skip
    inputs = (torch.rand(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.long))
    torch.jit.save(torch.jit.trace(network, inputs, check_trace=False), str(path))


@pytest.mark.filterwarnings("ignore")
def test_files_that_are_asked_for_one_after_the_other(tmp_path):
    """CLIP's networks take their shape from the file: what comes next shows when it is there."""
    folder = locate(tmp_path)
    prompts = "CLIP-IQA+_learned_prompts-603f3273.pth"
    urls, missing = metric_files.list_urls("clipiqa+", folder)
    assert [files.name_file(url) for url in urls] == ["RN50.pt"]
    assert missing == urls
    write_small_clip(tmp_path / "RN50.pt")
    urls, missing = metric_files.list_urls("clipiqa+", folder)
    assert [files.name_file(url) for url in urls] == ["RN50.pt", prompts]
    assert [files.name_file(url) for url in missing] == [prompts]
    assert metric_files.list_urls("clipiqa", folder)[1] == []
    metric = metrics.create("clipiqa", str(tmp_path))
    assert 0 <= metric(make_texture(0, 64, 80)) <= 1


# --- pull and check -----------------------------------------------------------------------------


def test_pull_and_check(weights_folder, tmp_path):
    target = tmp_path / "to"
    pull = ["weights", "pull", "--to", target, "--metrics", "cnniqa,musiq", "--json"]
    with serve(weights_folder) as (hub, asked):
        pulled = run(*pull, hub=hub)
        assert pulled.returncode == 0, pulled.stderr
        assert asked == [CNNIQA, MUSIQ]
        (target / CNNIQA).write_bytes(b"damaged")
        mended = run(*pull, hub=hub)
        assert mended.returncode == 0
        assert "fetching it again" in mended.stderr
        assert asked == [CNNIQA, MUSIQ, CNNIQA]  # what is sound is not fetched twice
    assert (target / MUSIQ).read_bytes() == (weights_folder / MUSIQ).read_bytes()
    lock = json.loads((target / "weights.lock").read_text())
    assert lock["metrics"] == {"cnniqa": [CNNIQA], "musiq": [MUSIQ]}
    assert lock["files"][MUSIQ]["bytes"] == (target / MUSIQ).stat().st_size
    listed = json.loads(pulled.stdout)["metrics"]["musiq"]
    assert listed == [
        {"name": MUSIQ, **{key: lock["files"][MUSIQ][key] for key in ("bytes", "sha256")}}
    ]
    checked = run("weights", "check", "--from", target)
    assert checked.returncode == 0, checked.stderr
    assert "all sound" in checked.stdout


def test_weights_are_fetched_where_none_are_given(weights_folder, tmp_path):
    """Into the machine's own folder, once; later the network is not needed."""
    cache = str(tmp_path / "cache")
    code = "import iqa_ray; print(iqa_ray.metrics.create('cnniqa').version)"
    with serve(weights_folder) as (hub, asked):
        for address in (hub, NOWHERE):
            environment = {**os.environ, "HF_ENDPOINT": address, "XDG_CACHE_HOME": cache}
            made = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, env=environment,
                check=True,
            )  # fmt: skip
            assert CNNIQA in made.stdout
        assert asked.count(CNNIQA) == 2  # a question whether the network is there, and the file


def test_a_hub_without_the_file(weights_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with serve(tmp_path / "empty") as (hub, _):
        pulled = run("weights", "pull", "--metrics", "cnniqa", "--to", tmp_path / "to", hub=hub)
    assert pulled.returncode == 2
    assert f"cannot fetch {CNNIQA} from http" in pulled.stderr
    assert "404" in pulled.stderr
    assert not list((tmp_path / "to").glob("*"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"junk\r\n\r\n", "BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "damaged"),
        (b"", "closed connection"),
    ],
)
def test_a_server_that_speaks_no_sound_http(tmp_path, monkeypatch, data, message):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    with answer(data) as address:
        url = f"{address}/a.pth"
        with pytest.raises(UsageError, match=message):
            fetching.fetch_file(url, locate(tmp_path / "to"))
        with pytest.raises(UsageError, match=message):
            files.open_node_copy(files.WeightFile("a.pth", url, 9, "0" * 64), None)
        if b"200" not in data:
            assert message in fetching.find_network_trouble(url)
    assert not list((tmp_path / "to").glob("*"))
    assert not list((tmp_path / "node").rglob("*.pth"))


def test_neither_weights_nor_network(image_folder, tmp_path):
    """Quick, before any actor, and with what to do."""
    photos, ws = image_folder(2), tmp_path / "ws"
    cache = str(tmp_path / "cache")
    options = ["--workspace", ws, "--metrics", "lapm,musiq,maniqa"]
    start_s = measure_children_cpu_s()
    scored = run("score", photos, *options, command=("-c", WATCHED), XDG_CACHE_HOME=cache)
    assert measure_children_cpu_s() - start_s < 20
    did = [line for line in scored.stderr.splitlines() if line.startswith("did ")]
    # the network is tried once: not again, and not for each file
    (connected,) = (line for line in did if "socket.connect" in line)
    assert connected.endswith("('127.0.0.1', 9)")
    assert not any("did sleep" in line for line in did)
    assert not any("gcs_server" in line for line in did)  # what Ray starts first
    assert scored.returncode == 2
    for name in (MUSIQ, VIT,
                 "ckpt_koniq10k.pt"):  # fmt: skip
        assert name in scored.stderr
    assert "run `iqa-ray weights pull --metrics musiq,maniqa --to DIR`" in scored.stderr
    assert "Traceback" not in scored.stderr
    assert not ws.exists()


def test_a_given_folder_that_lacks_files(small, tmp_path, monkeypatch):
    """Its lack is named, and the network left alone even where there is one."""
    monkeypatch.setattr(fetching, "open_url", lambda _: pytest.fail("used the network"))
    line = f"`iqa-ray weights pull --metrics musiq --to {small}`"
    with pytest.raises(
        UsageError, match=f"musiq needs {MUSIQ}, not in the weights folder"
    ) as caught:
        pulling.prepare_weights(["cnniqa", "musiq"], str(small))
    assert line in str(caught.value)
    monkeypatch.setenv("IQA_RAY_WEIGHTS", str(small))
    with pytest.raises(UsageError, match="not in the weights folder"):
        pulling.prepare_weights(["musiq"], None)
    assert pulling.prepare_weights(["cnniqa"], None)["cnniqa"].folder == str(small)
    assert sorted(path.name for path in small.iterdir()) == [CNNIQA]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pull"], "pull needs --to DIR"),
        (["check", "--to", "x"], "check needs --from DIR"),
        (["fetch"], "Input should be 'pull' or 'check'"),
        ([], "ACTION is required"),
        (["pull", "--metrics", "lapm", "--to", "x"], "lapm is no deep metric"),
        (["check", "--from", "nowhere"], "has no weights.lock"),
    ],
)
def test_arguments(arguments, message, tmp_path):
    result = run("weights", *arguments)
    assert result.returncode == 2
    assert message in result.stderr


# --- what is wrong with files -------------------------------------------------------------------


def test_damage_is_found_against_the_lock(locked):
    folder = locate(locked)
    assert set(pulling.check_weights(folder, [])) == {"cnniqa"}
    content = bytearray((locked / CNNIQA).read_bytes())
    content[1000] ^= 1
    (locked / CNNIQA).write_bytes(content)
    with pytest.raises(UsageError, match=f"{CNNIQA} is not the file that weights.lock names"):
        pulling.check_weights(folder, ["cnniqa"])
    (locked / CNNIQA).unlink()
    with pytest.raises(UsageError, match=f"{CNNIQA} is missing: run `iqa-ray weights pull"):
        pulling.check_weights(folder, [])
    with pytest.raises(UsageError, match="has no musiq: run"):
        pulling.check_weights(folder, ["musiq"])


def test_a_damaged_file_ends_a_run_before_anything_is_scored(locked, image_folder, tmp_path):
    content = (locked / CNNIQA).read_bytes()
    (locked / CNNIQA).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    ws = tmp_path / "ws"
    options = ["--workspace", ws, "--metrics", "lapm,cnniqa", "--weights", locked]
    # a cache of its own: this machine may have a sound copy
    scored = run("score", image_folder(2), *options, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert scored.returncode == 2
    assert f"{CNNIQA} in {locked} is damaged or another file" in scored.stderr
    assert "Traceback" not in scored.stderr
    assert not ws.exists()


class Evil:
    def __reduce__(self):
        return (print, ("evil code ran",))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "no checkpoint for cnniqa"),
        (lambda path: path.write_bytes(b"<html>404</html>"), "damaged, or holds more than tensors"),
        (lambda path: torch.save({"params": {"x": torch.zeros(3)}}, path), "RuntimeError"),
        (lambda path: torch.save(torch.zeros(3), path), "no checkpoint for cnniqa"),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "holds more than tensors"),
        (lambda path: torch.save({"params": Evil()}, path), "holds more than tensors"),
    ],
)
def test_files_that_are_no_checkpoint(small, capfd, write, message):
    write(small / CNNIQA)
    with pytest.raises(UsageError, match=message) as caught:
        metrics.create("cnniqa", str(small))
    assert str(caught.value).startswith(CNNIQA)
    assert "evil code ran" not in capfd.readouterr().out


def test_another_model_s_checkpoint(small, weights_folder):
    shutil.copy(weights_folder / MUSIQ, small / CNNIQA)
    with pytest.raises(UsageError, match=f"{CNNIQA} is no checkpoint for cnniqa"):
        metrics.create("cnniqa", str(small))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"pyiqa": "1"}', '{"pyiqa":"1","metrics":{"a":["b"]},"files":{}}']
)
def test_a_lock_that_is_none(small, text):
    (small / "weights.lock").write_text(text)
    with pytest.raises(UsageError, match="is not a lock"):
        files.read_lock(locate(small))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("../x.pth", {"url": "https://host/a/resolve/main/x/../../x.pth"}),
        ("a/../../x.pth", {"url": "https://host/a/resolve/main/../../x.pth"}),
        ("/etc/passwd", {"url": "https://host/a/passwd"}),
        ("", {"url": "https://host/"}),
        ("a.pth", {"url": "https://host/b.pth"}),
        ("a.pth", {"url": "https://host/a/resolve/main/a.pth"}),
        ("a.pth", {"url": 5}),
        ("a.pth", {"bytes": -1}),
        ("a.pth", {"bytes": "9"}),
        ("a.pth", {"bytes": True}),
        ("a.pth", {"sha256": "../../elsewhere"}),
        ("a.pth", {"sha256": "0" * 63}),
        ("a.pth", {"sha256": "0" * 64 + "/.."}),
        ("a.pth", {"sha256": 7}),
        ("a.pth", {"more": 1}),
    ],
)
def test_a_lock_cannot_point_outside_its_folder(tmp_path, name, changes):
    def write(name, entry):
        record = {"pyiqa": "1", "metrics": {"cnniqa": [name]}, "files": {name: entry}}
        (tmp_path / "weights.lock").write_text(json.dumps(record))

    entry = {"url": "https://host/a.pth", "bytes": 9, "sha256": "0" * 64}
    write("a.pth", entry)
    assert files.read_lock(locate(tmp_path)).files["a.pth"].bytes == 9
    write(name, {**entry, **changes})
    with pytest.raises(UsageError, match="is not a lock: .*make it again") as caught:
        files.read_lock(locate(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_lock_of_another_pyiqa_is_not_believed(locked):
    """Another version may want other files: it is asked itself."""
    lock = files.read_lock(locate(locked))
    assert lock is not None
    lock.pyiqa, lock.metrics = "0.0.1", {"cnniqa": []}
    files.write_lock(locate(locked), lock)
    (entry,) = pulling.prepare_weights(["cnniqa"], str(locked))["cnniqa"].files
    assert entry.name == CNNIQA


# --- one copy a node ------------------------------------------------------------------------------


def test_copies_are_made_once(locked, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    prepared = pulling.prepare_weights(["cnniqa"], str(locked))["cnniqa"]
    (entry,) = prepared.files
    copy = files.open_node_copy(entry, prepared.folder)
    assert copy.read_bytes() == (locked / CNNIQA).read_bytes()
    assert str(copy).startswith(str(tmp_path / "node"))
    (locked / CNNIQA).unlink()
    assert files.open_node_copy(entry, prepared.folder) == copy
    assert not list(copy.parent.glob("*.tmp"))


def test_a_copy_that_was_cut_short_is_made_again(locked, tmp_path, monkeypatch):
    """As after a power failure: the name is there, and not all of its bytes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    (entry,) = pulling.prepare_weights(["cnniqa"], str(locked))["cnniqa"].files
    assert synced == [entry.bytes]  # all of them are on the disk before the file has its name
    copy = files.open_node_copy(entry, str(locked))
    for content in (b"", copy.read_bytes()[:1000]):
        copy.write_bytes(content)
        assert files.open_node_copy(entry, str(locked)) == copy
        assert copy.read_bytes() == (locked / CNNIQA).read_bytes()


def test_actors_that_start_together_share_one_copy(locked, tmp_path, monkeypatch):
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    entry = files.describe_file(locate(locked), f"https://host/{CNNIQA}")
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        copies = set(pool.map(copy_in_a_process, [str(locked)] * 3, [entry] * 3))
    assert len(copies) == 1
    assert Path(copies.pop()).read_bytes() == (locked / CNNIQA).read_bytes()


def test_a_folder_that_a_node_cannot_see(tmp_path, locked):
    entry = files.describe_file(locate(locked), f"https://host/{CNNIQA}")
    other = files.WeightFile(entry.name, entry.url, entry.bytes, "0" * 64)
    with pytest.raises(UsageError, match="every node can reach"):
        files.open_node_copy(other, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="damaged or another file"):
        files.open_node_copy(other, str(locked))
