"""A job's settings: one frozen, validated model that is command line, YAML file and saved record.

A job declares its settings once, as a subclass of `Job`. Field names become flags
(`max_pixels` is `--max-pixels`), field descriptions become the help text, and the validated
model is what `WS/configs/<job>-<utc>.yaml` records. No setting holds credentials, since settings
are written into tables, records and messages.
"""

from __future__ import annotations

import argparse
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from keyword import iskeyword
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iqa_ray.errors import UsageError

JobT = TypeVar("JobT", bound="Job")

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


class Job(BaseModel):
    """Settings that every job has; no URI among them holds credentials."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )

    address: str | None = Field(
        default=None,
        description="Ray cluster to use, where the job uses Ray: auto, ray://HOST:10001 or "
        "HOST:6379 (default: local Ray)",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_credentials(cls, settings: Any) -> Any:
        # before any other check, whose message would repeat the value
        refuse_credentials(settings)
        return settings


class WorkspaceJob(Job):
    """A job that reads or writes a workspace."""

    workspace: str = Field(description="folder or URI (s3://, gs://) that holds the tables")


def positional(description: str, metavar: str, **settings: Any) -> Any:
    """A field that is given by position on the command line, or by its name as a flag.

    It is required unless it has a default.
    """
    return Field(
        description=description,
        json_schema_extra={"positional": True, "metavar": metavar},
        **settings,
    )


def build_parser(parser: argparse.ArgumentParser, model: type[Job]) -> argparse.ArgumentParser:
    """Add one argument a field of `model` to `parser`; nothing is given a default there."""
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        text = (field.description or "").replace("%", "%%")
        metavar = extra.get("metavar")
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if metavar:
            options["metavar"] = str(metavar)
        if extra.get("positional"):
            # optional for argparse, since --config may hold it; the model requires it
            parser.add_argument(name, nargs="?", **options)
            by_name = {**options, "help": argparse.SUPPRESS}
            parser.add_argument(_flag_of(name), dest=name, **by_name)
            continue
        if not field.is_required() and field.default not in (None, (), {}, False):
            options["help"] = f"{text} (default: {format_value(field.default)})"
        parser.add_argument(_flag_of(name), dest=name, **options, **_flag_kind(field.annotation))
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="read settings from a YAML file; flags win over it"
    )
    return parser


def format_value(value: Any) -> str:
    """A setting as it would be typed on the command line."""
    if isinstance(value, tuple | list):
        return ",".join(str(item) for item in value)
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return str(value)


def _flag_of(name: str) -> str:
    # a field whose name would be a Python keyword ends with an underscore
    return f"--{name.rstrip('_').replace('_', '-')}"


def _flag_kind(annotation: Any) -> dict[str, Any]:
    """How argparse reads a field of this type; the model does the conversion of values."""
    kinds = [
        kind
        for kind in (typing.get_args(annotation) if _is_union(annotation) else (annotation,))
        if kind is not type(None)
    ]
    origin = typing.get_origin(kinds[0])
    if kinds == [bool]:
        return {"action": "store_true"}
    if origin is tuple:
        return {"type": _split_commas}
    if origin is dict:
        return {"action": "append", "metavar": "NAME=VALUE"}
    if origin is typing.Literal and len(kinds) == 1:
        return {"choices": typing.get_args(kinds[0])}
    return {}


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _split_commas(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def make_job(model: type[JobT], settings: Mapping[str, Any]) -> JobT:
    """Validate `settings`.

    Raises:
        UsageError: one line that names the flag and what is wrong with its value.
    """
    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        raise UsageError(_first_problem(model, error)) from None


def parse_job(model: type[JobT], arguments: argparse.Namespace) -> JobT:
    """The job that parsed `arguments` (and the file that `--config` names) describe."""
    given = dict(vars(arguments))
    config = given.pop("config", None)
    settings = load_settings(config) if config else {}
    for name, value in given.items():
        if name not in model.model_fields:
            continue
        is_mapping = typing.get_origin(model.model_fields[name].annotation) is dict
        settings[name] = _read_pairs(name, value) if is_mapping else value
    return make_job(model, settings)


def load_settings(path: str | Path) -> dict[str, Any]:
    """Settings from a YAML file; keys may be written as fields (`max_pixels`) or flags."""
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:  # its text would repeat parts of the file
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UsageError(f"--config {path} is not YAML: {line}{error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise UsageError(f"--config {path} must hold `setting: value` lines")
    settings = {str(key).replace("-", "_"): value for key, value in loaded.items()}
    return {f"{key}_" if iskeyword(key) else key: value for key, value in settings.items()}


def dump_settings(job: Job) -> str:
    """The job as YAML that `--config` reads back."""
    return yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_pairs(name: str, pairs: Sequence[str]) -> dict[str, str]:
    items = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise UsageError(f"{_flag_of(name)} {pair}: write NAME=VALUE")
        items[key.strip()] = value.strip()
    return items


def _first_problem(model: type[Job], error: ValidationError) -> str:
    problem = error.errors()[0]
    where = problem["loc"]
    name = str(where[0]) if where else ""
    field = model.model_fields.get(name)
    if field is None and name:
        known = ", ".join(model.model_fields)
        return f"unknown setting {name!r} in --config; known: {known}"
    extra = field.json_schema_extra if field else None
    is_positional = isinstance(extra, dict) and bool(extra.get("positional"))
    flag = name.upper() if is_positional else _flag_of(name)
    if problem["type"] == "missing":
        return f"{flag} is required (on the command line or in --config)"
    message = problem["msg"].removeprefix("Value error, ")
    if not name:
        return message
    if problem["type"] == "value_error":
        return f"{flag}: {message}"
    return f"{flag}: {message} (got {format_value(problem['input'])!r})"
