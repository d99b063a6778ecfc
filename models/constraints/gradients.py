"""Straight-through gradients: what a constraint's backward pass does that its forward pass does not say."""

from typing import Any

import torch
from torch import Tensor


class ScoreThroughMask(torch.autograd.Function):
    """Effective weight of a multi-prize ticket, BIPROP's score gradient (Diffenderfer & Kailkhura, ICLR 2021, alg. 1).

    forward:  w = α · M · sign(W), given ready-made as `effective` (M keeps the largest |s|)
    backward: dL/ds = dL/dw · W · sign(s), elementwise, for kept and pruned entries alike (no α, no M)
    surrogate: w' = W · |s|, whose gradient this is: the mask passes straight through to |s|, α·sign(W) stands for W

    `scores`, `weight` and `effective` have one shape; `effective` may have another dtype. No gradient reaches `weight`.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, weight: Tensor, effective: Tensor) -> Tensor:
        ctx.save_for_backward(scores, weight)
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        scores, weight = ctx.saved_tensors
        return torch.sign(scores).mul_(weight).mul_(grad), None, None


class ThroughSampling(torch.autograd.Function):
    """Which weights are drawn to be kept (hidden-networks' and BIPROP's SampleSubnetConv).

    forward:  B ~ Bernoulli(p): 1 where uniform < p, from torch's generator of the device; 0 where p is not a number
    backward: dL/dp = dL/dB: the draw passes straight through
    surrogate: B' = p, the expectation of B
    """

    @staticmethod
    def forward(ctx: Any, probability: Tensor) -> Tensor:  # noqa: ARG004 (autograd's interface)
        return torch.rand_like(probability).lt(probability).to(probability.dtype)  # bernoulli dies of a NaN

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return grad
