"""Many runs side by side on Ray Train (V2): each worker takes the next run when it is done.

Workers are as many as there is room for, and are started once for all runs: a worker costs seconds.
They share the images, decoded once a node into Ray's object store, and report their progress to an
actor, the event queue, to which the driver listens. Nothing is reported to Ray Train itself, whose
`report` would make every worker wait for the slowest. When a worker dies, alone or with its node,
Ray Train ends the whole group; the driver starts another one, as large as there is room for then,
and each run goes on from its own last epoch.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray
import torch
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from iqa_ray.cluster.capacity import Resources, raise_share, room_on
from iqa_ray.cluster.connection import MAX_TRIES, count_gpus, list_free_nodes, list_nodes
from iqa_ray.errors import IncompleteError
from iqa_ray.progress import log
from iqa_ray.storage.files import Location, delete_folder, one_line
from iqa_ray.training.events import listen, register_worker
from iqa_ray.training.inputs import Inputs
from iqa_ray.training.runs import Result, Run, RunFiles, train_run
from iqa_ray.training.sharing import (
    Material,
    Network,
    Shared,
    compute_shared_features,
    load_on_nodes,
    name_network,
)
from iqa_ray.training.single import configure_run, keep_interrupts, root_cause

# what an earlier job used may take a moment to be free
_SETTLE_S, _POLL_S = 5.0, 0.2


@dataclass(frozen=True)
class RunFailure:
    """A run that was given up, and why."""

    run: Run
    reason: str


def plan_parallel_runs(gpus_per_run: float | None, cpus_per_run: float) -> tuple[Resources, int]:
    """What each run asks for, and how many there is room for at the same time.

    Without `gpus_per_run` a fifth of a GPU where there is one, so that five seeds share a card.

    Raises:
        IncompleteError: no node has room for one, or others use all of it.
    """
    if gpus_per_run is None:
        gpus_per_run = 0.2 if count_gpus() else 0.0
    nodes = list_nodes()
    resources = Resources(cpus_per_run, raise_share(nodes, gpus_per_run))
    asked = f"a run needs {cpus_per_run:g} CPUs and {resources.num_gpus:g} GPUs"
    room = sum(room_on(node, resources) for node in nodes)
    if not room:
        have = "; ".join(f"{n.get('CPU', 0):g} CPUs, {n.get('GPU', 0):g} GPUs" for n in nodes)
        raise IncompleteError(
            f"{asked}, and no node has them (there are: {have}): give other --cpus-per-run or "
            "--gpus-per-run"
        )
    deadline_s = time.monotonic() + _SETTLE_S
    while (free := sum(room_on(node, resources) for node in list_free_nodes())) < room:
        if time.monotonic() > deadline_s:
            break
        time.sleep(_POLL_S)
    if not free:
        raise IncompleteError(f"{asked}, and others use all of the cluster now: try again later")
    return resources, min(room, free)


def train_runs(
    runs: Sequence[Run],
    material: Material,
    folder: Location,
    plan: tuple[Resources, int],
    on_event: Callable[[dict[str, Any]], None],
) -> list[RunFailure]:
    """Train all of `runs`, as many at once as the plan says; returns those given up.

    Results are written below `folder` (see `RunFiles`), also those of runs that diverged.

    Args:
        runs: none of them finished; taken in this order.
        material: what they share.
        folder: where every node can write.
        plan: what `plan_parallel_runs` returns.
        on_event: told what happens: `decoded` (images so far), `started`, `finished` or `failed`
            (key of a run), or `epoch` with the key and the row of its history.

    Raises:
        IncompleteError: images can no longer be read, or no worker could be started.

    What `on_event` raises ends the workers and is raised here.
    """
    resources, num_parallel = plan
    weights = {name: ray.put(data) for name, data in material.weights.items()}
    chunks = load_on_nodes(material, resources, on_event)
    shared = Shared(replace(material, weights={}), weights, chunks, {})
    if frozen := [run for run in runs if run.recipe.freeze_backbone]:
        shared.features = compute_shared_features(frozen, shared, resources)
    waiting = {run.key: run for run in runs}
    tries = dict.fromkeys(waiting, 0)
    failures: list[RunFailure] = []
    num_lost = 0
    while waiting:
        room = sum(room_on(node, resources) for node in list_nodes())
        # with no room left, one worker waits a minute for a node that may come
        num_workers = max(1, min(num_parallel, room, len(waiting)))
        group = _Group(list(waiting.values()), shared, folder, resources)
        outcome = group.train(num_workers, on_event)
        for key in outcome.finished:
            del waiting[key]
        for key, reason in outcome.failed.items():
            failures.append(RunFailure(waiting.pop(key), reason))
        if outcome.lost is None:
            assert not waiting, "a group ends when no run waits"
            break
        log(f"a worker was lost, another group is started: {outcome.lost}")
        num_lost = 0 if outcome.advanced or outcome.failed or outcome.in_flight else num_lost + 1
        if num_lost >= MAX_TRIES:
            raise IncompleteError(
                f"training workers cannot be kept running: {outcome.lost}; what is done is kept, "
                "run the same command again to go on"
            )
        for key in waiting.keys() & set(outcome.in_flight):
            tries[key] = 1 if key in outcome.advanced else tries[key] + 1
            if tries[key] >= MAX_TRIES:
                reason = f"its worker died on each of {MAX_TRIES} tries: {outcome.lost}"
                failures.append(RunFailure(waiting.pop(key), reason))
    return failures


# --- groups of workers ------------------------------------------------------------------------


@dataclass
class _Outcome:
    """What came of a group: keys of runs, and why its workers were lost, if they were.

    `advanced` finished an epoch; `in_flight` are those that the dead workers had taken.
    """

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    advanced: set[str] = field(default_factory=set)
    in_flight: list[str] = field(default_factory=list)
    lost: str | None = None


@dataclass
class _Group:
    """Workers that do runs together, until none waits or one of them is lost."""

    runs: list[Run]
    shared: Shared
    folder: Location
    resources: Resources

    def train(self, num_workers: int, on_event: Callable[[dict[str, Any]], None]) -> _Outcome:
        outcome = _Outcome()

        def note(event: dict[str, Any]) -> None:
            if key := event.get("finished"):
                outcome.finished.append(key)
            elif key := event.get("failed"):
                outcome.failed[key] = event["error"]
            elif "epoch" in event:
                outcome.advanced.add(event["key"])
            on_event(event)

        # a name of its own: Ray Train would take an earlier group's for this one, gone on
        folder = self.folder / f"groups/{uuid.uuid4().hex[:12]}"
        keys = [run.key for run in self.runs]
        try:
            with listen(note, keys) as queue, keep_interrupts():
                try:
                    self._make_trainer(num_workers, queue, folder).fit()
                except train.TrainingFailedError as error:
                    taken = ray.get(queue.list_in_flight.remote())
                    dead = getattr(error, "worker_failures", {})
                    outcome.in_flight = [taken[rank] for rank in dead if rank in taken]
                    outcome.lost = root_cause(error)
        finally:
            delete_folder(folder)
        return outcome

    def _make_trainer(self, num_workers: int, queue: Any, folder: Location) -> TorchTrainer:
        needs = {"CPU": self.resources.num_cpus, "GPU": self.resources.num_gpus}
        return TorchTrainer(
            _work,
            train_loop_config={
                "runs": {run.key: run for run in self.runs},
                "shared": self.shared,
                "folder": self.folder,
                "queue": queue,
                "num_threads": self.resources.num_threads,
            },
            torch_config=TorchConfig(backend="gloo"),  # several workers share a GPU
            scaling_config=train.ScalingConfig(
                num_workers=num_workers,
                use_gpu=self.resources.num_gpus > 0,
                resources_per_worker={name: need for name, need in needs.items() if need},
            ),
            run_config=configure_run(folder),
        )


def _work(config: dict[str, Any]) -> None:
    """What each worker does: run after run."""
    torch.set_num_threads(config["num_threads"])
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    queue, shared = config["queue"], config["shared"]
    register_worker(queue)
    material, files = shared.material, RunFiles(config["folder"])
    targets = torch.tensor(material.targets)  # a copy: what Ray holds cannot be written
    inputs: dict[Network | None, Inputs] = {}
    rank = train.get_context().get_world_rank()
    while (key := ray.get(queue.take_run.remote(rank))) is not None:
        run: Run = config["runs"][key]
        try:
            result = train_run(
                run,
                _open_inputs(run, shared, inputs),
                targets,
                material.num_classes,
                ray.get(shared.weights[run.recipe.backbone]),
                files,
                partial(_post_epoch, queue, key),
            )
        except Exception as error:  # one run must not cost the others
            event = {"failed": key, "error": f"{type(error).__name__}: {one_line(error)}"}
        else:
            event = {"finished": key, "result": _summarise(result)}
        ray.get(queue.post.remote(event))


def _post_epoch(queue: Any, key: str, row: dict[str, Any]) -> None:
    queue.post.remote({"epoch": row, "key": key})


def _open_inputs(run: Run, shared: Shared, opened: dict[Network | None, Inputs]) -> Inputs:
    """Images, or features of the run's frozen network; each is fetched once a worker."""
    network = name_network(run.recipe) if run.recipe.freeze_backbone else None
    if network not in opened:
        opened[network] = shared.open_features(network) if network else shared.open_images()
    return opened[network]


def _summarise(result: Result) -> Result:
    return {name: value for name, value in result.items() if name != "history"}
