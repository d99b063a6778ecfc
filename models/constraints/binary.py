"""BinaryConv: weights that are 0 or 1, trained through real weights in [0, 1].

Agrawal & Karlupia, "Learning Digital Circuits", arXiv 1909.00052.
"""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from models.constraints.base import Constraint
from models.constraints.gradients import ThroughOnes, ThroughThreshold
from models.constraints.sparse_matmul import NUMPY_DTYPES, OnesMatrix, find_ones
from utils.torch_compat import tensor_version


@torch.no_grad()
def binarised(real: Tensor, on_value: float) -> Tensor:
    """Return a new tensor that is `on_value` where |real| ≥ ½, else 0."""
    return real.abs().ge(0.5).to(real.dtype).mul_(on_value)


class BinaryWeight(Constraint):
    """Constraint BinaryConv, whose weights are 0 or 1 and train through real weights.

    A weight is 1 where the real weight θ has |θ| ≥ ½, else 0. θ is the layer's weight, which trains. The constructor
    redraws θ in place: 1 with probability `initial_ones`, else 0. The layer's bias is binarised in the same way as θ.
    The ones have the value `on_value`, which is 1 unless the trainer changes it. The trainer calls `clamp_weight` after
    each step to keep θ in [0, 1].
    """

    def __init__(
        self, weight: Tensor, *, initial_ones: float = 0.001, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if not 0 <= initial_ones <= 1:
            raise ValueError(f"initial_ones: {initial_ones} given; it must be >= 0 and <= 1")
        with torch.no_grad():
            weight.copy_(torch.empty(weight.shape).bernoulli_(initial_ones, generator=generator))
        self.on_value = 1.0
        self._ones_after_clamp: tuple[object, OnesMatrix | None] | None = None

    @torch.no_grad()
    def count_kept(self, weight: Tensor | None) -> int:
        """Return the number of nonzero effective weights.

        They are the weights with |weight| ≥ ½.
        """
        assert weight is not None
        return int(weight.abs().ge(0.5).sum())

    def cache_key(self, weight: Tensor | None) -> object:
        """Return a cache key that changes with the weight and with the value of the ones."""
        return super().cache_key(weight), self.on_value

    def forward(self, weight: Tensor) -> Tensor:
        """Return the binarised weight, with a straight-through gradient.

        It is `self.on_value` (1 by default) where |weight| ≥ ½, else 0. The gradient is passed on unchanged.
        """
        return ThroughThreshold.apply(weight, self.cached(self._effective_weight, weight))

    def _effective_weight(self, weight: Tensor) -> Tensor:
        return binarised(weight, self.on_value)

    def signs(self, weight: Tensor) -> tuple[Tensor, float] | None:
        """Return the weight binarised to 0 and 1, and the value of the ones.

        The effective weight is the product of the two, which are a tensor and the factor `self.on_value`. Returns None
        if `on_value` is 1, because no factor is needed, and if it is not positive.
        """
        if self.on_value <= 0 or self.on_value == 1:
            return None
        return ThroughThreshold.apply(weight, self.cached(self._zeros_and_ones, weight)), self.on_value

    def _zeros_and_ones(self, weight: Tensor) -> Tensor:
        return binarised(weight, 1.0)

    def effective_bias(self, bias: Tensor) -> Tensor:
        """Return the binarised bias, with a straight-through gradient.

        It is `self.on_value` (1 by default) where |bias| ≥ ½, else 0. The gradient is passed on unchanged.
        """
        return ThroughThreshold.apply(bias, binarised(bias, self.on_value))

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output (…, out) of a Linear layer for its `input` (…, in).

        If few weights are ones, the product skips the zeros.
        """
        ones = self._ones(weight)
        if ones is None:
            return super().linear(input, weight, bias)
        rows = input.reshape(-1, input.shape[-1])
        rows = rows.to(F.linear(rows[:0].detach(), weight[:0].detach()).dtype)  # dtype that mixed precision may change
        out = ThroughOnes.apply(rows, weight, ones, self.on_value).view(*input.shape[:-1], len(weight))
        return out if bias is None else out + self.effective_bias(bias).to(out.dtype)

    @torch.no_grad()
    def clamp_weight(self, weight: Tensor) -> None:
        """Clamp the layer's weight to [0, 1] in place, after an optimizer step.

        The same pass over the memory finds the positions of the ones, which the next training pass needs.
        """
        if _has_ones_product(weight):
            ones = find_ones(weight, clamp=True)
            self._ones_after_clamp = tensor_version(weight), ones
        else:
            weight.clamp_(0, 1)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, and clear the values computed from the layer's weight."""
        self._ones_after_clamp = None
        return super().train(mode)

    def _ones(self, weight: Tensor) -> OnesMatrix | None:
        """Return the binarised weight as a sparse matrix, or None to use a dense product."""
        if self.training:
            # Used for one pass only, because torch's fused optimizers do not change tensor_version.
            after_clamp, self._ones_after_clamp = self._ones_after_clamp, None
            if after_clamp is not None and after_clamp[0] == tensor_version(weight):
                return after_clamp[1]
        return self.cached(self._find_ones, weight, key=tensor_version)

    def _find_ones(self, weight: Tensor) -> OnesMatrix | None:
        return find_ones(weight) if _has_ones_product(weight) else None


def _has_ones_product(weight: Tensor) -> bool:
    """Return True if the sparse product of `find_ones` supports this weight.

    The weight must be a contiguous float32 or float64 matrix on the CPU.
    """
    return weight.is_cpu and weight.is_contiguous() and weight.dim() == 2 and weight.dtype in NUMPY_DTYPES
