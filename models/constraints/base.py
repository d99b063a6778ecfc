"""The base of every constraint: how a layer multiplies by its effective weight."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.constraints.between_signs import short
from models.constraints.gradients import ScaledGradient, ScaledSums


class Constraint(nn.Module):
    """The base of every constraint: forward(weight) -> effective weight, of the same shape; owns its parameters.

    `learns_weight = False` freezes the layer's weight. With `owns_weight = True` the layer keeps none (`layer.weight`
    is None, and so is the argument of forward): `shape` is then the weight's, and `from_dense(weight)` gives the values
    of the constraint's own parameters, by name, that stand for a dense weight.

    `attach` sets `between_signs` for a layer whose inputs come from binary activations and whose outputs go to binary
    activations (`sign_layers`). Weights of one magnitude (`signs`) are multiplied as −1, 0 and 1 there and the sums
    scaled: so a sum that should be 0 is 0 on every device and in every order, where rounding would decide its sign.
    """

    learns_weight = True
    owns_weight = False
    between_signs = False
    shape: torch.Size

    @classmethod
    def maker(cls, **settings: Any) -> Callable[..., "Constraint"]:
        """Return make(weight, generator=…) for the layers of one network. `settings` go to the constructor."""
        return partial(cls, **settings)

    def effective_bias(self, bias: Tensor) -> Tensor:
        """What the layer adds in place of its `bias`; as it is unless a constraint has a rule for it."""
        return bias

    def input_quantiser(self) -> Callable[..., Any] | None:
        """A forward pre-hook that the layer gets for its inputs, and keeps when it is baked; None: none."""
        return None

    def signs(self, weight: Tensor) -> tuple[Tensor, Tensor | float] | None:  # noqa: ARG002
        """(S, α) with α · S the effective weight, S of −1, 0 and 1 and α > 0 a scalar; None where there are none such.

        A gradient for S is passed on as one for the effective weight.
        """
        return None

    def product(self, multiply: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """multiply(input, effective weight, effective bias), a convolution or a product of matrices."""
        bias = bias if bias is None else self.effective_bias(bias)
        parts = self.signs(weight) if self.between_signs else None
        if parts is None:
            return multiply(input, self(weight), bias)
        signs, scale = parts
        out = ScaledSums.apply(multiply(ScaledGradient.apply(input, scale), signs, None), scale)
        return out if bias is None else out + bias.to(out.dtype).view(-1, *[1] * (signs.dim() - 2))

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What a Linear layer gives, (..., in) -> (..., out); there may be a shorter way than by the whole weight."""
        return self.product(F.linear, input, weight, bias)

    def plain(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The effective weight and bias for a layer without constraint.

        Between signs α is rounded to so few bits that sums of ±α are exact, and the bias is scaled as α is: that
        changes no sign.
        """
        bias = bias if bias is None else self.effective_bias(bias)
        parts = self.signs(weight) if self.between_signs else None
        if parts is None:
            return self(weight), bias
        signs, scale = parts
        rounded = short(float(scale), signs[0].numel(), signs.dtype)
        if bias is not None and rounded:
            bias = (bias / torch.full_like(bias, float(scale))).mul_(rounded)  # a GPU would multiply by 1 / a number
        return signs * rounded, bias

    def kept_of(self, weight: Tensor | None) -> int:
        """How many of the layer's weights are not 0: `kept` where the constraint knows without its weight."""
        kept: Any = getattr(self, "kept", None)
        return (self.shape if weight is None else weight.shape).numel() if kept is None else int(kept)

    def from_dense(self, weight: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} keeps the layer's own weight")
