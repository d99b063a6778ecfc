"""The binary activation, and the function that makes an activation from its name."""

from typing import Any

import torch
from torch import Tensor, nn

from models.registry import ACTIVATIONS
from models.straight_through import StraightThrough
from utils.registry import load_object, lookup


class BinarySign(StraightThrough):
    """Sign function with the gradient of Bi-Real Net's quadratic surrogate.

    Source: Liu et al., ECCV 2018, eq. 6.

    forward:  y = sign(x). sign(0) = 0, so that after a ReLU the values are 0 and 1, as in BIPROP
    backward: dL/dx = dL/dy · 2·(1 − |x|) where |x| ≤ 1, else 0
    surrogate: f(x) = 2x − x·|x| for |x| ≤ 1, constant elsewhere
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return x.abs().mul_(-2).add_(2).clamp_(min=0).mul_(grad)


class Sign(nn.Module):
    """Binary activation sign(x), with the gradient of Bi-Real Net (see `BinarySign`).

    The values are −1, 0 and 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the element-wise sign of `x`.

        The gradient is 2·(1 − |x|) where |x| ≤ 1, else 0 (Bi-Real Net).
        """
        return BinarySign.apply(x)


def inplace_relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def make_activation(name: str) -> nn.Module:
    """Return a new activation module, given its `name`, such as "relu".

    The names are the keys of models.registry.ACTIVATIONS. Raises ValueError for an unknown name.
    """
    module: nn.Module = load_object(lookup(ACTIVATIONS, name, "activation"))()
    return module
