"""Put a constraint on the layers of a built network, take it off again, and speak BIPROP's checkpoint keys."""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.constraints.signs import sign_layers

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


def biprop_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under BIPROP's keys and shapes: `….scores` beside `….weight`, linear layers as 1×1."""
    return to_biprop(model.state_dict())


def load_biprop_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load BIPROP's keys and shapes (with or without the `module.` of DataParallel) into `model`, strictly.

    Raises ValueError that names what is missing, unexpected or of another shape.
    """
    match = match_biprop(model, state)
    faults = [f"{key} is missing" for key in match.missing] + match.reshaped
    faults += [f"{key} is unexpected" for key in match.unused]
    if faults:
        raise ValueError(f"the state does not fit this network: {'; '.join(faults[:5])}" + " ..." * (len(faults) > 5))
    model.load_state_dict(match.merged)


@dataclass(frozen=True)
class BipropMatch:
    """How a stored state meets a network: `merged` is the network's own state with all that fits.

    BIPROP's keys of those `taken`, those `missing` in what is stored, those `unused` here; `reshaped` has both shapes.
    """

    merged: dict[str, Tensor]
    taken: list[str]
    missing: list[str]
    reshaped: list[str]
    unused: list[str]

    @property
    def whole(self) -> bool:
        """Whether network and state have the same tensors."""
        return not (self.missing or self.reshaped or self.unused)


def match_biprop(model: nn.Module, state: Mapping[str, Tensor]) -> BipropMatch:
    """Compare `state`, under our keys and shapes or BIPROP's, with or without `module.`, with that of `model`.

    A counter num_batches_tracked that is not stored, as by torch < 0.4.1, is not missed.
    """
    theirs = to_biprop(state)
    match = BipropMatch(dict(model.state_dict()), [], [], [], [])
    for key, value in model.state_dict().items():
        name, shape = biprop_key(key), _biprop_shape(value)
        given = theirs.pop(name, None)
        if given is None:
            match.missing.extend([name] * (not name.endswith(".num_batches_tracked")))
        elif given.shape != shape:
            match.reshaped.append(f"{name} is {list(given.shape)} there and {list(shape)} here")
        else:
            match.taken.append(name)
            match.merged[key] = given.reshape(value.shape)
    match.unused.extend(theirs)
    return match


def to_biprop(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of ours under BIPROP's keys and shapes; one that has them already stays, without `module.`."""
    return {biprop_key(key): value.reshape(_biprop_shape(value)) for key, value in state.items()}


def from_biprop(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_biprop`. In BIPROP's networks `linear` and `fc` hold what are Linear layers here."""
    ours = {}
    for key, value in to_biprop(state).items():
        linear = key.startswith(("linear.", "fc.")) and value.shape[2:] == (1, 1)
        layer, _, of = key.rpartition(".")
        ours[f"{layer}.constraint.scores" if of == "scores" else key] = value.flatten(1) if linear else value
    return ours


def biprop_key(key: str) -> str:
    """BIPROP's name of one of our state-dict keys."""
    return key.removeprefix("module.").replace(".constraint.", ".")


def _biprop_shape(value: Tensor) -> torch.Size:
    """Only the weight, mask or scores of a Linear layer have two axes: there a 1×1 convolution."""
    return torch.Size((*value.shape, 1, 1)) if value.dim() == 2 else value.shape
