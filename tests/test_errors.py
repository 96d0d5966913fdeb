"""Errors that say how an image fails."""

from __future__ import annotations

import pickle

import pytest

from iqa_ray.errors import StatusError
from iqa_ray.images.decoding import AbsentError, ImageError
from iqa_ray.metrics.spec import MetricError


@pytest.mark.parametrize("kind", [StatusError, ImageError, AbsentError, MetricError])
def test_an_error_of_an_image_keeps_its_kind_and_status_between_processes(
    kind: type[StatusError],
) -> None:
    error = pickle.loads(pickle.dumps(kind("too_large", "no value")))
    assert type(error) is kind
    assert (error.status, str(error)) == ("too_large", "no value")
    assert isinstance(error, ValueError)
