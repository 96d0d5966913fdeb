"""Sequences of commands with files that change in between, held against what the files are.

A state machine runs commands without Ray in any order and changes images, labels and settings
between them. After every command an oracle recomputes from the files what a reader may see: a
score, prediction or vote is of the present content and of the recorded settings, or it is absent
with a status.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from inline import WriterKilled, bitmap, list_paths, run_inline, score_deeply

from iqa_ray import metrics
from iqa_ray.config import make_job
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.images.decoding import ImageError, decode_image, hash_content
from iqa_ray.predictions.jobs import run_predict
from iqa_ray.predictions.settings import PredictJob
from iqa_ray.predictions.table import read_predictions
from iqa_ray.rescoring.jobs import run_compact, run_rescore
from iqa_ray.rescoring.settings import CompactJob, RescoreJob
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import (
    SCORES_SCHEMA,
    find_spec,
    scored_metrics,
    scores_folder,
    scores_frame,
)
from iqa_ray.selection.cutoffs import Cutoff
from iqa_ray.selection.fitting import fit_cutoffs
from iqa_ray.selection.jobs import run_cutoffs, run_select
from iqa_ray.selection.settings import CutoffsJob, SelectJob
from iqa_ray.storage.workspace import Workspace

CPU = ("lapm", "wavs")
NAMES = tuple(f"{folder}/{number}.bmp" for folder in "ab" for number in range(3))
CONTENTS = [bitmap(seed) for seed in range(6)] + [bitmap(6, 20, 16)]
TRUNCATED = CONTENTS[0][:300]
BY_HASH = {hash_content(data): data for data in [*CONTENTS, TRUNCATED]}
IMAGE_SIZE = 64

Stat = tuple[int, int] | None  # size and modification time; None of a file that is away
names = st.sampled_from(NAMES)


@cache
def measure(name: str, content_hash: str) -> float | None:
    """The score of a content by a CPU metric."""
    try:
        return metrics.create(name)(decode_image(BY_HASH[content_hash], 10**6))
    except ImageError:
        return None


@cache
def make_checkpoint() -> bytes:
    """A network that was not trained but tells the contents apart."""
    import torch

    from iqa_ray.training import backbones, loop

    torch.manual_seed(3)
    model = backbones.create("simplenet", 2).eval()
    with torch.inference_mode():
        features = model.extract_features(torch.from_numpy(load_contents()).permute(0, 3, 1, 2))
        direction = features[0] - features[1]
        levels = features @ direction
        model.head.weight[:] = torch.stack([direction, -direction])
        model.head.bias[:] = torch.stack([-levels.median(), levels.median()])
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    checkpoint = {"state": state, "classes": ["a", "b"], "backbone": "simplenet", "unread": []}
    return loop.dump_checkpoint({**checkpoint, "image_size": IMAGE_SIZE})


def load_contents() -> np.ndarray[Any, Any]:
    from PIL import Image, ImageOps

    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = (Image.open(io.BytesIO(data)) for data in CONTENTS)
    return np.stack([np.asarray(ImageOps.fit(i, size, Image.Resampling.BILINEAR)) for i in images])


@cache
def predict_contents() -> dict[str, str]:
    """What the network says of each content, by its hash."""
    from iqa_ray.training import backbones, loop

    loaded = loop.load_checkpoint(make_checkpoint())
    model = backbones.create("simplenet", 2)
    model.load_state_dict(loaded["state"])
    chosen = loop.predict_probabilities(model.eval(), load_contents()).argmax(1)
    return {hash_content(data): "ab"[k] for data, k in zip(CONTENTS, chosen, strict=True)}


class Sequences(RuleBasedStateMachine):
    """Images, what is done to them, and the commands."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="iqa_ray-sequences-"))
        self.photos, self.ws = self.folder / "photos", str(self.folder / "ws")
        self.manifest = str(self.photos / "manifest.csv")
        self.time_ns = 10**18
        self.labels = {name: name[0] for name in NAMES}
        self.hidden: dict[str, Path] = {}
        # what has stood at a path with a size and time: more than one where those were kept
        self.seen: dict[str, dict[Stat, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.deep_settings: tuple[str, int | None] | None = None
        self.before_shard: Any = None
        self.scored: set[tuple[str, str]] = set()  # metric and path, of the present command
        self.context = run_inline(self.see_shard)
        self.context.__enter__()
        patches = [
            mock.patch("os.fsync"),  # a hundred of them take seconds
            mock.patch("iqa_ray.training.single.train_on_ray", return_value=make_checkpoint()),
            mock.patch("iqa_ray.progress.tqdm.write"),
            mock.patch("iqa_ray.progress.Progress._write_line"),
        ]
        for patch in patches:
            patch.start()
        for number in range(2):  # to train on: of another size than all others
            file = self.folder / "train" / "ab"[number] / "0.bmp"
            file.parent.mkdir(parents=True)
            file.write_bytes(bitmap(9 + number, 8, 8))

    def teardown(self) -> None:
        mock.patch.stopall()
        self.context.__exit__(None, None, None)
        shutil.rmtree(self.folder)

    # --- images -------------------------------------------------------------------------------

    def put(self, name: str, data: bytes, time_ns: int | None = None) -> None:
        file = self.photos / name
        file.parent.mkdir(parents=True, exist_ok=True)
        self.time_ns += 10**9
        file.write_bytes(data)
        stamp = time_ns or self.time_ns
        os.utime(file, ns=(stamp, stamp))
        self.note_file(name)

    def note_file(self, name: str) -> None:
        self.seen[name][self.stat(name)].add(self.hash_present(name))

    def name_of(self, path: str) -> str:
        return path.removeprefix(f"{self.photos}/")

    def stat(self, name: str) -> Stat:
        try:
            info = os.stat(self.photos / name)
        except FileNotFoundError:
            return None
        return info.st_size, info.st_mtime_ns

    def present(self) -> list[str]:
        return [name for name in NAMES if self.stat(name)]

    @initialize()
    def begin(self) -> None:
        for number, name in enumerate(NAMES[:4]):
            self.put(name, CONTENTS[number])

    @rule(
        steps=st.lists(
            st.tuples(
                st.sampled_from(["write", "overwrite", "truncate", "touch", "delete"]),
                names,
                st.integers(0, len(CONTENTS) - 1),
            ),
            min_size=1,
            max_size=3,
        )
    )
    def change_files(self, steps: list[tuple[str, str, int]]) -> None:
        for action, name, content in steps:
            stat = self.stat(name)
            if action == "write":
                self.hidden.pop(name, None)
                self.put(name, CONTENTS[content])
            elif stat is None:
                continue
            elif action == "overwrite":  # without a trace in size or time
                self.put(name, CONTENTS[content], time_ns=stat[1])
            elif action == "truncate":
                self.put(name, TRUNCATED)
            elif action == "touch":
                self.put(name, (self.photos / name).read_bytes())
            elif len(self.present()) > 1:
                (self.photos / name).unlink()

    @rule(
        action=st.sampled_from(["move", "copy", "hide", "bring back", "relabel"]),
        name=names,
        to=names,
    )
    def rearrange_files(self, action: str, name: str, to: str) -> None:
        is_there = self.stat(name) is not None
        if action == "relabel":
            self.labels[name] = to[0]
        elif action == "bring back":
            for hidden, file in self.hidden.items():
                os.replace(file, self.photos / hidden)
            self.hidden = {}
        elif action == "hide" and is_there and len(self.present()) > 1:
            # still in the manifest, but away
            self.hidden[name] = self.folder / f"hidden-{name.replace('/', '-')}"
            os.replace(self.photos / name, self.hidden[name])
        elif action in ("move", "copy") and is_there and name != to and to not in self.hidden:
            (self.photos / to).parent.mkdir(exist_ok=True)
            place = shutil.copy2 if action == "copy" else os.replace
            place(self.photos / name, self.photos / to)
            self.note_file(to)

    # --- commands -----------------------------------------------------------------------------

    def write_manifest(self) -> None:
        listed = sorted({*self.present(), *self.hidden})
        with open(self.manifest, "w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(["path", "label"])
            rows.writerows((name, self.labels[name]) for name in listed)

    def see_shard(self, shard: Any) -> None:
        if self.before_shard is not None:
            self.before_shard()
        names = getattr(shard, "metrics", ("predict",))
        self.scored |= {(name, path) for name in names for path in list_paths(shard)}

    def command(self, run: Any, model: Any, **given: Any) -> Any:
        """Run a command; None where it says that it is incomplete or cannot."""
        self.scored = set()
        note(f"{run.__name__} {given}")
        try:
            return run(make_job(model, {"workspace": self.ws, **given}))
        except (UsageError, IncompleteError, WriterKilled) as error:
            note(f"  {type(error).__name__}: {error}")
            return None
        finally:
            self.before_shard = None

    def listing(self) -> pd.DataFrame | None:
        file = Path(self.ws, "images.parquet")
        return pd.read_parquet(file) if file.exists() else None

    def rows_on_disk(self, metric: str) -> set[tuple[str, str]]:
        """Image id and content hash of all rows of a metric at its present version."""
        version = find_spec(Workspace(self.ws), metric).version
        files = Path(self.ws, scores_folder(metric, version)).glob("part-*.parquet")
        tables = [pd.read_parquet(file) for file in files]
        rows = pd.concat(tables) if tables else pd.DataFrame(columns=SCORES_SCHEMA.names)
        rows = rows[rows["status"] != "unreadable"]  # those are tried again
        return set(zip(rows["image_id"], rows["content_hash"], strict=True))

    @rule(
        chosen=st.sets(st.sampled_from(CPU), min_size=1),
        deep=st.sampled_from([None, ("fp32", None), ("fp32", 384), ("bf16", None)]),
        trouble=st.sampled_from(["none", "none", "none", "away", "killed"]),
    )
    def score(self, chosen: set[str], deep: tuple[str, int | None] | None, trouble: str) -> None:
        self.write_manifest()
        given: dict[str, Any] = {"images": self.manifest, "metrics": tuple(sorted(chosen))}
        if deep:
            given["metrics"] += ("musiq",)
            given |= {"precision": deep[0], "max_side": deep[1]}
            self.deep_settings = deep
        before = self.known()
        self.make_trouble(trouble)
        done = self.command(run_score, ScoreJob, shard_size=2, **given)
        self.return_files()
        for metric, name in self.names_of_scored():
            assert (metric, name) not in before, f"{metric} of {name} was scored for nothing"
        if done is not None:
            frame = scores_frame(Workspace(self.ws), given["metrics"])
            assert not (frame["status"] == "unscored").any(), frame

    def make_trouble(self, trouble: str) -> None:
        """Files that are away while they are read, or a writer that is killed on the way."""
        left = [2]

        def see() -> None:
            left[0] -= 1
            if trouble == "killed" and left[0] < 0:
                raise WriterKilled
            for name in self.present() if trouble == "away" else ():
                os.replace(self.photos / name, self.folder / f"away-{name.replace('/', '-')}")

        self.before_shard = see

    def return_files(self) -> None:
        for file in self.folder.glob("away-*"):
            name = file.name.removeprefix("away-").replace("-", "/")
            os.replace(file, self.photos / name)

    def names_of_scored(self) -> set[tuple[str, str]]:
        return {(metric, self.name_of(path)) for metric, path in self.scored}

    def known(self) -> set[tuple[str, str]]:
        """Metric and name of images that have a score of the present size, time and content."""
        listing, workspace = self.listing(), Workspace(self.ws)
        if listing is None or not (names := scored_metrics(workspace)):
            return set()
        assert self.deep_settings or "musiq" not in names
        if self.settings_in(find_spec(workspace, "musiq").version) != self.deep_settings:
            names = [name for name in names if name != "musiq"]  # other settings from now on
        found = set()
        for metric in names:
            frame = scores_frame(workspace, [metric])
            for row, score in zip(listing.itertuples(), frame.itertuples(), strict=True):
                name = self.name_of(row.path)
                is_present = self.stat(name) == (row.size_bytes, row.mtime_ns)
                if is_present and score.content_hash == self.hash_present(name):
                    found.add((metric, name))
        return found

    def hash_present(self, name: str) -> str:
        return hash_content((self.photos / name).read_bytes())

    @staticmethod
    def settings_in(version: str) -> tuple[str, int | None]:
        precision = "bf16" if "+bf16" in version else "fp32"
        return precision, 384 if version.endswith("max-side-384") else None

    @rule(trouble=st.sampled_from(["none", "none", "away"]))
    @precondition(lambda self: self.listing() is not None)
    def predict_with_a_network(self, trouble: str) -> None:
        self.make_trouble(trouble)
        self.command(
            run_predict, PredictJob, backbone="simplenet", weights="none", image_size=IMAGE_SIZE,
            train_images=str(self.folder / "train"),
        )  # fmt: skip
        self.return_files()
        self.check_predictions(predict_contents(), is_complete=trouble == "none")

    @rule()
    @precondition(lambda self: self.listing() is not None)
    def import_predictions(self) -> None:
        """The user's own model saw the files as they are now."""
        listing = self.listing()
        assert listing is not None
        said = {hash_content(data): "ab"[number % 2] for number, data in enumerate(CONTENTS)}
        rows = []
        for row in listing.itertuples():
            name = self.name_of(row.path)
            if self.stat(name) == (row.size_bytes, row.mtime_ns) and not self.is_ambiguous(name):
                content = self.hash_present(name)
                rows.append((name, said.get(content, "a")))
        file = self.folder / "mine.csv"
        pd.DataFrame(rows, columns=["path", "predicted"]).to_csv(file, index=False)
        self.command(run_predict, PredictJob, predictions=str(file))
        if rows:
            self.check_predictions(said | {hash_content(TRUNCATED): "a"}, is_complete=False)

    def is_ambiguous(self, name: str) -> bool:
        return len(self.seen[name][self.stat(name)]) > 1

    def check_predictions(self, expected: dict[str, str], is_complete: bool) -> None:
        if not Path(self.ws, "predictions.parquet").exists():
            return
        listing = self.listing()
        assert listing is not None
        stats = {row.path: (row.size_bytes, row.mtime_ns) for row in listing.itertuples()}
        table, origins = read_predictions(Workspace(self.ws))
        assert origins is not None
        for row, content_hash in zip(table.itertuples(), origins.content_hashes, strict=True):
            name = self.name_of(row.path)
            if content_hash is not None:
                assert expected[content_hash] == row.predicted, row
            elif is_complete and self.stat(name) and self.stat(name) == stats[row.path]:
                content = (self.photos / name).read_bytes()
                assert content == TRUNCATED, f"{name} has no prediction"

    @rule()
    @precondition(lambda self: Path(self.ws, "predictions.parquet").exists())
    def cutoffs(self) -> None:
        self.command(run_cutoffs, CutoffsJob, min_wrong=2)

    @invariant()
    def right_and_wrong_are_counted_where_prediction_score_and_label_fit(self) -> None:
        workspace = Workspace(self.ws)
        known = scored_metrics(workspace)
        if not known or not Path(self.ws, "predictions.parquet").exists():
            return
        table, origins = read_predictions(workspace)
        assert origins is not None
        predictions = table.assign(content_hash=origins.content_hashes).set_index("image_id")
        only_count = make_job(CutoffsJob, {"workspace": self.ws, "min_wrong": 1000})
        for name, cutoff in fit_cutoffs(workspace, only_count).cutoffs.items():
            frame = scores_frame(workspace, [name]).set_index("image_id")
            counts = {"correct": 0, "incorrect": 0}
            for image_id, row in frame[frame["status"] == "ok"].iterrows():
                if image_id not in predictions.index:
                    continue
                said = predictions.loc[image_id]
                is_same = said["content_hash"] == row["content_hash"]
                if is_same and said["label"] == row["label"] and pd.notna(said["correct"]):
                    counts["correct" if said["correct"] else "incorrect"] += 1
            assert cutoff.counts == counts, name

    @rule(quantile=st.floats(0.2, 0.8))
    @precondition(lambda self: self.listing() is not None)
    def set_cutoffs(self, quantile: float) -> None:
        """By hand, since a few images give no crossing."""
        workspace = Workspace(self.ws)
        if names := scored_metrics(workspace):
            limits = scores_frame(workspace, names)[names].quantile(quantile).dropna()
            self.command(run_cutoffs, CutoffsJob, metrics=tuple(limits.index), cutoff=dict(limits))

    @rule(voting=st.sampled_from(["any", "majority"]))
    @precondition(lambda self: Path(self.ws, "cutoffs.json").exists())
    def select(self, voting: str) -> None:
        if self.command(run_select, SelectJob, rule=voting) is not None:
            self.check_selection()

    def check_selection(self) -> None:
        """Votes and reasons are those of the scores that readers see now."""
        workspace, listing = Workspace(self.ws), self.listing()
        selection = pd.read_parquet(f"{self.ws}/selection.parquet").set_index("image_id")
        assert listing is not None
        assert set(selection.index) == set(listing["image_id"])
        assert selection["label"].to_dict() == listing.set_index("image_id")["label"].to_dict()
        voters = [name.removeprefix("low_") for name in selection if name.startswith("low_")]
        frame = scores_frame(workspace, voters).set_index("image_id").loc[selection.index]
        entries = json.loads(Path(self.ws, "cutoffs.json").read_text())
        for name in voters:
            cutoff = Cutoff.from_json(entries[name])
            assert cutoff.version == find_spec(workspace, name).version
            np.testing.assert_array_equal(selection[name], frame[name])
            is_scored = frame[name].notna()
            low = selection.loc[is_scored, f"low_{name}"].astype(bool)
            assert (low == cutoff.is_low(frame.loc[is_scored, name].to_numpy())).all()
        lacking = frame[voters].isna().any(axis=1)
        assert not selection.loc[lacking, "keep"].any()
        assert selection.loc[lacking, "reason"].str.startswith("unscored (").all()

    @rule(refit=st.booleans(), trouble=st.sampled_from(["none", "none", "none", "killed"]))
    @precondition(lambda self: self.listing() is not None)
    def rescore(self, refit: bool, trouble: str) -> None:
        self.write_manifest()
        refit = refit and Path(self.ws, "predictions.parquet").exists()
        before = self.unneeded()
        cutoffs = Path(self.ws, "cutoffs.json")
        had = {
            name: entry["value"]
            for name, entry in (json.loads(cutoffs.read_text()) if cutoffs.exists() else {}).items()
        }
        nights = self.count_nights()
        self.make_trouble(trouble)
        done = self.command(run_rescore, RescoreJob, images=self.manifest, refit=refit)
        for metric, name in self.names_of_scored():
            assert (metric, name) not in before, f"{metric} of {name} was scored for nothing"
        if cutoffs.exists():
            now = json.loads(cutoffs.read_text())
            lost = [name for name, value in had.items() if value and now[name]["value"] is None]
            assert not lost, f"--refit took the cut-offs of {lost}"
        if done is None:
            return
        assert self.count_nights() == nights + 1
        frame = scores_frame(Workspace(self.ws), scored_metrics(Workspace(self.ws)))
        assert not (frame["status"] == "unscored").any(), frame
        if done["num_kept"] is not None:
            self.check_selection()

    def count_nights(self) -> int:
        file = Path(self.ws, "history", "runs.parquet")
        return len(pd.read_parquet(file)) if file.exists() else 0

    def unneeded(self) -> set[tuple[str, str]]:
        """Metric and name of images that a night need not score.

        Those have the size and the content that they had when they were last scored, and a row of
        that content for the metric.
        """
        listing, workspace = self.listing(), Workspace(self.ws)
        if listing is None or not (names := scored_metrics(workspace)):
            return set()
        hashes = scores_frame(workspace, names)["content_hash"]
        found = set()
        for row, content_hash in zip(listing.itertuples(), hashes, strict=True):
            name = self.name_of(row.path)
            stat = self.stat(name)
            if stat is None or stat[0] != row.size_bytes or self.is_ambiguous(name):
                continue
            if content_hash == self.hash_present(name):
                key = (row.image_id, content_hash)
                found |= {(m, name) for m in names if key in self.rows_on_disk(m)}
        return found

    @rule()
    @precondition(lambda self: self.listing() is not None)
    def compact(self) -> None:
        self.command(run_compact, CompactJob, workspace=self.ws)

    # --- the oracle ---------------------------------------------------------------------------

    @invariant()
    def every_score_is_of_the_present_content(self) -> None:
        listing, workspace = self.listing(), Workspace(self.ws)
        if listing is None or not (known := scored_metrics(workspace)):
            return
        if "musiq" in known and self.deep_settings:
            version = find_spec(workspace, "musiq").version
            assert self.settings_in(version) == self.deep_settings
        frame = scores_frame(workspace, known)
        assert list(frame["path"]) == list(listing["path"])
        for row, listed in zip(frame.to_dict("records"), listing.itertuples(), strict=True):
            name = self.name_of(row["path"])
            stat = None if pd.isna(listed.size_bytes) else (listed.size_bytes, listed.mtime_ns)
            possible = self.seen[name][stat]
            values = {metric: row[metric] for metric in known if pd.notna(row[metric])}
            assert (row["status"] == "ok") == (len(values) == len(known)), row
            assert row["error"] or row["status"] == "ok", row
            if values:
                content_hash = row["content_hash"]
                assert content_hash in possible, f"{name}: a score of another content"
                assert values == {m: self.expect(m, content_hash) for m in values}, name

    def expect(self, metric: str, content_hash: str) -> float | None:
        if metric == "musiq":
            assert self.deep_settings is not None
            return score_deeply(content_hash, *self.deep_settings)
        return measure(metric, content_hash)


def run(max_examples: int, num_steps: int, **given: Any) -> None:
    run_state_machine_as_test(
        Sequences,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=num_steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **given,
        ),
    )


def test_readers_see_present_contents_whatever_was_done_before():
    run(20, 20, derandomize=True, database=None)


@pytest.mark.slow
def test_readers_see_present_contents_in_many_more_sequences():
    run(100, 30)
