"""Removal of units from a plain network: `zero_units` zeroes them in place, `compacted` returns a smaller copy.

A unit is an output channel of a Conv2d or Linear layer, or several channels that can be removed only together.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.pruning.channel_trace import has_unit_per_group
from utils.text import escaped
from utils.torch_compat import AnyBatchNorm


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Group of units (output channels), with the layers that write, normalise and read them.

    A unit is pruned in all these layers at once.
    The group has `width` units, each of which can be pruned without the others. Each mapping gives, per layer name, the
    unit index of each channel: an int64 tensor (channels,), with -1 for a channel of no unit in this group. The
    channels are the output channels of `writers` (Conv2d, Linear), the channels of the batch norms in `norms`, and the
    input channels of `readers` (axis 1 of the weight). One unit can have several channels in a layer: after a flatten,
    a Linear reads one input per pixel of the unit.
    """

    width: int
    writers: dict[str, Tensor]
    norms: dict[str, Tensor]
    readers: dict[str, Tensor]


def channel_tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return the tensors of a layer that have one entry per output channel, by state-dict key.

    They are the parameters and buffers of layer `name` whose axis 0 is the output channels.
    """
    layer = model.get_submodule(name)  # the only scalar is num_batches_tracked of a batch norm
    return {f"{name}.{key}": tensor for key, tensor in layer.state_dict().items() if tensor.dim()}


def channel_masks(channel_units: Sequence[Mapping[str, Tensor]], kept: Sequence[Tensor]) -> dict[str, Tensor]:
    """Convert masks of the units to keep into masks of the channels to keep.

    A unit is one or several channels that are pruned together. `channel_units` has one mapping per group from layer
    name to the unit index of each channel, -1 for none. `kept` has one bool mask (width,) per group. Returns a bool
    mask (channels,) per layer name, on the CPU, True for the channels to keep.
    """
    masks: dict[str, Tensor] = {}
    for units_by_layer, kept_units in zip(channel_units, kept, strict=True):
        for name, units in units_by_layer.items():
            mask = kept_units.cpu()[units] | (units < 0)
            masks[name] = mask & masks[name] if name in masks else mask
    return masks


@torch.no_grad()
def zero_units(model: nn.Module, groups: Sequence[UnitGroup], kept: Sequence[Tensor]) -> None:
    """Set the weights, biases and running means of pruned units (output channels) to zero in place.

    `kept` has one bool mask (width,) for each group of units in `groups`, False for the units to prune. The tensors
    belong to the writers and batch norms of each group. The running mean becomes 0 so that a batch norm without affine
    parameters also outputs 0.
    """
    for name, mask in channel_masks([group.writers | group.norms for group in groups], kept).items():
        for key, tensor in channel_tensors(model, name).items():
            if not key.endswith("running_var"):
                tensor[~mask.to(tensor.device)] = 0


def resize_and_load(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Resize the layers of `model` to the shapes in a state dict, and load the state dict.

    The Conv2d, Linear and batch-norm layers change in place. Raises ValueError if `state` has missing, unexpected or
    unfit tensors.
    """
    for key, current in model.state_dict(keep_vars=True).items():
        if key in state:  # load_state_dict reports missing and unexpected keys
            path, _, attribute = key.rpartition(".")
            new = torch.empty_like(state[key])
            setattr(
                model.get_submodule(path), attribute, nn.Parameter(new) if isinstance(current, nn.Parameter) else new
            )
    for layer in model.modules():
        _set_widths(layer)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = escaped(str(error).splitlines()[-1].strip(), 300)
        raise ValueError(f"the state does not fit this network: {reason}") from error
    return model


def _set_widths(layer: nn.Module) -> None:
    """Update the width attributes of a layer, such as in_channels, to the shapes of its tensors."""
    if isinstance(layer, nn.Conv2d):
        out_channels, group_inputs = layer.weight.shape[:2]
        if has_unit_per_group(layer):
            layer.groups = out_channels * layer.groups // layer.out_channels
        layer.out_channels, layer.in_channels = out_channels, group_inputs * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, AnyBatchNorm) and layer.running_mean is not None:
        layer.num_features = len(layer.running_mean)


def compacted(model: nn.Module, groups: Sequence[UnitGroup], kept: Sequence[Tensor]) -> nn.Module:
    """Return a smaller copy of a network, without its pruned units (output channels).

    `kept` has one bool mask (width,) for each group of units in `groups`, False for the units to prune. Writers and
    batch norms lose the channels of a pruned unit, readers lose the inputs that come from these channels. The logits
    equal those of `model` after `zero_units`. The copy is in the same mode, training or evaluation, as `model`.
    """
    state = model.state_dict()  # load_state_dict needs its attribute _metadata, which a plain dict lacks
    for name, mask in channel_masks([group.readers for group in groups], kept).items():
        state[f"{name}.weight"] = state[f"{name}.weight"][:, mask]
    for name, mask in channel_masks([group.writers | group.norms for group in groups], kept).items():
        for key in channel_tensors(model, name):
            state[key] = state[key][mask]
    return resize_and_load(copy.deepcopy(model), state)
