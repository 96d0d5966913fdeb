"""A trained network with what its use needs, as a safetensors file: tensors, and a record."""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
import torch

_RECORD = "iqa_ray"


def dump_model_file(state: dict[str, torch.Tensor], record: dict[str, Any]) -> bytes:
    """The bytes of a file with the tensors in half precision, and the record as JSON."""
    halves = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in state.items()
    }
    data: bytes = safetensors.torch.save(halves, {_RECORD: json.dumps(record)})
    return data


def parse_model_file(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors in single precision, and the record. Nothing in the file is executed.

    Raises:
        safetensors.SafetensorError, KeyError, TypeError, ValueError: it is no such file.
    """
    state = safetensors.torch.load(data)
    length = int.from_bytes(data[:8], "little")
    record = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_RECORD])
    if not isinstance(record, dict):
        raise ValueError("its record is not an object")
    singles = {n: v.float() if v.is_floating_point() else v for n, v in state.items()}
    return singles, record
