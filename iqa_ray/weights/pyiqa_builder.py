"""Building pyiqa's networks from files that we hand to it, and never from the network.

pyiqa, timm, torchvision and CLIP each fetch what they need while a model is being built, at
addresses in their own code. Here the functions by which they fetch are replaced for the time of
building, so that every request comes to one callable. That is how a metric's files are found out,
how the models of all actors read one verified copy, and why nothing waits for a network.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from iqa_ray.errors import UsageError
from iqa_ray.storage.files import one_line
from iqa_ray.weights.files import name_file

Find = Callable[[str], Path]  # the address of a file to a readable copy of it


class BlankState(dict[str, Any]):
    """Stands for the content of a checkpoint that is not read, and for whatever is taken of it."""

    def __missing__(self, key: str) -> BlankState:
        return self


def trace_files(metric: str) -> tuple[list[str], bool]:
    """Addresses of the files that pyiqa asks for when it builds `metric`, in their order.

    Nothing is fetched and nothing is read, so it ends at the first file that the building cannot
    go on without; the second value says whether it came to the end.
    """
    asked: list[str] = []

    def find(url: str) -> Path:
        asked.append(url)
        return Path(os.devnull)

    def read_blank(*_: Any, **__: Any) -> BlankState:
        return BlankState()

    import safetensors.torch
    import torch
    from timm.models import _builder

    load_pretrained = _builder.load_pretrained

    def load_nothing(*arguments: Any, **options: Any) -> None:
        with contextlib.suppress(Exception):  # it reshapes what it has read; the request is noted
            load_pretrained(*arguments, **options)

    try:
        with (
            served_by(find),
            replaced(_builder, "load_pretrained", load_nothing),
            replaced(torch, "load", read_blank),
            replaced(safetensors.torch, "load_file", read_blank),
            replaced(torch.nn.Module, "load_state_dict", lambda *_, **__: None),
        ):
            build(metric)
    except Exception:  # whatever a builder does with the wrong content
        return list(dict.fromkeys(asked)), False
    return list(dict.fromkeys(asked)), True


def build_network(metric: str, find: Find) -> Any:
    """Build pyiqa's network for `metric` on the CPU, in evaluation mode.

    Args:
        metric: an id of pyiqa's.
        find: gives a readable copy of the file at an address; what it raises ends the building.

    Checkpoints are read as tensors alone (`weights_only=True`), whatever pyiqa asks for.

    Raises:
        UsageError: a file is damaged, holds more than tensors, or belongs to another model.
    """
    import torch

    last = ""

    def find_and_note(url: str) -> Path:
        nonlocal last
        last = name_file(url)
        return find(url)

    load = torch.load

    def load_tensors(*arguments: Any, **options: Any) -> Any:
        return load(*arguments, **{**options, "weights_only": True})

    try:
        with served_by(find_and_note), replaced(torch, "load", load_tensors):
            return build(metric)
    except UsageError:
        raise
    except ImportError as error:
        raise UsageError(f"pyiqa cannot build {metric} here: {one_line(error)}") from None
    except pickle.UnpicklingError:
        reason = "it is damaged, or holds more than tensors"
    except (EOFError, zipfile.BadZipFile, OSError) as error:
        reason = f"it cannot be read: {one_line(error)}"
    except Exception as error:  # each model complains of a misfit in its own way
        reason = f"{type(error).__name__}: {one_line(error)}"
    raise UsageError(f"{last or metric} is no checkpoint for {metric}: {reason}")


def build(metric: str) -> Any:
    from pyiqa.models.inference_model import InferenceModel

    logging.getLogger("pyiqa").setLevel(logging.ERROR)
    with (
        contextlib.redirect_stdout(io.StringIO()),  # pyiqa prints what it loads
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return InferenceModel(metric, device="cpu", check_input_range=False).net


@contextlib.contextmanager
def served_by(find: Find) -> Iterator[None]:
    """Let every file that a model's builder would fetch come from `find`."""
    import torch
    from huggingface_hub import constants, hf_hub_url
    from timm.models import _hub

    with warnings.catch_warnings():  # CLIP's imports warn
        warnings.simplefilter("ignore")
        from pyiqa.archs import afineclip_model, clip_model
        from pyiqa.utils import download_util

        with_clip = [afineclip_model, clip_model]
        with contextlib.suppress(ImportError):  # CLIP does not go with every setuptools
            from pyiqa.archs.clip_imports import clip

            with_clip.append(clip.clip)

    def link(url: str, target: str, *_: Any, **__: Any) -> None:
        with contextlib.suppress(FileExistsError):
            os.symlink(find(url), target)

    def give_hub_file(repo_id: str, filename: str, **options: Any) -> str:
        return str(find(hf_hub_url(repo_id, filename, revision=options.get("revision"))))

    def give(url: str, *_: Any) -> str:
        return str(find(url))

    with contextlib.ExitStack() as stack:
        # an empty cache, so that each of them asks for each file
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.callback(torch.hub.set_dir, torch.hub.get_dir())
        torch.hub.set_dir(folder)
        for owner, name, value in (
            (download_util, "DEFAULT_CACHE_DIR", folder),
            (download_util, "download_url_to_file", link),
            (torch.hub, "download_url_to_file", link),
            (_hub, "download_url_to_file", link),
            (_hub, "hf_hub_download", give_hub_file),
            (constants, "HF_HUB_OFFLINE", True),
            *((module, "_download", give) for module in with_clip),
        ):
            stack.enter_context(replaced(owner, name, value))
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
