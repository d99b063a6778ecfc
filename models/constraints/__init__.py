"""The table of constraints and `constrain`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from models.biprop_keys import biprop_state_dict, load_biprop_state_dict
from models.constraints.attach import MakeConstraint, attach, bake, constrained_layers, weight_layers, weight_shape
from models.constraints.base import Constraint
from models.constraints.binary import BinaryWeight
from models.constraints.fixed_masks import FixedSubnetWeight, RandomMaskWeight
from models.constraints.sampled_mask import SampleSubnetWeight
from models.constraints.shift import ShiftPSWeight, ShiftQWeight
from models.constraints.sparse import SparseWeight
from models.constraints.subnet import GlobalSelection, GlobalSubnetWeight, SubnetWeight
from utils.registry import lookup

__all__ = [
    "CONV_TYPES",
    "Constraint",
    "attach",
    "bake",
    "biprop_state_dict",
    "constrain",
    "constrained_layers",
    "load_biprop_state_dict",
    "weight_layers",
    "weight_shape",
]


@dataclass(frozen=True)
class ConvType:
    """`maker(density)` gives make(weight, generator=…) -> constraint for all layers of one network, None for plain
    layers; `trainer`: the method that it needs; `takes`: the settings, by their option's name, that make is given;
    `exact`: whether what it computes has more bits than bfloat16."""

    maker: Callable[[float], MakeConstraint | None]
    trainer: str
    takes: tuple[str, ...] = ()
    exact: bool = False


SHIFT = ("weight_bits", "rounding", "activation_bits")
CONV_TYPES: dict[str, ConvType] = {
    "DenseConv": ConvType(lambda _: None, "default"),
    "SubnetConv": ConvType(lambda density: partial(SubnetWeight, density=density), "prune_score"),
    "GlobalSubnetConv": ConvType(
        lambda density: partial(GlobalSubnetWeight, selection=GlobalSelection(density)), "prune_score"
    ),
    "SampleSubnetConv": ConvType(lambda _: SampleSubnetWeight, "prune_score"),
    "FixedSubnetConv": ConvType(lambda density: partial(FixedSubnetWeight, density=density), "default"),
    "BinaryConv": ConvType(lambda _: BinaryWeight, "binary", ("initial_ones",)),
    "RGConv": ConvType(lambda density: partial(RandomMaskWeight, density=density), "default"),
    "ShiftQ": ConvType(lambda _: ShiftQWeight, "shift", (*SHIFT, "shift_update"), exact=True),
    "ShiftPS": ConvType(lambda _: ShiftPSWeight, "shift", (*SHIFT, "shift_init", "freeze_sign"), exact=True),
    "SparseConv": ConvType(lambda density: partial(SparseWeight, density=density), "sparse"),
}


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
    """Put `conv_type` on every Conv2d and Linear of `model`, in place, and return it.

    `density` is the fraction of weights kept; `first_layer_type` another type for the first layer; the layers called
    in `dense` stay plain; `score_init` is the initial score of every SampleSubnetConv weight, else they are drawn;
    of the `settings` each type takes its own (`ConvType.takes`).
    Raises ValueError for an unknown type or name, a density outside (0, 1], or where nothing
    would be constrained.
    """
    layers = list(weight_layers(model))
    if unknown := [name for name in dense if name not in layers]:
        raise ValueError(f"dense: no layer is called {unknown[0]!r}; there are {', '.join(layers)}")
    types = dict.fromkeys(layers, conv_type)
    types[layers[0]] = first_layer_type or conv_type
    types.update(dict.fromkeys(dense, "DenseConv"))
    makers = {kind: lookup(CONV_TYPES, kind, "conv_type").maker(density) for kind in dict.fromkeys(types.values())}
    for kind, make in makers.items():  # the first layer's kind comes first, so scores are drawn in the layers' order
        if make is not None:
            own = {of: settings[of] for of in CONV_TYPES[kind].takes if of in settings}
            attach(model, partial(make, generator=generator, **own), [name for name in layers if types[name] == kind])
    for layer in constrained_layers(model).values():
        if score_init is not None and isinstance(layer.constraint, SampleSubnetWeight):
            nn.init.constant_(layer.constraint.scores, score_init)
    if conv_type != "DenseConv" and not constrained_layers(model):
        raise ValueError(f"conv_type: {conv_type} would constrain no layer: every layer is left dense")
    return model


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
