"""The base class of all constraints. Read this file before you write one.

A constraint is a module that belongs to one Conv2d or Linear layer. The layer multiplies by the effective weight, which
the constraint computes from the weight that the layer stores and from its own parameters. A minimal constraint:

    class ShrunkWeight(Constraint):
        def __init__(self, weight: Tensor) -> None:  # the layer's initial weight
            super().__init__()
            self.scale = nn.Parameter(weight.abs().mean())

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.scale

`attach` puts constraints on layers. `bake` replaces them by their effective weights. A constraint must define
`forward`. It overrides other members of `Constraint` only where the default does not fit:

    member                                  meaning                                             default
    learns_weight                           whether the layer's weight trains                   yes
    owns_weight, shape, from_dense(weight)  whether own parameters replace the layer's weight   no
    kept (property) or count_kept(weight)   how many weights are not 0                          all
    effective_bias(bias)                    the bias that the layer adds                        the layer's bias
    input_quantiser()                       a hook that changes the layer's input               no hook
    cache_key(weight)                       what the effective weight depends on                the tensors of both
    signs(weight)                           the effective weight as α times −1, 0 and 1         no such form
    linear(input, weight, bias)             the product of a Linear layer                       F.linear

If the gradient is not the derivative of the forward pass, define a `StraightThrough` function in gradients.py that
takes the effective weight as an argument. `self.cached(compute, weight)` computes that argument: anew in every training
pass, only once in evaluation. `SubnetWeight` is an example.

A new constraint is one file with its class, one row in registry.py and one case in tests/cases.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.constraints.between_signs import rounded_scale
from models.constraints.gradients import ScaledGradient, ScaledSums

Value = TypeVar("Value")


def tensor_version(tensor: Tensor) -> tuple[int, int]:
    """Return a value that changes when `tensor` is written to in place or gets other storage.

    Two kinds of writes leave it unchanged: those through `.data`, and the steps of torch's fused optimizers.
    """
    return tensor.data_ptr(), tensor._version


class Cache:
    """Values that are computed again only when their keys change: one value per function."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[object, Any]] = {}

    def get(self, compute: Callable[..., Value], key: Callable[..., object], *arguments: Any) -> Value:
        """Return compute(*arguments), computed without gradient and only if key(*arguments) has changed."""
        entry = self._entries.get(compute.__name__)
        if entry is None or entry[0] != key(*arguments):
            with torch.no_grad():
                value = compute(*arguments)
            entry = key(*arguments), value  # the key after computing: ShiftQ's crude update writes to the weight
            self._entries[compute.__name__] = entry
        return entry[1]

    def clear(self) -> None:
        """Drop all values."""
        self._entries.clear()


class Constraint(nn.Module):
    """Base class of constraints: forward(weight) returns the effective weight, of the same shape.

    `learns_weight = False` freezes the layer's weight. With `owns_weight = True` the layer stores no weight:
    `layer.weight` is None, and so is the argument of `forward`. The constraint then has the attribute `shape`, the
    shape of the weight, and the method `from_dense`.

    `attach` sets `between_signs` to True if the layer's inputs come from binary activations and only the signs of its
    outputs are used (`sign_layers`). Effective weights of one magnitude (`signs`) are then multiplied as −1, 0 and 1,
    and the sums are scaled by α. Such sums are exact: a sum that should be 0 is 0 on every device and in every order of
    summation. With ±α as weights, rounding errors would decide its sign.
    """

    learns_weight = True
    owns_weight = False
    between_signs = False
    shape: torch.Size

    def __init__(self) -> None:
        super().__init__()
        self._cache = Cache()

    def cache_key(self, weight: Tensor | None) -> object:
        """Return a key that changes whenever the effective weight may have changed.

        The default covers the layer's weight and the constraint's own parameters and buffers. Override it for a
        constraint that also depends on a plain attribute, such as a density.
        """
        tensors = weight, *self._parameters.values(), *self._buffers.values()
        return [tensor_version(tensor) for tensor in tensors if tensor is not None]

    def cached(
        self,
        compute: Callable[[Any], Value],
        weight: Tensor | None,
        *,
        key: Callable[[Any], object] | None = None,
        in_training: bool = False,
    ) -> Value:
        """Return compute(weight), computed without gradient and, in evaluation mode, only once.

        The value is computed again when key(weight) changes; the default key is `cache_key`. One value is stored per
        name of a function `compute`. In training mode nothing is stored, because fused optimizers step without a trace.
        Pass `in_training=True` for a value that depends on no trained parameter.
        """
        if self.training and not in_training:
            with torch.no_grad():
                return compute(weight)
        return self._cache.get(compute, key or self.cache_key, weight)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode and clear the cache, because writes through `.data` leave no trace."""
        self._cache.clear()
        return super().train(mode)

    @classmethod
    def maker(cls, **settings: Any) -> Callable[..., "Constraint"]:
        """Return make(weight, generator=…) for the layers of one network. `settings` go to the constructor."""
        return partial(cls, **settings)

    def effective_bias(self, bias: Tensor) -> Tensor:
        """Return the bias that the layer adds: `bias` itself by default."""
        return bias

    def input_quantiser(self) -> Callable[..., Any] | None:
        """Return a forward pre-hook for the layer's input, or None. A baked layer keeps the hook."""
        return None

    def signs(self, weight: Tensor) -> tuple[Tensor, Tensor | float] | None:  # noqa: ARG002
        """Return (S, α) with effective weight α · S, or None if the effective weight has no such form.

        S has the shape of the weight and holds −1, 0 and 1; α > 0 is a scalar. The gradient that reaches S is the
        gradient of the effective weight.
        """
        return None

    def product(self, multiply: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return multiply(input, effective weight, effective bias): a convolution or a matrix product."""
        bias = bias if bias is None else self.effective_bias(bias)
        parts = self.signs(weight) if self.between_signs else None
        if parts is None:
            return multiply(input, self(weight), bias)
        signs, scale = parts
        out = ScaledSums.apply(multiply(ScaledGradient.apply(input, scale), signs, None), scale)
        return out if bias is None else out + bias.to(out.dtype).view(-1, *[1] * (signs.dim() - 2))

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output (..., out) of a Linear layer for its input (..., in).

        Override it where the product can be computed faster than with the whole effective weight.
        """
        return self.product(F.linear, input, weight, bias)

    def baked(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the effective weight and bias for a plain layer.

        In a layer between binary activations, α is rounded to so few bits that sums of ±α are exact. The bias is scaled
        by the same factor. Neither changes the sign of an output.
        """
        bias = bias if bias is None else self.effective_bias(bias)
        parts = self.signs(weight) if self.between_signs else None
        if parts is None:
            return self(weight), bias
        signs, scale = parts
        rounded = rounded_scale(float(scale), signs[0].numel(), signs.dtype)
        if bias is not None and rounded:
            bias = (bias / torch.full_like(bias, float(scale))).mul_(rounded)  # a GPU would multiply by 1 / a number
        return signs * rounded, bias

    def count_kept(self, weight: Tensor | None) -> int:
        """Return how many of the layer's weights are not 0: the attribute `kept`, or all of them without one."""
        kept: Any = getattr(self, "kept", None)
        return (self.shape if weight is None else weight.shape).numel() if kept is None else int(kept)

    def from_dense(self, weight: Tensor) -> dict[str, Tensor]:
        """Return, by name, the values of the constraint's own parameters that represent a dense `weight`.

        Raises NotImplementedError for a constraint whose layer stores the weight.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps the layer's own weight")
