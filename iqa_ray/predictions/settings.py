"""The settings of the job `predict`."""

from __future__ import annotations

from pydantic import Field, model_validator

from iqa_ray.config import WorkspaceJob
from iqa_ray.images.settings import LabelMode
from iqa_ray.training.recipe import Recipe
from iqa_ray.training.settings import BackboneName, TrainingJob


class PredictJob(TrainingJob):
    """Get a prediction for every scored image: import them, or train a classifier and apply it."""

    predictions: str | None = Field(
        default=None,
        description="what your own model said: CSV or Parquet with path, label, predicted, "
        "confidence, probability_true",
    )
    backbone: BackboneName | None = Field(
        default=None, description="train this network instead of reading --predictions"
    )
    train_images: str | None = Field(
        default=None, description="folder, manifest or URI of labelled images to train on"
    )
    split: str | None = Field(
        default=None,
        description="train on a part of the scored images and hold it out from predictions: a "
        "value of the manifest's split column (train), or a share drawn at random (0.4)",
    )
    labels: LabelMode = Field(
        default="parent", description="where labels of --train-images come from: parent, top"
    )
    seed: int = Field(
        default=Recipe.seed, ge=0, description="seed of training and of a random --split"
    )
    num_actors: int | None = Field(
        default=None, ge=1, description="predicting actors (default: one a GPU, or one a CPU)"
    )

    @model_validator(mode="after")
    def _check_source(self) -> PredictJob:
        if (self.predictions is None) == (self.backbone is None):
            raise ValueError("give either --predictions FILE or --backbone NAME")
        if self.backbone and (self.train_images is None) == (self.split is None):
            raise ValueError(
                "--backbone needs images to train on: give either --train-images or --split"
            )
        if self.predictions is not None:
            self._refuse_training_settings()
        return self

    def _refuse_training_settings(self) -> None:
        for name, field in type(self).model_fields.items():
            if name in WorkspaceJob.model_fields or name == "predictions":
                continue
            # a recorded configuration names every setting, so a default is no contradiction
            if getattr(self, name) != field.default:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} is for --backbone: leave it out with --predictions")
