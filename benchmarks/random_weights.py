"""Make checkpoints of random weights under the names of the real ones.

    python -m benchmarks.random_weights --metrics musiq,maniqa,hyperiqa --to DIR

For tests of the plumbing and for timing where the real files cannot be had. The networks are
pyiqa's, and as fast as with real weights; their scores mean nothing.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from iqa_ray.weights import pyiqa_builder
from iqa_ray.weights.files import name_file


def make_random_weights(metrics: Sequence[str], folder: Path, seed: int = 0) -> list[str]:
    """Write the files of `metrics` into `folder` and return their names.

    Only for metrics whose files `loading.trace_files` finds out to the end. Each network is built
    with its own initialisation, and what would be loaded into a part of it is written instead.
    """
    names: list[str] = []
    for metric in metrics:
        torch.manual_seed(seed)
        for name, content in _collect(metric).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                safetensors.torch.save_file(content, path)
            else:
                torch.save(content, path)
            names.append(name)
    return list(dict.fromkeys(names))


def _collect(metric: str) -> dict[str, Any]:
    """The content of each file: the state of the module into which it would be loaded."""
    from timm.models import _builder

    asked: list[str] = []
    contents: dict[str, Any] = {}
    keys: dict[str, str] = defaultdict(str)  # under which a checkpoint holds the state, if any

    class Noting(pyiqa_builder.BlankState):
        def __missing__(self, key: str) -> pyiqa_builder.BlankState:
            keys[asked[-1]] = key
            return self

    def find(url: str) -> Path:
        asked.append(name_file(url))
        return Path("/dev/null")

    def read(*_: Any, **__: Any) -> Any:
        return Noting()

    def keep_state(module: torch.nn.Module, *_: Any, **__: Any) -> None:
        state = {name: value.clone() for name, value in module.state_dict().items()}
        if "fc_score.3.bias" in state:  # the output of MANIQA's head is clamped at zero
            state["fc_score.3.bias"] += 0.5
        key = keys[asked[-1]]
        contents[asked[-1]] = {key: state} if key else state

    def keep_backbone(model: torch.nn.Module, pretrained_cfg: dict[str, Any], **_: Any) -> None:
        find(f"https://huggingface.co/{pretrained_cfg['hf_hub_id']}/resolve/main/model.safetensors")
        contents[asked[-1]] = {name: value.clone() for name, value in model.state_dict().items()}

    with (
        pyiqa_builder.served_by(find),
        pyiqa_builder.replaced(_builder, "load_pretrained", keep_backbone),
        pyiqa_builder.replaced(torch, "load", read),
        pyiqa_builder.replaced(torch.nn.Module, "load_state_dict", keep_state),
    ):
        pyiqa_builder.build(metric)
    return contents


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--metrics", default="musiq,maniqa,hyperiqa")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(
        *make_random_weights(arguments.metrics.split(","), arguments.to, arguments.seed), sep="\n"
    )


if __name__ == "__main__":
    main()
