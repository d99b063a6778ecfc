"""Attach constraints to the layers of a network, and replace constrained layers by plain layers."""

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.constraints.between_signs import sign_layers
from utils.torch_compat import conv2d_with

MakeConstraint = Callable[[Tensor], Constraint]  # weight of a layer -> its constraint


class ConstrainedConv2d(nn.Conv2d):
    """Conv2d layer that convolves with the effective weight of its constraint.

    The effective weight is constraint(weight).
    """

    constraint: Constraint
    convolve = conv2d_with

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `input` (B, C, H, W) with the effective weight and add the effective bias."""
        return self.constraint.product(self.convolve, input, self.weight, self.bias)


class ConstrainedLinear(nn.Linear):
    """Linear layer that multiplies by the effective weight of its constraint.

    The effective weight is constraint(weight).
    """

    constraint: Constraint

    def forward(self, input: Tensor) -> Tensor:
        """Multiply `input` (…, in) by the effective weight and add the effective bias.

        The output is (…, out).
        """
        return self.constraint.linear(input, self.weight, self.bias)


CONSTRAINED: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: ConstrainedConv2d, nn.Linear: ConstrainedLinear}
PLAIN = {constrained: plain for plain, constrained in CONSTRAINED.items()}


def weight_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return every Conv2d and Linear layer of `model` by name, constrained or not.

    The order is the order of registration. `layers_in_forward_order` returns the layers in the order of the forward
    pass.
    """
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def constrained_layers(model: nn.Module, kind: type[Constraint] = Constraint) -> dict[str, Any]:
    """Return the layers whose constraint is of class `kind`, by name.

    The order is the order of registration in `model`.
    """
    return {name: m for name, m in model.named_modules() if type(m) in PLAIN and isinstance(m.constraint, kind)}


def weight_shape(layer: nn.Module) -> torch.Size:
    """Return the shape (out, in, *kernel) of a layer's weight.

    If the layer stores no weight, its constraint stores the shape.
    """
    weight: Any = layer.weight
    return layer.constraint.shape if weight is None else weight.shape  # type: ignore[return-value]


def attach(model: nn.Module, make: MakeConstraint, names: Collection[str]) -> None:
    """Attach a constraint to each layer of `model` whose name is in `names`.

    A constraint is made by make(weight). `model` changes in place. The constrained layer shares the bias of the plain
    layer. It also shares the weight, unless the constraint owns the weight. Raises ValueError if a name does not belong
    to a plain Conv2d or Linear layer of `model`.
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
    """Return a constrained layer that shares the parameters of a plain layer.

    The constraint is make(weight).
    """
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
    """Return a copy of a layer as another module class, with shared parameters."""
    new = kind.__new__(kind)
    new.__dict__.update({k: copy.copy(v) for k, v in layer.__dict__.items()})
    return new


@torch.no_grad()
def bake(model: nn.Module) -> nn.Module:
    """Return a new network of plain layers whose weights are the effective weights of `model`.

    Both networks have equal outputs in evaluation mode, with two limits. In layers between binary activations α and the
    biases change by a factor within 2⁻¹⁰ of 1 (see `Constraint.baked`). This factor changes no sign. If another sum
    decides a sign, such as a batch norm's sum that is 0, both networks must add in the same order.

    The new network shares no tensor with `model`. All its parameters require gradients. Each of its modules is in the
    same mode, training or evaluation, as in `model`.
    """
    plain = copy.deepcopy(model)
    layers = constrained_layers(plain)
    for layer in layers.values():
        layer.eval()  # all layers before the first weight is computed, so that a GlobalSelection selects only once
    for name, layer in layers.items():
        weight, bias = layer.constraint.baked(layer.weight, layer.bias)
        new = _recast(layer, PLAIN[type(layer)])
        del new.constraint
        new.weight = nn.Parameter(weight.detach().clone())
        new.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        new.train(model.get_submodule(name).training)
        plain.set_submodule(name, new)
    return plain.requires_grad_(True)
