"""A folder of images, a workspace, and the commands on it, with workers in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from inline import list_paths, put

from iqa_ray.config import make_job
from iqa_ray.predictions.jobs import PredictJob, run_predict
from iqa_ray.rescoring.jobs import RescoreJob, run_rescore
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.tables import scores_frame
from iqa_ray.selection.jobs import run_cutoffs, run_select
from iqa_ray.selection.settings import CutoffsJob, SelectJob
from iqa_ray.storage.workspace import Workspace

Shards = list[tuple[str, str]]  # metric and file name, as they were scored


class Desk:
    """Images of one colour, which have the scores that `put` names; `scored` says which were."""

    def __init__(self, folder: Path) -> None:
        self.photos, self.ws = folder / "photos", str(folder / "ws")
        self.scored: Shards = []

    def see_shard(self, shard: Any) -> None:
        self.scored += [(m, Path(p).name) for m in shard.metrics for p in list_paths(shard)]

    def put(self, name: str, lapm: int, wavs: int = 0) -> Path:
        put(self.photos / name, lapm, wavs)
        return self.photos / name

    def score(self, *metrics: str, **given: Any) -> None:
        self.scored.clear()
        given |= {"images": str(self.photos), "workspace": self.ws, "metrics": metrics}
        run_score(make_job(ScoreJob, given))

    def rescore(self, **given: Any) -> dict[str, Any]:
        self.scored.clear()
        return run_rescore(
            make_job(RescoreJob, {"images": str(self.photos), "workspace": self.ws, **given})
        )

    def cutoffs(self, **given: Any) -> dict[str, Any]:
        return run_cutoffs(make_job(CutoffsJob, {"workspace": self.ws, **given}))

    def select(self, **given: Any) -> dict[str, Any]:
        return run_select(make_job(SelectJob, {"workspace": self.ws, **given}))

    def predict(self, right: dict[str, bool]) -> None:
        """Import predictions: of which files the classifier was right."""
        rows = [(path, "a", "a" if is_right else "b") for path, is_right in right.items()]
        file = Path(self.ws).parent / "mine.csv"
        pd.DataFrame(rows, columns=["path", "label", "predicted"]).to_csv(file, index=False)
        run_predict(make_job(PredictJob, {"workspace": self.ws, "predictions": str(file)}))

    def values(self) -> dict[str, float | None]:
        entries = json.loads(Path(self.ws, "cutoffs.json").read_text())
        return {name: entry["value"] for name, entry in entries.items()}

    def frame(self, *metrics: str) -> pd.DataFrame:
        frame = scores_frame(Workspace(self.ws), metrics)
        return frame.set_index(frame["path"].map(lambda path: Path(path).name))

    def runs(self) -> pd.DataFrame:
        return pd.read_parquet(f"{self.ws}/history/runs.parquet")

    def dated(self) -> list[Path]:
        return sorted(Path(self.ws).glob("history/cutoffs-*.json"))
