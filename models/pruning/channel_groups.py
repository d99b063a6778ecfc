"""Groups of units of a plain network that can be pruned, checked by removing random units.

Coupled units, such as the channels that a residual network adds, are one unit. Units with the same writers form a
group. Pruning takes some units of each group and leaves at least one, so that no layer is left without channels. For

    y = conv1(x); y = y + conv2(y.relu()); logits = fc(y.mean((2, 3)))

the channels with number i of conv1 and conv2 are one unit, and there is one group:

    width: channels of conv1    writers: conv1, conv2    readers: conv2, fc
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.constraints.attachment import weight_layers
from models.pruning.channel_cut import UnitGroup, channel_masks, compacted, zero_units
from models.pruning.channel_rules import NO_UNIT
from models.pruning.channel_trace import REFUSAL, SUPPORTED_LAYERS, UnitTrace
from utils.torch_compat import tree_leaves

SUPPORTED_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
TOLERANCE = 1e-6  # allowed relative difference of float64 activations with units zeroed and with units removed


def unit_groups(model: nn.Module, images: Tensor) -> list[UnitGroup]:
    """Return the groups of units (output channels) that can be pruned from a network.

    `model` has unconstrained layers. A unit is an output channel of a hidden layer, or several that can be removed only
    together. `images` is a batch that the network accepts. The groups are in the order of the forward pass. Units that
    reach the output of the network are in no group.

    Raises ValueError if units cannot be removed: a module other than Conv2d, Linear and batch norm has parameters or
    buffers, there is no hidden layer, a layer reads nonzero values of a unit whose weights are all zero, or the network
    computes something else once units are removed.
    """
    _check_modules(model)
    generator = torch.Generator().manual_seed(0)
    if images.is_floating_point():  # many values of real images are 0, which would hide what depends on the images
        images = torch.randn(images.shape, generator=generator).to(images)
    groups = _groups(UnitTrace(model, images))
    if not groups:
        raise ValueError("nothing to prune: the network has only an output layer")
    for group in groups:
        for name, channels in group.writers.items():
            if group.width == 1 < len(channels) and not channels.any():
                raise ValueError(f"{REFUSAL}units of {name} can be removed only together: later operators couple them")
    _check_removal(model, groups, images.double() if images.is_floating_point() else images, generator)
    return groups


def _check_modules(model: nn.Module) -> None:
    """Raise ValueError if a network has modules that unit pruning does not support.

    Unsupported are a layer that is registered under two names, and a module with parameters or buffers other than those
    of plain Conv2d, Linear and batch-norm layers.
    """
    names: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SUPPORTED_LAYERS) and names.setdefault(module, name) != name:
            raise ValueError(f"{REFUSAL}{names[module]} and {name} are one layer with two names")
        tensors = {*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))}
        if unsupported := tensors - (SUPPORTED_TENSORS if isinstance(module, SUPPORTED_LAYERS) else set()):
            raise ValueError(
                f"{REFUSAL}{name or 'the network'}, a {type(module).__name__}, has the parameter or buffer "
                f"{min(unsupported)}; only those of plain Conv2d, Linear and batch-norm layers are supported"
            )


def _groups(trace: UnitTrace) -> list[UnitGroup]:
    """Group the units (output channels) of a trace by the layers that write them.

    Coupled units count as one unit. Units that reach the output of the network cannot be pruned and are in no group.
    """
    unit = _connected_components(trace.count, trace.coupled)
    writers, norms, readers = (
        {name: _lookup(unit, ids) for name, ids in ids_by_layer.items()}
        for ids_by_layer in (trace.writers, trace.norms, trace.readers)
    )
    writers_of: dict[int, list[str]] = {}
    for name, units in writers.items():
        for number in sorted(set(units.tolist())):
            writers_of.setdefault(number, []).append(name)
    members_by_writers: dict[tuple[str, ...], list[int]] = {}
    for number, names in writers_of.items():
        members_by_writers.setdefault(tuple(names), []).append(number)
    output = set(unit[trace.output].tolist())
    groups = []
    for members in members_by_writers.values():
        if output.isdisjoint(members):
            index = torch.full((trace.count,), NO_UNIT)
            index[members] = torch.arange(len(members))
            by_role = [{name: _lookup(index, ids) for name, ids in role.items()} for role in (writers, norms, readers)]
            by_role = [{name: ids for name, ids in role.items() if (ids != NO_UNIT).any()} for role in by_role]
            groups.append(UnitGroup(len(members), *by_role))
    return groups


def _lookup(values: Tensor, ids: Tensor) -> Tensor:
    """Return the value of each id, with NO_UNIT (−1) for the id NO_UNIT.

    The result is on the CPU.
    """
    ids = ids.cpu()
    return torch.where(ids == NO_UNIT, NO_UNIT, values[ids])


def _connected_components(count: int, pairs: Tensor) -> Tensor:
    """Return, for each of `count` nodes, the smallest node of its connected component.

    `pairs` (n, 2) are the edges.
    """
    component, before = torch.arange(count), None
    while before is None or not torch.equal(component, before):
        before = component
        least = component[pairs].amin(1, keepdim=True).expand_as(pairs)
        component = before.scatter_reduce(0, pairs.flatten(), least.flatten(), "amin")
        component = component[component]  # halves the paths: a chain of n edges takes O(log n) rounds
    return component


@torch.no_grad()
def _check_removal(model: nn.Module, groups: Sequence[UnitGroup], images: Tensor, generator: torch.Generator) -> None:
    """Raise ValueError if removing units (output channels) is not equivalent to setting their weights to zero.

    Random units of `groups` are removed. The activations and outputs of both networks are compared. The trace cannot
    see every error, such as a number of channels that is a constant in a forward method.
    """
    zeroed = _randomized_copy(model, generator)
    counts = [int(torch.randint(1, max(group.width, 2), (), generator=generator)) for group in groups]
    kept = [torch.randperm(g.width, generator=generator) < count for g, count in zip(groups, counts, strict=True)]
    smaller = compacted(zeroed, groups, kept)
    zero_units(zeroed, groups, kept)
    expected, actual = _record_outputs(zeroed), _record_outputs(smaller)
    if error := _forward_error(zeroed, images):
        raise ValueError(f"{REFUSAL}the network fails in float64: {error}")
    error = _forward_error(smaller, images)
    masks = channel_masks([group.writers for group in groups], kept)
    for (name, one), (_, other) in zip(expected, actual, strict=False):
        if name in masks:
            one = one[masks[name]]
        if one.shape != other.shape or not float((one - other).abs().max()) <= TOLERANCE * (1 + float(one.abs().max())):
            raise ValueError(f"{REFUSAL}{name or 'the network'} computes other values after units are removed")
    if len(actual) < len(expected):
        place = expected[len(actual)][0] or "its end"
        raise ValueError(f"{REFUSAL}after units are removed, the network fails before {place}: {error}")


def _forward_error(model: nn.Module, images: Tensor) -> str:
    """Run a forward pass and return the first line of its error, or "" if it succeeds."""
    try:
        model(images)
    except (RuntimeError, ValueError, LookupError, TypeError, AssertionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


def _record_outputs(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return a list that a forward pass of `model` fills with the outputs of its layers.

    Hooks fill the list. The entries are (layer name, output), then ("", output of the network). Outputs of Conv2d and
    Linear layers have their channels on axis 0.
    """
    records: list[tuple[str, Tensor]] = []
    for name, layer in weight_layers(model).items():
        axis = -1 if isinstance(layer, nn.Linear) else -3
        layer.register_forward_hook(
            lambda _layer, _inputs, out, name=name, axis=axis: records.append((name, out.movedim(axis, 0)))
        )
    model.register_forward_hook(
        lambda _model, _inputs, out: records.extend(("", x) for x in tree_leaves(out) if isinstance(x, Tensor))
    )
    return records


def _randomized_copy(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a float64 copy of a network with random nonzero parameters and running statistics.

    The copy is in evaluation mode.
    """
    model = copy.deepcopy(model).double().eval()
    for layer in model.modules():
        for key, tensor in layer.state_dict().items() if isinstance(layer, SUPPORTED_LAYERS) else ():
            noise = torch.rand(tensor.shape, generator=generator)
            positive = key == "running_var" or (key == "weight" and tensor.dim() == 1)
            bound = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 1  # larger weights amplify rounding with depth
            tensor.copy_(noise + 0.5 if positive else (2 * noise - 1) * bound)
    return model
