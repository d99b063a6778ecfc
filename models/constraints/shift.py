"""DeepShift: weights that are zero or a signed power of two, so that a product with them is a shift, and fixed-point
inputs and biases (Elhoushi et al., CVPR-W 2021, arXiv:1905.13298).

The paper's code rounds inputs and biases of convolutions; of Linear layers it rounds the inputs with Q and nothing with
PS. So do these layers, unless `activation_bits` is given: then the inputs and biases of every layer are fixed point.

Effective weights are written into empty_like the parameter: where there is one input channel any other operation makes
a channels_last weight look contiguous, and so the output of its convolution, which costs a quarter of MNISTNet's step.

Rounding is half to even, or stochastic: floor + Bernoulli(fraction), in training only, from torch's generator of the
device. In evaluation the effective weight is computed once and kept until what it comes from changes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.constraints.attachment import Constraint
from models.constraints.gradients import ThroughRounding, ThroughShiftAndSign
from models.constraints.registry import FIXED_POINT, is_fixed_point
from models.constraints.subnet import identity
from utils.registry import lookup

ROUNDINGS = {"deterministic": False, "stochastic": True}
UPDATES = {"ste": False, "crude": True}
STARTS = {"uniform": False, "weights": True}
CONV_START = (-10.0, -1.0)  # the paper's code draws the shifts of a convolution from here, whatever weight_bits is


def checked_bits(weight_bits: int) -> int:
    """Raises ValueError where `weight_bits`, the sign among them, are none that a shift can have."""
    if not 2 <= weight_bits <= 8:
        raise ValueError(f"weight_bits: {weight_bits} given; sign and shift take 2 to 8 bits together")
    return weight_bits


def rounded(x: Tensor, *, stochastic: bool = False) -> Tensor:
    """x rounded to integers, half to even, or up with the probability of its fraction. A new tensor."""
    if not stochastic:
        return torch.round(x)
    low = torch.floor(x)
    return low.add_(torch.rand_like(x) < x - low)  # floor(x + uniform) would round an integer up now and then


@torch.no_grad()
def power_of_two(x: Tensor, lowest: int | None, *, stochastic: bool = False, clamp_x: bool = False) -> Tensor:
    """R(x) = sign(x) · 2^round(log2 |x|) with |x| clamped into [2^lowest, 1]; zero stays zero. A new tensor.

    With `lowest` None |x| is not clamped. `clamp_x`: x itself is clamped so as well, in place.
    """
    signs, magnitude = torch.sign(x), _wide(x.abs())
    if lowest is not None:
        magnitude.clamp_(2.0**lowest, 1)
    if clamp_x:
        torch.mul(signs, magnitude, out=x)
    exponents = rounded(magnitude.log2_(), stochastic=True) if stochastic else magnitude.log2_().round_()
    return torch.mul(exponents.exp2_(), signs, out=torch.empty_like(x))


def _wide(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is: float16 ends at 65504, bfloat16 has 8 bits."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class FixedPoint:
    """x -> floor(x · 2^fraction) / 2^fraction, clamped to [−2^(integer−1), 2^(integer−1) − 1]; straight through.

    It computes in float32 or float64, and the result is rounded to x's dtype. As a forward pre-hook of a layer it acts
    on the layer's input. Raises ValueError for bits with which nothing positive is left or the limits are no float32.
    """

    integer: int
    fraction: int

    def __post_init__(self) -> None:
        if not is_fixed_point((self.integer, self.fraction)):
            raise ValueError(f"activation_bits: {self.integer},{self.fraction} given; {FIXED_POINT}")

    def __call__(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.of(inputs[0]), *inputs[1:])

    def of(self, x: Tensor) -> Tensor:
        """x in fixed point; the gradient passes where values are clamped, too."""
        with torch.no_grad():
            half = 2.0 ** (self.integer - 1)
            fixed = _wide(x).mul(2.0**self.fraction).floor_().mul_(2.0**-self.fraction)
            fixed = fixed.clamp_(-half, half - 1).to(x.dtype)
        return ThroughRounding.apply(x, fixed) if x.requires_grad else fixed


class ShiftWeight(Constraint):
    """What both constraints share: the bits, the fixed point of inputs and biases, the weight kept in evaluation."""

    def __init__(
        self, weight: Tensor, weight_bits: int, rounding: str, activation_bits: tuple[int, ...] | None
    ) -> None:
        super().__init__()
        self.weight_bits = checked_bits(weight_bits)
        self.fixed_point = FixedPoint(*(activation_bits or (16, 16)))
        self.as_published_linear = activation_bits is None and weight.dim() == 2
        self._random = lookup(ROUNDINGS, rounding, "rounding")
        self._ready: tuple[object, Tensor] | None = None

    @property
    def stochastic(self) -> bool:
        """Whether to draw roundings now."""
        return self._random and self.training

    def input_quantiser(self) -> FixedPoint | None:
        """Return the hook on the layer's input."""
        return self.fixed_point

    def effective_bias(self, bias: Tensor) -> Tensor:
        """Return the bias in fixed point, straight through, or as it is (see the module's docstring)."""
        return bias if self.as_published_linear else self.fixed_point.of(bias)

    def train(self, mode: bool = True) -> "ShiftWeight":
        self._ready = None  # in-place writes through .data leave no other trace
        return super().train(mode)


class ShiftQWeight(ShiftWeight):
    """Constraint ShiftQ: w = R(W), R rounding to ± a power of two in [2^lowest, 1], lowest = −(2^(weight_bits−1) − 1).

    W is an ordinary weight that trains straight through R; in training it is clamped to that range in place before use.
    `shift_update="crude"`: R(W) is written over W, and R(bias) over the bias, in every pass, in evaluation too, as a
    course's notebook has it: an optimizer's step is lost unless it crosses a threshold of R. Nothing is clamped then:
    a weight of 3 becomes 4, whatever `weight_bits` is.
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
        self.crude = lookup(UPDATES, shift_update, "shift_update")

    def forward(self, weight: Tensor) -> Tensor:
        if self.crude:
            if self.training or self._ready is None or self._ready[0] != identity(weight):
                self._ready = (identity(self._overwritten(weight)), weight)
            return weight
        if not self.training:
            return ThroughRounding.apply(weight, self._cached(weight))
        effective = power_of_two(weight, self.lowest, stochastic=self.stochastic, clamp_x=True)
        return ThroughRounding.apply(weight, effective)

    def effective_bias(self, bias: Tensor) -> Tensor:
        return self._overwritten(bias) if self.crude else super().effective_bias(bias)

    @torch.no_grad()
    def _overwritten(self, parameter: Tensor) -> Tensor:
        parameter.copy_(power_of_two(parameter, None, stochastic=self.stochastic))
        return parameter

    def _cached(self, weight: Tensor) -> Tensor:
        state = identity(weight)
        if self._ready is None or self._ready[0] != state:
            self._ready = (state, power_of_two(weight, self.lowest))
        return self._ready[1]


class ShiftPSWeight(ShiftWeight):
    """Constraint ShiftPS: w = 2^p · s with p = round(P) in [lowest, 0], s = sign(round(S)) in {−1, 0, 1},
    lowest = −(2^(weight_bits−1) − 2). `shift` P and `sign` S, of the weight's shape, train in its place.

    In training P is clamped to its range in place before use. Initial values: `shift_init="uniform"`, those of the
    paper's layers by themselves, S ~ U(−1, 1) and P ~ U(lowest, 0), of a convolution U(−10, −1); `"weights"`, those of
    the layer's initial weight, from which the paper's published runs start.
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
        if not lookup(STARTS, shift_init, "shift_init"):
            low, high = CONV_START if weight.dim() > 2 else (self.lowest, 0)
            drawn = torch.empty(weight.shape).uniform_(low, high, generator=generator)
            signs = torch.empty(weight.shape).uniform_(-1, 1, generator=generator)
            start = {"shift": drawn.to(weight), "sign": signs.to(weight)}
        self.shift = nn.Parameter(start["shift"])
        self.sign = nn.Parameter(start["sign"], requires_grad=not freeze_sign)

    def input_quantiser(self) -> FixedPoint | None:
        return None if self.as_published_linear else super().input_quantiser()

    @torch.no_grad()
    def from_dense(self, weight: Tensor) -> dict[str, Tensor]:
        """`shift` and `sign` of a dense weight: P = round(log2 |w|) in its range, S = sign(w)."""
        shift = _wide(weight).abs().log2_().round_().clamp_(self.lowest, 0)
        return {"shift": shift.to(weight.dtype), "sign": torch.sign(weight)}

    @property
    def kept(self) -> int:
        """Number of weights that are not zero."""
        return int(torch.round(self.sign.detach()).count_nonzero())

    def forward(self, _weight: Tensor | None = None) -> Tensor:
        if not self.training:
            return ThroughShiftAndSign.apply(self.shift, self.sign, self._cached())
        with torch.no_grad():
            self.shift.clamp_(self.lowest, 0)
        return ThroughShiftAndSign.apply(self.shift, self.sign, self._effective())

    @torch.no_grad()
    def _effective(self) -> Tensor:
        exponents = rounded(self.shift, stochastic=self.stochastic).clamp_(self.lowest, 0)
        signs = rounded(self.sign, stochastic=self.stochastic).sign_()
        return torch.mul(exponents.exp2_(), signs, out=torch.empty_like(self.shift))

    def _cached(self) -> Tensor:
        state = identity(self.shift), identity(self.sign)
        if self._ready is None or self._ready[0] != state:
            self._ready = (state, self._effective())
        return self._ready[1]
