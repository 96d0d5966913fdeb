"""Object stores whose single requests may fail: opening them, asking again, what errors mean.

The stores' own clients repeat a request that failed in passing. For S3 we choose how often: ten
requests in all, with waits that double from 50 ms to 6.4 s, 13 s together. Nothing waits for
ever: a connection must come about, and bytes must flow, within the times below. What a client
does not repeat is repeated here (`ask`).
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs as pafs

from iqa_ray.config import refuse_credentials

AnswerT = TypeVar("AnswerT")

_NUM_RETRIES = 9
_CONNECT_TIMEOUT_S = 5.0
_SILENCE_TIMEOUT_S = 10.0
# Google's client repeats by time, with waits of its own; its default is a quarter of an hour
_GS_RETRIES_S = 60

# For `ask`. Shorter than a client's own retries: a request whose retries all failed ends there.
_PATIENCE_S = 10.0
_FIRST_WAIT_S = 0.05

_S3_OPTIONS = ("endpoint_override", "region", "scheme", "tls_ca_file_path")
# names of errors in the texts of pyarrow's exceptions, which have no better mark
_DENIED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|HTTP status 40[13]\b"
    r"|PERMISSION_DENIED|UNAUTHENTICATED"
)
_UNANSWERED = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|SERVICE_UNAVAILABLE"
    r"|REQUEST_TIMEOUT|HTTP status (?:429|5\d\d)\b|Status\((?:UNAVAILABLE|DEADLINE_EXCEEDED)"
)
# before the error itself, pyarrow says of which key and bucket
_PREAMBLE = re.compile(r"^When .*?: (?=AWS Error)", re.DOTALL)


class UnansweredError(OSError):
    """A store failed every time it was asked: it is at fault, not the file."""


def open_store(prefix: str, bucket: str, options: str) -> pafs.FileSystem:
    """The file system of `bucket` in the store that `prefix` (such as `s3://`) names.

    Credentials are found in the standard way of each store. `options` are those of a URI's query.

    Raises:
        ValueError: unusable options, or a kind of store that is not known.
        ImportError: fsspec needs another package for this kind of store.
        OSError: the bucket's region cannot be had.
    """
    if "@" in bucket:
        raise ValueError("credentials in a URI would be written into tables: use the environment")
    if prefix == "s3://":
        return _open_s3(bucket, options)
    if prefix in {"gs://", "gcs://"} and "retry_limit_seconds=" not in options:
        options = "&".join(filter(None, [options, f"retry_limit_seconds={_GS_RETRIES_S}"]))
    try:
        return pafs.FileSystem.from_uri(f"{prefix}{bucket}" + (f"?{options}" if options else ""))[0]
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
    import fsspec

    return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(prefix.removesuffix("://"))))


def _open_s3(bucket: str, options: str) -> pafs.S3FileSystem:
    given = dict(parse_qsl(options, keep_blank_values=True))
    if unknown := sorted(set(given) - set(_S3_OPTIONS)):
        raise ValueError(f"unknown option {unknown[0]!r}; known: {', '.join(_S3_OPTIONS)}")
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if address and "endpoint_override" not in given:
        refuse_credentials(address, "AWS_ENDPOINT_URL: ")
        parts = urlsplit(address)
        given = {"scheme": parts.scheme, "endpoint_override": parts.netloc, **given}
    if not {"endpoint_override", "region"} & set(given):
        given["region"] = pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(
        **given,
        # the "standard" strategy pays for retries out of a quota that pyarrow never fills again
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=_NUM_RETRIES),
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=_SILENCE_TIMEOUT_S,
        allow_delayed_open=True,  # a small file is one put, not an upload in three requests
    )


def ask(operation: Callable[[], AnswerT]) -> AnswerT:
    """What `operation` gives, begun again while it fails in passing and `_PATIENCE_S` last.

    pyarrow's client for S3 does not repeat errors whose code it does not know, nor reading a file
    that is smaller than the text of the error, a few hundred bytes.

    Raises the last error.
    """
    start_s, wait_s = time.monotonic(), _FIRST_WAIT_S
    while True:
        try:
            return operation()
        except OSError as error:
            is_over = time.monotonic() - start_s + wait_s > _PATIENCE_S
            if is_over or find_kind(error) is not UnansweredError:
                raise
        time.sleep(wait_s * random.uniform(0.5, 1))
        wait_s *= 2


def find_kind(error: OSError) -> type[OSError]:
    """The kind of exception that a store's error would be, had pyarrow one for it."""
    text = str(error)
    if _DENIED.search(text):
        return PermissionError
    if _UNANSWERED.search(text) or isinstance(error, ConnectionError | TimeoutError):
        return UnansweredError
    return type(error)


def name_error(error: OSError) -> str:
    """What a store's error says, less the name of the file."""
    return " ".join(_PREAMBLE.sub("", str(error)).split())
