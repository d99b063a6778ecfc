"""The really smaller network that zero units leave, and its file: read back without running anything in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import models
from models.pruning.channel_cut import compacted, cut_state, resize
from utils.errors import UsageError
from utils.paths import expanded
from utils.records import checkpoints
from utils.text import escaped
from utils.torch_compat import AnyBatchNorm

__all__ = ["compacted", "content", "cut_state", "load_compact", "rebuilt", "resize"]
KIND = "featherweight compact network 1"


def content(model: nn.Module, build: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the file of the compact `model` holds: the arguments of `models.build`, the state with its widths, what else
    its batch norms compute with, and `facts`."""
    state = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    norms = {name: _settings(layer) for name, layer in model.named_modules() if isinstance(layer, AnyBatchNorm)}
    return {"kind": KIND, "build": dict(build), "state": state, "norms": norms, **facts}


def _settings(layer: nn.Module) -> dict[str, Any]:
    """The public plain attributes of a layer, such as epsilon."""
    plain = {name: value for name, value in vars(layer).items() if isinstance(value, int | float | None)}
    return {name: value for name, value in plain.items() if not name.startswith("_")}


def rebuilt(stored: Mapping[str, Any]) -> nn.Module:
    """The network of such a content, in evaluation mode, on the CPU. Raises ValueError where it does not fit."""
    with torch.device("meta"):  # whatever width the file names: memory is taken for what it holds
        model = models.build(**stored["build"])
    resize(model, stored["state"])
    for name, settings in stored["norms"].items():
        vars(model.get_submodule(name)).update(settings)
    return model.eval()


def load_compact(path: str | Path) -> nn.Module:
    """The network that `scripts/prune.py --compact` wrote to `path`: an ordinary module in evaluation mode.

    Nothing in the file is executed. Raises UsageError for a file that is missing, damaged or something else.
    """
    stored = checkpoints.read(Path(expanded(str(path), existing=True)))
    if not isinstance(stored, dict) or stored.get("kind") != KIND:
        raise UsageError(f"{path} holds no compact network; scripts/prune.py --compact writes one")
    try:
        return rebuilt(stored)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UsageError(f"{path} holds no compact network: {escaped(str(error).splitlines()[0], 300)}") from error
