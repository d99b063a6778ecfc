"""The units of a plain network, an output channel each: who writes them, normalises them and reads them.

Channels that are added to one another (residual networks) can go only together: they are one unit of one group. Which
are coupled, torch-pruning finds in a trace of the network (Fang et al., DepGraph, CVPR 2023).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.constraints import weight_layers

KNOWN = (nn.Conv2d, nn.Linear, _BatchNorm)


@dataclass(frozen=True)
class Units:
    """A group of `width` units. Unit i is row i of each of `writers` (Conv2d, Linear), entry i of each of `norms`, and
    the inputs i · n to (i + 1) · n - 1 of each of `readers`, name -> n; n > 1 behind a flatten."""

    width: int
    writers: tuple[str, ...]
    norms: tuple[str, ...]
    readers: dict[str, int]


def tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """State-dict key -> tensor of the layer `name` with an entry a unit: weight, bias, running mean and variance."""
    layer = model.get_submodule(name)
    return {f"{name}.{of}": tensor for of, tensor in layer.state_dict().items() if tensor.dim()}


@torch.no_grad()
def zero_units(model: nn.Module, groups: Sequence[Units], kept: Sequence[Tensor]) -> None:
    """Set to 0, in place, all that makes a unit: its incoming weights, its bias, its entries in the norms behind it.

    Those are weight, bias and running mean: also a norm without weights then gives 0 for it. `kept`: a bool mask
    (width,) for each of `groups`.
    """
    for group, mask in zip(groups, kept, strict=True):
        for name in (*group.writers, *group.norms):
            for of, tensor in tensors(model, name).items():
                if not of.endswith("running_var"):
                    tensor[~mask.to(tensor.device)] = 0


def unit_groups(model: nn.Module, images: Tensor) -> list[Units]:
    """The groups of hidden units of a plain `model` in the order of its layers; `images`: a batch that it takes.

    Raises ValueError where units cannot be pruned: a layer of another kind has parameters of its own, there is no
    hidden layer, or a unit whose weights are all zero does not give zeros to its readers.
    """
    import torch_pruning

    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None and not isinstance(module, KNOWN):
            raise ValueError(f"units cannot be pruned: {name}, a {type(module).__name__}, may make something of zeros")
    traced = copy.deepcopy(model).requires_grad_(True).eval()
    order = list(weight_layers(traced))
    output = traced.get_submodule(order[-1])
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(traced, example_inputs=images)
    found = graph.get_all_groups(ignored_layers=[output], root_module_types=[nn.Conv2d, nn.Linear])
    groups = sorted((_units(traced, group) for group in found), key=lambda group: order.index(group.writers[0]))
    if not groups:
        raise ValueError("there is nothing to prune: the network has an output layer alone")
    _check_zeros(model, groups, images)
    return groups


def _units(model: nn.Module, group: Any) -> Units:
    """One of torch-pruning's groups in our words."""
    names = {module: name for name, module in model.named_modules()}
    found = [(d.target.module, d.handler.__name__ == "prune_in_channels") for d, _ in group if d.target.module in names]
    writers = {layer for layer, reads in found if isinstance(layer, nn.Conv2d | nn.Linear) and not reads}
    norms = {layer for layer, _ in found if isinstance(layer, _BatchNorm)}
    width = len(next(iter(writers)).weight)
    readers = {names[layer]: layer.weight.shape[1] // width for layer, reads in found if reads}
    wrote, normed = (tuple(name for layer, name in names.items() if layer in kind) for kind in (writers, norms))
    return Units(width, wrote, normed, readers)


def _check_zeros(model: nn.Module, groups: Sequence[Units], images: Tensor) -> None:
    """Let all units but the first of every group be zero and look at what their readers get."""
    trial = copy.deepcopy(model).eval()
    kept = [torch.arange(group.width) == 0 for group in groups]
    zero_units(trial, groups, kept)
    faults: list[str] = []

    def look(name: str, block: int) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            axis = 1 if isinstance(layer, nn.Conv2d) else inputs[0].dim() - 1
            if inputs[0].movedim(axis, 0)[block:].any():
                faults.append(name)

        return hook

    for group in groups:
        for name, block in group.readers.items():
            trial.get_submodule(name).register_forward_pre_hook(look(name, block))
    with torch.no_grad():
        trial(images)
    if faults:
        raise ValueError(f"units cannot be pruned: one whose weights are all zero still gives something to {faults[0]}")
