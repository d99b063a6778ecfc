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
    learns_weight                           True if the layer's weight trains                   True
    owns_weight, shape, from_dense(weight)  True if own parameters replace the layer's weight   False
    kept (property) or count_kept(weight)   number of weights that are not 0                    they are counted
    effective_bias(bias)                    the bias that the layer adds                        the layer's bias
    input_quantiser()                       a hook that changes the layer's input               no hook
    cache_key(weight)                       key that changes with the effective weight          tensor versions
    signs(weight)                           the effective weight as α times −1, 0 and 1         no such form
    linear(input, weight, bias)             the output of a Linear layer                        F.linear

If the gradient is not the derivative of the forward pass, define a `StraightThrough` function in gradients.py that
takes the effective weight as an argument. Compute this argument with `self.cached(compute, weight)`, which computes it
in every training pass, and only once in evaluation mode. `SubnetWeight` is an example. If the gradient is the
identity, `forward` may return `effective.detach() + (weight - weight.detach())`, whose value is exactly `effective`.
The common form `weight + (effective - weight).detach()` rounds: its values are not exactly −α, 0 and α.

A new constraint is one file with its class, one row in registry.py and one case in tests/cases.py.
"""

from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.constraints.between_signs import rounded_scale
from models.constraints.gradients import ScaledGradient, ScaledSums
from utils.registry import accepted
from utils.torch_compat import tensor_version

Value = TypeVar("Value")


class Cache:
    """Cache of one value per function, which is computed again when its key changes."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[object, Any]] = {}

    def get(self, compute: Callable[..., Value], key: Callable[..., object], *arguments: Any) -> Value:
        """Return a function's value, from the cache if the key is unchanged.

        The value is compute(*arguments), computed without gradient. The key is key(*arguments).
        """
        entry = self._entries.get(compute.__name__)
        if entry is None or entry[0] != key(*arguments):
            with torch.no_grad():
                value = compute(*arguments)
            entry = key(*arguments), value  # key after computing, because ShiftQ's crude update writes to the weight
            self._entries[compute.__name__] = entry
        return entry[1]

    def clear(self) -> None:
        """Remove all cached values."""
        self._entries.clear()


class Constraint(nn.Module):
    """Base class of constraints, which map a layer's weight to the effective weight.

    `forward` is this map. The effective weight has the shape of the weight. `learns_weight = False` freezes the layer's
    weight. With `owns_weight = True` the layer stores no weight: `layer.weight` is None, and `forward` gets None. The
    constraint then has the attribute `shape`, the shape of the weight, and the method `from_dense`.

    `attach` sets `between_signs` to True if the layer's inputs come from binary activations and the network uses only
    the signs of the layer's outputs (see `sign_layers`). If all effective weights are −α, 0 or α (see `signs`), the
    layer then multiplies by −1, 0 and 1, and scales the sums by α. Such sums are exact: a sum that should be 0 is 0 on
    every device and in every order of summation. With ±α as weights, rounding errors would decide its sign.
    """

    learns_weight = True
    owns_weight = False
    between_signs = False
    shape: torch.Size

    def __init__(self, weight: Tensor | None = None) -> None:  # noqa: ARG002 (for subclasses without an __init__)
        super().__init__()
        self._cache = Cache()

    def cache_key(self, weight: Tensor | None) -> object:
        """Return a cache key that changes whenever the effective weight may have changed.

        The default key depends on the layer's weight and on the constraint's own parameters and buffers. Override this
        method if the effective weight also depends on a plain attribute, such as a density.
        """
        tensors = weight, *self.parameters(recurse=False), *self.buffers(recurse=False)
        return [tensor_version(tensor) for tensor in tensors if tensor is not None]

    def cached(
        self,
        compute: Callable[[Any], Value],
        weight: Tensor | None,
        *,
        key: Callable[[Any], object] | None = None,
        in_training: bool = False,
    ) -> Value:
        """Return compute(weight), which is cached in evaluation mode.

        The value is computed without gradient. A cached value is computed again when key(weight) changes. The default
        key is `cache_key`. The cache holds one value per function name of `compute`. In training mode nothing is
        cached, because a step of a fused optimizer does not change `tensor_version`. Pass `in_training=True` if the
        value depends on no trained parameter: it is then cached in training mode too.
        """
        if self.training and not in_training:
            with torch.no_grad():
                return compute(weight)
        return self._cache.get(compute, key or self.cache_key, weight)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, and clear all cached values.

        Cached values, such as the effective weight, must be cleared because writes through `.data` do not change
        `tensor_version`.
        """
        self._cache.clear()
        return super().train(mode)

    @classmethod
    def maker(cls, **settings: Any) -> Callable[..., "Constraint"]:
        """Return a function that makes the constraint for each layer of one network.

        The function is make(weight, generator=…). `settings` are keyword arguments of the constructor. A constructor
        that draws no random numbers need not take `generator`.
        """

        def make(weight: Tensor, generator: torch.Generator | None = None) -> Constraint:
            return cls(weight, **settings, **accepted(cls, {"generator": generator}))

        return make

    def effective_bias(self, bias: Tensor) -> Tensor:
        """Return the bias that the layer adds, computed from its stored bias.

        The default is `bias` itself.
        """
        return bias

    def input_quantiser(self) -> Callable[..., Any] | None:
        """Return a forward pre-hook that quantises the layer's input, or None.

        The default is None. The plain layer that `bake` makes keeps the hook.
        """
        return None

    def signs(self, weight: Tensor) -> tuple[Tensor, Tensor | float] | None:  # noqa: ARG002
        """Return the effective weight as a tensor of signs and a scalar factor.

        Returns (S, α) for the effective weight α · S. S has the shape of the weight and the values −1, 0 and 1, and α >
        0. Returns None if the effective weight does not have this form. `product` passes the gradient of the effective
        weight to S.
        """
        return None

    def product(self, multiply: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply `multiply` to the input, the effective weight and the effective bias.

        `multiply` is a convolution or F.linear.
        """
        bias = bias if bias is None else self.effective_bias(bias)
        parts = self.signs(weight) if self.between_signs else None
        if parts is None:
            return multiply(input, self(weight), bias)
        signs, scale = parts
        out = ScaledSums.apply(multiply(ScaledGradient.apply(input, scale), signs, None), scale)
        return out if bias is None else out + bias.to(out.dtype).view(-1, *[1] * (signs.dim() - 2))

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output (…, out) of a Linear layer for its `input` (…, in).

        Override this method if the product can be computed without the whole effective weight.
        """
        return self.product(F.linear, input, weight, bias)

    def baked(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the weight and bias of the plain layer that `bake` makes.

        They are the effective weight and bias of the constrained Conv2d or Linear layer.

        In a layer between binary activations, α is rounded to so few bits that sums of ±α are exact, and the bias is
        scaled by the same factor. This changes no sign of an output.
        """
        bias = bias if bias is None else self.effective_bias(bias)
        parts = self.signs(weight) if self.between_signs else None
        if parts is None:
            return self(weight), bias
        signs, scale = parts
        rounded = rounded_scale(float(scale), signs[0].numel(), signs.dtype)
        if bias is not None and rounded:
            # Divide by a tensor: a GPU divides by a Python number as a product with its reciprocal, which differs.
            bias = (bias / torch.full_like(bias, float(scale))).mul_(rounded)
        return signs * rounded, bias

    def count_kept(self, weight: Tensor | None) -> int:
        """Return the number of nonzero effective weights.

        By default this is the attribute `kept`. Without such an attribute, the effective weight is computed as in
        evaluation mode, and its nonzero values are counted.
        """
        kept: Any = getattr(self, "kept", None)
        if kept is not None:
            return int(kept)
        training = self.training
        self.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):  # counting must not change what training draws
            count = int(torch.count_nonzero(self(weight)))
        self.train(training)
        return count

    def from_dense(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the parameters with which the effective weight approximates a given weight.

        The result maps the names of the constraint's own parameters to their values.

        Only constraints with `owns_weight = True`, which store such parameters in place of the layer's weight, define
        this method. Others raise NotImplementedError.
        """
        raise NotImplementedError(f"{type(self).__name__} does not store the weight in own parameters")
