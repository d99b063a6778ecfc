"""Strengths of connections: coactivation or correlation of a connection's input and output.

Pure functions of a layer's input and its output before the non-linearity, after Numenta's notebook "Sparse CNN". The
notebook's f1 = f2 = f3 is `coactivation`, its f2b is `correlation`. Both compute in float32 or float64, also under
autocast.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_EXACT = 2**24  # largest number up to which float32 counts exactly
IMAGES = 16  # images at a time: as fast as all at once, with a fraction of the memory
Layer = nn.Conv2d | nn.Linear


@torch.no_grad()
def coactivation(layer: Layer, x: Tensor, y: Tensor) -> Tensor:
    """Return how often both ends of each connection are active: exact integers in float64, of the weight's shape.

    H[o,c,i,j] = Σ over batch and output positions p of [y[o,p] > 0] · [x[c, input that (c,i,j) reads for p] > 0].
    Padding is inactive. `x`, of shape (B, C, H, W) or (…, C), and `y` are the input and output of `layer`, of any float
    dtype.

    H is the weight gradient of the convolution of [x > 0] when its output has the gradient [y > 0]. So one
    backward-weight convolution computes it, without C·k·k copies of the input.
    """
    if isinstance(layer, nn.Linear):
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        parts: Iterator[Tensor] = map(_linear_counts, x.split(MAX_EXACT), y.split(MAX_EXACT))
    else:
        x, padding = _padded(layer, x)
        parts = _conv_counts(layer, x, y, padding)
    strengths = torch.zeros(layer.weight.shape, dtype=torch.float64, device=x.device)
    for part in parts:
        strengths += part
    return strengths


def _linear_counts(x: Tensor, y: Tensor) -> Tensor:
    """Return [y > 0]ᵀ [x > 0] for two matrices."""
    # Autocast does not change an operation with `out`. Its bfloat16 would count exactly to 256 only.
    counts = torch.empty(y.shape[1], x.shape[1], device=x.device)
    return torch.mm((y > 0).float().t(), (x > 0).float(), out=counts)


def _conv_counts(layer: nn.Conv2d, x: Tensor, y: Tensor, padding: list[int]) -> Iterator[Tensor]:
    """Yield the counts of a few images at a time, so few that the float dtype counts them exactly."""
    positions = y.shape[-2] * y.shape[-1]
    dtype = torch.float32 if positions <= MAX_EXACT else torch.float64
    images = max(1, min(IMAGES, MAX_EXACT // positions))
    for some_x, some_y in zip(x.split(images), y.split(images), strict=True):
        active_x, active_y = (some_x > 0).to(dtype), (some_y > 0).to(dtype)
        like, stride, dilation = layer.weight.to(dtype), list(layer.stride), list(layer.dilation)
        only_weight = [False, True, False]
        gradients = torch.ops.aten.convolution_backward(
            active_y, active_x, like, None, stride, padding, dilation, False, [0, 0], layer.groups, only_weight
        )
        yield gradients[1].round_()  # FFT and Winograd kernels are off by less than half


def _padded(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, list[int]]:
    """Return `x` and the padding (height, width) that the convolution has yet to add."""
    if isinstance(layer.padding, str):  # "same" may pad one side more than the other
        return F.pad(x, layer._reversed_padding_repeated_twice), [0, 0]
    return x, list(layer.padding)


@torch.no_grad()
def correlation(layer: Layer, x: Tensor, y: Tensor) -> Tensor:
    """Return |correlation over the batch| of both ends of each connection, averaged over output positions: float64.

    The correlation is mean_b((x − x̄)(y − ȳ)) / (std(x) std(y)), the mean with 1/B and std with 1/(B − 1), as in the
    notebook's f2b. It is 0 where a std is 0, and for a batch of fewer than two images. Shapes are those of
    `coactivation`. The positions of a Linear layer are the dimensions between the first and the last.
    """
    a, b = _standardised(x), _standardised(y)
    if isinstance(layer, nn.Linear):
        positions = math.prod(x.shape[1:-1])
        a, b = (part.reshape(len(part), positions, part.shape[-1]).mT[:, None] for part in (a, b))
        return _mean_product(a, b)
    a, padding = _padded(layer, a)
    a = F.pad(a, [padding[1], padding[1], padding[0], padding[0]])
    (height, width), (sh, sw), (dh, dw) = b.shape[-2:], layer.stride, layer.dilation
    strengths = torch.empty(layer.weight.shape, dtype=torch.float64, device=x.device)
    for i, j in itertools.product(*map(range, layer.kernel_size)):
        read = a[:, :, i * dh :, j * dw :][:, :, : (height - 1) * sh + 1 : sh, : (width - 1) * sw + 1 : sw]
        grouped = (part.unflatten(1, (layer.groups, part.shape[1] // layer.groups)).flatten(3) for part in (read, b))
        strengths[:, :, i, j] = _mean_product(*grouped)
    return strengths


def _standardised(x: Tensor) -> Tensor:
    """Return (x − mean) / std over the batch in float32; 0 where std is 0."""
    x = x.double()  # equal values then have std 0 exactly
    centred = x - x.mean(0)
    std = (centred.square().sum(0) / max(1, len(x) - 1)).sqrt()
    return torch.where(std > 0, centred / std, 0.0).float()


def _mean_product(x: Tensor, y: Tensor) -> Tensor:
    """Return |mean over the batch of x · y|, averaged over the positions.

    (B, groups, C, positions) and (B, groups, O, positions) -> (groups·O, C), float64.
    """
    batch, groups, inputs, positions = x.shape
    outputs = y.shape[2]
    total = x.new_zeros(groups, outputs, inputs, dtype=torch.float64)
    at_a_time = max(1, x.numel() // (groups * outputs * inputs))  # positions: the product is then no larger than x
    for part_x, part_y in zip(x.split(at_a_time, 3), y.split(at_a_time, 3), strict=True):
        a, b = part_y.permute(3, 1, 2, 0).flatten(0, 1), part_x.permute(3, 1, 0, 2).flatten(0, 1)
        product = torch.bmm(a, b, out=x.new_empty(len(a), outputs, inputs))  # `out`: see _linear_counts
        total += product.abs_().view(-1, groups, outputs, inputs).sum(0, dtype=torch.float64)
    return total.view(-1, inputs) / max(1, batch * positions)
