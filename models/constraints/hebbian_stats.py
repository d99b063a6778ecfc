"""How strong a connection is: how often its input and its output are active together, or how far they correlate.

Pure functions of a layer's input and output (before any non-linearity), after Numenta's notebook "Sparse CNN": its f1 =
f2 = f3 is `coactivation`, its f2b `correlation`. Both compute in float32 or float64 whatever autocast says.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXACT = 2**24  # float32 counts exactly up to here
IMAGES = 16  # at a time: no slower than all together, and a fraction of the memory
Layer = nn.Conv2d | nn.Linear


@torch.no_grad()
def coactivation(layer: Layer, x: Tensor, y: Tensor) -> Tensor:
    """How often x > 0 and y > 0 at the two ends of every connection: exact integers in float64, shape of the weight.

    H[o,c,i,j] = Σ over batch and output positions p of [y[o,p] > 0] · [x[c, what (c,i,j) reads for p] > 0]; padding is
    inactive. That is the gradient for the weight of the convolution of [x > 0] when [y > 0] is that of its output: one
    backward-weight convolution instead of C·k·k copies of the input. `x` (B, C, H, W) or (…, C) and `y` are input and
    output of `layer`, of any float type.
    """
    if isinstance(layer, nn.Linear):
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        parts: Iterator[Tensor] = map(_both, x.split(EXACT), y.split(EXACT))
    else:
        x, padding = _padded(layer, x)
        parts = _in_parts(layer, x, y, padding)
    strengths = torch.zeros(layer.weight.shape, dtype=torch.float64, device=x.device)
    for part in parts:
        strengths += part
    return strengths


def _both(x: Tensor, y: Tensor) -> Tensor:
    """[y > 0]ᵀ [x > 0] of two matrices; autocast, whose bfloat16 counts to 256, leaves alone what has an `out`."""
    counts = torch.empty(y.shape[1], x.shape[1], device=x.device)
    return torch.mm((y > 0).float().t(), (x > 0).float(), out=counts)


def _in_parts(layer: nn.Conv2d, x: Tensor, y: Tensor, padding: list[int]) -> Iterator[Tensor]:
    """The counts of a few images at a time, so few that none can exceed what its float type counts exactly."""
    positions = y.shape[-2] * y.shape[-1]
    kind = torch.float32 if positions <= EXACT else torch.float64
    images = max(1, min(IMAGES, EXACT // positions))
    for some_x, some_y in zip(x.split(images), y.split(images), strict=True):
        active_x, active_y = (some_x > 0).to(kind), (some_y > 0).to(kind)
        like, stride, dilation = layer.weight.to(kind), list(layer.stride), list(layer.dilation)
        only_weight = [False, True, False]
        gradients = torch.ops.aten.convolution_backward(
            active_y, active_x, like, None, stride, padding, dilation, False, [0, 0], layer.groups, only_weight
        )
        yield gradients[1].round_()  # an FFT or Winograd kernel is off by less than half


def _padded(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, list[int]]:
    """`x` and how the convolution is still to pad it: "same" may pad one side more than the other."""
    if isinstance(layer.padding, str):
        return F.pad(x, layer._reversed_padding_repeated_twice), [0, 0]
    return x, list(layer.padding)


@torch.no_grad()
def correlation(layer: Layer, x: Tensor, y: Tensor) -> Tensor:
    """|correlation over the batch| of the two ends of every connection, averaged over output positions: float64.

    mean_b((x − x̄)(y − ȳ)) / (std(x) std(y)), the mean with 1/B and std with 1/(B − 1), 0 where a std is 0 or in a batch
    of one image or none (the notebook's f2b). Shapes as of `coactivation`; positions are all dimensions of a Linear
    layer's input between the first and the last.
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
    """(x − mean) / std over the batch in float32, by way of float64, where equal values have std 0; 0 where it is."""
    x = x.double()
    centred = x - x.mean(0)
    std = (centred.square().sum(0) / max(1, len(x) - 1)).sqrt()
    return torch.where(std > 0, centred / std, 0.0).float()


def _mean_product(x: Tensor, y: Tensor) -> Tensor:
    """(B, groups, C, positions) and (B, groups, O, positions) -> (groups·O, C): |mean over the batch|, averaged."""
    batch, groups, inputs, positions = x.shape
    outputs = y.shape[2]
    total = x.new_zeros(groups, outputs, inputs, dtype=torch.float64)
    some = max(1, x.numel() // (groups * outputs * inputs))  # positions at a time: a product no larger than x
    for part_x, part_y in zip(x.split(some, 3), y.split(some, 3), strict=True):
        a, b = part_y.permute(3, 1, 2, 0).flatten(0, 1), part_x.permute(3, 1, 0, 2).flatten(0, 1)
        product = torch.bmm(a, b, out=x.new_empty(len(a), outputs, inputs))  # `out`: see _both
        total += product.abs_().view(-1, groups, outputs, inputs).sum(0, dtype=torch.float64)
    return total.view(-1, inputs) / max(1, batch * positions)
