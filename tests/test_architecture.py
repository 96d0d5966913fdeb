"""Imports run one way, and Ray is known to few modules."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import iqa_ray

PACKAGE = Path(iqa_ray.__file__).parent

# A room's modules import from the room itself and from rooms before its line.
ROOMS = [
    ["errors"],
    ["progress"],
    ["config"],
    ["storage"],
    ["images"],
    ["cluster"],
    ["distortions", "synthetic", "weights"],
    ["training"],
    ["metrics"],
    ["scoring"],
    ["predictions"],
    ["study"],
    ["selection"],
    ["distortion_types", "experiments", "layers"],
    ["smoothing", "metrifier"],
    ["rescoring"],
    ["report"],
]
ORDER = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
# Commands take from every room, and from the commands that they run.
COMMANDS = [
    ["weights.settings", "selection.evidence"],  # they look metrics up, and draw
    [
        "synthetic.jobs",
        "weights.jobs",
        "scoring.jobs",
        "predictions.jobs",
        "selection.jobs",
        "distortion_types.jobs",
        "smoothing.jobs",
        "layers.jobs",
        "metrifier.jobs",
    ],
    ["study.jobs", "experiments.compare", "experiments.vary", "rescoring.jobs"],
    ["demo"],
    ["cli"],
]
COMMAND_RANK = {name: rank for rank, names in enumerate(COMMANDS) for name in names}
MAY_IMPORT_RAY = {
    "cluster.connection",
    "cluster.pools",
    "scoring.telemetry",
    "training.events",
    "training.single",
    "training.sharing",
    "training.parallel",
}


def modules() -> dict[str, ast.Module]:
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imports_of(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def list_imports() -> Iterator[tuple[str, str]]:
    """Each module of the package with each module of it that it imports."""
    known = modules()
    for name, tree in known.items():
        for target in imports_of(tree):
            module = target.removeprefix("iqa_ray.") if target.startswith("iqa_ray.") else ""
            while module and module not in known:
                module = module.rpartition(".")[0]
            if module and module != name:
                yield name, module


def test_rooms_import_one_way():
    for name, module in list_imports():
        here, there = name.split(".")[0], module.split(".")[0]
        if name == "__init__" or here == there or name in COMMAND_RANK:
            continue
        assert module not in COMMAND_RANK, f"{name} imports the command {module}"
        assert ORDER[there] < ORDER[here], f"{name} imports {module}"


def test_commands_import_one_way():
    for name, module in list_imports():
        if name in COMMAND_RANK and module in COMMAND_RANK:
            assert COMMAND_RANK[module] < COMMAND_RANK[name], f"{name} imports {module}"


def test_every_module_lies_in_a_room():
    flat = {"__init__", "cli", "config", "demo", "errors", "progress"}
    assert {name for name in modules() if "." not in name} - set(ORDER) <= flat
    assert {name.split(".")[0] for name in modules()} - flat <= set(ORDER)


def test_only_some_modules_import_ray():
    for name, tree in modules().items():
        uses_ray = any(target.split(".")[0] == "ray" for target in imports_of(tree))
        assert not uses_ray or name in MAY_IMPORT_RAY, name


def test_only_the_storage_layer_opens_files():
    """It asks again where a store fails. Ray Train has to be given a file system itself."""
    for name, tree in modules().items():
        if name in {"storage.files", "storage.object_stores"}:
            continue
        attributes = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        assert attributes.count("filesystem") == int(name == "training.single"), name


def test_modules_and_functions_stay_small():
    for file in sorted(PACKAGE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 450, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 62, f"{file}: {node.name}"


def test_help_needs_no_library_that_takes_long():
    """Of any command, and `import iqa_ray.metrics`: in one process, where each leaves its own."""
    code = """
import contextlib, io, sys
import iqa_ray.metrics
from iqa_ray import cli

HEAVY = {"ray", "pandas", "pyarrow", "numpy", "scipy", "torch", "cv2", "PIL", "pyiqa"}
for arguments in [[], *([name] for name in cli.COMMANDS)]:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            cli.main([*arguments, "--help"])
        except SystemExit as stop:
            assert stop.code == 0, arguments
    assert shown.getvalue().startswith("usage: iqa-ray"), arguments
    assert not (HEAVY & sys.modules.keys()), (arguments, HEAVY & sys.modules.keys())
print("shown")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "shown\n"), result.stderr


def test_what_python_users_are_promised_is_there_after_one_import():
    code = (
        "import sys, iqa_ray\n"
        "training = iqa_ray.training\n"
        "print('torch' in sys.modules)\n"
        "print(iqa_ray.training.backbones.create('simplenet', num_classes=6).head.out_features)\n"
        "print(iqa_ray.metrics.create('lapm').name, callable(iqa_ray.score))\n"
        "print(iqa_ray.metrics.DeepMetric.__name__)\n"
        "print(hasattr(training, 'nothing'), hasattr(iqa_ray.metrics, 'nothing'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["False", "6", "lapm True", "DeepMetric", "False False"]


@pytest.mark.parametrize("names", [[], ["study"]])  # the command with the most settings
def test_help_comes_at_once(names):
    """The least processor time of a few tries: how long it takes depends on what else runs."""
    command = [sys.executable, "-m", "iqa_ray.cli", *names, "--help"]
    spent_s = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent_s) < 0.3


def test_jobs_are_thin_and_shadow_nothing():
    jobs = sorted((PACKAGE.parent / "jobs").glob("*.py"))
    assert jobs
    for file in jobs:
        assert file.stem not in sys.stdlib_module_names
        assert len(file.read_text().splitlines()) < 12
