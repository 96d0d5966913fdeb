"""Imports run one way, and Ray is known to few modules."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import iqa_ray

PACKAGE = Path(iqa_ray.__file__).parent

# a module may import only from earlier lines
LAYERS = [
    ["errors", "progress", "reading"],
    ["credentials"],
    ["object_stores"],
    ["config", "files"],
    ["folders"],
    ["decoding", "images", "lock", "part_files"],
    ["image_source"],
    ["parts", "weight_files"],
    ["store", "weight_fetching"],
    ["rescoring.changes", "rescoring.drift", "rescoring.history"],
    ["metrics", "distortions", "data.dotcodes", "training.initial_weights"],
    ["capacity", "scores", "training.recipe"],
    ["cluster", "shards", "score_job", "train_job"],
    ["pools", "telemetry"],
    ["deep_shards"],
    ["planning", "predictions", "holdout", "data.jobs"],
    ["spreading"],
    ["scoring", "report.figures", "weights_jobs", "rescoring.night"],
    ["selection.cutoffs", "selection.study", "training.backbones"],
    ["selection.votes", "selection.subsets", "selection.series", "training.augment"],
    ["training.pixels", "training.boards", "studies.splits"],
    ["training.inputs", "training.evaluation"],
    ["training.loop", "studies.statistics"],
    ["training.runs"],
    ["selection.jobs", "selection.study_jobs", "training.seeds", "predictor"],
    ["training.sharing", "studies.live"],
    ["training.lanes"],
    ["predicting", "studies.arms"],
    ["studies.compare_quality", "studies.vary_quality", "rescoring.jobs"],
    ["demo"],
    ["cli"],
]
MAY_IMPORT_RAY = {
    "cluster",
    "pools",
    "telemetry",
    "training.boards",
    "training.seeds",
    "training.sharing",
    "training.lanes",
}
ORDER = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def layer_of(module: str) -> str:
    parts = module.split(".")
    for length in (2, 1):
        name = ".".join(parts[:length])
        if name in ORDER:
            return name
    raise AssertionError(f"{module} has no place in LAYERS")


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


def test_imports_run_one_way():
    known = modules()
    packages = {"__init__", "selection", "training", "data", "report", "studies", "rescoring"}
    for name, tree in known.items():
        if name in packages:
            continue
        here = layer_of(name)
        for target in imports_of(tree):
            if not target.startswith("iqa_ray."):
                continue
            module = target.removeprefix("iqa_ray.")
            while module not in known:
                module = module.rpartition(".")[0]
                if not module:
                    break
            if not module or module in packages or layer_of(module) == here:
                continue
            assert ORDER[layer_of(module)] < ORDER[here], f"{name} imports {module}"


def test_only_some_modules_import_ray():
    for name, tree in modules().items():
        uses_ray = any(target.split(".")[0] == "ray" for target in imports_of(tree))
        assert not uses_ray or name in MAY_IMPORT_RAY, name


def test_only_the_storage_layer_opens_files():
    """It asks again where a store fails. Ray Train has to be given a file system itself."""
    for name, tree in modules().items():
        if name in {"files", "object_stores"}:
            continue
        attributes = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        assert attributes.count("filesystem") == int(name == "training.seeds"), name


def test_modules_and_functions_stay_small():
    for file in sorted(PACKAGE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 62, f"{file}: {node.name}"


def test_help_and_metrics_need_no_heavy_library():
    code = (
        "import sys, iqa_ray, iqa_ray.metrics, iqa_ray.cli\n"
        "try: iqa_ray.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'ray', 'torch', 'pyiqa', 'pandas'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_what_python_users_are_promised_is_there_after_one_import():
    code = (
        "import sys, iqa_ray\n"
        "training = iqa_ray.training\n"
        "print('torch' in sys.modules)\n"
        "print(iqa_ray.training.backbones.create('simplenet', num_classes=6).head.out_features)\n"
        "print(iqa_ray.metrics.create('lapm').name, callable(iqa_ray.score))\n"
        "print(hasattr(training, 'nothing'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["False", "6", "lapm True", "False"]


def test_help_comes_at_once():
    """The least processor time of a few tries: how long it takes depends on what else runs."""
    command = [sys.executable, "-m", "iqa_ray.cli", "--help"]
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
