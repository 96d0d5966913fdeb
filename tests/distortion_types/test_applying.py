"""What is wrong with the images of a workspace: `distortions apply`, `select`, `rescore`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from inline import WriterKilled, list_paths, run_inline

from iqa_ray.config import make_job
from iqa_ray.distortion_types.jobs import describe_apply, run_apply
from iqa_ray.distortion_types.model import ModelCard, TypesModel, dump_model, load_model
from iqa_ray.distortion_types.settings import ApplyTypesJob
from iqa_ray.distortion_types.table import DISTORTIONS_SCHEMA, read_looks
from iqa_ray.errors import UsageError
from iqa_ray.images.source import ImageSource
from iqa_ray.selection.cutoffs import Cutoff
from iqa_ray.storage.files import locate
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training import backbones


@pytest.fixture
def model_file(tmp_path):
    """A model that was not trained."""
    torch.manual_seed(0)
    state = backbones.create("simplenet_norm", 4).state_dict()
    card = ModelCard("simplenet_norm", ("gblur", "jpeg", "wn"), 64, 1, "softmax")
    (tmp_path / "m.safetensors").write_bytes(dump_model(card, state))
    return tmp_path / "m.safetensors"


@pytest.fixture
def scored(desk):
    for level in range(70):
        desk.put(f"a/{level:02}.bmp", 10 + level, level)
    desk.score("lapm")
    return desk


def make_picture(file):
    from pictures import make_texture
    from PIL import Image

    Image.fromarray(make_texture(0, 64, 80)).save(file)


def apply(desk, model_file, before_shard=lambda shard: None, **given):
    seen = []

    def see(shard):
        before_shard(shard)
        seen.extend(Path(path).name for path in list_paths(shard))

    given = {"workspace": desk.ws, "model": str(model_file), **given}
    with run_inline(see):
        summary = run_apply(make_job(ApplyTypesJob, given))
    return summary, seen, pd.read_parquet(f"{desk.ws}/distortions.parquet")


def test_every_image_has_a_row_with_what_the_model_finds(scored, model_file):
    summary, seen, table = apply(scored, model_file)
    assert len(seen) == 70
    assert summary["num_images"] == summary["num_applied"] == 70
    assert list(table) == DISTORTIONS_SCHEMA.names
    images = pd.read_parquet(f"{scored.ws}/images.parquet")
    assert table["path"].tolist() == images["path"].tolist()
    assert table["image_id"].tolist() == images["image_id"].tolist()
    model, _ = load_model(str(model_file))
    source = ImageSource(locate(scored.photos))
    for row in table.iloc[[0, 33, 69]].itertuples():
        finding = model.find([source.decode(source.read(row.path))])[0]
        assert (row.distortion, row.severity) == (finding.distortion, finding.severity)
        assert row.distortion_probability == pytest.approx(finding.probability, abs=1e-5)
        assert row.status == "ok"
    assert summary["distortions"] == table["distortion"].value_counts().to_dict()
    assert "70 images, 70 looked at now" in describe_apply(summary)


def test_only_new_and_changed_images_are_looked_at_again(scored, model_file):
    apply(scored, model_file)
    summary, seen, before = apply(scored, model_file)
    assert (seen, summary["num_applied"]) == ([], 0)
    scored.put("a/03.bmp", 200)
    scored.put("a/new.bmp", 100)
    scored.score("lapm")
    _, seen, after = apply(scored, model_file)
    assert sorted(seen) == ["03.bmp", "new.bmp"]
    assert len(after) == 71
    same = before["path"][~before["path"].str.endswith("03.bmp")]
    pd.testing.assert_frame_equal(
        before.set_index("path").loc[same], after.set_index("path").loc[same]
    )


def test_a_run_that_is_killed_goes_on_where_it_was(scored, model_file):
    shards = []

    def kill(shard):
        shards.append(shard)
        if len(shards) == 2:
            raise WriterKilled

    with pytest.raises(WriterKilled):
        apply(scored, model_file, kill)
    assert not Path(scored.ws, "distortions.parquet").exists()
    _, seen, table = apply(scored, model_file)
    assert len(seen) == 70 - 64
    assert table["distortion"].notna().all()


def test_images_that_cannot_be_decoded_have_a_row_that_says_why(scored, model_file):
    (scored.photos / "a/01.bmp").write_bytes(b"nothing")
    (scored.photos / "a/02.bmp").unlink()
    summary, _, table = apply(scored, model_file)
    table = table.set_index(table["path"].map(lambda path: Path(path).name))
    assert summary["num_failed"] == 2
    assert table.loc["01.bmp", "status"] == "unreadable"
    assert "not an image" in table.loc["01.bmp", "error"]
    assert table.loc["02.bmp", "error"] == "No such file or directory"
    assert table.loc[["01.bmp", "02.bmp"], "distortion"].isna().all()
    scored.put("a/02.bmp", 12, 2)
    _, seen, _ = apply(scored, model_file)
    assert seen == ["02.bmp"]


def test_grey_and_small_images_are_judged(desk, model_file):
    from PIL import Image

    desk.photos.mkdir()
    Image.fromarray(np.full((1, 1), 7, np.uint8)).save(desk.photos / "grey.png")
    make_picture(desk.photos / "large.png")
    desk.score("lapm")
    _, _, table = apply(desk, model_file)
    assert table["distortion"].notna().all()
    assert table["status"].tolist() == ["ok", "ok"]
    assert table["error"].tolist() == ["smaller than 64 px: mirrored at its edges", ""]


def test_a_model_that_is_damaged_is_refused_before_anything_runs(scored, model_file):
    model_file.write_bytes(model_file.read_bytes()[:1000])
    with pytest.raises(UsageError, match="--model .*m.safetensors: damaged"):
        apply(scored, model_file)


def write_cutoffs(desk):
    cutoff = Cutoff(50.0, "higher_is_better", source="manual")
    Workspace(desk.ws).write_json("cutoffs.json", {"lapm": cutoff.to_json()})


def find_blur(model, images):
    from iqa_ray.distortion_types.model import Finding

    return [Finding("gblur", 0.93, 5) for _ in images]


def test_rejected_images_say_what_they_look_like(scored, model_file, monkeypatch):
    monkeypatch.setattr(TypesModel, "find", find_blur)
    apply(scored, model_file)
    write_cutoffs(scored)
    scored.select()
    table = pd.read_parquet(f"{scored.ws}/selection.parquet")
    look = "; looks like gaussian blur, severe (0.93)"
    assert set(table["reason"][table["keep"]]) == {""}
    rejected = table["reason"][~table["keep"]]
    assert len(rejected) == 40
    assert rejected.iloc[0] == f"low in 1 of 1: lapm 10 < 50{look}"
    assert rejected.str.endswith(look).all()


def test_what_an_image_looked_like_before_it_changed_is_not_said(scored, model_file, monkeypatch):
    monkeypatch.setattr(TypesModel, "find", find_blur)
    assert read_looks(Workspace(scored.ws)) is None
    apply(scored, model_file)
    scored.put("a/03.bmp", 20)
    scored.score("lapm")
    looks = read_looks(Workspace(scored.ws))
    assert (looks != "").sum() == 69


def test_rescore_looks_at_what_is_new(scored, model_file, monkeypatch):
    monkeypatch.setattr(TypesModel, "find", find_blur)
    apply(scored, model_file)
    write_cutoffs(scored)
    scored.put("a/new.bmp", 20)
    seen = []
    with run_inline(lambda shard: seen.append(list_paths(shard))):
        scored.rescore()
    assert [[Path(path).name for path in paths] for paths in seen] == [["new.bmp"]] * 2
    table = pd.read_parquet(f"{scored.ws}/selection.parquet")
    row = table[table["path"].str.endswith("new.bmp")].iloc[0]
    assert row["reason"].endswith("; looks like gaussian blur, severe (0.93)")
