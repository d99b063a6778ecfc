"""Units of a plain network, an output channel each: how they are set to zero, and how they are cut out of it."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.pruning.channel_trace import whole_groups
from utils.text import escaped
from utils.torch_compat import AnyBatchNorm


@dataclass(frozen=True, eq=False)
class Units:
    """A group of `width` units: name of a layer -> the unit of each of its channels, (channels,), -1 for none of these.

    They are the rows of each of `writers` (Conv2d, Linear), the entries of each of `norms`, and the inputs of each of
    `readers`: the columns of its weight, axis 1. A unit may have several of them, as behind a flatten.
    """

    width: int
    writers: dict[str, Tensor]
    norms: dict[str, Tensor]
    readers: dict[str, Tensor]


def tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """State-dict key -> tensor of the layer `name` with an entry a unit: weight, bias, running mean and variance."""
    layer = model.get_submodule(name)
    return {f"{name}.{of}": tensor for of, tensor in layer.state_dict().items() if tensor.dim()}


def masks(layers: Sequence[Mapping[str, Tensor]], kept: Sequence[Tensor]) -> dict[str, Tensor]:
    """Name of a layer -> the bool mask, on the CPU, of its channels that stay.

    `layers` has the units of each layer's channels for each group, `kept` the mask of the units of that group.
    """
    found: dict[str, Tensor] = {}
    for group, mask in zip(layers, kept, strict=True):
        for name, units in group.items():
            found[name] = (mask.cpu()[units] | (units < 0)) & found.get(name, torch.tensor(True))
    return found


@torch.no_grad()
def zero_units(model: nn.Module, groups: Sequence[Units], kept: Sequence[Tensor]) -> None:
    """Set to 0, in place, all that makes a unit: its incoming weights, its bias, its entries in the norms behind it.

    Those are weight, bias and running mean: also a norm without weights then gives 0 for it. `kept`: a bool mask
    (width,) for each of `groups`.
    """
    for name, mask in masks([group.writers | group.norms for group in groups], kept).items():
        for of, tensor in tensors(model, name).items():
            if not of.endswith("running_var"):
                tensor[~mask.to(tensor.device)] = 0


def cut_state(model: nn.Module, groups: Sequence[Units], kept: Sequence[Tensor]) -> dict[str, Tensor]:
    """The state of `model` without the units whose entry in `kept`, a bool mask (width,) for each group, is False.

    A unit's row goes from its writers, its entry from its norms, and from each reader the inputs that came from it.
    """
    state = model.state_dict()  # no plain dict: the versions of its modules come with it
    for name, mask in masks([group.readers for group in groups], kept).items():
        state[f"{name}.weight"] = state[f"{name}.weight"][:, mask]
    for name, mask in masks([group.writers | group.norms for group in groups], kept).items():
        for key in tensors(model, name):
            state[key] = state[key][mask]
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
            rows, columns = layer.weight.shape[:2]
            if whole_groups(layer):
                layer.groups = rows * layer.groups // layer.out_channels
            layer.out_channels, layer.in_channels = rows, columns * layer.groups
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, AnyBatchNorm) and layer.running_mean is not None:
            layer.num_features = len(layer.running_mean)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = escaped(str(error).splitlines()[-1].strip(), 300)
        raise ValueError(f"the state does not fit this network: {reason}") from error
    return model


def compacted(model: nn.Module, groups: Sequence[Units], kept: Sequence[Tensor]) -> nn.Module:
    """A smaller copy of `model` in the same mode, without those units: the logits of the network where they are 0."""
    return resize(copy.deepcopy(model), cut_state(model, groups, kept))
