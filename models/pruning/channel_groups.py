"""The groups of units of a plain network that can be pruned, from a trace of it, and a trial cut that proves them.

Channels that are added to one another (residual networks) can go only together: they are one unit of one group.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from models.constraints import weight_layers
from models.pruning.channel_cut import Units, compacted, masks, zero_units
from models.pruning.channel_rules import NONE
from models.pruning.channel_trace import KNOWN, REFUSED, Trace

__all__ = ["Units", "unit_groups", "zero_units"]
TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
CLOSE = 1e-6  # of the activations with zeros and without, in float64


def unit_groups(model: nn.Module, images: Tensor) -> list[Units]:
    """The groups of hidden units of a plain `model` in the order of its layers; `images`: a batch that it takes.

    Raises ValueError where units cannot be pruned: a layer of another kind has parameters of its own, there is no
    hidden layer, a unit whose weights are all zero does not give zeros to its readers, or the network computes
    something else without it. The units that reach the output of the network are in none of the groups.
    """
    names: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, KNOWN) and names.setdefault(module, name) != name:
            raise ValueError(f"{REFUSED}{name} is {names[module]} by another name")
        own = {*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))}
        if own - (TENSORS if isinstance(module, KNOWN) else set()):
            told = f"{name or 'the network'}, a {type(module).__name__}, may make something of zeros"
            raise ValueError(f"{REFUSED}{told}: only Conv2d, Linear and batch norms are known not to")
    generator = torch.Generator().manual_seed(0)
    if images.is_floating_point():  # real ones have too many zeros
        images = torch.randn(images.shape, generator=generator).to(images)
    groups = _groups(Trace(model, images), [name for name, _ in model.named_modules()])
    if not groups:
        raise ValueError("there is nothing to prune: the network has an output layer alone")
    last = list(weight_layers(model))[-1]
    for group in groups:
        for name, rows in group.writers.items():
            if group.width == 1 < len(rows) and not rows.any():
                raise ValueError(f"{REFUSED}those of {name} can go only together: operations behind it join them")
            if name == last:
                raise ValueError(f"{REFUSED}{name}, the last layer of the network, is not its output layer")
    _check_cut(model, groups, images.double() if images.is_floating_point() else images, generator)
    return groups


def _groups(trace: Trace, order: Sequence[str]) -> list[Units]:
    """Units that are joined are one; those that the same layers write are a group, so that none of these loses all."""
    unit = _components(trace.count, trace.joined)
    writers, norms, readers = (
        {name: _at(unit, found[name]) for name in order if name in found}
        for found in (trace.rows, trace.entries, trace.columns)
    )
    written: dict[int, list[str]] = {}
    for name, units in writers.items():
        for number in units.unique().tolist():
            written.setdefault(number, []).append(name)
    together: dict[tuple[str, ...], list[int]] = {}
    for number, names in written.items():
        together.setdefault(tuple(names), []).append(number)
    output = set(unit[trace.returned].tolist())
    groups = []
    for members in together.values():
        if output.isdisjoint(members):
            place = torch.full((trace.count,), NONE)
            place[members] = torch.arange(len(members))
            found = [{name: _at(place, units) for name, units in of.items()} for of in (writers, norms, readers)]
            found = [{name: places for name, places in of.items() if (places != NONE).any()} for of in found]
            groups.append(Units(len(members), *found))
    return groups


def _at(values: Tensor, numbers: Tensor) -> Tensor:
    """values[numbers], and NONE where a number is."""
    return torch.where(numbers.cpu() == NONE, NONE, values[numbers.cpu()])


def _components(count: int, pairs: Tensor) -> Tensor:
    """The smallest number that each of 0 to count - 1 is connected with by pairs, (n, 2)."""
    found, before = torch.arange(count), None
    while before is None or not torch.equal(found, before):
        before = found
        least = found[pairs].amin(1, keepdim=True).expand_as(pairs)
        found = before.scatter_reduce(0, pairs.flatten(), least.flatten(), "amin")
        found = found[found]
    return found


@torch.no_grad()
def _check_cut(model: nn.Module, groups: Sequence[Units], images: Tensor, generator: torch.Generator) -> None:
    """Compare the network with random ones of its units zero and without them, layer by layer, with random weights.

    That finds what the trace does not show: a number of channels that is written down in a forward.
    """
    zeros = _randomised(model, generator)
    counts = [int(torch.randint(1, max(group.width, 2), (), generator=generator)) for group in groups]
    kept = [torch.randperm(g.width, generator=generator) < count for g, count in zip(groups, counts, strict=True)]
    smaller = compacted(zeros, groups, kept)
    zero_units(zeros, groups, kept)
    expected, found = _recorded(zeros), _recorded(smaller)
    if fault := _failure(zeros, images):
        raise ValueError(f"{REFUSED}the network fails in float64: {fault}")
    fault = _failure(smaller, images)
    rows = masks([group.writers for group in groups], kept)
    for (name, one), (_, other) in zip(expected, found, strict=False):
        if name in rows:
            one = one[rows[name]]
        if one.shape != other.shape or not float((one - other).abs().max()) <= CLOSE * (1 + float(one.abs().max())):
            raise ValueError(f"{REFUSED}{name or 'the network'} computes something else behind layers without some")
    if len(found) < len(expected):
        raise ValueError(
            f"{REFUSED}without some, the network fails before {expected[len(found)][0] or 'its end'}: {fault}"
        )


def _failure(model: nn.Module, images: Tensor) -> str:
    """The first line of the error that a pass ends with, or nothing."""
    try:
        model(images)
    except (RuntimeError, ValueError, LookupError, TypeError, AssertionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


def _recorded(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The list into which each Conv2d and Linear puts (name, output) with its units first, and the network ("", output)
    at the end of a pass."""
    found: list[tuple[str, Tensor]] = []
    for name, layer in weight_layers(model).items():
        axis = -1 if isinstance(layer, nn.Linear) else -3
        layer.register_forward_hook(
            lambda _layer, _inputs, out, name=name, axis=axis: found.append((name, out.movedim(axis, 0)))
        )
    model.register_forward_hook(
        lambda _model, _inputs, out: found.extend(("", x) for x in tree_leaves(out) if isinstance(x, Tensor))
    )
    return found


def _randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in float64 in which no weight, bias or statistic is 0 and few values vanish."""
    model = copy.deepcopy(model).double().eval()
    for layer in model.modules():
        for of, tensor in layer.state_dict().items() if isinstance(layer, KNOWN) else ():
            noise = torch.rand(tensor.shape, generator=generator)
            positive = of == "running_var" or (of == "weight" and tensor.dim() == 1)
            bound = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 1  # larger ones let rounding grow with depth
            tensor.copy_(noise + 0.5 if positive else (2 * noise - 1) * bound)
    return model
