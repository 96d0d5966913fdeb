"""Progress of training runs: a live table on a terminal, plain lines elsewhere, TensorBoard."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from iqa_ray.cluster import connection
from iqa_ray.errors import UsageError
from iqa_ray.progress import LINE_INTERVAL_S, format_seconds, log
from iqa_ray.storage.files import Location, check_writable, locate
from iqa_ray.training.runs import Run, RunFiles
from iqa_ray.training.settings import ParallelRunsJob
from iqa_ray.training.sharing import Material

if TYPE_CHECKING:
    from iqa_ray.training.parallel import RunFailure


class LiveRuns:
    """Shows what the runs in training do; a callable that takes the events of `train_runs`.

    Args:
        runs: those that are trained now.
        num_reused: runs of the experiment that were finished before.
        log_dir: folder for TensorBoard's event files, one folder a run.
    """

    def __init__(self, runs: Sequence[Run], num_reused: int, log_dir: str | None) -> None:
        self._runs = {run.key: run for run in runs}
        self._num_reused = num_reused
        self._rows: dict[str, list[dict[str, Any]]] = {}  # of the runs in flight, by key
        self._num_done = self._num_epochs_done = 0
        self._num_epochs = sum(run.recipe.epochs for run in runs)
        self._start_s = self._last_line_s = time.monotonic()
        self._stack = ExitStack()
        self._log_dir = None if log_dir is None else Path(locate(log_dir).path)
        self._writers: dict[str, Any] = {}
        self._live: Any = None

    def __enter__(self) -> LiveRuns:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            live = Live(console=Console(stderr=True), get_renderable=self._render, transient=True)
            self._live = self._stack.enter_context(live)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def __call__(self, event: dict[str, Any]) -> None:
        if "decoded" in event:
            if event["decoded"] == event["of"]:
                self._say(f"decoded {event['of']:,} images")
            return
        key = event.get("key") or event.get("started") or event.get("finished") or event["failed"]
        if "started" in event:
            self._rows.setdefault(key, [])  # it may have been in the hand of a worker that was lost
        elif "epoch" in event:
            self._note_epoch(key, event["epoch"])
        else:
            self._note_end(key, event)

    def _note_epoch(self, key: str, row: dict[str, Any]) -> None:
        rows = self._rows.setdefault(key, [])
        # after the loss of a worker an epoch may be done again
        self._num_epochs_done += not rows or row["epoch"] > rows[-1]["epoch"]
        rows.append(row)
        self._write_scalars(key, row)
        if time.monotonic() - self._last_line_s >= LINE_INTERVAL_S:
            self._say(self._describe(key, row))

    def _note_end(self, key: str, event: dict[str, Any]) -> None:
        rows = self._rows.pop(key, [])
        self._num_done += 1
        run, result = self._runs[key], event.get("result", {})
        self._num_epochs_done += run.recipe.epochs - (rows[-1]["epoch"] if rows else 0)
        where = f"{self._num_done}/{len(self._runs)} {run.name}"
        if result.get("status") == "ok":
            self._say(
                f"{where}: accuracy {result['accuracy']:.3f} at epoch {result['best_epoch']}, "
                f"{format_seconds(result['seconds'])}; {self._estimate()} left"
            )
        else:
            self._say(f"{where}: gave no result: {event.get('error') or result.get('error')}")

    def _describe(self, key: str, row: dict[str, Any]) -> str:
        run = self._runs[key]
        return (
            f"{run.name}: epoch {row['epoch']} of {run.recipe.epochs}, loss {row['loss']:.4f}, "
            f"validation {_format_validation(row)}; {self._estimate()} left"
        )

    def _estimate(self) -> str:
        """The time left for all runs, at the rate of the epochs so far."""
        spent_s = time.monotonic() - self._start_s
        left = self._num_epochs - self._num_epochs_done
        done = self._num_epochs_done
        return format_seconds(spent_s / done * left if done else float("inf"))

    def _say(self, line: str) -> None:
        self._last_line_s = time.monotonic()
        if self._live is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._live.console.print(line, highlight=False, markup=False)

    def _render(self) -> Any:
        from rich.table import Table

        total = len(self._runs)
        reused = f", {self._num_reused} from before" if self._num_reused else ""
        is_starting = not self._rows and not self._num_done
        state = "workers are starting" if is_starting else f"{self._estimate()} left"
        title = f"{self._num_done} of {total} runs{reused}, {state}"
        table = Table(title=title, title_justify="left", title_style="")
        for name in ("arm", "backbone"):
            table.add_column(name)
        for name in ("seed", "epoch", "loss", "validation", "time left"):
            table.add_column(name, justify="right")
        for key, rows in list(self._rows.items()):
            run = self._runs[key]
            cells = [run.arm, run.recipe.backbone, str(run.recipe.seed)]
            if rows:
                last = rows[-1]
                left = run.recipe.epochs - last["epoch"]
                mean_s = sum(row["seconds"] for row in rows) / len(rows)
                cells += [
                    f"{last['epoch']}/{run.recipe.epochs}",
                    f"{last['loss']:.4f}",
                    _format_validation(last),
                    format_seconds(mean_s * left),
                ]
            table.add_row(*cells)
        return table

    def _write_scalars(self, key: str, row: dict[str, Any]) -> None:
        if self._log_dir is None:
            return
        # not SummaryWriter, which writes in a thread of its own and waits for ever if that failed
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if key not in self._writers:
            run = self._runs[key]
            name = f"{run.arm}-{run.recipe.backbone}-seed{run.recipe.seed}-{key[:8]}"
            folder = self._log_dir / name
            folder.mkdir(parents=True, exist_ok=True)
            self._writers[key] = EventsWriter(str(folder / "events"))
            self._stack.callback(self._writers[key].close)
        names = ("loss", "accuracy", "validation_loss", "validation_accuracy", "validation_error")
        found = {name: row[name] for name in names if row.get(name) is not None}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in found.items()]
        event = Event(wall_time=time.time(), step=row["epoch"], summary=Summary(value=values))
        self._writers[key].write_event(event)
        self._writers[key].flush()


def _format_validation(row: dict[str, Any]) -> str:
    """What the best epoch is chosen by, of a row of the history; a run need not have any."""
    if row["validation_accuracy"] is None:
        return "–"
    if "validation_error" in row:
        return f"error {row['validation_error'] ** 0.5:.4f}"
    return f"accuracy {row['validation_accuracy']:.3f}"


def check_log_dir(folder: str) -> None:
    """Make sure that TensorBoard's files can be written, before anything is trained.

    Raises:
        UsageError: they cannot.
    """
    place = locate(folder)
    if not place.is_local:
        raise UsageError(f"--log-dir {folder}: give a folder on this machine")
    check_writable(place, "--log-dir")


def train_missing(
    runs: Sequence[Run], material: Material, folder: Location, job: ParallelRunsJob
) -> list[RunFailure]:
    """Do those of `runs` that have no result in `folder`, side by side, and show how they go.

    Returns those given up.

    Raises:
        IncompleteError: there is no room for a run, or its images have changed.
    """
    from iqa_ray.training import parallel

    files = RunFiles(folder)
    if job.restart:
        for run in runs:
            files.forget(run)
    todo = [run for run in runs if files.read_result(run) is None]
    if not todo:
        return []
    num_reused = len(runs) - len(todo)
    with connection.connect(job.address):
        plan = parallel.plan_parallel_runs(job.gpus_per_run, job.cpus_per_run)
        resources, room = plan
        before = f", {num_reused} more are finished from before" if num_reused else ""
        log(
            f"{len(todo)} runs of {todo[0].recipe.epochs} epochs, {min(room, len(todo))} at the "
            f"same time, each with {resources.num_cpus:g} CPUs and {resources.num_gpus:g} "
            f"GPUs{before}"
        )
        with LiveRuns(todo, num_reused, job.log_dir) as live:
            return parallel.train_runs(todo, material, folder, plan, live)
