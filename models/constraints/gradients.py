"""Straight-through functions: their backward pass is not the derivative of their forward pass.

Each docstring gives the formulas of both passes, and the surrogate, which is the function whose derivative the backward
pass computes.
"""

import math
from typing import Any

import torch
from torch import Tensor

from models.constraints.sparse_matmul import OnesMatrix, product_of_rows
from models.straight_through import StraightThrough


class PassesGradient(StraightThrough):
    """Base class of autograd functions whose backward pass returns the incoming gradient unchanged.

    The first argument of a function gets the gradient. Other arguments get none.
    """

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *[None] * (len(ctx.needs_input_grad) - 1)


class ScoreThroughMask(StraightThrough):
    """Autograd function that gives the scores of SubnetConv a straight-through gradient.

    The effective weight of BIPROP's SubnetConv is α · M · sign(W), where the scores s select the mask M.

    forward:  w = α · M · sign(W), passed as `effective`. M is the mask of the largest |s|
    backward: dL/ds = dL/dw · W · sign(s), elementwise, for kept and pruned weights, without α and M
    surrogate: w' = W · |s|. Here |s| replaces the mask M, and W replaces α · sign(W)

    `scores`, `weight` and `effective` have the same shape. `effective` may have another dtype. `weight` gets no
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


class ScaledSums(PassesGradient):
    """Autograd function that multiplies integer sums by a scale in the forward pass only.

    The sums are the output of a layer between binary activations (no paper).

    forward:  y = α · z, written over z
    backward: dL/dz = dL/dy, without α

    For z = S x the matrix S then gets the gradient of the effective weight α S. The gradient of x lacks the factor α,
    which `ScaledGradient` adds. Except on the CPU, z is rounded first, because the error of FFT and Winograd kernels is
    less than a half.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor, scale: Tensor | float) -> Tensor:
        ctx.mark_dirty(sums)
        if not sums.is_cpu:
            sums.round_()
        return sums.mul_(scale)


class ScaledGradient(StraightThrough):
    """Identity whose backward pass multiplies the gradient by a scale α.

    forward:  y = x
    backward: dL/dx = α · dL/dy

    It is applied to the input of a layer between binary activations, together with `ScaledSums`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


class ThroughSampling(PassesGradient):
    """Autograd function that draws a random mask and has the gradient of its expectation.

    It is the mask of SampleSubnetConv in hidden-networks and BIPROP.

    forward:  B ~ Bernoulli(p), from torch's generator of the device. B is 0 where p is NaN
    backward: dL/dp = dL/dB
    surrogate: B' = p, the expectation of B
    """

    @staticmethod
    def forward(ctx: Any, probability: Tensor) -> Tensor:  # noqa: ARG004 (autograd's interface)
        return torch.rand_like(probability).lt(probability).to(probability.dtype)  # torch.bernoulli fails on NaN


class ThroughRounding(PassesGradient):
    """Rounding with the straight-through estimator (Bengio et al., arXiv:1308.3432).

    forward:  y = round(x), possibly clamped, passed as `rounded`
    backward: dL/dx = dL/dy, also where values are clamped
    surrogate: y' = x

    `x` and `rounded` have the same shape. DeepShift rounds the weights of ShiftQ in this way, and the inputs and biases
    of all its layers (Elhoushi et al., CVPR-W 2021).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:  # noqa: ARG004
        return rounded.detach()  # view_as would lose channels_last strides of one channel


class ThroughShiftAndSign(StraightThrough):
    """Autograd function that computes the effective weight of DeepShift-PS.

    Source: Elhoushi et al., CVPR-W 2021, eq. 5 and 6, as in their code.

    forward:  w = 2^p · s with p = round(P) and s = sign(round(S)), passed as `effective`
    backward: dL/dP = dL/dw · s · 2^p · ln 2 and dL/dS = dL/dw
    surrogate: w' = s · 2^P + S at P = p, with s held constant

    `shift` is P and `sign` is S. All tensors have the same shape. The gradient of S deliberately has no factor 2^p,
    because with this factor small weights would hardly ever change their sign.
    """

    @staticmethod
    def forward(ctx: Any, shift: Tensor, sign: Tensor, effective: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(effective)
        return effective.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (effective,) = ctx.saved_tensors
        return effective.mul(math.log(2)).mul_(grad), grad, None


class ThroughThreshold(PassesGradient):
    """Binarisation of a weight with the straight-through estimator of BinaryConnect.

    Source: Courbariaux et al., NeurIPS 2015, alg. 1.

    forward:  w = on where |θ| ≥ ½, else 0, passed as `effective`
    backward: dL/dθ = dL/dw, for every θ
    surrogate: w' = θ

    `real` is θ. BinaryConnect has the values −1 and 1. "Learning Digital Circuits" (Agrawal & Karlupia 2019, arXiv
    1909.00052) has the values 0 and on.
    """

    @staticmethod
    def forward(ctx: Any, real: Tensor, effective: Tensor) -> Tensor:  # noqa: ARG004 (autograd's interface)
        return effective.view_as(effective)


class ThroughOnes(StraightThrough):
    """Product of a Linear layer with a binary weight, which skips the zeros.

    The real weight θ gets a straight-through gradient.

    forward:  y = on · (x · Bᵀ), where `ones` is the matrix B with 1 where |θ| ≥ ½, else 0
    backward: dL/dx = on · (dL/dy · B) and dL/dθ = (dL/dy)ᵀ · x. The gradient of θ is dense
    surrogate: y' = x · θᵀ for the gradient of θ. The gradient of x is exact

    `real` is θ. Shapes: x (N, in), θ (out, in), y (N, out). x and θ may have different dtypes. y has the dtype of x.
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
