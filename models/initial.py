"""Initial weights, tensor in, tensor out: BIPROP's `init` table.

With fan = fan_in or fan_out (`mode`) and gain of the nonlinearity, std = gain / sqrt(fan).
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from utils.registry import lookup
from utils.torch_compat import AnyBatchNorm

# (shape, std, default_bound, xavier_std, generator) -> tensor
Initialiser = Callable[[torch.Size, float, float, float, Generator | None], Tensor]


def _uniform(shape: torch.Size, bound: float, generator: Generator | None) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _signs(shape: torch.Size, generator: Generator | None) -> Tensor:
    """±1 with equal chance: the sign of torch's default init, which is symmetric, without its possible zero."""
    return torch.empty(shape).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


INITIALISERS: dict[str, Initialiser] = {
    "kaiming_normal": lambda shape, std, _d, _x, g: torch.empty(shape).normal_(0, std, generator=g),
    "kaiming_uniform": lambda shape, std, _d, _x, g: _uniform(shape, math.sqrt(3) * std, g),
    "signed_constant": lambda shape, std, _d, _x, g: _signs(shape, g).mul_(std),
    "unsigned_constant": lambda shape, std, _d, _x, _g: torch.full(shape, std),
    "usc_bernoulli": lambda shape, std, _d, _x, g: torch.empty(shape).bernoulli_(0.5, generator=g).mul_(std),
    "bernoulli": lambda shape, _s, _d, _x, g: torch.empty(shape).bernoulli_(0.5, generator=g),
    "ones": lambda shape, _s, _d, _x, _g: torch.ones(shape),
    "xavier_normal": lambda shape, _s, _d, xavier, g: torch.empty(shape).normal_(0, xavier, generator=g),
    "xavier_uniform": lambda shape, _s, _d, xavier, g: _uniform(shape, math.sqrt(3) * xavier, g),
    "xavier_constant": lambda shape, _s, _d, xavier, g: _signs(shape, g).mul_(xavier),
    "standard": lambda shape, _s, default, _x, g: _uniform(shape, default, g),
    "binary": lambda shape, _s, _d, _x, g: _signs(shape, g),
}
SCALED = ("kaiming_normal", "signed_constant", "unsigned_constant", "usc_bernoulli")  # those that honour scale_fan


def fans(shape: torch.Size) -> tuple[int, int]:
    """(fan_in, fan_out) of a (out, in, *kernel) weight."""
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
    """A float32 CPU tensor of `shape` (out, in, *kernel); `fan_scale` multiplies the fan where the init honours it.

    Raises ValueError for an unknown init or a fan_scale of zero or less.
    """
    make = lookup(INITIALISERS, init, "init")
    if init not in SCALED:
        fan_scale = 1.0
    if fan_scale <= 0:
        raise ValueError(
            f"scale_fan: a fan scaled by {fan_scale:g} has no standard deviation; prune_rate must be below 1"
        )
    fan_in, fan_out = fans(shape)
    fan = (fan_out if mode == "fan_out" else fan_in) * fan_scale
    std = nn.init.calculate_gain(nonlinearity) / math.sqrt(fan)  # type: ignore[arg-type]
    return make(shape, std, 1 / math.sqrt(fan_in), math.sqrt(2 / (fan_in + fan_out)), generator)


def initial_scores(shape: torch.Size, *, generator: Generator | None = None) -> Tensor:
    """U(−1/√fan_in, 1/√fan_in): Kaiming uniform with a = √5, as hidden-networks and BIPROP draw their scores."""
    return _uniform(shape, 1 / math.sqrt(fans(shape)[0]), generator)


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
    """Draw every Conv2d and Linear weight of `model` by `init`, in module order; biases U(±1/√fan_in).

    `bn_weight` and `bn_bias` set every affine batch normalisation's weight and bias to that constant; `bn_eps` and
    `bn_momentum` are every batch normalisation's, where given.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            shape = module.weight.shape
            drawn = initial_weight(
                shape, init, mode=mode, nonlinearity=nonlinearity, fan_scale=fan_scale, generator=generator
            )
            module.weight.copy_(drawn)
            if module.bias is not None:
                module.bias.copy_(_uniform(module.bias.shape, 1 / math.sqrt(fans(shape)[0]), generator))
        elif isinstance(module, AnyBatchNorm):
            module.eps = module.eps if bn_eps is None else bn_eps
            module.momentum = module.momentum if bn_momentum is None else bn_momentum
            if bn_weight is not None and module.affine:
                module.weight.fill_(bn_weight)
            if bn_bias is not None and module.affine:
                module.bias.fill_(bn_bias)
