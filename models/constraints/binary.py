"""BinaryConv: weights 0 or `on` over real weights in [0, 1] ("Learning Digital Circuits", arXiv 1909.00052)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.constraints.base import Constraint
from models.constraints.gradients import ThroughOnes, ThroughThreshold
from models.constraints.sparse_matmul import NUMPY, Ones, ones_of
from models.constraints.subnet import identity


@torch.no_grad()
def binarised(real: Tensor, on: float) -> Tensor:
    """`on` where |real| ≥ ½, else 0: a new tensor of the same type and shape."""
    return real.abs().ge(0.5).to(real.dtype).mul_(on)


class BinaryWeight(Constraint):
    """Constraint of one layer: w = on where |θ| ≥ ½, else 0; θ is the layer's weight, which trains.

    Attaching draws θ anew, in place: 1 with probability `initial_ones`, else 0. A bias is binary in the same way.
    `on` is the value of all ones of the layer, 1 unless the method changes it. Whoever steps θ keeps it in [0, 1].
    """

    def __init__(
        self, weight: Tensor, *, initial_ones: float = 0.001, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if not 0 <= initial_ones <= 1:
            raise ValueError(f"initial_ones: {initial_ones} is no share; it must be >= 0 and <= 1")
        with torch.no_grad():
            weight.copy_(torch.empty(weight.shape).bernoulli_(initial_ones, generator=generator))
        self.on = 1.0
        self._ready: tuple[object, Tensor] | None = None
        self._found: tuple[object, Ones | None] | None = None
        self._settled: tuple[object, Ones | None] | None = None

    @torch.no_grad()
    def kept_of(self, weight: Tensor | None) -> int:
        """The number of ones."""
        assert weight is not None
        return int(weight.abs().ge(0.5).sum())

    def forward(self, weight: Tensor) -> Tensor:
        return self._binarised(weight, self.on)

    def signs(self, weight: Tensor) -> tuple[Tensor, float] | None:
        """(1 where |θ| ≥ ½ and else 0, on); None where on is 1, or 0 or less."""
        return (self._binarised(weight, 1.0), self.on) if self.on > 0 and self.on != 1 else None

    def _binarised(self, weight: Tensor, on: float) -> Tensor:
        state = (identity(weight), on)
        if self.training or self._ready is None or self._ready[0] != state:
            self._ready = (state, binarised(weight, on))
        return ThroughThreshold.apply(weight, self._ready[1])

    def effective_bias(self, bias: Tensor) -> Tensor:
        """on where |b| ≥ ½, else 0."""
        return ThroughThreshold.apply(bias, binarised(bias, self.on))

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """input · wᵀ + bias: (…, in) -> (…, out), by the places of the ones alone while they are few."""
        ones = self._ones(weight)
        if ones is None:
            return super().linear(input, weight, bias)
        rows = input.reshape(-1, input.shape[-1])
        rows = rows.to(F.linear(rows[:0].detach(), weight[:0].detach()).dtype)  # what products are computed in here
        out = ThroughOnes.apply(rows, weight, ones, self.on).view(*input.shape[:-1], len(weight))
        return out if bias is None else out + self.effective_bias(bias).to(out.dtype)

    @torch.no_grad()
    def settle(self, weight: Tensor) -> None:
        """Bring θ back into [0, 1], in place, after a step. Where the ones are is seen on the way: the next pass in
        training takes that, and only that pass, for a fused optimizer's step leaves no trace."""
        if _multiplies_ones(weight):
            ones = ones_of(weight, clamp=True)
            self._settled = (identity(weight), ones)
        else:
            weight.clamp_(0, 1)

    def train(self, mode: bool = True) -> "BinaryWeight":
        self._ready = self._found = self._settled = None  # in-place writes through .data leave no other trace
        return super().train(mode)

    def _ones(self, weight: Tensor) -> Ones | None:
        """Where the ones are, looked for once a step in training, else once; None where a dense product is better."""
        state = identity(weight)
        if self.training:
            self._found, self._settled = self._settled, None
        if self._found is None or self._found[0] != state:
            self._found = (state, ones_of(weight) if _multiplies_ones(weight) else None)
        return self._found[1]


def _multiplies_ones(weight: Tensor) -> bool:
    """Whether products by the places of the ones can be had."""
    return weight.is_cpu and weight.is_contiguous() and weight.dim() == 2 and weight.dtype in NUMPY
