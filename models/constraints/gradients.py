"""Straight-through gradients: what a constraint's backward pass does that its forward pass does not say."""

import math
from typing import Any

import torch
from torch import Tensor

from models.constraints.sparse_matmul import Ones, product_of_rows


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


class ScaledSums(torch.autograd.Function):
    """Sums of whole numbers times a scale: what a layer between signs gives, behind `ScaledGradient` (no paper).

    forward:  y = α · z, in place of z
    backward: dL/dz = dL/dy, so that z = S x passes on the gradient of y = (α S) x for its weight α S

    Elsewhere than on the CPU z is rounded before: an FFT or Winograd kernel is off by less than half.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor, scale: Tensor | float) -> Tensor:
        ctx.mark_dirty(sums)
        if not sums.is_cpu:
            sums.round_()
        return sums.mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grad, None


class ScaledGradient(torch.autograd.Function):
    """The input of a layer between signs, before `ScaledSums` (no paper).

    forward:  y = x
    backward: dL/dx = α · dL/dy
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


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


class ThroughRounding(torch.autograd.Function):
    """A value in place of the one it was rounded from (straight-through: Bengio et al., arXiv:1308.3432): the weights
    of DeepShift-Q, and the fixed-point inputs and biases of DeepShift layers (Elhoushi et al., CVPR-W 2021).

    forward:  y = round(x), given ready-made as `rounded`, whatever was clamped on the way
    backward: dL/dx = dL/dy
    surrogate: y' = x

    `x` and `rounded` have one shape.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:  # noqa: ARG004
        return rounded.detach()  # view_as would lose channels_last strides of one channel

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grad, None


class ThroughShiftAndSign(torch.autograd.Function):
    """Effective weight of DeepShift-PS (Elhoushi et al., CVPR-W 2021, eq. 5 and 6, as their code has it).

    forward:  w = 2^p · s with p = round(P), s = sign(round(S)), given ready-made as `effective`
    backward: dL/dP = dL/dw · s · 2^p · ln 2 and dL/dS = dL/dw: the product is asymmetric on purpose, 2^p is no factor
        of the latter, or a weight would find it the harder to change its sign the smaller it is
    surrogate: w' = s · 2^P + S at P = p, with s held constant

    All have one shape.
    """

    @staticmethod
    def forward(ctx: Any, shift: Tensor, sign: Tensor, effective: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(effective)
        return effective.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (effective,) = ctx.saved_tensors
        return effective.mul(math.log(2)).mul_(grad), grad, None


class ThroughThreshold(torch.autograd.Function):
    """Binary weight over a real one: BinaryConnect (Courbariaux et al., NeurIPS 2015, alg. 1) with the values 0 and on
    of "Learning Digital Circuits" (Agrawal & Karlupia 2019, arXiv 1909.00052).

    forward:  w = on where |θ| ≥ ½, else 0, given ready-made as `effective`
    backward: dL/dθ = dL/dw, whatever θ and on are
    surrogate: w' = θ
    """

    @staticmethod
    def forward(ctx: Any, real: Tensor, effective: Tensor) -> Tensor:  # noqa: ARG004 (autograd's interface)
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grad, None


class ThroughOnes(torch.autograd.Function):
    """x · wᵀ with the w of `ThroughThreshold`, of which `ones` says where |θ| ≥ ½: what is 0 is not multiplied.

    forward:  y = on · (x · Bᵀ), B the matrix of `ones`
    backward: dL/dx = on · (dL/dy · B); dL/dθ = (dL/dy)ᵀ · x, dense: the zeros have their gradient too
    surrogate: y' = x · θᵀ where dL/dθ is concerned; dL/dx is exact

    Shapes: x (B, in), θ (out, in), y (B, out); x may have another dtype than θ, y has that of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, real: Tensor, ones: Ones, on: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ones, ctx.on, ctx.dtype = ones, on, real.dtype
        return ones.times(x).mul_(on)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        turned = grad.t().contiguous()  # both products want it so: with bf16's, three times as fast
        of_x = ctx.ones.transposed().times_columns(turned).t().contiguous() if ctx.needs_input_grad[0] else None
        of_real = product_of_rows(turned, x, ctx.dtype) if ctx.needs_input_grad[1] else None
        return None if of_x is None else of_x.mul_(ctx.on), of_real, None, None
