"""Strengths of the connections of a layer: coactivation or correlation of the input and the output of a connection.

Both are pure functions of a layer's input and of its output before the non-linearity. They come from Numenta's notebook
"Sparse CNN", where `coactivation` is called f1, f2 and f3, and `correlation` is called f2b. Both compute in float32 or
float64, also under mixed precision.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.torch_compat import padding_per_side

MAX_EXACT = 2**24  # float32 represents all integers up to this number
IMAGES = 16  # images per convolution: as fast as the whole batch, with a fraction of the memory
Layer = nn.Conv2d | nn.Linear


@torch.no_grad()
def coactivation(layer: Layer, x: Tensor, y: Tensor) -> Tensor:
    """Count how often the input and the output of each connection are both positive.

    A connection is a weight of `layer`. Its input is the value that it multiplies, and its output the value that it
    contributes to. `x` is the layer's input, `y` its output. `x` is (B, C, H, W) or (…, C). `x` and `y` have any float
    dtype. Returns exact integers in float64, of the weight's shape: H[o,c,i,j] = Σ over images and output positions p
    of [y[o,p] > 0] · [x[c,q] > 0], where q is the input position that weight (o,c,i,j) reads for p. Padding counts as
    0.

    H is the weight gradient of a convolution with the input [x > 0] and the output gradient [y > 0]. One
    backward-weight convolution therefore computes H, without C·k·k copies of the input.
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
    """Count the coactivations of each connection of a Linear layer.

    The counts are the matrix product [y > 0]ᵀ [x > 0], for `x` (N, in) and `y` (N, out).
    """
    # Autocast does not change an operation with `out`. Autocast's bfloat16 would count exactly to 256 only.
    counts = torch.empty(y.shape[1], x.shape[1], device=x.device)
    return torch.mm((y > 0).float().t(), (x > 0).float(), out=counts)


def _conv_counts(layer: nn.Conv2d, x: Tensor, y: Tensor, padding: list[int]) -> Iterator[Tensor]:
    """Yield the coactivation counts of a convolution, for a few images at a time.

    A count states how often the input and the output of a weight are both positive. `x` is the layer's input, `y` its
    output. The images are so few that a float counts exactly.
    """
    positions = y.shape[-2] * y.shape[-1]
    dtype = torch.float32 if positions <= MAX_EXACT else torch.float64
    images = max(1, min(IMAGES, MAX_EXACT // positions))
    for some_x, some_y in zip(x.split(images), y.split(images), strict=True):
        active_x, active_y, weight = (some_x > 0).to(dtype), (some_y > 0).to(dtype), layer.weight.to(dtype)
        shape = list(layer.stride), padding, list(layer.dilation), False, [0, 0], layer.groups
        only_weight = [False, True, False]  # of the gradients of input, weight and bias
        gradients = torch.ops.aten.convolution_backward(active_y, active_x, weight, None, *shape, only_weight)
        yield gradients[1].round_()  # the error of FFT and Winograd kernels is less than a half


def _padded(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, list[int]]:
    """Add any asymmetric padding to a convolution's input, and return the remaining padding.

    Returns (input, padding). The remaining padding is symmetric.
    """
    if isinstance(layer.padding, str):  # "same" may pad one side more than the other
        return F.pad(x, padding_per_side(layer)), [0, 0]
    return x, list(layer.padding)


@torch.no_grad()
def correlation(layer: Layer, x: Tensor, y: Tensor) -> Tensor:
    """Return the absolute correlation of the input and the output of each connection.

    A connection is a weight of `layer`. The correlation is taken over the batch, and its absolute value is averaged
    over the output positions. `x` (B, C, H, W) or (B, …, C) and `y` are the input and the output of `layer`. The
    positions of a Linear layer are the dimensions between the first and the last. Returns a float64 tensor of the
    weight's shape.

    The correlation is mean((x − x̄)(y − ȳ)) / (std(x) std(y)). The mean divides by B and std by B − 1, as in the
    notebook's f2b. The correlation is 0 where a std is 0, and for a batch of fewer than two images.
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
    """Standardise a tensor over the batch, in float32.

    Returns (x − mean) / std, with mean and std over the batch, or 0 where std is 0.
    """
    x = x.double()  # the std of equal values is then exactly 0
    centred = x - x.mean(0)
    std = (centred.square().sum(0) / max(1, len(x) - 1)).sqrt()
    return torch.where(std > 0, centred / std, 0.0).float()


def _mean_product(x: Tensor, y: Tensor) -> Tensor:
    """Return |mean(x · y)| over the batch for each pair of channels.

    The result is |mean of x · y over the batch|, averaged over the positions. `x` is (B, groups, C, positions), `y` is
    (B, groups, O, positions). Returns (groups·O, C) in float64.
    """
    batch, groups, inputs, positions = x.shape
    outputs = y.shape[2]
    total = x.new_zeros(groups, outputs, inputs, dtype=torch.float64)
    chunk = max(1, x.numel() // (groups * outputs * inputs))  # number of positions: the product is no larger than x
    for part_x, part_y in zip(x.split(chunk, 3), y.split(chunk, 3), strict=True):
        a, b = part_y.permute(3, 1, 2, 0).flatten(0, 1), part_x.permute(3, 1, 0, 2).flatten(0, 1)
        product = torch.bmm(a, b, out=x.new_empty(len(a), outputs, inputs))  # `out`: see _linear_counts
        total += product.abs_().view(-1, groups, outputs, inputs).sum(0, dtype=torch.float64)
    return total.view(-1, inputs) / max(1, batch * positions)
