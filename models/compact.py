"""The really smaller network that zero units leave, and its file: read back without running anything in it."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import models
from args import UsageError
from models.units import Units, tensors
from utils import checkpoints
from utils.text import quoted

KIND = "featherweight compact network 1"


def cut_state(model: nn.Module, groups: Sequence[Units], kept: Sequence[Tensor]) -> dict[str, Tensor]:
    """The state of `model` without the units whose entry in `kept`, a bool mask (width,) for each group, is False.

    A unit's row goes from its writers, its entry from its norms, and from each reader the inputs that came from it.
    """
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for group, mask in zip(groups, kept, strict=True):
        for name in (*group.writers, *group.norms):
            for key in tensors(model, name):
                state[key] = state[key][mask]
        for name, block in group.readers.items():
            state[f"{name}.weight"] = state[f"{name}.weight"][:, mask.repeat_interleave(block)]
    return state


def resize(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give the Conv2d, Linear and batch-norm layers of `model` the widths of `state` and load it, in place.

    Raises ValueError where `state` has other tensors than the network.
    """
    for key, tensor in state.items():
        path, _, of = key.rpartition(".")
        try:
            layer = model.get_submodule(path)
        except AttributeError:
            continue  # load_state_dict names it
        if layer._parameters.get(of) is not None:
            layer._parameters[of] = nn.Parameter(torch.empty_like(tensor))
        elif layer._buffers.get(of) is not None:
            layer._buffers[of] = torch.empty_like(tensor)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.out_channels, layer.in_channels = layer.weight.shape[:2]
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            layer.num_features = len(layer.running_mean)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"the state does not fit this network: {quoted(str(error).splitlines()[-1].strip(), 300)}"
        ) from error
    return model


def compacted(model: nn.Module, groups: Sequence[Units], kept: Sequence[Tensor]) -> nn.Module:
    """A smaller copy of `model` in the same mode, without those units: the logits of the network where they are 0."""
    return resize(copy.deepcopy(model), cut_state(model, groups, kept))


def content(model: nn.Module, build: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the file of the compact `model` holds: the arguments of `models.build`, the state with its widths, what else
    its batch norms compute with, and `facts`."""
    state = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    norms = {name: _settings(layer) for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
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
    stored = checkpoints.read(Path(path).expanduser())
    if not isinstance(stored, dict) or stored.get("kind") != KIND:
        raise UsageError(f"{path} holds no compact network; scripts/prune.py --compact writes one")
    try:
        return rebuilt(stored)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UsageError(f"{path} holds no compact network: {quoted(str(error).splitlines()[0], 300)}") from error
