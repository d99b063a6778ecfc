"""DeepShift (Elhoushi et al., CVPR-W 2021, arXiv:1905.13298): weights that are zero or a signed power of two.

A product with such a weight is a bit shift. Inputs and biases are rounded to fixed point. The paper's code rounds the
inputs and biases of convolutions. Of Linear layers it rounds the inputs under ShiftQ and nothing under ShiftPS. These
constraints do the same, unless `activation_bits` is given: then the inputs and biases of every layer are fixed point.

Rounding is half to even, or stochastic: floor + Bernoulli(fraction), in training only, from torch's generator of the
device.

Effective weights are written into empty_like the parameter. For one input channel, any other operation makes a
channels_last weight look contiguous, and so the output of its convolution: MNISTNet's step takes a quarter longer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.constraints.gradients import ThroughRounding, ThroughShiftAndSign
from models.constraints.registry import FIXED_POINT, is_fixed_point
from utils.registry import lookup

ROUNDINGS = {"deterministic": False, "stochastic": True}
SHIFT_UPDATES = {"ste": False, "crude": True}
SHIFT_INITS = {"uniform": False, "weights": True}
CONV_SHIFTS = (-10.0, -1.0)  # range of a convolution's initial shifts in the paper's code, for any weight_bits


def checked_bits(weight_bits: int) -> int:
    """Return `weight_bits`, which include the sign. Raises ValueError unless they are 2 to 8."""
    if not 2 <= weight_bits <= 8:
        raise ValueError(f"weight_bits: {weight_bits} given; sign and shift take 2 to 8 bits together")
    return weight_bits


def rounded(x: Tensor, *, stochastic: bool = False) -> Tensor:
    """Return x rounded to integers as a new tensor: half to even, or up with the probability of its fraction."""
    if not stochastic:
        return torch.round(x)
    low = torch.floor(x)
    return low.add_(torch.rand_like(x) < x - low)  # floor(x + uniform) would sometimes round an integer up


@torch.no_grad()
def power_of_two(x: Tensor, lowest: int | None, *, stochastic: bool = False, clamp_x: bool = False) -> Tensor:
    """Return R(x) = sign(x) · 2^round(log2 |x|) as a new tensor, with |x| clamped to [2^lowest, 1]. R(0) = 0.

    If `lowest` is None, |x| is not clamped. With `clamp_x` the clamped values are also written to x.
    """
    signs, magnitude = torch.sign(x), _wide(x.abs())
    if lowest is not None:
        magnitude.clamp_(2.0**lowest, 1)
    if clamp_x:
        torch.mul(signs, magnitude, out=x)
    exponents = rounded(magnitude.log2_(), stochastic=True) if stochastic else magnitude.log2_().round_()
    return torch.mul(exponents.exp2_(), signs, out=torch.empty_like(x))


def _wide(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 if x is float64. Float16 ends at 65504, and bfloat16 has 8 bits."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class FixedPoint:
    """Rounding to fixed point with a straight-through gradient.

    x -> floor(x · 2^fraction) / 2^fraction, clamped to [−2^(integer−1), 2^(integer−1) − 1]. The arithmetic is float32
    or float64, and the result has the dtype of x. As a forward pre-hook it rounds the layer's first input. Raises
    ValueError if no positive number is left, or if the limits are not exact in float32.
    """

    integer: int
    fraction: int

    def __post_init__(self) -> None:
        if not is_fixed_point((self.integer, self.fraction)):
            raise ValueError(f"activation_bits: {self.integer},{self.fraction} given; {FIXED_POINT}")

    def __call__(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.quantise(inputs[0]), *inputs[1:])

    def quantise(self, x: Tensor) -> Tensor:
        """Return x in fixed point. The gradient also passes where values are clamped."""
        with torch.no_grad():
            half = 2.0 ** (self.integer - 1)
            fixed = _wide(x).mul(2.0**self.fraction).floor_().mul_(2.0**-self.fraction)
            fixed = fixed.clamp_(-half, half - 1).to(x.dtype)
        return ThroughRounding.apply(x, fixed) if x.requires_grad else fixed


class ShiftWeight(Constraint):
    """Base of both shift constraints: number of bits, kind of rounding, and the fixed point of inputs and biases."""

    def __init__(
        self, weight: Tensor, weight_bits: int, rounding: str, activation_bits: tuple[int, ...] | None
    ) -> None:
        super().__init__()
        self.weight_bits = checked_bits(weight_bits)
        self.fixed_point = FixedPoint(*(activation_bits or (16, 16)))
        self.as_published_linear = activation_bits is None and weight.dim() == 2
        self._rounds_stochastically = lookup(ROUNDINGS, rounding, "rounding")

    @property
    def stochastic(self) -> bool:
        """True if the current pass rounds stochastically."""
        return self._rounds_stochastically and self.training

    def input_quantiser(self) -> FixedPoint | None:
        """Return the hook on the layer's input."""
        return self.fixed_point

    def effective_bias(self, bias: Tensor) -> Tensor:
        """Return the bias in fixed point, or unchanged for a Linear layer as published (see the module's docstring)."""
        return bias if self.as_published_linear else self.fixed_point.quantise(bias)


class ShiftQWeight(ShiftWeight):
    """Constraint ShiftQ: w = R(W), where R rounds to ± a power of two in [2^lowest, 1].

    lowest = −(2^(weight_bits−1) − 1). W is the layer's weight. It trains straight through R. In training |W| is clamped
    to that range in place before use.

    `shift_update="crude"` does what a course's notebook does: every pass, also in evaluation, writes R(W) over W and
    R(bias) over the bias. An optimizer's step is then lost unless it crosses a threshold of R. Nothing is clamped: a
    weight of 3 becomes 4 for any `weight_bits`.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        weight_bits: int = 5,
        rounding: str = "deterministic",
        activation_bits: tuple[int, ...] | None = None,
        shift_update: str = "ste",
        generator: torch.Generator | None = None,  # noqa: ARG002 (nothing is drawn)
    ) -> None:
        super().__init__(weight, weight_bits, rounding, activation_bits)
        self.lowest = 1 - 2 ** (weight_bits - 1)
        self.crude = lookup(SHIFT_UPDATES, shift_update, "shift_update")

    def forward(self, weight: Tensor) -> Tensor:
        """Return R(W). The crude update also writes it over `weight`."""
        if self.crude:
            return self.cached(self._overwritten, weight)
        return ThroughRounding.apply(weight, self.cached(self._effective_weight, weight))

    def _effective_weight(self, weight: Tensor) -> Tensor:
        return power_of_two(weight, self.lowest, stochastic=self.stochastic, clamp_x=self.training)

    def effective_bias(self, bias: Tensor) -> Tensor:
        """Return the bias in fixed point, or, with the crude update, R(bias), written over `bias`."""
        return self._overwritten(bias) if self.crude else super().effective_bias(bias)

    @torch.no_grad()
    def _overwritten(self, parameter: Tensor) -> Tensor:
        """Write R(parameter) over `parameter` and return it."""
        return parameter.copy_(power_of_two(parameter, None, stochastic=self.stochastic))


class ShiftPSWeight(ShiftWeight):
    """Constraint ShiftPS: w = 2^p · s with p = round(P) in [lowest, 0] and s = sign(round(S)) in {−1, 0, 1}.

    The parameters `shift` (P) and `sign` (S) have the shape of the weight and train in its place.
    lowest = −(2^(weight_bits−1) − 2). In training P is clamped to its range in place before use.

    `shift_init="uniform"` draws initial values as the paper's layers do: S from U(−1, 1), P from U(lowest, 0), or from
    U(−10, −1) for a convolution. `shift_init="weights"` rounds the layer's initial weight, as the paper's published
    runs do.
    """

    owns_weight = True

    def __init__(
        self,
        weight: Tensor,
        *,
        weight_bits: int = 5,
        rounding: str = "deterministic",
        activation_bits: tuple[int, ...] | None = None,
        freeze_sign: bool = False,
        shift_init: str = "uniform",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(weight, weight_bits, rounding, activation_bits)
        self.shape = weight.shape
        self.lowest = 2 - 2 ** (weight_bits - 1)
        start = self.from_dense(weight)
        if not lookup(SHIFT_INITS, shift_init, "shift_init"):
            low, high = CONV_SHIFTS if weight.dim() > 2 else (self.lowest, 0)
            drawn = torch.empty(weight.shape).uniform_(low, high, generator=generator)
            signs = torch.empty(weight.shape).uniform_(-1, 1, generator=generator)
            start = {"shift": drawn.to(weight), "sign": signs.to(weight)}
        self.shift = nn.Parameter(start["shift"])
        self.sign = nn.Parameter(start["sign"], requires_grad=not freeze_sign)

    def input_quantiser(self) -> FixedPoint | None:
        """Return the hook on the layer's input, or None for a Linear layer as published."""
        return None if self.as_published_linear else super().input_quantiser()

    @torch.no_grad()
    def from_dense(self, weight: Tensor) -> dict[str, Tensor]:
        """Return `shift`, round(log2 |w|) clamped to its range, and `sign`, sign(w), of a dense weight w."""
        shift = _wide(weight).abs().log2_().round_().clamp_(self.lowest, 0)
        return {"shift": shift.to(weight.dtype), "sign": torch.sign(weight)}

    @property
    def kept(self) -> int:
        """Number of weights that are not zero."""
        return int(torch.round(self.sign.detach()).count_nonzero())

    def forward(self, _weight: Tensor | None = None) -> Tensor:
        """Return 2^p · s."""
        return ThroughShiftAndSign.apply(self.shift, self.sign, self.cached(self._effective_weight, None))

    def _effective_weight(self, _weight: None) -> Tensor:
        if self.training:
            self.shift.clamp_(self.lowest, 0)
        exponents = rounded(self.shift, stochastic=self.stochastic).clamp_(self.lowest, 0)
        signs = rounded(self.sign, stochastic=self.stochastic).sign_()
        return torch.mul(exponents.exp2_(), signs, out=torch.empty_like(self.shift))
