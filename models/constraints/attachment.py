"""Put a constraint on the layers of a built network, take it off again, and speak BIPROP's checkpoint keys."""

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.constraints.between_signs import sign_layers

MakeConstraint = Callable[..., Any]  # (weight) -> Constraint, or that and the options of `constrain`


class ConstrainedConv2d(nn.Conv2d):
    """A Conv2d that convolves with constraint(weight)."""

    constraint: Constraint

    def forward(self, input: Tensor) -> Tensor:
        return self.constraint.product(self._conv_forward, input, self.weight, self.bias)


class ConstrainedLinear(nn.Linear):
    """A Linear layer that multiplies by constraint(weight)."""

    constraint: Constraint

    def forward(self, input: Tensor) -> Tensor:
        return self.constraint.linear(input, self.weight, self.bias)


CONSTRAINED: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: ConstrainedConv2d, nn.Linear: ConstrainedLinear}
PLAIN = {constrained: plain for plain, constrained in CONSTRAINED.items()}


def weight_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Name -> layer for every Conv2d and Linear, constrained or not, in the order of the forward pass."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def constrained_layers(model: nn.Module) -> dict[str, Any]:
    """Name -> layer for every layer that carries a constraint."""
    return {name: m for name, m in model.named_modules() if type(m) in PLAIN}


def weight_shape(layer: nn.Module) -> torch.Size:
    """(out, in, *kernel) of a Conv2d or Linear, whoever owns its weight."""
    weight: Any = layer.weight
    return layer.constraint.shape if weight is None else weight.shape  # type: ignore[return-value]


def attach(model: nn.Module, make: MakeConstraint, names: Collection[str]) -> None:
    """Constrain the layers of `model` called `names` in place; each keeps its bias and, mostly, its weight.

    Raises ValueError for a name that is no plain Conv2d or Linear of `model`.
    """
    layers = weight_layers(model)
    for name in names:
        layer = layers.get(name)
        if type(layer) not in CONSTRAINED:
            raise ValueError(
                f"no plain Conv2d or Linear is called {name!r} in this network; there are {', '.join(layers)}"
            )
        _set(model, name, _constrained(layer, make))
    between_signs = sign_layers(model)
    for name, layer in constrained_layers(model).items():
        layer.constraint.between_signs = name in between_signs


def _constrained(layer: Any, make: MakeConstraint) -> nn.Module:
    new = _recast(layer, CONSTRAINED[type(layer)])
    new.constraint = make(layer.weight.detach())
    if new.constraint.owns_weight:
        new.weight = None
    elif not new.constraint.learns_weight:
        new.weight.requires_grad_(False)
    if (quantiser := new.constraint.input_quantiser()) is not None:
        new.register_forward_pre_hook(quantiser)
    new.train(layer.training)
    return new


def _recast(layer: nn.Module, kind: type[nn.Module]) -> Any:
    """The same layer, parameters shared, as an object of class `kind`."""
    new = kind.__new__(kind)
    new.__dict__.update({k: copy.copy(v) for k, v in layer.__dict__.items()})
    return new


def _set(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


@torch.no_grad()
def bake(model: nn.Module) -> nn.Module:
    """A new plain network whose weights are the effective weights of `model`: equal output, no constraint left.

    Between binary activations α and biases differ by less than 2⁻¹⁰ (see `Constraint.plain`): no sign changes. Where
    other sums decide signs, as a batch norm's of 0 does, the output is equal as long as both are added up in one order.
    The result shares nothing with `model`; its parameters require gradients and it is in the same mode.
    """
    plain = copy.deepcopy(model)
    layers = constrained_layers(plain)
    for layer in layers.values():
        layer.eval()  # all before the first weight: layers that select together then select once
    for name, layer in layers.items():
        weight, bias = layer.constraint.plain(layer.weight, layer.bias)
        new = _recast(layer, PLAIN[type(layer)])
        del new._modules["constraint"]
        new._parameters["weight"] = nn.Parameter(weight.detach().clone())
        if bias is not None:
            new._parameters["bias"] = nn.Parameter(bias.detach().clone())
        new.train(model.get_submodule(name).training)
        _set(plain, name, new)
    return plain.requires_grad_(True)
