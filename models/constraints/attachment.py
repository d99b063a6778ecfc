"""Put constraints on the layers of a built network, and replace them by their effective weights."""

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.constraints.between_signs import sign_layers

MakeConstraint = Callable[..., Any]  # (weight, **options) -> Constraint


class ConstrainedConv2d(nn.Conv2d):
    """Conv2d that convolves with constraint(weight)."""

    constraint: Constraint

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `input`, (B, C, H, W), with the effective weight and bias."""
        return self.constraint.product(self._conv_forward, input, self.weight, self.bias)


class ConstrainedLinear(nn.Linear):
    """Linear layer that multiplies by constraint(weight)."""

    constraint: Constraint

    def forward(self, input: Tensor) -> Tensor:
        """Return the output (…, out) for `input` (…, in) by the effective weight and bias."""
        return self.constraint.linear(input, self.weight, self.bias)


CONSTRAINED: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: ConstrainedConv2d, nn.Linear: ConstrainedLinear}
PLAIN = {constrained: plain for plain, constrained in CONSTRAINED.items()}


def weight_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return name -> layer for every Conv2d and Linear, constrained or not, in the order of their registration.

    The order of the forward pass may be another one: see `layers_in_forward_order`.
    """
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def constrained_layers(model: nn.Module) -> dict[str, Any]:
    """Return name -> layer for every layer that has a constraint, in the order of their registration."""
    return {name: m for name, m in model.named_modules() if type(m) in PLAIN}


def weight_shape(layer: nn.Module) -> torch.Size:
    """Return the shape (out, in, *kernel) of a layer's weight, which the layer or its constraint owns."""
    weight: Any = layer.weight
    return layer.constraint.shape if weight is None else weight.shape  # type: ignore[return-value]


def attach(model: nn.Module, make: MakeConstraint, names: Collection[str]) -> None:
    """Replace the layers `names` of `model`, in place, by layers with the constraint make(weight).

    A layer keeps its bias, and its weight unless the constraint owns the weight. Raises ValueError for a name that is
    not a plain Conv2d or Linear of `model`.
    """
    layers = weight_layers(model)
    for name in names:
        layer = layers.get(name)
        if type(layer) not in CONSTRAINED:
            raise ValueError(
                f"no plain Conv2d or Linear is called {name!r} in this network; there are {', '.join(layers)}"
            )
        model.set_submodule(name, _constrained(layer, make))
    between_signs = sign_layers(model)
    for name, layer in constrained_layers(model).items():
        layer.constraint.between_signs = name in between_signs


def _constrained(layer: Any, make: MakeConstraint) -> Any:
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
    """Return a copy of `layer` as an object of class `kind` that shares its parameters."""
    new = kind.__new__(kind)
    new.__dict__.update({k: copy.copy(v) for k, v in layer.__dict__.items()})
    return new


@torch.no_grad()
def bake(model: nn.Module) -> nn.Module:
    """Return a new plain network whose weights are the effective weights of `model`.

    The outputs are equal in evaluation mode. Between binary activations α and the biases change by a factor within
    2⁻¹⁰ of 1 (see `Constraint.baked`), which changes no sign. Where other sums decide a sign, such as a batch norm's
    sum that is 0, the outputs are equal only if both networks add in the same order. The result shares no tensor with
    `model`, all its parameters require gradients, and its modules are in the modes of those of `model`.
    """
    plain = copy.deepcopy(model)
    layers = constrained_layers(plain)
    for layer in layers.values():
        layer.eval()  # every layer before the first weight is computed: a GlobalSelection then selects only once
    for name, layer in layers.items():
        weight, bias = layer.constraint.baked(layer.weight, layer.bias)
        new = _recast(layer, PLAIN[type(layer)])
        del new._modules["constraint"]
        new._parameters["weight"] = nn.Parameter(weight.detach().clone())
        if bias is not None:
            new._parameters["bias"] = nn.Parameter(bias.detach().clone())
        new.train(model.get_submodule(name).training)
        plain.set_submodule(name, new)
    return plain.requires_grad_(True)
