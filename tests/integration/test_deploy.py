from __future__ import annotations

import argparse
import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from iqa_ray import cli
from iqa_ray.config import build_parser, parse_job

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OWN_IMAGE = "registry.example.com/iqa-ray"
FILES = sorted(path for path in DEPLOY.iterdir() if path.is_file())
FIVE_FIELDS = r"^\S+ \S+ \S+ \S+ \S+$"

# --- what Kubernetes and KubeRay accept ---------------------------------------------------------
# Unknown fields are errors, as they are to `kubectl apply`. For KubeRay's own kinds these are the
# fields of release 1.6.2 (docs/reference/api.md in ray-project/kuberay); for pods, those in use.

STRING, BOOLEAN = {"type": "string"}, {"type": "boolean"}
INT32 = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
COUNT = INT32 | {"minimum": 0}
STRINGS = {"type": "object", "additionalProperties": STRING}
ANYTHING: dict[str, Any] = {"type": "object"}
# KubeRay's own bound leaves room for what it appends
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?-?$", "maxLength": 36}


def fields(*required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def lists(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def kind_of(api: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return fields(
        "apiVersion", "kind", "metadata", "spec",
        apiVersion=one_of(api),
        kind=one_of(kind),
        metadata=fields(name=NAME, generateName=NAME) | {"minProperties": 1},
        spec=spec,
    )  # fmt: skip


KEY_OF_SECRET = fields("secretKeyRef", secretKeyRef=fields("name", "key", name=STRING, key=STRING))
ENV = fields("name", name=STRING, value=STRING, valueFrom=KEY_OF_SECRET)
AMOUNTS = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"},
}
CONTAINER = fields(
    "name", "image", "resources", "securityContext",
    name=STRING,
    image=STRING,
    command=lists(STRING),
    args=lists(STRING),
    env=lists(ENV),
    envFrom=lists(fields("secretRef", secretRef=fields("name", name=STRING, optional=BOOLEAN))),
    resources=fields("requests", "limits", requests=AMOUNTS, limits=AMOUNTS),
    securityContext=fields(
        "runAsNonRoot",
        allowPrivilegeEscalation={"const": False},
        runAsNonRoot={"const": True},
        runAsUser={"type": "integer", "minimum": 1},
    ),
)  # fmt: skip
POD = fields(
    "spec",
    spec=fields(
        "containers",
        containers=lists(CONTAINER),
        restartPolicy=one_of("Never", "OnFailure", "Always"),
        serviceAccountName=STRING,
        automountServiceAccountToken=BOOLEAN,
        tolerations=lists(
            fields(
                key=STRING, operator=one_of("Exists", "Equal"), value=STRING,
                effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
            )
        ),
    ),
)  # fmt: skip
HEAD_GROUP = fields(
    "template", "rayStartParams",
    template=POD,
    headService=ANYTHING,
    enableIngress=BOOLEAN,
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    serviceType=STRING,
)  # fmt: skip
WORKER_GROUP = fields(
    "groupName", "minReplicas", "maxReplicas", "rayStartParams", "template",
    suspend=BOOLEAN,
    groupName=NAME,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    template=POD,
    scaleStrategy=ANYTHING,
    numOfHosts=COUNT,
)  # fmt: skip
RAY_CLUSTER = fields(
    "headGroupSpec",
    upgradeStrategy=ANYTHING,
    authOptions=fields(
        mode=one_of("disabled", "token"), secretName=STRING, enableK8sTokenAuth=BOOLEAN
    ),
    suspend=BOOLEAN,
    managedBy=STRING,
    autoscalerOptions=fields(
        resources=ANYTHING, image=STRING, imagePullPolicy=STRING, securityContext=ANYTHING,
        idleTimeoutSeconds=COUNT, version=one_of("v1", "v2"), env=lists(ENV), envFrom=ANYTHING,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"), volumeMounts=ANYTHING,
    ),
    headServiceAnnotations=STRINGS,
    enableInTreeAutoscaling=BOOLEAN,
    gcsFaultToleranceOptions=ANYTHING,
    headGroupSpec=HEAD_GROUP,
    rayVersion=STRING,
    workerGroupSpecs=lists(WORKER_GROUP),
)  # fmt: skip
DELETION_RULE = fields(
    "policy", "condition",
    policy=one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"),
    condition=fields(
        jobStatus=one_of("SUCCEEDED", "FAILED"),
        jobDeploymentStatus=one_of("Failed"),
        ttlSeconds=COUNT,
    ) | {"oneOf": [{"required": ["jobStatus"]}, {"required": ["jobDeploymentStatus"]}]},
)  # fmt: skip
RAY_JOB = fields(
    "entrypoint", "rayClusterSpec",
    activeDeadlineSeconds=INT32 | {"minimum": 1},
    backoffLimit=COUNT,
    rayClusterSpec=RAY_CLUSTER,
    submitterPodTemplate=POD,
    metadata=STRINGS,
    clusterSelector=STRINGS,
    submitterConfig=fields(backoffLimit=COUNT),
    managedBy=STRING,
    deletionStrategy=fields("deletionRules", deletionRules=lists(DELETION_RULE)),
    entrypoint=STRING,
    runtimeEnvYAML=STRING,
    jobId=STRING,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=STRING,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=COUNT,
    preRunningDeadlineSeconds=INT32 | {"minimum": 1},
    shutdownAfterJobFinishes=BOOLEAN,
    suspend=BOOLEAN,
)  # fmt: skip
JOB = fields(
    "template",
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    ttlSecondsAfterFinished=COUNT,
    template=POD,
)
SCHEMAS = {
    "rayjob.yaml": kind_of("ray.io/v1", "RayJob", RAY_JOB),
    "raycronjob.yaml": kind_of(
        "ray.io/v1",
        "RayCronJob",
        fields(
            "schedule", "jobTemplate",
            schedule={"type": "string", "pattern": FIVE_FIELDS}, jobTemplate=RAY_JOB,
            suspend=BOOLEAN,
        ),
    ),
    "cronjob.yaml": kind_of(
        "batch/v1",
        "CronJob",
        fields(
            "schedule", "jobTemplate",
            schedule={"type": "string", "pattern": FIVE_FIELDS},
            timeZone=STRING,
            concurrencyPolicy=one_of("Allow", "Forbid", "Replace"),
            startingDeadlineSeconds=COUNT,
            successfulJobsHistoryLimit=COUNT,
            failedJobsHistoryLimit=COUNT,
            suspend=BOOLEAN,
            jobTemplate=fields("spec", spec=JOB),
        ),
    ),
}  # fmt: skip


def read_yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def list_ray_jobs() -> list[dict[str, Any]]:
    return [read_yaml("rayjob.yaml")["spec"], read_yaml("raycronjob.yaml")["spec"]["jobTemplate"]]


def test_every_yaml_file_has_a_schema():
    assert {path.name for path in DEPLOY.glob("*.y*ml")} == set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_kubernetes_files_fit_their_kinds(name: str):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    jsonschema.validate(read_yaml(name), SCHEMAS[name])


def test_the_schemas_find_what_kubectl_would_refuse():
    jsonschema = pytest.importorskip("jsonschema")
    unknown = read_yaml("raycronjob.yaml")
    unknown["spec"]["concurrencyPolicy"] = "Forbid"
    wrong_type = read_yaml("rayjob.yaml")
    wrong_type["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    for name, content in (("raycronjob.yaml", unknown), ("rayjob.yaml", wrong_type)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content, SCHEMAS[name])


@pytest.mark.parametrize("spec", list_ray_jobs(), ids=["rayjob", "raycronjob"])
def test_ray_jobs_keep_the_operator_s_rules(spec: dict[str, Any]):
    """What the operator refuses beyond the types of fields."""
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    assert bool(rules) != bool(spec.get("shutdownAfterJobFinishes")), "either, and one of them"
    if "ttlSecondsAfterFinished" in spec:
        assert spec["shutdownAfterJobFinishes"]
    waits: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition = dict(rule["condition"])
        wait = condition.pop("ttlSeconds")
        [status] = condition.values()
        assert rule["policy"] not in waits.setdefault(status, {})
        waits[status][rule["policy"]] = wait
    for wait_of in waits.values():
        assert wait_of["DeleteCluster"] <= wait_of["DeleteSelf"]
    assert not rules or set(waits) == {"SUCCEEDED", "Failed"}, "no end leaves a cluster running"

    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    version = tuple(int(part) for part in cluster["rayVersion"].split("."))
    assert version >= (2, 52), "token authentication needs it"
    assert cluster["enableInTreeAutoscaling"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]


@pytest.mark.parametrize("spec", list_ray_jobs(), ids=["rayjob", "raycronjob"])
def test_ray_jobs_scale_cpu_workers_and_may_have_gpus(spec: dict[str, Any]):
    cluster = spec["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    for name, group in groups.items():
        [container] = group["template"]["spec"]["containers"]
        amounts = container["resources"]
        assert amounts["requests"] == amounts["limits"], "Ray plans with the limits"
        assert ("nvidia.com/gpu" in amounts["limits"]) == (name == "gpu")


def test_a_night_is_never_run_twice_nor_beside_another():
    once, nightly = list_ray_jobs()
    shared = ("entrypoint", "backoffLimit", "activeDeadlineSeconds", "rayClusterSpec")
    assert {key: once[key] for key in shared} == {key: nightly[key] for key in shared}
    cron = read_yaml("cronjob.yaml")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    for job in (once, nightly, cron["jobTemplate"]["spec"]):
        assert job["backoffLimit"] == 0
        assert job["activeDeadlineSeconds"] < 24 * 3600
    assert cron["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_cron_job_submits_with_the_cluster_s_token():
    job = read_yaml("cronjob.yaml")["spec"]["jobTemplate"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["key"] == "auth_token"

    from ray.dashboard.modules.job.cli import submit

    assert container["command"] == ["ray", "job", "submit"]
    parsed = submit.make_context("submit", list(container["args"])).params
    assert parsed["address"].endswith("-head-svc:8265")
    assert parsed["working_dir"] == "/home/ray/app"
    assert parsed["entrypoint"][:2] == ("python", "jobs/rescore.py")


# --- the commands -------------------------------------------------------------------------------


def read_crontab() -> tuple[list[str], str]:
    """The five fields of the one line, and its command."""
    lines = (DEPLOY / "crontab").read_text().splitlines()
    [line] = [line for line in lines if line and not line.startswith("#")]
    *schedule, command = line.split(maxsplit=5)
    return schedule, command


def read_unit(name: str) -> configparser.ConfigParser:
    # a unit's settings may repeat, and are case-sensitive
    unit = configparser.ConfigParser(strict=True, interpolation=None, delimiters="=")
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string((DEPLOY / name).read_text())
    return unit


def list_commands() -> Iterator[tuple[str, list[str]]]:
    """Where `rescore` is run, and with which arguments."""
    once, nightly = list_ray_jobs()
    container = read_yaml("cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    words = {
        "rayjob.yaml": shlex.split(once["entrypoint"]),
        "raycronjob.yaml": shlex.split(nightly["entrypoint"]),
        "cronjob.yaml": container["containers"][0]["args"],
        "iqa-ray-rescore.service": shlex.split(
            read_unit("iqa-ray-rescore.service")["Service"]["ExecStart"]
        ),
        "crontab": shlex.split(read_crontab()[1]),
    }
    for name, command in words.items():
        [start] = [
            at for at, word in enumerate(command) if word == "rescore" or "jobs/rescore.py" in word
        ]
        end = command.index(">>") if ">>" in command else len(command)
        yield name, command[start + 1 : end]


@pytest.mark.parametrize(("name", "arguments"), list_commands())
def test_commands_are_ones_that_iqa_ray_parses(name: str, arguments: list[str]):
    if "rescore" not in cli.COMMANDS:
        pytest.skip("the command `rescore` is not there yet")
    command = cli.COMMANDS["rescore"]
    model = command.load_job()
    parser = build_parser(argparse.ArgumentParser(exit_on_error=False), model)
    job = parse_job(model, parser.parse_args(arguments))
    assert job.workspace == "s3://bucket/ws"
    assert None not in {job.alert_drift, job.alert_rejected, job.alert_errors}
    if name.endswith(".yaml"):
        assert job.num_actors, "an autoscaler sees only actors that wait"


def test_job_scripts_that_are_named_exist():
    texts = [path.read_text() for path in [*FILES, ROOT / "cluster.yaml"]]
    scripts = set(re.findall(r"jobs/\w+\.py", "\n".join(texts)))
    assert "jobs/rescore.py" in scripts
    if "rescore" not in cli.COMMANDS:
        scripts -= {"jobs/rescore.py"}
    assert all((ROOT / script).is_file() for script in scripts)


def test_the_crontab_line_has_five_fields_and_no_bare_per_cent_sign():
    schedule, command = read_crontab()
    assert re.match(FIVE_FIELDS, " ".join(schedule))
    assert all(re.fullmatch(r"[\d*,/-]+", field) for field in schedule)
    assert not re.search(r"(?<!\\)%", command), "cron takes it for the end of the line"


@pytest.mark.skipif(not shutil.which("flock"), reason="flock is not installed")
@pytest.mark.parametrize(("code", "says"), [(0, ""), (3, "exit code 3"), (1, "exit code 1")])
def test_the_crontab_line_mails_only_of_failures(tmp_path: Path, code: int, says: str):
    install_stub(tmp_path, f"echo a night; echo why >&2; exit {code}")
    printed = run_line(tmp_path)
    assert says in printed
    assert bool(printed) == bool(says)
    assert (tmp_path / "iqa_ray" / "rescore.log").read_text() == "a night\nwhy\n"


@pytest.mark.skipif(not shutil.which("flock"), reason="flock is not installed")
def test_the_crontab_line_does_not_run_beside_itself(tmp_path: Path):
    install_stub(tmp_path, "exit 0")
    lock = tmp_path / "iqa_ray" / ".rescore.lock"
    with subprocess.Popen(
        ["flock", str(lock), "sh", "-c", "echo held; read _"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert "exit code 75" in run_line(tmp_path)
        holder.communicate("\n")
    assert run_line(tmp_path) == ""


def install_stub(home: Path, script: str) -> None:
    program = home / "iqa_ray" / ".venv" / "bin" / "iqa-ray"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def run_line(home: Path) -> str:
    """What the crontab's command prints, which cron mails."""
    done = subprocess.run(
        ["sh", "-c", read_crontab()[1]],
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


def test_systemd_units_say_what_they_should():
    service = read_unit("iqa-ray-rescore.service")["Service"]
    assert service["Type"] == "oneshot"
    assert service["User"] not in {"", "root"}
    assert "SuccessExitStatus" not in service, "an alert is a failure that somebody should see"
    assert "Restart" not in service
    timer = read_unit("iqa-ray-rescore.timer")
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Timer"]["RandomizedDelaySec"]
    assert timer["Install"]["WantedBy"] == "timers.target"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path):
    for name in ("iqa-ray-rescore.service", "iqa-ray-rescore.timer"):
        # verify wants a program that is there
        text = (DEPLOY / name).read_text().replace("/opt/iqa_ray/.venv/bin/iqa-ray", sys.executable)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# --- images and the AWS cluster -------------------------------------------------------------------


def read_pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split(";")[0].strip().split("==") for line in lines if line.startswith("ray="))


def list_images() -> list[tuple[str, str, str]]:
    """File, repository and tag of every image that is named."""
    pattern = re.compile(r"((?:docker\.io/)?rayproject/ray|[\w.-]+/iqa-ray):([\w.-]+\w)")
    return [
        (path.name, *match)
        for path in [*FILES, ROOT / "cluster.yaml"]
        for match in pattern.findall(path.read_text())
    ]


def test_images_are_of_the_pinned_ray_and_one_python():
    images = list_images()
    assert {name for name, *_ in images} >= {*SCHEMAS, "Containerfile", "cluster.yaml"}
    assert {tag.removesuffix("-gpu") for *_, tag in images} == {f"{read_pins()['ray']}-py311"}
    for name, repository, _ in images:
        assert repository.removeprefix("docker.io/") in {OWN_IMAGE, "rayproject/ray"}, name
    for spec in list_ray_jobs():
        assert spec["rayClusterSpec"]["rayVersion"] == read_pins()["ray"]


def test_the_pinned_ray_is_one_that_the_package_takes():
    [bound] = re.findall(r'"ray\[[^]]*\]>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    pinned = read_pins()["ray"]
    assert [int(part) for part in pinned.split(".")] >= [int(part) for part in bound.split(".")]


def test_the_image_is_made_of_files_that_are_there_and_let_through():
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
    steps = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert [step[0] for step in steps].count("FROM") == 1
    assert not any(step[0] in {"USER", "ADD"} or "sudo" in step for step in steps)
    copied = {
        source
        for step in steps
        if step[0] == "COPY"
        for source in [word for word in step[1:-1] if not word.startswith("--")]
    }
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / source).exists() for source in copied)
    extras = re.search(r"^ARG EXTRAS=(.+)$", text, re.MULTILINE)
    assert extras
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in extras[1].split(","))


def test_cluster_yaml_fits_ray_s_own_schema():
    ray = pytest.importorskip("ray")
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(config, schema)
    kinds = config["available_node_types"]
    assert config["head_node_type"] in kinds
    assert {"cpu_worker", "gpu_worker"} < set(kinds)


def test_every_aws_machine_has_an_image_and_may_reach_the_store():
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for name, kind in config["available_node_types"].items():
        machine = kind["node_config"]
        assert machine["ImageId"].startswith("resolve:ssm:/aws/service/"), name
        assert machine["IamInstanceProfile"]["Name"] in (DEPLOY / "README.md").read_text()
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert any("RAY_AUTH_MODE=token ray start" in command for command in config[start])


def test_the_opencv_that_wants_a_screen_is_taken_out():
    """Ray's image has no libGL, and pyiqa's requirements name opencv-python."""
    for path in (DEPLOY / "Containerfile", ROOT / "cluster.yaml"):
        text = path.read_text()
        taken_out = re.search(r"pip uninstall .*opencv-python$", text.replace(" \\", ""), re.M)
        assert taken_out, path.name
        assert re.search(r"--force-reinstall[^&]*opencv-python-headless", text[taken_out.start() :])


# --- everything ----------------------------------------------------------------------------------


def test_constraints_hold_versions_only():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert "://" not in line
        assert "@" not in line
        assert "==" in line


@pytest.mark.parametrize("path", [*FILES, ROOT / "cluster.yaml"], ids=lambda path: path.name)
def test_nothing_holds_credentials(path: Path):
    text = path.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|PRIVATE KEY|://[^/\s]*:[^/\s]*@", text)
    assert not re.search(r"\b(?=\w*\d)(?=\w*[A-Za-z])[A-Za-z0-9+]{32,}\b", text), (
        "a long random word"
    )
    if path.suffix == ".yaml":
        for document in yaml.safe_load_all(text):
            assert document.get("kind") not in {"Secret", "ConfigMap"}
    assigned = re.findall(
        r"(?im)^[^#\n]*(?:password|secret_?access_?key|token)\s*[=:]\s*(\S+)", text
    )
    allowed = {"token", "false", "~/.ray/auth_token", '"$(openssl'}
    assert set(assigned) <= allowed


def test_the_readme_names_every_file():
    text = (DEPLOY / "README.md").read_text()
    missing = [path.name for path in FILES if path.name not in text]
    assert set(missing) <= {"README.md", "Containerfile.dockerignore"}
