"""Getting the files of deep metrics into a weights folder, and making sure of them before a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256

from iqa_ray.errors import UsageError
from iqa_ray.progress import log
from iqa_ray.storage.files import Location, locate
from iqa_ray.weights.fetching import fetch_file, find_network_trouble
from iqa_ray.weights.files import (
    WEIGHTS_LOCK,
    Lock,
    WeightFile,
    cache_folder,
    default_folder,
    describe_files,
    find_damage,
    name_file,
    open_node_copy,
    read_lock,
    resolve_folder,
    write_lock,
)
from iqa_ray.weights.metric_files import Weights, build_model, find_pyiqa_version, list_urls


def prepare_weights(metrics: Sequence[str], folder: str | None) -> dict[str, Weights]:
    """Make sure that the files of deep metrics are there and sound, before anything is scored.

    Args:
        metrics: ids of pyiqa's.
        folder: the weights folder; None for `$IQA_RAY_WEIGHTS` or, without that, this machine's
            own, into which missing files are then fetched. A given folder is never written, and
            the network never used.

    Raises:
        UsageError: files are missing, with their names and what to do; or damaged, or of another
            model, with the name.
    """
    find_pyiqa_version()
    given = resolve_folder(folder)
    place = locate(given) if given else default_folder()
    urls, missing = {}, {}
    for metric in metrics:
        urls[metric], missing[metric] = list_urls(metric, place)
    lacking = [metric for metric in metrics if missing[metric]]
    if lacking:
        _complain_or_pull(lacking, missing, place, can_pull=not given)
        urls |= {metric: list_urls(metric, place)[0] for metric in lacking}
    prepared = {}
    for metric in metrics:
        weights = Weights(
            metric, describe_files(place, urls[metric]), str(place) if given else None
        )
        verify_copies(weights, place)
        prepared[metric] = weights
    return prepared


def _complain_or_pull(
    metrics: Sequence[str], missing: dict[str, list[str]], place: Location, can_pull: bool
) -> None:
    names = dict.fromkeys(name_file(url) for metric in metrics for url in missing[metric])
    what = f"{', '.join(metrics)} need{'s' if len(metrics) == 1 else ''} {', '.join(names)}"
    line = f"iqa-ray weights pull --metrics {','.join(metrics)} --to"
    if not can_pull:
        raise UsageError(f"{what}, not in the weights folder {place}: run `{line} {place}`")
    reason = find_network_trouble(missing[metrics[0]][0])
    if reason:
        raise UsageError(
            f"{what}, and the network cannot be used ({reason}): where it can, run `{line} DIR`; "
            "then give --weights DIR here"
        )
    pull_weights(metrics, place)


def pull_weights(metrics: Sequence[str], folder: Location) -> Lock:
    """Fetch every file that `metrics` need into `folder` and record them in its lock.

    What is there already and sound is kept, what is damaged fetched anew. Returns the lock.

    Raises:
        UsageError: a file cannot be fetched, or the folder not be written.
    """
    lock = read_lock(folder) or Lock(find_pyiqa_version())
    if lock.pyiqa != find_pyiqa_version():  # the other metrics' files are another version's
        lock = Lock(find_pyiqa_version(), files=lock.files)
    for metric in metrics:
        urls, missing = list_urls(metric, folder)
        for url in urls:
            entry = lock.files.get(name_file(url))
            if entry and url not in missing and (damage := find_damage(folder, entry)):
                log(f"{damage}; fetching it again")
                missing.append(url)
        while missing:
            for url in missing:
                entry = fetch_file(url, folder)
                lock.files[entry.name] = entry
            write_lock(folder, lock)
            urls, missing = list_urls(metric, folder)
        files = describe_files(folder, urls)
        lock.files |= {entry.name: entry for entry in files}
        lock.metrics[metric] = [entry.name for entry in files]
        write_lock(folder, lock)
        verify_copies(Weights(metric, files, str(folder)), folder)
    return lock


def check_weights(folder: Location, metrics: Sequence[str]) -> dict[str, list[WeightFile]]:
    """Verify the files of `metrics` (of all that the lock names, where none is given).

    Returns the files of each metric.

    Raises:
        UsageError: the lock, a metric or a file is missing; a file is damaged or does not fit.
    """
    lock = read_lock(folder)
    if lock is None:
        raise UsageError(
            f"{folder} has no {WEIGHTS_LOCK}: `iqa-ray weights pull --to DIR` makes one"
        )
    pull = f"`iqa-ray weights pull --metrics {','.join(metrics or lock.metrics)} --to {folder}`"
    if absent := [metric for metric in metrics if metric not in lock.metrics]:
        raise UsageError(f"{folder / WEIGHTS_LOCK} has no {', '.join(absent)}: run {pull}")
    checked = {}
    for metric in metrics or lock.metrics:
        entries = [lock.files[name] for name in lock.metrics[metric]]
        if damages := [damage for entry in entries if (damage := find_damage(folder, entry))]:
            raise UsageError(f"{'; '.join(damages)}: run {pull}")
        verify_copies(Weights(metric, tuple(entries), str(folder)), folder)
        checked[metric] = entries
    return checked


def verify_copies(weights: Weights, folder: Location) -> None:
    """Copy the files from `folder` to this machine and make sure that pyiqa's network takes them.

    Both are done once on a machine.

    Raises:
        UsageError: a file is damaged, or the network does not take it; names the file.
    """
    for entry in weights.files:
        open_node_copy(entry, str(folder))
    key = json.dumps([find_pyiqa_version(), weights.metric, [f.sha256 for f in weights.files]])
    mark = cache_folder() / "fits" / sha256(key.encode()).hexdigest()
    if mark.exists():
        return
    build_model(weights)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(key)
