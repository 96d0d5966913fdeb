"""No credentials in URIs: these are written into tables, records and messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from iqa_ray.errors import UsageError

# a URI within a text: its scheme, its host or bucket, and its options; `file:///` has no host
_URI = re.compile(r"\b(?!file:///)([A-Za-z][A-Za-z0-9+.-]+):/+([^/?#\s]*)[^?\s]*(?:\?(\S*))?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^:@]*)(:\d+)?")
# A secret may hold a slash: what seems to be the bucket is then the key and a part of the secret.
_BUCKET = re.compile(r"[^:@]*")
_BUCKET_SCHEMES = {"s3", "gs", "gcs"}
_SECRET_OPTION = re.compile(r"key|secret|token|passw|credential|sig", re.IGNORECASE)
_PATH_OPTION = "tls_ca_file_path"


def refuse_credentials(value: Any, where: str = "") -> None:
    """Make sure that no URI in `value` holds credentials.

    Args:
        value: a text, or mappings and lists of such.
        where: begins the message.

    Raises:
        UsageError: one does; the message repeats nothing of it.
    """
    if any(_holds_credentials(text) for text in _find_texts(value)):
        raise UsageError(
            f"{where}credentials in a URI would be written into tables: leave them out, and give "
            "them in the environment, in the store's own files or by the machine's role"
        )


def _find_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.items():
            yield from _find_texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _find_texts(item)


def _holds_credentials(text: str) -> bool:
    for scheme, host, query in (match.groups("") for match in _URI.finditer(text)):
        allowed = _BUCKET if scheme.lower() in _BUCKET_SCHEMES else _HOST
        if not allowed.fullmatch(_decode(host)):
            return True
        for name, option in parse_qsl(_decode(query), keep_blank_values=True):
            if _SECRET_OPTION.search(name) or "@" in name:
                return True
            if "@" in option and name != _PATH_OPTION:
                return True
    return False


def _decode(text: str) -> str:
    while (decoded := unquote(text)) != text:
        text = decoded
    return text
