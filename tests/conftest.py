"""Shared fixtures: one local Ray a session, and small folders of images made on the spot."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# local clusters of the tests need no token; set before Ray is imported
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.pop("RAY_ADDRESS", None)
# for S3 servers of the tests; actors have the environment of the time at which Ray was started
os.environ.update(
    AWS_ACCESS_KEY_ID="testing",
    AWS_SECRET_ACCESS_KEY="testing",
    AWS_DEFAULT_REGION="us-east-1",
    AWS_EC2_METADATA_DISABLED="true",
    AWS_SHARED_CREDENTIALS_FILE=os.devnull,
    AWS_CONFIG_FILE=os.devnull,
)
os.environ.pop("AWS_SESSION_TOKEN", None)
os.environ.pop("AWS_ENDPOINT_URL", None)
os.environ.pop("AWS_ENDPOINT_URL_S3", None)
# actors unpickle workers that are defined in test modules
os.environ["PYTHONPATH"] = os.pathsep.join(
    [
        *sorted({str(file.parent) for file in Path(__file__).parent.rglob("*.py")}),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
)

import hypothesis
import pytest
from pictures import make_texture
from PIL import Image

if TYPE_CHECKING:
    from desk import Desk

MakeFolder = Callable[..., Path]

# how long an example takes depends on what else the machine does
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-ray", action="store_true", help="leave out tests that start Ray")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--without-ray"):
        starts = [item for item in items if "ray_session" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=starts)
        items[:] = [item for item in items if item not in starts]


def pytest_sessionstart() -> None:
    # copies of weights go to a cache of the session's own, for actors and commands alike
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="iqa_ray-cache-")
    os.environ.pop("IQA_RAY_WEIGHTS", None)


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with two CPUs, shared by all tests that need one."""
    import ray

    ray.init(
        address="local",  # never a cluster that runs here already
        num_cpus=2,
        include_dashboard=False,
        logging_level="warning",
        object_store_memory=200_000_000,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of two small and two large metrics under the names of the real files."""
    pytest.importorskip("pyiqa")
    from benchmarks.random_weights import make_random_weights

    folder = tmp_path_factory.mktemp("weights")
    make_random_weights(["cnniqa", "musiq", "hyperiqa", "maniqa"], folder)
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> MakeFolder:
    """Makes `num` JPEGs, each more blurred than the last, in the class folders a and b."""

    def make(
        num: int = 6,
        name: str = "photos",
        height: int = 48,
        width: int = 64,
        blur_step: float = 0.3,
    ) -> Path:
        root = tmp_path / name
        for number in range(num):
            folder = root / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(make_texture(number, height, width, blur=number * blur_step))
            image.save(folder / f"{number:03}.jpg", quality=92)
        return root

    return make


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """Commands without Ray on images whose scores a test names."""
    from desk import Desk
    from inline import run_inline, specs_by_colour

    from iqa_ray.metrics import SPECS

    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of them take seconds
    desk = Desk(tmp_path)
    for name, spec in specs_by_colour().items():
        monkeypatch.setitem(SPECS, name, spec)
    with run_inline(desk.see_shard):
        yield desk
