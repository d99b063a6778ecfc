"""Number of weights in the layers of a network, and number of weights that the constraints keep."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from models.constraints.attachment import constrained_layers, weight_layers, weight_shape


@dataclass(frozen=True)
class LayerCount:
    """Numbers of weights and of kept weights of a Conv2d or Linear layer.

    `constraint` is the name of the constraint's class, or "dense".
    """

    name: str
    shape: tuple[int, ...]
    constraint: str
    kept: int
    total: int


def layer_counts(model: nn.Module) -> list[LayerCount]:
    """Count the weights and the kept weights of every Conv2d and Linear layer.

    The order is the order of registration.
    """
    counts = []
    for name, layer in weight_layers(model).items():
        constraint: Any = getattr(layer, "constraint", None)
        shape = weight_shape(layer)
        kind, kept = "dense", shape.numel()
        if constraint is not None:
            kind, kept = type(constraint).__name__, constraint.count_kept(layer.weight)
        counts.append(LayerCount(name, tuple(shape), kind, kept, shape.numel()))
    return counts


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return the number of parameters of `model`, and the number that its constraints keep.

    A constraint's own parameters, such as scores, are not counted. A weight that the constraint stores in another form
    counts as one weight.
    """
    layers = constrained_layers(model).values()
    own = {id(p) for layer in layers for p in layer.constraint.parameters()}
    total = sum(p.numel() for p in model.parameters() if id(p) not in own)
    total += sum(weight_shape(layer).numel() for layer in layers if layer.weight is None)
    return total, total - sum(count.total - count.kept for count in layer_counts(model))
