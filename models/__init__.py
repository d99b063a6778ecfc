"""The table of architectures and `build`."""

from collections.abc import Callable
from functools import partial

from torch import nn

from models.convnets import PLANS, ConvNet
from models.mlp import MLP
from utils.choose import pick

ARCHS: dict[str, Callable[..., nn.Module]] = {
    "FC": partial(MLP, hidden=(300, 100)),
    "MLP": MLP,
    **{name: partial(ConvNet, plan=plan) for name, plan in PLANS.items()},
}


def build(
    name: str,
    *,
    num_classes: int,
    in_shape: tuple[int, int, int],
    bn_type: str = "LearnedBatchNorm",
    width_mult: float = 1.0,
    **arch_options: object,
) -> nn.Module:
    """A plain network from (B, *in_shape) images to (B, num_classes) logits, constrained by nothing.

    `in_shape` is (channels, height, width). `arch_options` are the architecture's own: for MLP `hidden`, `bias`,
    `activation` and `norm`. Raises ValueError for an unknown name or an image too small for the architecture.
    """
    make = pick(ARCHS, name, "arch")
    try:
        return make(num_classes=num_classes, in_shape=in_shape, bn_type=bn_type, width_mult=width_mult, **arch_options)
    except ValueError as error:
        raise ValueError(f"arch {name}: {error}") from error
