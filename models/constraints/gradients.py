"""Straight-through gradients: functions whose backward pass is not the derivative of their forward pass.

Each docstring gives both formulas, and the surrogate: the function whose derivative the backward pass computes.
"""

import math
from typing import Any

import torch
from torch import Tensor

from models.constraints.sparse_matmul import OnesMatrix, product_of_rows
from models.straight_through import StraightThrough


class ScoreThroughMask(StraightThrough):
    """Effective weight of a multi-prize ticket with the score gradient of BIPROP.

    forward:  w = α · M · sign(W), passed as `effective`; M keeps the largest |s|
    backward: dL/ds = dL/dw · W · sign(s), elementwise, for kept and pruned entries alike, without α and M
    surrogate: w' = W · |s|: |s| replaces the mask M, and W replaces α · sign(W)

    `scores`, `weight` and `effective` have one shape. `effective` may have another dtype. `weight` gets no
    gradient. Source: Diffenderfer & Kailkhura, ICLR 2021, alg. 1.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, weight: Tensor, effective: Tensor) -> Tensor:
        ctx.save_for_backward(scores, weight)
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        scores, weight = ctx.saved_tensors
        return torch.sign(scores).mul_(weight).mul_(grad), None, None


class ScaledSums(StraightThrough):
    """Output of a layer between binary activations: whole-number sums times a scale (no paper).

    forward:  y = α · z, written over z
    backward: dL/dz = dL/dy: for z = S x the gradient of S is then that of the effective weight α S in y = (α S) x

    The missing factor α of the input's gradient comes from `ScaledGradient`. On other devices than the CPU z is rounded
    first, because FFT and Winograd kernels are off by less than half.
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


class ScaledGradient(StraightThrough):
    """Input of a layer between binary activations, used together with `ScaledSums` (no paper).

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


class ThroughSampling(StraightThrough):
    """Random mask with the gradient of its expectation (SampleSubnetConv of hidden-networks and BIPROP).

    forward:  B ~ Bernoulli(p): 1 where uniform < p, from torch's generator of the device; 0 where p is NaN
    backward: dL/dp = dL/dB
    surrogate: B' = p, the expectation of B
    """

    @staticmethod
    def forward(ctx: Any, probability: Tensor) -> Tensor:  # noqa: ARG004 (autograd's interface)
        return torch.rand_like(probability).lt(probability).to(probability.dtype)  # torch.bernoulli fails on NaN

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return grad


class ThroughRounding(StraightThrough):
    """Rounding with the straight-through estimator (Bengio et al., arXiv:1308.3432).

    forward:  y = round(x), passed as `rounded`, possibly clamped
    backward: dL/dx = dL/dy, also where values are clamped
    surrogate: y' = x

    `x` and `rounded` have one shape. It rounds the weights of DeepShift-Q and the fixed-point inputs and biases of all
    DeepShift layers (Elhoushi et al., CVPR-W 2021).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:  # noqa: ARG004
        return rounded.detach()  # view_as would lose channels_last strides of one channel

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grad, None


class ThroughShiftAndSign(StraightThrough):
    """Effective weight of DeepShift-PS (Elhoushi et al., CVPR-W 2021, eq. 5 and 6, as in their code).

    forward:  w = 2^p · s with p = round(P), s = sign(round(S)), passed as `effective`
    backward: dL/dP = dL/dw · s · 2^p · ln 2 and dL/dS = dL/dw
    surrogate: w' = s · 2^P + S at P = p, with s held constant

    The gradient of S has no factor 2^p on purpose: with it, small weights would hardly ever change their sign. All
    tensors have one shape.
    """

    @staticmethod
    def forward(ctx: Any, shift: Tensor, sign: Tensor, effective: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(effective)
        return effective.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (effective,) = ctx.saved_tensors
        return effective.mul(math.log(2)).mul_(grad), grad, None


class ThroughThreshold(StraightThrough):
    """Binary weight over a real one: BinaryConnect (Courbariaux et al., NeurIPS 2015, alg. 1) with values 0 and on.

    forward:  w = on where |θ| ≥ ½, else 0, passed as `effective`
    backward: dL/dθ = dL/dw, for any θ and on
    surrogate: w' = θ

    The values 0 and on are those of "Learning Digital Circuits" (Agrawal & Karlupia 2019, arXiv 1909.00052).
    """

    @staticmethod
    def forward(ctx: Any, real: Tensor, effective: Tensor) -> Tensor:  # noqa: ARG004 (autograd's interface)
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grad, None


class ThroughOnes(StraightThrough):
    """Product x · wᵀ with the binary weight w of `ThroughThreshold`, which skips the zeros of w.

    forward:  y = on · (x · Bᵀ), where `ones` is the matrix B: 1 where |θ| ≥ ½, else 0
    backward: dL/dx = on · (dL/dy · B); dL/dθ = (dL/dy)ᵀ · x, dense, for the zeros of w too
    surrogate: y' = x · θᵀ for the gradient of θ; the gradient of x is exact

    Shapes: x (N, in), θ (out, in), y (N, out). The dtype of x may differ from that of θ; y has the dtype of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, real: Tensor, ones: OnesMatrix, on: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ones, ctx.on, ctx.dtype = ones, on, real.dtype
        return ones.linear(x).mul_(on)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        transposed = grad.t().contiguous()  # both products need it; product_of_rows is 3 times as fast in bfloat16
        grad_x = grad_real = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.ones.transposed().matmul(transposed).t().contiguous().mul_(ctx.on)
        if ctx.needs_input_grad[1]:
            grad_real = product_of_rows(transposed, x, ctx.dtype)
        return grad_x, grad_real, None, None
