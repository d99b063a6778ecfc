"""DeepShift (Elhoushi et al., CVPR-W 2021, arXiv:1905.13298): weights that are zero or a signed power of two.

A product with such a weight is a bit shift. Inputs and biases are rounded to fixed point. By default these constraints
round what the paper's code rounds: the inputs and biases of convolutions, and for ShiftQ also the inputs of Linear
layers. If `activation_bits` is given, they round the inputs and biases of every layer.

Weights are rounded half to even, or stochastically: floor + Bernoulli(fraction). Stochastic rounding happens in
training only, and its random numbers come from torch's generator of the device.

Effective weights are written into empty_like(parameter). With one input channel, any other operation makes a
channels_last weight look contiguous, and therefore the output of its convolution too. A training step of MNISTNet then
takes a quarter longer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.constraints.base import Constraint
from models.constraints.gradients import ThroughRounding, ThroughShiftAndSign
from models.constraints.registry import FIXED_POINT, ROUNDINGS, SHIFT_INITS, SHIFT_UPDATES, is_fixed_point
from utils.registry import lookup

CONV_SHIFTS = (-10.0, -1.0)  # range of a convolution's initial shifts in the paper's code, for any weight_bits


def rounded(x: Tensor, *, stochastic: bool = False) -> Tensor:
    """Round a tensor to integers, half to even or stochastically.

    With `stochastic`, a value is rounded up with a probability equal to its fractional part. The result is a new
    tensor.
    """
    if not stochastic:
        return torch.round(x)
    low = torch.floor(x)
    return low.add_(torch.rand_like(x) < x - low)  # floor(x + uniform) would sometimes round an integer up


@torch.no_grad()
def power_of_two(x: Tensor, lowest: int | None, *, stochastic: bool = False, clamp_x: bool = False) -> Tensor:
    """Round a tensor to signed powers of two.

    The result is sign(x) · 2^round(log2 |x|), a new tensor. |x| is first clamped to [2^lowest, 1], unless `lowest` is
    None. Zeros stay 0. With `clamp_x` the clamped values are also written to `x`.
    """
    signs, magnitude = torch.sign(x), _wide(x.abs())
    if lowest is not None:
        magnitude.clamp_(2.0**lowest, 1)
    if clamp_x:
        torch.mul(signs, magnitude, out=x)
    exponents = rounded(magnitude.log2_(), stochastic=True) if stochastic else magnitude.log2_().round_()
    return torch.mul(exponents.exp2_(), signs, out=torch.empty_like(x))


def _wide(x: Tensor) -> Tensor:
    """Return `x` in float32, or in float64 if `x` is float64.

    Other float dtypes are too small: float16 ends at 65504, and bfloat16 has 8 bits of precision.
    """
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class FixedPoint:
    """Rounding to fixed point with the straight-through estimator.

    The object can be a forward pre-hook of a layer. `integer` is the number of bits before the point, sign included.
    `fraction` is the number of bits after the point. x becomes floor(x · 2^fraction) / 2^fraction, clamped to
    [−2^(integer−1), 2^(integer−1) − 1]. The arithmetic is in float32 or float64, and the result has the dtype of x.
    Raises ValueError if the format holds no positive number, or if its limits are not exact in float32.
    """

    integer: int
    fraction: int

    def __post_init__(self) -> None:
        if not is_fixed_point((self.integer, self.fraction)):
            raise ValueError(f"activation_bits: {self.integer},{self.fraction} given; {FIXED_POINT}")

    def __call__(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.quantise(inputs[0]), *inputs[1:])

    def quantise(self, x: Tensor) -> Tensor:
        """Round `x` to fixed point, with a straight-through gradient also where values are clamped."""
        with torch.no_grad():
            half = 2.0 ** (self.integer - 1)
            fixed = _wide(x).mul(2.0**self.fraction).floor_().mul_(2.0**-self.fraction)
            fixed = fixed.clamp_(-half, half - 1).to(x.dtype)
        return ThroughRounding.apply(x, fixed) if x.requires_grad else fixed


class ShiftWeight(Constraint):
    """Base class of the constraints whose weights are powers of two, ShiftQ and ShiftPS.

    It checks their common options, and rounds inputs and biases to fixed point.
    """

    def __init__(
        self, weight: Tensor, weight_bits: int, rounding: str, activation_bits: tuple[int, ...] | None
    ) -> None:
        super().__init__()
        if not 2 <= weight_bits <= 8:
            raise ValueError(f"weight_bits: {weight_bits} given; sign and shift take 2 to 8 bits together")
        self.weight_bits = weight_bits
        self.fixed_point = FixedPoint(*(activation_bits or (16, 16)))
        self._is_unrounded_linear = activation_bits is None and weight.dim() == 2
        self._rounds_stochastically = lookup(ROUNDINGS, rounding, "rounding")

    @property
    def stochastic(self) -> bool:
        """True if a forward pass in the current mode rounds stochastically."""
        return self._rounds_stochastically and self.training

    def input_quantiser(self) -> FixedPoint | None:
        """Return the forward pre-hook that rounds the layer's input to fixed point."""
        return self.fixed_point

    def effective_bias(self, bias: Tensor) -> Tensor:
        """Return the bias rounded to fixed point.

        The bias of a Linear layer is returned unchanged if the option `activation_bits` is not given.
        """
        return bias if self._is_unrounded_linear else self.fixed_point.quantise(bias)


class ShiftQWeight(ShiftWeight):
    """Constraint ShiftQ, which rounds the layer's weight to signed powers of two.

    The effective weight is the layer's weight W, rounded. The powers are in [2^lowest, 1] with lowest =
    −(2^(weight_bits−1) − 1). W trains by the straight-through estimator. Each training pass first clamps |W| to this
    range in place.

    With `shift_update="crude"` every forward pass, also in evaluation mode, overwrites W and the bias with their
    rounded values, as a course's notebook does. A step of the optimizer is then lost unless it is large enough to
    change the rounded value. Nothing is clamped: a weight of 3 becomes 4 for any `weight_bits`.
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
        """Return `weight` rounded to signed powers of two.

        With shift_update="crude" the rounded values also overwrite `weight`.
        """
        if self.crude:
            return self.cached(self._overwritten, weight)
        return ThroughRounding.apply(weight, self.cached(self._effective_weight, weight))

    def _effective_weight(self, weight: Tensor) -> Tensor:
        return power_of_two(weight, self.lowest, stochastic=self.stochastic, clamp_x=self.training)

    def effective_bias(self, bias: Tensor) -> Tensor:
        """Return the bias rounded to fixed point or to powers of two.

        The format is fixed point. With shift_update="crude", `bias` is instead overwritten with its values rounded to
        signed powers of two, and returned.
        """
        return self._overwritten(bias) if self.crude else super().effective_bias(bias)

    @torch.no_grad()
    def _overwritten(self, parameter: Tensor) -> Tensor:
        """Round a parameter to signed powers of two in place, and return it."""
        return parameter.copy_(power_of_two(parameter, None, stochastic=self.stochastic))


class ShiftPSWeight(ShiftWeight):
    """Constraint ShiftPS, whose weights are powers of two with trained exponents and signs.

    The effective weight is 2^p · s, with an integer shift p and a sign s in {−1, 0, 1}. p = round(P) and s =
    sign(round(S)). The parameters `shift` (P) and `sign` (S) have the shape of the layer's weight and train in its
    place. p is in [lowest, 0] with lowest = −(2^(weight_bits−1) − 2). Each training pass first clamps P to this range
    in place.

    With `shift_init="uniform"` the initial values are random, as in the layers of the paper's code: S from U(−1, 1), P
    from U(lowest, 0), or from U(−10, −1) for a convolution. With `shift_init="weights"` they are the layer's initial
    weight, rounded, as in the paper's published runs.
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
        """Return the forward pre-hook that rounds the layer's input to fixed point.

        Returns None for a Linear layer without `activation_bits`.
        """
        return None if self._is_unrounded_linear else super().input_quantiser()

    @torch.no_grad()
    def from_dense(self, weight: Tensor) -> dict[str, Tensor]:
        """Convert a dense weight to the parameters `shift` and `sign`.

        `shift` is round(log2 |weight|), clamped to [lowest, 0]. `sign` is sign(weight).
        """
        shift = _wide(weight).abs().log2_().round_().clamp_(self.lowest, 0)
        return {"shift": shift.to(weight.dtype), "sign": torch.sign(weight)}

    @property
    def kept(self) -> int:
        """Number of weights that are not zero."""
        return int(torch.round(self.sign.detach()).count_nonzero())

    def forward(self, _weight: Tensor | None = None) -> Tensor:
        """Return the effective weight, computed from the parameters `shift` and `sign` alone."""
        return ThroughShiftAndSign.apply(self.shift, self.sign, self.cached(self._effective_weight, None))

    def _effective_weight(self, _weight: None) -> Tensor:
        if self.training:
            self.shift.clamp_(self.lowest, 0)
        exponents = rounded(self.shift, stochastic=self.stochastic).clamp_(self.lowest, 0)
        signs = rounded(self.sign, stochastic=self.stochastic).sign_()
        return torch.mul(exponents.exp2_(), signs, out=torch.empty_like(self.shift))
