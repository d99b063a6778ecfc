"""Counts of the weights that constraints keep."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from models.constraints.attachment import constrained_layers, weight_layers, weight_shape


@dataclass(frozen=True)
class LayerCount:
    """One Conv2d or Linear: name, weight shape, constraint ("dense" without) and how many of its weights are kept."""

    name: str
    shape: tuple[int, ...]
    constraint: str
    kept: int
    total: int


def layer_counts(model: nn.Module) -> list[LayerCount]:
    """A LayerCount for every Conv2d and Linear of `model`, in order."""
    counts = []
    for name, layer in weight_layers(model).items():
        constraint: Any = getattr(layer, "constraint", None)
        shape = weight_shape(layer)
        kind, total = "dense" if constraint is None else type(constraint).__name__, shape.numel()
        kept = total if constraint is None else constraint.count_kept(layer.weight)
        counts.append(LayerCount(name, tuple(shape), kind, kept, total))
    return counts


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(parameters, parameters kept) of the plain network that `model` stands for: scores are not counted."""
    layers = constrained_layers(model).values()
    own = {id(p) for layer in layers for p in layer.constraint.parameters()}
    total = sum(p.numel() for p in model.parameters() if id(p) not in own)
    total += sum(weight_shape(layer).numel() for layer in layers if layer.weight is None)
    return total, total - sum(count.total - count.kept for count in layer_counts(model))
