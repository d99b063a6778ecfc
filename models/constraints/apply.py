"""`constrain`: put the constraint with a given name on the layers of a network."""

from functools import partial

import torch
from torch import nn

from models.constraints.attachment import attach, constrained_layers, weight_layers
from models.constraints.forward_order import layers_in_forward_order
from models.constraints.registry import CONV_TYPES
from utils.registry import lookup


def constrain(
    model: nn.Module,
    conv_type: str,
    *,
    density: float = 1.0,
    first_layer_type: str | None = None,
    dense: tuple[str, ...] = (),
    score_init: float | None = None,
    generator: torch.Generator | None = None,
    **settings: object,
) -> nn.Module:
    """Constrain the weights of every Conv2d and Linear layer in place, and return the model.

    conv_type: name of the constraint, a key of CONV_TYPES such as "SubnetConv".
    density: fraction of the weights kept.
    first_layer_type: another conv_type for the first layer of the forward pass.
    dense: names of layers that stay unconstrained.
    score_init: initial score of every SampleSubnetConv weight. None draws the scores at random.
    generator: source of random numbers. None is torch's generator of the CPU.
    settings: options of constraints, by name. Each constraint takes the options that its `ConvType` lists.

    Raises ValueError if a conv_type or layer name is unknown, if the density is outside (0, 1], or if no layer would be
    constrained.
    """
    layers = list(weight_layers(model))
    if unknown := [name for name in dense if name not in layers]:
        raise ValueError(f"dense: no layer is called {unknown[0]!r}; there are {', '.join(layers)}")
    types = dict.fromkeys(layers, conv_type)
    if first_layer_type is not None:
        types[next(iter(layers_in_forward_order(model)))] = first_layer_type
    types.update(dict.fromkeys(dense, "DenseConv"))
    given = {"score_init_constant": score_init, **settings, "density": density}
    for kind in dict.fromkeys(types.values()):  # the first layer's type is first, so scores are drawn in layer order
        row = lookup(CONV_TYPES, kind, "conv_type")
        constraint = row.load()
        if constraint is not None:
            own = [*row.options, *(["density"] if row.density != "unused" else [])]
            make = constraint.maker(**{name: given[name] for name in own if name in given})
            attach(model, partial(make, generator=generator), [name for name in layers if types[name] == kind])
    if conv_type != "DenseConv" and not constrained_layers(model):
        raise ValueError(f"conv_type: {conv_type} would constrain no layer: every layer is left dense")
    return model
