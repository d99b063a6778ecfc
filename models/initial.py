"""Initial weights: a distribution times a scale, by the rows of models.registry.INITS, as in BIPROP.

The scale "gain" is gain / √(fan · fan_scale), with the gain of the nonlinearity and fan_in or fan_out by `mode`.
torch's nn.init functions have no fan_scale, and only some of these distributions.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from models.registry import INITS
from utils.registry import lookup
from utils.torch_compat import AnyBatchNorm

Distribution = Callable[[torch.Size, float, Generator | None], Tensor]  # (shape, scale, generator) -> tensor


def _uniform(shape: torch.Size, bound: float, generator: Generator | None) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _signs(shape: torch.Size, scale: float, generator: Generator | None) -> Tensor:
    """Draw a tensor of +scale and −scale with equal probability.

    These are the signs of torch's default init, except that none is 0.
    """
    return torch.empty(shape).bernoulli_(0.5, generator=generator).mul_(2).sub_(1).mul_(scale)


DISTRIBUTIONS: dict[str, Distribution] = {  # name in a row of models.registry.INITS -> function
    "normal": lambda shape, scale, generator: torch.empty(shape).normal_(0, scale, generator=generator),
    "uniform": lambda shape, scale, generator: _uniform(shape, math.sqrt(3) * scale, generator),
    "uniform_1": _uniform,
    "signs": _signs,
    "coin": lambda shape, scale, generator: torch.empty(shape).bernoulli_(0.5, generator=generator).mul_(scale),
    "constant": lambda shape, scale, _generator: torch.full(shape, scale),
}


def fans(shape: torch.Size) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight of shape (out, in, *kernel)."""
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def initial_weight(
    shape: torch.Size,
    init: str,
    *,
    mode: str = "fan_in",
    nonlinearity: str = "relu",
    fan_scale: float = 1.0,
    generator: Generator | None = None,
) -> Tensor:
    """Draw the initial weight of a layer.

    The result is a float32 CPU tensor of `shape` (out, in, *kernel). `init` is a key of models.registry.INITS. `mode`
    ("fan_in" or "fan_out"), `nonlinearity` and `fan_scale`, a factor of the fan, apply only to the inits whose row
    lists them in `options`. Raises ValueError for an unknown init or a fan_scale of 0 or less.
    """
    row = lookup(INITS, init, "init")
    if not row.scale_fan:
        fan_scale = 1.0
    if fan_scale <= 0:
        raise ValueError(
            f"scale_fan: a fan scaled by {fan_scale:g} has no standard deviation; prune_rate must be below 1"
        )
    fan_in, fan_out = fans(shape)
    fan = (fan_out if mode == "fan_out" else fan_in) * fan_scale
    scales = {
        "gain": nn.init.calculate_gain(nonlinearity) / math.sqrt(fan),  # type: ignore[arg-type]
        "xavier": math.sqrt(2 / (fan_in + fan_out)),
        "default": 1 / math.sqrt(fan_in),
        "one": 1.0,
    }
    return DISTRIBUTIONS[row.distribution](shape, scales[row.scale], generator)


def initial_scores(shape: torch.Size, *, generator: Generator | None = None) -> Tensor:
    """Draw the initial pruning score of every weight from U(−1/√fan_in, 1/√fan_in).

    `shape` is the shape of the weight. hidden-networks (Ramanujan et al., CVPR 2020) and BIPROP use the same
    distribution.
    """
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)


@torch.no_grad()
def initialise(
    model: nn.Module,
    init: str,
    *,
    mode: str = "fan_in",
    nonlinearity: str = "relu",
    fan_scale: float = 1.0,
    bn_weight: float | None = None,
    bn_bias: float | None = None,
    bn_eps: float | None = None,
    bn_momentum: float | None = None,
    generator: Generator | None = None,
) -> None:
    """Initialise the weights, biases and batch-norm settings of `model` in place.

    `initial_weight` draws the weights of Conv2d and Linear layers. Their biases come from U(−1/√fan_in, 1/√fan_in).
    Layers draw from `generator` in the order of `model.modules()`. `bn_weight` and `bn_bias` set the weight and bias of
    every affine batch norm, `bn_eps` and `bn_momentum` the settings of every batch norm. None leaves them as they are.

    Raises ValueError as `initial_weight` does.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            shape = module.weight.shape
            weight = initial_weight(
                shape, init, mode=mode, nonlinearity=nonlinearity, fan_scale=fan_scale, generator=generator
            )
            module.weight.copy_(weight)
            if module.bias is not None:
                module.bias.copy_(_uniform(module.bias.shape, 1 / math.sqrt(fans(shape)[0]), generator))
        elif isinstance(module, AnyBatchNorm):
            module.eps = module.eps if bn_eps is None else bn_eps
            module.momentum = module.momentum if bn_momentum is None else bn_momentum
            if bn_weight is not None and module.affine:
                module.weight.fill_(bn_weight)
            if bn_bias is not None and module.affine:
                module.bias.fill_(bn_bias)
