"""Where the settings of a store come from; no store is asked for anything."""

from __future__ import annotations

from typing import Any

import pytest
from pyarrow import fs as pafs

from iqa_ray.storage import object_stores
from iqa_ray.storage.object_stores import open_store

SETTINGS = ("scheme", "endpoint_override", "region")


def open_s3(options: str = "") -> tuple[Any, ...]:
    """Scheme, address and region of the bucket `photos`, opened with `options`."""
    _, (settings,) = open_store("s3://", "photos", options).__reduce__()
    return tuple(settings[name] for name in SETTINGS)


@pytest.fixture(autouse=True)
def regions(monkeypatch):
    """Regions are not looked up."""
    monkeypatch.setattr(pafs, "resolve_s3_region", lambda bucket: f"{bucket}-1")


def test_the_address_of_s3_alone_goes_before_that_of_all_services(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://all:9001")
    assert open_s3("region=eu") == ("https", "all:9001", "eu")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://mine:9000")
    assert open_s3("region=eu") == ("http", "mine:9000", "eu")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert open_s3("region=eu") == ("http", "mine:9000", "eu")


def test_options_go_before_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all:9001")
    assert open_s3("endpoint_override=near:9002&region=eu") == ("https", "near:9002", "eu")
    assert open_s3("scheme=https&region=eu") == ("https", "all:9001", "eu")


def test_the_region_of_a_bucket_is_looked_up_unless_it_or_an_address_is_given(monkeypatch):
    assert open_s3() == ("https", "", "photos-1")
    assert open_s3("scheme=http") == ("http", "", "photos-1")
    assert open_s3("region=eu") == ("https", "", "eu")
    monkeypatch.setattr(pafs, "resolve_s3_region", lambda _: pytest.fail("it was looked up"))
    assert open_s3("endpoint_override=near:9002")[:2] == ("https", "near:9002")


def test_an_unknown_option_is_refused_without_a_value_too():
    with pytest.raises(ValueError, match="^unknown option 'regoin'; known: endpoint_override, re"):
        open_store("s3://", "photos", "region=eu&regoin=")


def test_a_connection_and_an_answer_are_waited_for_as_long_as_is_said(monkeypatch):
    monkeypatch.setattr(object_stores, "_CONNECT_TIMEOUT_S", 3.0)
    monkeypatch.setattr(object_stores, "_SILENCE_TIMEOUT_S", 4.0)
    _, (settings,) = open_store("s3://", "photos", "region=eu").__reduce__()
    assert (settings["connect_timeout"], settings["request_timeout"]) == (3.0, 4.0)


@pytest.mark.parametrize("prefix", ["gs://", "gcs://"])
def test_google_s_client_gives_up_after_a_minute_or_as_long_as_is_given(prefix):
    options = "endpoint_override=127.0.0.1:9&scheme=http"
    for given, seconds in (("", 60), ("&retry_limit_seconds=7", 7)):
        store = open_store(prefix, "photos", options + given)
        assert isinstance(store, pafs.GcsFileSystem)
        _, (settings,) = store.__reduce__()
        assert settings["retry_time_limit"].total_seconds() == seconds
