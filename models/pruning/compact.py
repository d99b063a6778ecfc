"""File format of a network without its pruned units. It holds plain types and tensors, so loading executes no code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import models
from models.pruning.channel_cut import resize_and_load
from utils.errors import UsageError
from utils.paths import expanded
from utils.records import checkpoints
from utils.text import escaped
from utils.torch_compat import AnyBatchNorm

KIND = "featherweight compact network 1"


def pack_network(model: nn.Module, build: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dict for torch.save that stores a network without its pruned units (output channels).

    `build` has the arguments of `models.build` for the network before pruning. The entries of `metadata` are added to
    the dict. The dict also has the state dict and the settings of the batch norms.
    """
    state = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    norms = {name: _settings(layer) for name, layer in model.named_modules() if isinstance(layer, AnyBatchNorm)}
    return {"kind": KIND, "build": dict(build), "state": state, "norms": norms, **metadata}


def _settings(layer: nn.Module) -> dict[str, Any]:
    """Return the public attributes of a layer that are numbers, booleans or None, such as eps."""
    return {k: v for k, v in vars(layer).items() if isinstance(v, int | float | None) and not k.startswith("_")}


def unpack_network(content: Mapping[str, Any]) -> nn.Module:
    """Build a network from a dict that `pack_network` returned.

    The network is on the CPU in evaluation mode. Raises ValueError if the stored tensors do not fit the architecture.
    """
    with torch.device("meta"):  # a file can name any width: only the tensors that it holds may take memory
        model = models.build(**content["build"])
    resize_and_load(model, content["state"])
    for name, settings in content["norms"].items():
        vars(model.get_submodule(name)).update(settings)
    return model.eval()


def load_compact(path: str | Path) -> nn.Module:
    """Load a network that `scripts/prune.py --compact` wrote.

    The network is an ordinary module on the CPU in evaluation mode. Nothing in the file is executed. Raises UsageError
    if the file is missing, damaged or of another kind.
    """
    content = checkpoints.read(Path(expanded(str(path), existing=True)))
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UsageError(f"{path} is not a compact network; scripts/prune.py --compact writes one")
    try:
        return unpack_network(content)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UsageError(f"{path} is not a compact network: {escaped(str(error).splitlines()[0], 300)}") from error
